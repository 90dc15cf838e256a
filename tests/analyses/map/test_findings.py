"""The fact of the map against tables made by hand."""

import pandas as pd

from moescope.analyses.finding import Fact, facts, find
from moescope.analyses.words import caption
from tests.report.folders import results
from tests.report.tables import NAN


def quality(**changes: list) -> pd.DataFrame:
    columns = {
        "layer": [1, 7],
        "num_judged": [200, 200],
        "expert_accuracy": [0.8, 0.9],
        "expert_ci_low": [0.75, 0.86],
        "expert_ci_high": [0.85, 0.94],
        "expert_chance": [0.25, 0.25],
        "domain_accuracy": [0.6, 0.7],
        "domain_ci_low": [0.52, 0.61],
        "domain_ci_high": [0.68, 0.79],
        "domain_chance": [0.5, 0.5],
    }
    return pd.DataFrame(columns | changes)


def found(**changes) -> list[Fact]:
    given = {"map_quality": quality(**changes)}
    assert find(results(given)) == []
    return facts(results(given))


def test_what_neighbors_recover():
    (fact,) = found()
    assert fact.topic == "map"
    assert fact.title.endswith("the expert of 90.0 % of outputs")
    for numbers in (
        *("layer 7", "90.0 % of 200 outputs", "86.0 to 94.0 %", "chance 25.0 %", "layer 1, 80.0 %"),
        *("70.0 % (95 % interval 61.0 to 79.0 %; chance 50.0 %) at layer 7",),
    ):
        assert numbers in fact.text


def test_what_cannot_be_judged_is_left_out():
    (fact,) = found(domain_accuracy=[NAN, NAN])
    assert "Domains are not testable" in fact.text and "nan" not in fact.text
    (fact,) = found(expert_accuracy=[0.8, NAN])
    assert fact.title.endswith("80.0 % of outputs") and "at layer 1 " in fact.text.lower()
    assert "chance 50.0 %)." in fact.text  # one layer: no highest
    assert found(expert_accuracy=[NAN, NAN]) == []


def test_captions_name_their_layer():
    assert caption("map_layer_5").startswith("Layer 5: ")
    assert caption("map_each_expert_layer_12").startswith("Layer 12, ")
