"""`python -m edgediff` is `edgediff`."""

from __future__ import annotations

import sys

from edgediff.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
