"""Tables as CSV: no cell that is text is a formula, and all comes back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from hypothesis import given
from hypothesis import strategies as st

from moescope.results import ResultsFolder
from moescope.results.spreadsheets import guarded, read_csv, to_csv, unguarded

CELLS = ["=1+1", "+x", "-2", "@sum", "\tx", "\rx", "'=x", "'quoted", "plain", "", "ü=", "−1"]


def test_texts_are_guarded_and_numbers_untouched(tmp_path: Path) -> None:
    frame = pd.DataFrame({"text": CELLS, "number": np.linspace(-1, 1, len(CELLS)), "whole": range(-5, len(CELLS) - 5)})
    before = frame.copy()
    with ResultsFolder(tmp_path / "out") as folder:
        folder.write_table("x", frame)
    pd.testing.assert_frame_equal(frame, before)
    plain = pd.read_csv(tmp_path / "out" / "tables" / "x.csv", keep_default_na=False)
    assert list(plain["text"]) == [f"'{cell}" if cell in CELLS[:7] else cell for cell in CELLS]
    np.testing.assert_array_equal(plain["number"], frame["number"])
    assert list(plain["whole"]) == list(frame["whole"])
    again = read_csv(tmp_path / "out" / "tables" / "x.csv")
    assert list(again["text"].fillna("")) == CELLS
    assert list(pd.read_parquet(tmp_path / "out" / "tables" / "x.parquet", columns=["text"])["text"]) == CELLS


def test_numbers_among_texts_are_numbers() -> None:
    assert to_csv(pd.DataFrame({"mixed": [-1.5, "-1.5", None, "x"]})) == 'mixed\n-1.5\n\'-1.5\n""\nx\n'


@given(st.text())
def test_what_is_guarded_comes_back_and_is_no_formula(text: str) -> None:
    assert unguarded(guarded(text)) == text
    assert guarded(text)[:1] not in ("=", "+", "-", "@", "\t", "\r") or text[:1] == ""


def test_a_table_without_such_text_is_as_pandas_writes_it() -> None:
    frame = pd.DataFrame({"domain": ["law", "verse"], "x": [1.5, np.nan], "flag": [True, False]})
    assert to_csv(frame) == frame.to_csv(index=False, lineterminator="\n")
