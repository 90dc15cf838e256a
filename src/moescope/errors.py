"""What can go wrong, said helpfully: what was found, what was expected, what to do.

A parameter stands between backticks, as in `pairs=-1`; the command line shows it as the flag it is. `UsageError` is
input that cannot be used (exit code 2), `EnvironmentFailure` is surroundings that failed: disk,
network, memory (exit code 1). `MoescopeWarning` is for what can be survived and must be counted aloud.
"""

from __future__ import annotations

import operator
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from numbers import Integral, Real
from pathlib import Path
from typing import Any

_MOST_SHOWN = 60
"""Characters of a value that a message quotes."""


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
        if value is not None and (not isinstance(value, Real) or isinstance(value, bool) or not value >= minimum):
            raise UsageError(f"`{name}={value!r}`", expected=f"{minimum} or more")


def of_type(value: Any, kind: type | tuple[type, ...], name: str, expected: str) -> None:
    """Refuses a value of another type than a parameter takes.

    Args:
        value: What a caller gave.
        kind: The types that are right.
        name: The parameter.
        expected: What it takes, in words.

    Raises:
        UsageError: Names the parameter and the type that was found.
    """
    right = isinstance(value, kind)
    if right and isinstance(value, bool) and kind is not bool and not (isinstance(kind, tuple) and bool in kind):
        right = False  # True is an int to Python alone
    if not right:
        raise UsageError(f"{_quoted(name, value)}of type {type(value).__name__}", expected=expected)


def _quoted(name: str, value: Any) -> str:
    shown = repr(value) if isinstance(value, str | bytes | Real | list | tuple | None) else ""
    return f"`{name}={shown}`, " if 0 < len(shown) <= _MOST_SHOWN else f"`{name}` is "


def whole_number(given: Any, name: str) -> int:
    """A whole number, of whatever kind (numpy's, a tensor's item).

    Raises:
        UsageError: It is something else.
    """
    if isinstance(given, bool) or not _is_whole(given):
        raise UsageError(f"{_quoted(name, given)}of type {type(given).__name__}", expected="a whole number")
    return int(given)


def whole_numbers(given: Any, name: str) -> list[int]:
    """A list of whole numbers, whatever sequence (a range, an array) they come in.

    Args:
        given: What a caller gave.
        name: The parameter.

    Raises:
        UsageError: It is no sequence, or holds something else.
    """
    expected = "whole numbers in a list, such as [0, 3]"
    if isinstance(given, str | bytes | Mapping) or not isinstance(given, Iterable):
        remedy = f"`{name}=[{given}]`" if isinstance(given, Integral) else None
        raise UsageError(f"{_quoted(name, given)}of type {type(given).__name__}", expected=expected, remedy=remedy)
    numbers = list(given)
    wrong = [item for item in numbers if isinstance(item, bool) or not _is_whole(item)]
    if wrong:
        raise UsageError(f"`{name}` holds a value of type {type(wrong[0]).__name__}", expected=expected)
    return [int(item) for item in numbers]


def numeric(given: Any, name: str) -> Any:
    """An array of finite numbers.

    Raises:
        UsageError: It is something else.
    """
    import numpy as np

    try:
        array = np.asarray(given)
    except (ValueError, TypeError) as error:
        raise UsageError(f"`{name}` is no array: {error}", expected="numbers, in lists of equal length") from error
    if array.dtype.kind not in "iuf" or not np.isfinite(array).all():
        raise UsageError(f"`{name}` holds values of type {array.dtype} that are no finite numbers", expected="numbers")
    return array


def _is_whole(item: Any) -> bool:
    """Whether this is an integer: Python's, numpy's, or a tensor's item."""
    try:
        operator.index(item)
    except TypeError:
        return False
    return True


class MoescopeWarning(UserWarning):
    """Something was left out or fell short; the message counts it."""


# Last, so that a filter that someone has set comes first: each message is shown each time, not once a process.
warnings.filterwarnings("always", category=MoescopeWarning, append=True)
# Where warnings of this context are noted; None: they are neither noted nor shown.
_NOTES: ContextVar[tuple[list[str], ...] | None] = ContextVar("moescope_notes", default=())


def warn(message: str, *, stacklevel: int = 2) -> None:
    """Warns, and notes it for the manifest of the run that this thread or task is in, whatever the filters say.

    Args:
        message: What was left out or fell short, with its count.
        stacklevel: As of `warnings.warn`, seen from the caller.
    """
    lists = _NOTES.get()
    if lists is None:
        return
    for notes in lists:
        notes.append(message)
    warnings.warn(message, MoescopeWarning, stacklevel=stacklevel + 1)


@contextmanager
def noted(notes: list[str]) -> Iterator[None]:
    """Notes what this thread or task warns of within the context."""
    lists = _NOTES.get()
    token = _NOTES.set(None if lists is None else (*lists, notes))
    try:
        yield
    finally:
        _NOTES.reset(token)


@contextmanager
def unwarned() -> Iterator[None]:
    """Within the context `warn` does nothing, in this thread or task: what it would say was said."""
    token = _NOTES.set(None)
    try:
        yield
    finally:
        _NOTES.reset(token)
