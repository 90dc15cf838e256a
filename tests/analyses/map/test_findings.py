"""The finding of the map against tables made by hand."""

import pandas as pd
import pytest

from moescope.analyses.finding import find
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


def test_what_neighbors_recover():
    (finding,) = find(results({"map_quality": quality()}))
    assert (finding.topic, finding.verdict) == ("map", "shown")
    assert "less so" in finding.title
    for numbers in (
        *("layer 7", "90.0 % of 200 outputs", "86.0 to 94.0 %", "chance 25.0 %", "layer 1, 80.0 %"),
        *("70.0 % (95 % interval 61.0 to 79.0 %; chance 50.0 %) at layer 7",),
    ):
        assert numbers in finding.text


@pytest.mark.parametrize(
    ("changes", "verdict", "word"),
    [
        ({"domain_ci_low": [0.4, 0.4]}, "shown", "but not the domain"),
        ({"domain_chance": [1.0, 1.0]}, "shown", "recover the expert above chance"),
        ({"expert_ci_low": [0.2, 0.2]}, "not shown", "do not recover"),
        ({"expert_ci_low": [NAN, NAN]}, "not testable", "do not recover"),
    ],
)
def test_what_neighbors_do_not_recover(changes, verdict, word):
    (finding,) = find(results({"map_quality": quality(**changes)}))
    assert finding.verdict == verdict and word in finding.title
    assert ("domain" in finding.title) == ("domain_ci_low" in changes)


def test_captions_name_their_layer():
    assert caption("map_layer_5").startswith("Layer 5: ")
    assert caption("map_each_expert_layer_12").startswith("Layer 12, ")
