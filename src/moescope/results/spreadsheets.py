"""Tables as CSV that a spreadsheet reads as text where it is text."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
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
    return _each_text(frame, guarded).to_csv(
        path, index=False, lineterminator="\n", encoding="utf-8", errors="backslashreplace"
    )


def read_csv(path: str | Path) -> pd.DataFrame:
    """A table that `to_csv` wrote, with the text that it was given.

    The Parquet file beside it also keeps what is text and looks like a number.
    """
    import pandas as pd

    return _each_text(pd.read_csv(path, keep_default_na=False, na_values=[""]), unguarded)


def _each_text(frame: pd.DataFrame, change: Any) -> pd.DataFrame:
    """The table with its texts changed; each different text is looked at once."""
    from pandas.api.types import is_numeric_dtype

    changed: dict[Any, Any] = {}
    for position, name in enumerate(frame.columns):
        column = frame.iloc[:, position]
        if is_numeric_dtype(column):
            continue
        texts = {text for text in column.unique() if isinstance(text, str) and change(text) != text}
        if texts:
            changed[name] = [change(value) if value in texts else value for value in column.astype(object)]
    return frame.assign(**changed) if changed else frame
