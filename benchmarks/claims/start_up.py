"""How long `import edgediff` and a quick command take, beside an empty interpreter, in turns.

    python benchmarks/claims/start_up.py

Prints the median and the range over 15 rounds, wall clock, each in an interpreter of its own.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

STATEMENTS = {
    "empty interpreter": "pass",
    "import edgediff": "import edgediff",
    "edgediff recipes": "from edgediff.cli.main import main; main(['recipes'])",
}
ROUNDS = 15


def main() -> None:
    taken: dict[str, list[float]] = {name: [] for name in STATEMENTS}
    for _ in range(ROUNDS):
        for name, statement in STATEMENTS.items():
            start = time.perf_counter()
            subprocess.run([sys.executable, "-c", statement], check=True, stdout=subprocess.DEVNULL)
            taken[name].append((time.perf_counter() - start) * 1000)
    for name, values in taken.items():
        print(f"{name:<20}{statistics.median(values):>7.0f} ms  ({min(values):.0f} to {max(values):.0f})")


if __name__ == "__main__":
    main()
