"""What the terminal shows: two consoles, a progress bar, and peace from other libraries' chatter."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TextIO

from rich.console import Console
from rich.text import Text

from moescope.errors import MoescopeWarning

if TYPE_CHECKING:
    from rich.table import Table

WIDTH_WITHOUT_TERMINAL = 110

_CHATTER = {
    "TRANSFORMERS_VERBOSITY": "error",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
    "DATASETS_VERBOSITY": "error",
    "HF_HUB_VERBOSITY": "error",
    "TOKENIZERS_PARALLELISM": "false",
}
_warned: set[str] = set()
_BARS = {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}


def console(stream: TextIO) -> Console:
    """A console that takes text as text: no markup, no guessed colours, no wrapping where no one looks."""
    width = None if stream.isatty() or "COLUMNS" in os.environ else WIDTH_WITHOUT_TERMINAL
    return Console(file=stream, width=width, markup=False, emoji=False, highlight=False)


def say(message: str, *, stream: TextIO | None = None) -> None:
    """Prints one plain line (or more) as it is, never wrapped."""
    print(message, file=stream or sys.stdout, flush=True)


def complain(kind: str, message: str) -> None:
    """Prints `kind: message` to stderr, the kind in colour where there is colour."""
    line = Text(f"{kind}: ", style={"error": "bold red", "warning": "yellow"}.get(kind, ""))
    console(sys.stderr).print(line.append(Text(message, style="default")), soft_wrap=True)


def note(message: str) -> None:
    """Prints one plain line to stderr about something the reader may not expect, unless a warning said it already."""
    line = _line(message)
    if line not in _warned:
        say(f"note: {line}", stream=sys.stderr)


def _line(message: object) -> str:
    return " ".join(str(message).split())


def show(what: Table | Text) -> None:
    """Prints a table or a styled line to stdout."""
    console(sys.stdout).print(what)


def quieten(*, verbose: bool, downloads: bool) -> None:
    """Silences other libraries, unless `verbose`; our own warnings become one plain line each.

    To be called before those libraries are imported.

    Args:
        verbose: Leave everything as loud as it comes.
        downloads: Whether something may be fetched, so that a bar of theirs is worth its lines on a terminal.
    """
    if not verbose:
        for name, value in _CHATTER.items():
            os.environ.setdefault(name, value)
        logging.basicConfig(level=logging.ERROR)
    if not (downloads and sys.stderr.isatty()):
        os.environ.update(_BARS)
        if "transformers" in sys.modules:  # called from Python: the environment was read long ago
            sys.modules["transformers"].logging.disable_progress_bar()
    shown_otherwise = warnings.showwarning

    def show_warning(message: Warning | str, category: type[Warning], *where: object) -> None:
        if issubclass(category, MoescopeWarning):
            _warned.add(_line(message))
            complain("warning", _line(message))
        elif verbose:
            shown_otherwise(message, category, *where)  # type: ignore[arg-type]

    warnings.showwarning = show_warning  # type: ignore[assignment]
    warnings.simplefilter("always", MoescopeWarning)


@contextmanager
def working(what: str) -> Iterator[None]:
    """A spinner on stderr beside `what` while something long is done; nothing when that is no terminal."""
    screen = console(sys.stderr)
    if not screen.is_terminal:
        yield
        return
    with screen.status(Text(what)):
        yield


@contextmanager
def counting(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """A progress bar on stderr towards `total` tokens; nothing when that is no terminal.

    Yields:
        A function to be called with the number of tokens just done.
    """
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = [
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("tokens"),
        TimeRemainingColumn(),
    ]
    screen = console(sys.stderr)
    with Progress(*columns, console=screen, transient=True, disable=not screen.is_terminal) as progress:
        task = progress.add_task(what, total=total)
        yield lambda done: progress.advance(task, done)
