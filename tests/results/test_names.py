"""File names made of any text."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from moescope.results.names import MAX_BYTES, FileNames, file_name


def test_names_show_the_text_and_stay_inside() -> None:
    assert file_name("usage_load") == "usage_load"
    assert file_name("a/b") == "a%2Fb"
    assert file_name("../x") == "%2E.%2Fx"
    assert file_name("") == "%"
    assert file_name("CON.txt")[0] == "%"
    assert file_name("中文") == "中文"


@given(st.lists(st.text(max_size=300), unique=True, max_size=8))
def test_names_are_unique_without_regard_to_case_and_short(texts: list[str]) -> None:
    names = FileNames()
    made = [names(text) for text in texts]
    assert len({name.casefold() for name in made}) == len(texts)
    assert made == [names(text) for text in texts]
    for name in made:
        assert len(name.encode()) <= MAX_BYTES
        assert not set(name) & set('/\\\0:*?"<>|\n') and name not in (".", "..")


def test_names_that_differ_in_case_alone() -> None:
    names = FileNames()
    upper, lower = names("Law"), names("law")
    assert upper == "Law" and lower.startswith("law%")
