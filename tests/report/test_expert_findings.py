"""The sentences about experts against tables made by hand."""

import pandas as pd

from moescope.report.findings import find
from moescope.report.keynumbers import per_layer
from moescope.report.words import caption
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
        "median_redrawn": [0.12, 0.05, 0.11, 0.02],
        "share_above_redrawn": [0.0, 0.5, 0.5, 0.75],
    }
    return pd.DataFrame(columns | changes)


def pairs() -> pd.DataFrame:
    columns = {
        "layer": [1, 1, 7],
        "place": [0, 1, 0],
        "expert": [0, 1, 2],
        "other_expert": [1, 2, 3],
        "cka": [0.4, 0.3, 0.62],
        "cka_low": [0.3, 0.2, 0.55],
        "cka_high": [0.5, 0.4, 0.69],
    }
    return pd.DataFrame(columns)


def test_the_layer_whose_experts_are_most_alike_beyond_their_control():
    (finding,) = find(results({"similarity": similarity(), "similarity_pairs": pairs()}))
    assert finding.topic == "similarity"
    assert finding.title == "Experts are most alike at layer 7"
    assert finding.text == (
        "The median pair has a debiased CKA of 0.300; the same experts with re-drawn weights, on the same inputs, "
        "0.110. It is 0.210, re-drawn 0.0200, with what both owe to sharing inputs regressed out. Even at the lower "
        "end of their intervals, 50.0 % of 6 pairs exceed 95 % of the re-drawn ones. The most alike are experts 2 and "
        "3: 0.620 (95 % interval 0.550 to 0.690), the highest of all pairs, so a description of this sample, not an "
        "estimate. The median pair is more alike than the re-drawn one at 1 of 2 layers; least at layer 1: 0.100 "
        "against 0.120. Every expert ran on 512 tokens of 27 documents."
    )


def test_one_layer_no_intervals_nothing_beyond_chance():
    frame = similarity().head(2).assign(share_above_redrawn=NAN)
    (finding,) = find(results({"similarity": frame}))
    assert finding.title == "Experts are no more alike than ones with re-drawn weights"
    assert "lower end" not in finding.text
    assert "most alike are" not in finding.text
    assert find(results({"similarity": frame.drop(columns="median_redrawn")})) == []


def test_likeness_that_shared_inputs_explain_is_called_so():
    frame = similarity(median=[0.15, 0.04, 0.15, 0.04]).head(2)
    (finding,) = find(results({"similarity": frame}))
    assert finding.title == "Experts at layer 1 are more alike than re-drawn ones, but not beyond shared inputs"


def test_key_numbers_name_their_control():
    numbers = per_layer(results({"similarity": similarity()}))
    assert numbers.columns == ["layer", "debiased CKA", "deconfounded CKA"]
    assert numbers.rows == [["1", "0.100", "0.0400"], ["7", "0.300", "0.210"]]
    assert numbers.series[0].meaning.endswith("0.115 with re-drawn weights")
    assert per_layer(results({"similarity": similarity().drop(columns="median_redrawn")})).series


def test_captions_of_figures_that_each_layer_has():
    assert caption("similarity_layer_7").startswith("Layer 7: how alike")
    assert caption("similarity_layer_12_controls").startswith("Layer 12, the same matrix")
    assert caption("nothing_layer_3") == "Nothing layer 3."
