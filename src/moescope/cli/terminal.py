"""What the terminal shows: two consoles, a progress bar, and no third-party logs."""

from __future__ import annotations

import logging
import os
import re
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, TextIO

from rich.console import Console, ConsoleOptions, ConsoleRenderable, RenderHook, RenderResult
from rich.segment import Segment
from rich.text import Text

from moescope.errors import MoescopeWarning

if TYPE_CHECKING:
    from types import TracebackType

    from rich.table import Table

WIDTH_WITHOUT_TERMINAL = 110

_THIRD_PARTY_LOGS = {
    "TRANSFORMERS_VERBOSITY": "error",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
    "DATASETS_VERBOSITY": "error",
    "HF_HUB_VERBOSITY": "error",
    "TOKENIZERS_PARALLELISM": "false",
}
# C0 but for tab and line feed, delete and C1, marks of direction, line separators, halves of surrogate pairs.
_COMMANDS = re.compile(
    "[\\x00-\\x08\\x0b-\\x1f\\x7f-\\x9f\\u061c\\u200e\\u200f\\u2028-\\u202e\\u2066-\\u2069\\ud800-\\udfff]"
)
_printed: set[str] = set()
_flags: dict[str, str] = {}
_PROGRESS_BARS = {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}


def use_flags(flags: Mapping[str, str]) -> None:
    """Sets which parameters have which flags in the command that runs.

    Args:
        flags: Parameter name -> flag.
    """
    _flags.clear()
    _flags.update(flags)


def as_flags(text: str) -> str:
    """A library's message with its parameters as the command line spells them: `num_tokens=0` becomes --num-tokens 0.

    What stands between backticks and is a parameter of the command that runs is replaced.
    """

    def flag(match: re.Match[str]) -> str:
        name, value = match["name"], match["value"]
        if name not in _flags:
            return match[0]
        if value in (None, "True"):
            return _flags[name]
        return _flags[name].replace("--", "--no-", 1) if value == "False" else f"{_flags[name]} {value}"

    return re.sub(r"`(?P<name>[a-z_]+)(=(?P<value>[^`]*))?`", flag, text)


def visible(text: str) -> str:
    r"""The text with all that would command a terminal, or turn its lines around, written as `\u001b`.

    These are control characters but for the ends of lines and tabs, marks of the direction of writing, and what is no
    character. Text that others wrote (domains, tokens, documents, file names, configurations) is printed by us, and
    everything that is printed comes through here. In JSON what is written so means the same.
    """
    return _COMMANDS.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


class _Visible(RenderHook):
    """Has a console print all text by `visible`, and its own colors as they are."""

    def process_renderables(self, renderables: list[ConsoleRenderable]) -> list[ConsoleRenderable]:
        return [_VisibleText(renderable) for renderable in renderables]


class _VisibleText:
    def __init__(self, shown: ConsoleRenderable) -> None:
        self.shown = shown

    def __rich_console__(self, screen: Console, options: ConsoleOptions) -> RenderResult:
        for segment in screen.render(self.shown, options):
            yield segment if segment.control else Segment(visible(segment.text), segment.style)


def console(stream: TextIO) -> Console:
    """A console that takes text as text: no markup, no guessed colors, no wrapping where no one looks."""
    width = None if stream.isatty() or "COLUMNS" in os.environ else WIDTH_WITHOUT_TERMINAL
    made = Console(file=stream, width=width, markup=False, emoji=False, highlight=False)
    made.push_render_hook(_Visible())
    return made


def print_line(message: str, *, stream: TextIO | None = None) -> None:
    """Prints one plain line (or more), never wrapped."""
    print(visible(message), file=stream or sys.stdout, flush=True)


def print_traceback(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Prints a traceback as Python does, for `sys.excepthook`: an error's message may quote what others wrote."""
    print_line("".join(traceback.format_exception(kind, error, trace)).rstrip("\n"), stream=sys.stderr)


def print_error(kind: str, message: str) -> None:
    """Prints `kind: message` to stderr, the kind in color where there is color."""
    line = Text(f"{kind}: ", style={"error": "bold red", "warning": "yellow"}.get(kind, ""))
    console(sys.stderr).print(line.append(Text(message, style="default")), soft_wrap=True)


def print_note(message: str) -> None:
    """Prints one plain line to stderr about something the reader may not expect, unless a warning said it already."""
    line = as_flags(_line(message))
    if line not in _printed:
        print_line(f"note: {line}", stream=sys.stderr)


def _line(message: object) -> str:
    return " ".join(str(message).split())


def show(what: Table | Text) -> None:
    """Prints a table or a styled line to stdout."""
    console(sys.stdout).print(what)


@contextmanager
def quiet(*, verbose: bool, downloads: bool) -> Iterator[None]:
    """Silences other libraries, unless `verbose`; our own warnings become one plain line each. Restored on leaving.

    To be entered before those libraries are imported.

    Args:
        verbose: Leave other libraries' logs as they are.
        downloads: Whether something may be fetched, so that a progress bar is worth its lines on a terminal.
    """
    wanted = {} if verbose else {name: os.environ.get(name, value) for name, value in _THIRD_PARTY_LOGS.items()}
    if not (downloads and sys.stderr.isatty()):
        wanted |= _PROGRESS_BARS
    before = {name: os.environ.get(name) for name in wanted}
    root, level = logging.getLogger(), logging.getLogger().level
    with ExitStack() as restored, warnings.catch_warnings():
        restored.callback(_set_environment, before)
        restored.callback(root.setLevel, level)
        restored.callback(_printed.clear)
        _set_environment(wanted)
        if not verbose:
            root.setLevel(logging.ERROR)
        if "HF_HUB_DISABLE_PROGRESS_BARS" in wanted and "transformers" in sys.modules:  # it read the environment before
            logs = sys.modules["transformers"].logging
            if logs.is_progress_bar_enabled():
                logs.disable_progress_bar()
                restored.callback(logs.enable_progress_bar)
        show_otherwise = warnings.showwarning

        def show_warning(message: Warning | str, category: type[Warning], *where: object) -> None:
            if issubclass(category, MoescopeWarning):
                line = as_flags(_line(message))
                _printed.add(line)
                print_error("warning", line)
            elif verbose:
                show_otherwise(message, category, *where)  # type: ignore[arg-type]

        warnings.showwarning = show_warning  # type: ignore[assignment]
        warnings.simplefilter("always", MoescopeWarning)
        yield


def _set_environment(values: Mapping[str, str | None]) -> None:
    for name, value in values.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


@contextmanager
def working(what: str) -> Iterator[None]:
    """A spinner on stderr beside `what` while something long is done; nothing when that is no terminal."""
    screen = console(sys.stderr)
    if not screen.is_terminal:
        yield
        return
    with screen.status(Text(visible(what))):
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
