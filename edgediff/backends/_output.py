"""What libraries print, by Python or below it, kept from the terminal and read for what they complain of."""

from __future__ import annotations

import contextlib
import io
import os
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

OUT, ERR = 1, 2


class Said:
    """What was printed so far."""

    def __init__(self, file: Any, text: io.StringIO) -> None:
        self._file, self._text = file, text

    def lines(self) -> list[str]:
        sys.stdout.flush()
        self._file.seek(0)
        below = str(self._file.read(), errors="replace")
        return (below + self._text.getvalue()).splitlines()


@contextlib.contextmanager
def hear_output(*streams: int) -> Iterator[Said]:
    """Within it what is written to the file descriptors `streams`, by whatever code, goes into a file; and Python's own
    standard output with `OUT`."""
    text, kept = io.StringIO(), [os.dup(number) for number in streams]
    with tempfile.TemporaryFile() as file:
        sys.stdout.flush()
        for number in streams:
            os.dup2(file.fileno(), number)
        try:
            with contextlib.ExitStack() as stack:
                if OUT in streams:
                    stack.enter_context(contextlib.redirect_stdout(text))
                    stack.enter_context(contextlib.redirect_stderr(text))
                yield Said(file, text)
        finally:
            for number, old in zip(streams, kept, strict=True):
                os.dup2(old, number)
                os.close(old)
