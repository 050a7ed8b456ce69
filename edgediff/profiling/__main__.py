"""The measuring process: one job as JSON in, JSON lines out."""

from __future__ import annotations

import sys

from edgediff.profiling.worker import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
