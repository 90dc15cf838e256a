"""What can go wrong, said helpfully: what was found, what was expected, what to do.

A parameter stands between backticks, as in `pairs=-1`; the command line shows it as the flag it is. `UsageError` is
input that cannot be used (exit code 2), `EnvironmentFailure` is surroundings that failed: disk,
network, memory (exit code 1). `MoescopeWarning` is for what can be survived and must be counted aloud.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any


MOST_FAILURES_NAMED = 5


class MoescopeError(Exception):
    """Base of all errors that moescope raises on purpose.

    Args:
        found: What there is, in one sentence.
        expected: What was needed instead.
        remedy: What the reader can do now.
    """

    exit_code = 1

    def __init__(self, found: str, *, expected: str | None = None, remedy: str | None = None) -> None:
        self.found = found
        self.expected = expected
        self.remedy = remedy
        parts = [found]
        if expected:
            parts.append(f"Expected: {expected}")
        if remedy:
            parts.append(f"What to do: {remedy}")
        super().__init__("\n".join(parts))


class UsageError(MoescopeError, ValueError):
    """Input that cannot be used as it is; nothing was written. Exit code 2."""

    exit_code = 2


class ModelError(UsageError):
    """A model that cannot be loaded or looked into."""


class CorpusError(UsageError):
    """A corpus that cannot be read or does not hold what was asked of it."""


class ResultsError(UsageError):
    """A results folder that cannot be written or read as asked."""


class EnvironmentFailure(MoescopeError):
    """The surroundings failed: disk, network, memory. Exit code 1."""


class AnalysisFailed(MoescopeError):
    """An analysis failed after the text was read; what the others answered is kept.

    Args:
        name: The analysis.
        error: What went wrong; also the cause of this error.
        run: All that was answered: a `Run`, which can be saved.
    """

    def __init__(self, name: str, error: Exception, run: Any) -> None:
        self.run = run
        self.exit_code = error.exit_code if isinstance(error, MoescopeError) else 1
        super().__init__(f"{name} failed: {getattr(error, 'found', None) or f'{type(error).__name__}: {error}'}")


class IncompleteResults(MoescopeError):
    """Something of a finished run could not be made; the rest is in its results folder. Exit code 1.

    Args:
        path: The folder.
        failures: What could not be made, and why.
    """

    def __init__(self, path: Path, failures: Sequence[str]) -> None:
        self.path = path
        self.failures = list(failures)
        more = len(failures) - MOST_FAILURES_NAMED
        said = "; ".join(failures[:MOST_FAILURES_NAMED]) + (f"; and {more} more" if more > 0 else "")
        super().__init__(
            f"could not be made: {said}",
            remedy=f"everything else is in {path}, whose failures.txt has the details",
        )


def at_least(minimum: float, **given: float | None) -> None:
    """Refuses numbers below a minimum; None is none.

    Args:
        minimum: The least that is allowed.
        **given: Parameters by name.

    Raises:
        UsageError: Names the parameter and its value.
    """
    for name, value in given.items():
        if value is not None and value < minimum:
            raise UsageError(f"`{name}={value}`", expected=f"{minimum} or more")


class MoescopeWarning(UserWarning):
    """Something was left out or fell short; the message counts it."""
