"""Settings for Django's tests: two databases of the server that the usual PG* variables name, and JUnit reports.

``DJANGO_REPORTS`` is their directory. ``DJANGO_SERVER_BINDING`` set makes Django bind parameters on the server and
prepare every statement at once, instead of writing the values into the text as it does by default.
"""

from __future__ import annotations

import os
from typing import Any

_BINDING = bool(os.environ.get("DJANGO_SERVER_BINDING"))
_PREFIX = os.environ["PGDATABASE"]


def _database(name: str) -> dict[str, Any]:
    return {
        "ENGINE": "django.db.backends.postgresql",
        "HOST": os.environ["PGHOST"],
        "PORT": os.environ["PGPORT"],
        "USER": os.environ["PGUSER"],
        "PASSWORD": os.environ.get("PGPASSWORD", ""),
        "NAME": name,
        "OPTIONS": {"server_side_binding": True, "prepare_threshold": 0} if _BINDING else {},
    }


# Django makes, and drops, a test_ database of each; the database itself is only looked at.
DATABASES = {"default": _database(_PREFIX), "other": _database(f"{_PREFIX}_other")}
SECRET_KEY = "of no use outside of these tests"
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
DEFAULT_AUTO_FIELD = "django.db.models.AutoField"
USE_TZ = False

TEST_RUNNER = "django_runner.Runner"
TEST_OUTPUT_DIR = os.environ["DJANGO_REPORTS"]
