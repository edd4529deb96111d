"""Write docs/rewriting.md: ``make docs``."""

from __future__ import annotations

from tests.docs.render import document
from tests.docs.test_rewriting import PATH

if __name__ == "__main__":
    PATH.write_text(document())
