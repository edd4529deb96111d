"""Django's test runner with JUnit reports, where dropping the test databases at the end counts as one more test."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from django.conf import settings
from xmlrunner.extra.djangotestrunner import XMLTestRunner


class Runner(XMLTestRunner):
    """Reports into the directory `TEST_OUTPUT_DIR`, a file for each class of tests."""

    def teardown_databases(self, old_config: Any, **kwargs: Any) -> None:
        """Drop them; whatever prevents it is reported, and ends the run as it does without this class."""
        case = ElementTree.Element("testcase", classname=__name__, name="the_test_databases_are_dropped")
        try:
            super().teardown_databases(old_config, **kwargs)
        except Exception as problem:
            ElementTree.SubElement(case, "error", message=str(problem))
            raise
        finally:
            report = ElementTree.Element("testsuite", name=__name__)
            report.append(case)
            ElementTree.ElementTree(report).write(Path(settings.TEST_OUTPUT_DIR) / "databases.xml")
