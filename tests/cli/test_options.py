"""How layers and numbers of tokens may be typed."""

from __future__ import annotations

import pytest
from cyclopts import App, CycloptsError

from moescope.cli.options import CaptureOptions

TYPED_LAYERS = {
    "1 7 15": [1, 7, 15],
    "0-3": [0, 1, 2, 3],
    "0,1": [0, 1],
    "0, 1": [0, 1],
    "0-2,7 -1": [0, 1, 2, 7, -1],
    "-1": [-1],
    "-2 -1": [-2, -1],
    "all": None,
    "ALL": None,
}
REFUSED_LAYERS = ["x", "3-1", "0-", "-", ",", "all 3", "1.5", "0-99999999", "--3", "1-2-3"]
TYPED_COUNTS = {
    "100000": 100_000,
    "1e5": 100_000,
    "1E5": 100_000,
    "1e+5": 100_000,
    "100k": 100_000,
    "100K": 100_000,
    "0.1M": 100_000,
    "1.5k": 1500,
    "2b": 2 * 10**9,
    "100,000": 100_000,
    "100_000": 100_000,
}
REFUSED_COUNTS = ["many", "1.5", "1e-3", "0.0001k", "1e99", "1e16", "nan", "inf", "0x10", "k", "-5", "0", "9" * 40]


def parsed(*words: str) -> CaptureOptions:
    app = App()
    app.default(_given)
    return app(words, exit_on_error=False, print_error=False, result_action="return_value")


def _given(*, options: CaptureOptions | None = None) -> CaptureOptions:
    return options or CaptureOptions()


@pytest.mark.parametrize("typed", TYPED_LAYERS)
@pytest.mark.parametrize("name", ["--layers", "-l"])
def test_layers_may_be_typed_as(typed: str, name: str):
    options = parsed(name, *typed.split(), "--num-tokens", "5k")
    assert (options.layers, options.num_tokens) == (TYPED_LAYERS[typed], 5000)


@pytest.mark.parametrize("typed", REFUSED_LAYERS)
def test_layers_that_are_none(typed: str):
    with pytest.raises(CycloptsError):
        parsed("--layers", *typed.split())


@pytest.mark.parametrize("typed", TYPED_COUNTS)
def test_numbers_may_be_typed_as(typed: str):
    assert parsed("--num-tokens", typed).num_tokens == TYPED_COUNTS[typed]


@pytest.mark.parametrize("typed", REFUSED_COUNTS)
def test_numbers_that_are_none(typed: str):
    with pytest.raises(CycloptsError):
        parsed("--num-tokens", typed)


@pytest.mark.parametrize("words", [("--corpus", "-"), ("--corpus=-",), ("--corpus", "-", "--seed", "1")])
def test_the_corpus_may_be_standard_input(words):
    assert parsed(*words).corpus == "-"
