"""`python -m edgediff.mil.coverage` writes edgediff/mil/OPERATIONS.md: what the evaluator computes."""

from __future__ import annotations

import inspect
from pathlib import Path

from edgediff.mil.constants import CONSTEXPR
from edgediff.mil.evaluate import FAMILIES, WRITE_STATE
from edgediff.mil.registry import MOVES, OPERATIONS

PAGE = Path(__file__).parent / "OPERATIONS.md"
HEAD = """# Operations that `edgediff.mil` evaluates

Written by `python -m edgediff.mil.coverage`; a test holds it against the table in the code. Each operation is tested
by itself against PyTorch, and against coremltools' own value inference where it has one (`tests/test_mil_ops.py`).
*Moves* says that an operation only moves values, so that nothing is rounded after it in fp16. A program with any other
operation is refused, naming it. Not computed, though named here: `upsample_bilinear` and `resize_bilinear` in sampling
modes that PyTorch has not (an error says so when it is run).
"""


def coverage_table() -> str:
    """The page, as text."""
    lines = [HEAD]
    for module in FAMILIES:
        about = (inspect.getdoc(module) or "").splitlines()[0]
        names = sorted(name for name, function in OPERATIONS.items() if function.__module__ == module.__name__)
        lines += [f"## {about.rstrip('.')}\n", "| operation | moves |", "|---|---|"]
        lines += [f"| `{name}` | {'yes' if name in MOVES else ''} |" for name in names]
        lines.append("")
    lines += ["## Compressed weights\n", "| operation | what it is |", "|---|---|"]
    for name, function in CONSTEXPR.items():
        text = " ".join((inspect.getdoc(function) or "").split("\n\n")[0].split())
        lines.append(f"| `{name}` | {text.replace('|', '/')} |")
    lines += ["", "## State\n", f"`read_state` (above), {', '.join(f'`{name}`' for name in sorted(WRITE_STATE))}.", ""]
    count = len(OPERATIONS) + len(CONSTEXPR) + len(WRITE_STATE)
    return "\n".join([*lines, f"{count} operations in all.", ""])


if __name__ == "__main__":
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(coverage_table(), encoding="utf-8")
