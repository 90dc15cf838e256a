"""The finding of similarity against tables made by hand."""

import pandas as pd

from moescope.analyses.finding import find
from moescope.analyses.words import caption
from moescope.report.keynumbers import per_layer
from tests.report.folders import results
from tests.report.tables import NAN


def similarity(**changes: list) -> pd.DataFrame:
    columns = {
        "layer": [1, 1, 7, 7],
        "measure": ["cka", "deconfounded_cka"] * 2,
        "mode": ["all"] * 4,
        "num_tokens": [1000] * 4,
        "num_samples": [512] * 4,
        "num_documents": [27] * 4,
        "num_pairs": [6] * 4,
        "median": [0.10, 0.04, 0.30, 0.21],
        "median_control": [0.12, 0.05, 0.11, 0.02],
        "share_above_control": [0.0, 0.5, 0.5, 0.75],
    }
    return pd.DataFrame(columns | changes)


def pairs() -> pd.DataFrame:
    columns = {
        "layer": [1, 1, 7],
        "rank": [0, 1, 0],
        "expert": [0, 1, 2],
        "other_expert": [1, 2, 3],
        "cka": [0.4, 0.3, 0.62],
        "cka_ci_low": [0.3, 0.2, 0.55],
        "cka_ci_high": [0.5, 0.4, 0.69],
    }
    return pd.DataFrame(columns)


def test_the_layer_with_the_largest_excess_over_its_baseline():
    (finding,) = find(results({"similarity": similarity(), "similarity_pairs": pairs()}))
    assert (finding.topic, finding.verdict) == ("similarity", "shown")
    assert "layer 7" in finding.title and "beyond" not in finding.title
    for numbers in (
        *("0.300", "0.110", "0.210", "0.0200", "50.0 % of 6 pairs", "experts 2 and 3, 0.620"),
        *("95 % interval 0.550 to 0.690", "1 of 2 layers", "layer 1: 0.100, baseline 0.120"),
        "512 tokens of 27 documents",
    ):
        assert numbers in finding.text


def test_one_layer_nothing_beyond_the_baseline():
    frame = similarity().head(2)
    (finding,) = find(results({"similarity": frame}))
    assert finding.verdict == "not shown" and "no more similar" in finding.title
    assert "Most similar" not in finding.text
    (finding,) = find(results({"similarity": frame.assign(share_above_control=NAN)}))
    assert finding.verdict == "not testable"
    assert "95 % CI" not in finding.text
    (finding,) = find(results({"similarity": frame.drop(columns="median_control")}))
    assert finding.verdict == "not testable"


def test_similarity_that_shared_inputs_explain():
    frame = similarity(median=[0.15, 0.04, 0.15, 0.04]).head(2)
    (finding,) = find(results({"similarity": frame}))
    assert "layer 1" in finding.title and "not beyond shared inputs" in finding.title
    assert finding.verdict == "not shown"


def test_key_numbers_name_their_baseline():
    numbers = per_layer(results({"similarity": similarity()}))
    assert numbers.columns == ["layer", "debiased CKA", "deconfounded CKA"]
    assert numbers.rows == [["1", "0.100", "0.0400"], ["7", "0.300", "0.210"]]
    assert "0.115" in numbers.series[0].meaning
    assert per_layer(results({"similarity": similarity().drop(columns="median_control")})).series


def test_captions_of_figures_that_each_layer_has():
    assert caption("similarity_layer_7").startswith("Layer 7: ")
    assert caption("similarity_layer_12_controls").startswith("Layer 12: ")
    assert caption("nothing_layer_3") == "Nothing layer 3."
