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
        "median_excess_p_value": [0.9, 0.8, 0.001, 0.002],
    }
    frame = pd.DataFrame(columns | changes)
    excess = frame["median"] - frame["median_control"]
    return frame.assign(median_excess=excess, median_excess_ci_low=excess - 0.02, median_excess_ci_high=excess + 0.02)


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


def test_at_how_many_layers_similarity_exceeds_its_baseline():
    (finding,) = find(results({"similarity": similarity(), "similarity_pairs": pairs()}))
    assert (finding.topic, finding.verdict) == ("similarity", "shown")
    assert finding.title.endswith("with random weights at 1 of 2 layers, beyond shared inputs")
    for numbers in (
        "The median pair of layer 7 has a debiased CKA of 0.300",
        *("0.110; excess: 0.190 (95 % interval 0.170 to 0.210", "the largest excess of 2 layers"),
        "The median debiased CKA itself is highest there too.",
        "(inputs regressed out): 0.210; baseline 0.0200. It lies below the baseline at 1 of 2 layers (1).",
        *("50.0 % of 6 pairs", "experts 2 and 3 of layer 7, 0.620", "95 % interval 0.550 to 0.690"),
        "512 tokens of 27 documents",
    ):
        assert numbers in finding.text


def test_the_highest_median_is_another_thing_than_the_largest_excess():
    frame = similarity(median_control=[0.23, 0.05, 0.11, 0.02], median=[0.25, 0.04, 0.24, 0.01])
    (finding,) = find(results({"similarity": frame}))
    assert "The median pair of layer 7" in finding.text
    assert "itself is highest at layer 1: 0.250, baseline 0.230." in finding.text
    assert "It lies below the baseline at 2 of 2 layers (1, 7)." in finding.text


def test_the_most_similar_pair_is_that_of_all_layers_and_copies_are_named():
    frame = pairs().assign(cosine=[0.99999, 0.5, 0.6], cka=[1.0, 0.3, 0.62])
    (finding,) = find(results({"similarity": similarity(), "similarity_pairs": frame}))
    assert "Most similar: experts 0 and 1 of layer 1, 1 (" in finding.text
    assert "up to a factor: experts 0 and 1 of layer 1." in finding.text


def test_one_layer_nothing_beyond_the_baseline():
    frame = similarity().head(2)
    (finding,) = find(results({"similarity": frame}))
    assert finding.verdict == "not shown" and "not shown to be more similar" in finding.title
    assert "Most similar" not in finding.text
    unknown = dict.fromkeys(("share_above_control", "median_excess_p_value"), NAN)
    (finding,) = find(results({"similarity": frame.assign(**unknown)}))
    assert finding.verdict == "not testable"
    assert "95 % CI" not in finding.text
    (finding,) = find(results({"similarity": frame.drop(columns="median_control")}))
    assert finding.verdict == "not testable"


def test_the_best_of_many_layers_counts_as_many_times():
    frame = similarity(median_excess_p_value=[0.9, 0.8, 0.03, 0.002])
    assert find(results({"similarity": frame}))[0].verdict == "not shown"


def test_similarity_that_shared_inputs_explain():
    frame = similarity(median=[0.15, 0.04, 0.15, 0.04], median_excess_p_value=[0.001, 0.8, 0.001, 0.8]).head(2)
    (finding,) = find(results({"similarity": frame}))
    assert finding.title.endswith("with random weights beyond shared inputs")
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
