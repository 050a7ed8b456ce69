"""One tree of errors. Each finishes its sentence: where, what, what is allowed, what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class EdgeDiffError(Exception):
    """Anything that the user can put right.

    `code` is a stable word that other programs (and the Kotlin and Swift readers) may rely on;
    `where` is a file, with the key inside it where that is known.
    """

    code = "error"

    def __init__(self, message: str, *, code: str | None = None, where: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.code = code or type(self).code
        self.where = where

    def __str__(self) -> str:
        return f"{self.where}: {self.message}" if self.where else self.message


class ConfigError(EdgeDiffError):
    """A recipe, target, plan or manifest that does not say what it must."""

    code = "config"


class ModelError(EdgeDiffError):
    """A pipeline that cannot be loaded, or whose network no family describes."""

    code = "model"


class SamplerError(EdgeDiffError):
    """A sampler that is unknown, or that has no exact step table."""

    code = "sampler"


class MethodError(EdgeDiffError):
    """A pruning or reuse method that cannot do what the recipe asks of it."""

    code = "method"


class PlanError(EdgeDiffError):
    """A plan that contradicts itself or does not belong to this model."""

    code = "plan"


class BackendError(EdgeDiffError):
    """A backend that cannot lower or run a graph."""

    code = "backend"


class MissingLibrary(EdgeDiffError):
    """A library of an optional extra is not installed."""

    code = "missing_library"


class BundleError(EdgeDiffError):
    """A bundle that must not be opened. `code` says which rule it breaks."""

    code = "bundle"


class OutputError(EdgeDiffError):
    """The result cannot be written where it was asked for."""

    code = "output"


class LinkError(EdgeDiffError):
    """A device that cannot be reached."""

    code = "link"


class EvaluationError(EdgeDiffError):
    """A quality figure that cannot be computed from what was given."""

    code = "evaluation"


def did_you_mean(word: str, allowed: Iterable[str]) -> str:
    """The end of an error about an unknown word: the nearest one, then all that are allowed."""
    names = sorted(allowed)
    if not names:
        return ""
    near = difflib.get_close_matches(word[:200], names, n=5, cutoff=0.6) if len(names) <= 5000 else []  # else, seconds
    hint = f"; did you mean '{near[0]}'?" if near else ""
    if len(names) <= 24:
        return f"{hint} (allowed: {', '.join(names)})"
    shown = near or names[:5]
    return f"{hint} ({len(names)} are known, among them {', '.join(shown)})"


def first_line(error: BaseException) -> str:
    """The first line of what a library says, without its full stop; the error's kind where it says nothing."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].rstrip(".") if lines else type(error).__name__


def unknown(kind: str, word: str, allowed: Iterable[str]) -> str:
    """`unknown <kind> '<word>'; did you mean '...'? (allowed: ...)`."""
    return f"unknown {kind} '{word}'{did_you_mean(word, allowed)}"
