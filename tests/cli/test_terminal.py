"""What is printed: text of others commands no terminal."""

from __future__ import annotations

import ast
import io
import json
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.table import Table
from rich.text import Text

import moescope.cli
from moescope.cli import terminal

HOSTILE = "law\x1b[2J\x1b]0;owned\x07 \x9b31m \u202egpj.exe\u2066 \x7f\r\ud800"
COMMANDS = set(map(chr, [*range(9), *range(11, 32), *range(127, 160), 0x061C, 0x200E, 0x200F, 0x2028, 0x2029]))
COMMANDS |= set(map(chr, [*range(0x202A, 0x202F), *range(0x2066, 0x206A), *range(0xD800, 0xE000)]))


@given(st.text(st.characters(exclude_categories=[])))
def test_what_is_visible_holds_no_command_and_keeps_the_rest(text: str) -> None:
    shown = terminal.visible(text)
    assert not COMMANDS & set(shown)
    if not COMMANDS & set(text):
        assert shown == text


def test_in_json_it_means_the_same() -> None:
    value = {"model": HOSTILE[:-1]}
    assert json.loads(terminal.visible(json.dumps(value, ensure_ascii=False))) == value


def table() -> Table:
    made = Table(title=HOSTILE)
    made.add_column(HOSTILE)
    made.add_row(HOSTILE)
    made.add_row(Text(HOSTILE))
    return made


@pytest.mark.parametrize(
    "printing",
    [
        lambda: terminal.print_line(HOSTILE),
        lambda: terminal.print_line(HOSTILE, stream=sys.stderr),
        lambda: terminal.print_error("error", HOSTILE),
        lambda: terminal.print_note(HOSTILE),
        lambda: terminal.show(Text(HOSTILE)),
        lambda: terminal.show(table()),
        lambda: terminal.print_traceback(ValueError, ValueError(HOSTILE), None),
    ],
)
def test_no_way_of_printing_lets_a_command_through(printing, capsys) -> None:
    printing()
    shown = "".join(capsys.readouterr())
    assert "law" in shown and "\\u001b" in shown
    assert not COMMANDS & set(shown)


def test_colors_of_ours_stay(monkeypatch) -> None:
    stream = io.StringIO()
    monkeypatch.setenv("FORCE_COLOR", "1")
    screen = terminal.console(stream)
    screen.print(Text("law", style="bold red"), Text(HOSTILE))
    assert stream.getvalue().startswith("\x1b[1;31mlaw")
    assert "[2J" in stream.getvalue() and "\x1b[2J" not in stream.getvalue()


def test_nothing_is_printed_any_other_way() -> None:
    """No call of print, no write to a standard stream, no other console in the command line's files."""
    folder = Path(moescope.cli.__file__).parent
    for path in folder.rglob("*.py"):
        if path.name == "terminal.py":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                assert called not in ("print", "sys.stdout.write", "sys.stderr.write", "Console", "console"), path
