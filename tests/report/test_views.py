"""Values as people read them, pictures at the size they were made for."""

import math

import numpy as np
import pandas as pd
import pytest

from moescope.report.views import view_figure, view_table
from moescope.results.text import number, percent
from tests.report.folders import png


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (12345, "12,345"),
        (np.int64(7), "7"),
        (3.0, "3"),
        (0.12345, "0.123"),
        (2.0e-5, "2.00e-05"),
        (123.456, "123"),
        (12345.6, "12,346"),
        (-1.2345, "-1.23"),
        (9.996, "10.0"),
        (math.nan, "–"),
        (None, "–"),
        (math.inf, "–"),
    ],
)
def test_number(value, text):
    assert number(value) == text


def test_percent():
    assert percent(0.125) == "12.5 %"
    assert percent(math.nan) == "–"


def test_missing_values_sort_last_and_show_as_missing(tmp_path):
    frame = pd.DataFrame({"layer": [1, 2], "value": [0.5, math.nan], "name": ["a", None], "flag": [True, False]})
    view = view_table("t", frame, tmp_path / "t.csv")
    assert view.numeric == [True, True, False, False]
    assert [[cell.text for cell in row] for row in view.rows] == [["1", "0.500", "a", "True"], ["2", "–", "", "False"]]
    assert view.rows[1][1].key == ""
    assert view.file == "tables/t.csv"


@pytest.mark.parametrize(("inches", "dpi", "wide"), [(3.3, 200, False), (6.8, 100, True), (3.3, 300, False)])
def test_figures_keep_their_printed_size_whatever_their_resolution(tmp_path, inches, dpi, wide):
    path = tmp_path / "f.png"
    path.write_bytes(png(inches, 2.0, dpi))
    view = view_figure("f", path, "what")
    assert view.wide is wide
    assert view.width == pytest.approx(inches * 118, abs=2)
    assert view.height == pytest.approx(236, abs=2)
    assert view.files == {"PNG": "figures/f.png"}
