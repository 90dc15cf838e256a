"""What can go wrong, said helpfully: what was found, what was expected, what to do.

`UsageError` is input that cannot be used (exit code 2), `EnvironmentFailure` is surroundings that failed: disk,
network, memory (exit code 1). `MoescopeWarning` is for what can be survived and must be counted aloud.
"""

from __future__ import annotations


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


class MoescopeWarning(UserWarning):
    """Something was left out or fell short; the message counts it."""
