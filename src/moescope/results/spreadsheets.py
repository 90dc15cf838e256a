"""Tables as CSV that a spreadsheet reads as text where it is text."""

from __future__ import annotations

import csv
import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import pandas as pd

# What spreadsheets take for the beginning of a formula. Apostrophes before it count, so that one more can be undone.
_FORMULA = re.compile(r"'*[=+\-@\t\r]")
_GUARDED = re.compile(r"'+[=+\-@\t\r]")


def guarded(value: Any) -> Any:
    """Text that a spreadsheet would run, with an apostrophe before it; everything else as it is."""
    return f"'{value}" if isinstance(value, str) and _FORMULA.match(value) else value


def unguarded(value: Any) -> Any:
    """What `guarded` was given."""
    return value[1:] if isinstance(value, str) and _GUARDED.match(value) else value


def to_csv(frame: pd.DataFrame, path: Path | None = None) -> str | None:
    """Writes a table as CSV, or returns it where no path is given; numbers are untouched, and so is the table."""
    # Python's writer leaves a carriage return unquoted, and readers take it for the end of a line.
    returns = any("\r" in text for texts in _texts(frame).values() for text in texts)
    text: str | None = _each_text(frame, guarded).to_csv(
        path,
        index=False,
        lineterminator="\n",
        encoding="utf-8",
        errors="backslashreplace",
        quoting=csv.QUOTE_NONNUMERIC if returns else csv.QUOTE_MINIMAL,
    )
    return text


def read_csv(path: str | Path) -> pd.DataFrame:
    """A table that `to_csv` wrote, with the text that it was given.

    The Parquet file beside it also keeps what is text and looks like a number.
    """
    import pandas as pd

    return _each_text(pd.read_csv(path, keep_default_na=False, na_values=[""]), unguarded)


def _texts(frame: pd.DataFrame) -> dict[Any, set[str]]:
    """The different texts of each column that has some."""
    from pandas.api.types import is_numeric_dtype

    columns = {name: frame.iloc[:, position] for position, name in enumerate(frame.columns)}
    return {
        name: texts
        for name, column in columns.items()
        if not is_numeric_dtype(column) and (texts := {text for text in column.unique() if isinstance(text, str)})
    }


def _each_text(frame: pd.DataFrame, change: Callable[[Any], Any]) -> pd.DataFrame:
    """The table with its texts changed; each different text is looked at once."""
    changed = {
        name: [change(value) for value in frame[name].astype(object)]
        for name, texts in _texts(frame).items()
        if any(change(text) != text for text in texts)
    }
    return frame.assign(**changed) if changed else frame
