"""What the page shows of tables and figures: values made readable, pictures made part of the page."""

from __future__ import annotations

import base64
import io
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from PIL import Image

from moescope.results.text import MISSING, number

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd

MOST_ROWS = 400
CSS_PIXELS_PER_INCH = 118.0
"""Eight-point print becomes 13 pixels: figures read at the size of the page's small text."""
WIDE_INCHES = 4.5
MOST_DESCRIBED = 2000
"""Characters of a picture's description that are read."""
DEFAULT_DPI = 72.0
"""Of a PNG that does not state its resolution."""


@dataclass(frozen=True)
class Cell:
    """One value: as shown, and as sorted by."""

    text: str
    key: str


@dataclass(frozen=True)
class TableView:
    """A table of the folder; `rows` is empty where there are too many to read, `file` where the page stands alone."""

    name: str
    file: str
    num_rows: int
    columns: list[str]
    numeric: list[bool]
    rows: list[list[Cell]]


@dataclass(frozen=True)
class FigureView:
    """A picture: its file or a data URI, what it shows for those who can't see it, its size in CSS pixels."""

    name: str
    source: str
    files: dict[str, str]
    caption: str
    description: str
    width: int
    height: int
    wide: bool


def view_table(name: str, frame: pd.DataFrame, file: Path, *, single_file: bool = False) -> TableView:
    """A table for the page: all of it, or none of its rows where they are more than anyone reads."""
    from pandas.api.types import is_bool_dtype, is_numeric_dtype

    numeric = [is_numeric_dtype(frame[column]) and not is_bool_dtype(frame[column]) for column in frame.columns]
    rows = []
    if len(frame) <= MOST_ROWS:
        for record in frame.itertuples(index=False):
            rows.append([_cell(value, kind) for value, kind in zip(record, numeric, strict=True)])
    link = "" if single_file else f"tables/{file.name}"
    return TableView(name, link, len(frame), list(map(str, frame.columns)), numeric, rows)


def _cell(value: Any, numeric: bool) -> Cell:
    if numeric:
        missing = value is None or math.isnan(value)
        return Cell(MISSING if missing else number(value), "" if missing else repr(float(value)))
    missing = value is None or value != value  # NaN alone differs from itself
    return Cell("" if missing else str(value), "" if missing else str(value))


def view_figure(name: str, path: Path, caption: str, *, single_file: bool = False) -> FigureView:
    """A PNG file on the page, at a width that keeps its print readable.

    Args:
        name: The figure's.
        path: The PNG; its `Description`, if it has one, is the text for those who can't see it.
        caption: What stands below.
        single_file: The picture becomes a part of the page, which links to no files.
    """
    data = path.read_bytes()
    with Image.open(io.BytesIO(data)) as picture:
        width, height = picture.size
        pixels_per_inch = float(picture.info.get("dpi", (DEFAULT_DPI,))[0])
        description = str(picture.info.get("Description", ""))[:MOST_DESCRIBED]
    inches = width / pixels_per_inch
    kinds = [] if single_file else [kind for kind in ("pdf", "png") if path.with_suffix(f".{kind}").exists()]
    return FigureView(
        name=name,
        source=f"data:image/png;base64,{base64.b64encode(data).decode('ascii')}"
        if single_file
        else f"figures/{quote(path.name)}",
        files={kind.upper(): f"figures/{name}.{kind}" for kind in kinds},
        caption=caption,
        description=description or f"Figure {name.replace('_', ' ')}, without a description.",
        width=round(inches * CSS_PIXELS_PER_INCH),
        height=round(height / pixels_per_inch * CSS_PIXELS_PER_INCH),
        wide=inches > WIDE_INCHES,
    )
