"""The sentences about experts against tables made by hand."""

import pandas as pd

from moescope.report.findings import find
from moescope.report.keynumbers import per_layer
from moescope.report.words import caption
from tests.report.folders import results
from tests.report.reading import denies, names, numbers, unsaid
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
    assert names(finding.title, "layer", 7) and not denies(finding.title)
    assert "CKA" in finding.text
    there, pair, least = ("0.300", "0.110", "0.210", "0.0200"), ("0.620", "0.550", "0.690"), ("0.100", "0.120")
    assert unsaid(finding.text, *there, "50.0", "6", *pair, "1", "2", *least, "512", "27") == []
    assert names(finding.text, "expert", 2) and names(finding.text, "expert", 3) and names(finding.text, "layer", 1)


def test_one_layer_no_intervals_nothing_beyond_chance():
    frame = similarity().head(2).assign(share_above_redrawn=NAN)
    (finding,) = find(results({"similarity": frame}))
    assert denies(finding.title) and not names(finding.title, "layer", 1)
    assert "50.0" not in numbers(finding.text)
    assert not any(names(finding.text, "expert", expert) for expert in range(4))
    assert find(results({"similarity": frame.drop(columns="median_redrawn")})) == []


def test_likeness_that_shared_inputs_explain_is_called_so():
    frame = similarity(median=[0.15, 0.04, 0.15, 0.04]).head(2)
    (finding,) = find(results({"similarity": frame}))
    assert names(finding.title, "layer", 1) and denies(finding.title) and "inputs" in finding.title


def test_key_numbers_name_their_control():
    key = per_layer(results({"similarity": similarity()}))
    assert key.columns == ["layer", "debiased CKA", "deconfounded CKA"]
    assert key.rows == [["1", "0.100", "0.0400"], ["7", "0.300", "0.210"]]
    assert unsaid(key.series[0].meaning, "0.115") == []
    assert per_layer(results({"similarity": similarity().drop(columns="median_redrawn")})).series


def test_captions_of_figures_that_each_layer_has():
    assert names(caption("similarity_layer_7"), "layer", 7)
    assert names(caption("similarity_layer_12_controls"), "layer", 12)
    assert caption("similarity_layer_12_controls") != caption("similarity_layer_12")
    assert caption("nothing_layer_3") == "Nothing layer 3."
