"""The sentences about outputs against tables made by hand."""

import pandas as pd
import pytest

from moescope.report.findings import find
from moescope.report.words import caption
from tests.report.folders import results
from tests.report.tables import NAN


def contribution(saliency: dict[int, list[float]]) -> pd.DataFrame:
    rows = [(layer, expert, value) for layer, values in saliency.items() for expert, value in enumerate(values)]
    return pd.DataFrame(rows, columns=["layer", "expert", "saliency_mean"])


def leaders(**changes: list) -> pd.DataFrame:
    columns = {
        "layer": [1, 7],
        "expert": [3, 0],
        "num_tokens": [480, 480],
        "output_share": [0.40, 0.45],
        "output_share_ci_low": [0.35, 0.41],
        "output_share_ci_high": [0.45, 0.49],
        "output_share_choosing": [0.41, 0.47],
        "experts_for_half": [2, 1],
    }
    return pd.DataFrame(columns | changes)


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


def test_layers_that_add_next_to_nothing():
    frame = contribution({1: [1.0, 2.0, 3.0], 2: [0.01, 0.02, 90.0], 3: [2.0, 2.0, 2.0], 7: [4.0, 4.0, NAN]})
    (finding,) = find(results({"contribution": frame}))
    assert finding.title == "Experts add next to nothing at layer 2"
    assert "layer 2: 0.0200. In the median layer it is 2." in finding.text
    assert find(results({"contribution": contribution({1: [1.0], 2: [0.5], 3: [0.9]})})) == []


def test_the_largest_share_as_measured_on_the_other_half():
    (finding,) = find(results({"contribution_leaders": leaders()}))
    assert finding.title == "Expert 0 of layer 7 makes up more of its layer's output than any other"
    assert finding.text == (
        "On documents that had no say in choosing it, expert 0 of layer 7 is 45.0 % of the layer's routed output (95 "
        "% interval 41.0 to 49.0 %; an even share would be 25.0 %; 480 tokens). Half of the output comes from 1 expert "
        "at layer 7 and 2 at layer 1; if all gave as much, it would be 2."
    )
    (finding,) = find(results({"contribution_leaders": leaders(output_share_ci_low=[0.1, 0.2])}))
    assert finding.title == "No expert stands out for its share of the output"


def test_what_neighbours_recover():
    (finding,) = find(results({"map_quality": quality()}))
    assert finding.title == "An output tells which expert made it, and less of its domain"
    assert finding.text == (
        "At layer 7 the nearest outputs on other documents name the expert of 90.0 % of 200 outputs (95 % interval "
        "86.0 to 94.0 %; chance 25.0 %); at layer 1, 80.0 %. They name the domain of 70.0 % (95 % interval 61.0 to "
        "79.0 %; chance 50.0 %) at layer 7, the most."
    )


@pytest.mark.parametrize(
    ("changes", "title"),
    [
        ({"domain_ci_low": [0.4, 0.4]}, "An output tells which expert made it, but not its domain"),
        ({"domain_chance": [1.0, 1.0]}, "An output tells which expert made it"),
        ({"expert_ci_low": [0.2, 0.2]}, "An output does not surely tell which expert made it"),
        ({"expert_ci_low": [NAN, NAN]}, "An output does not surely tell which expert made it"),
    ],
)
def test_what_neighbours_do_not_recover(changes, title):
    (finding,) = find(results({"map_quality": quality(**changes)}))
    assert finding.title == title


def test_captions_name_their_layer():
    assert caption("map_layer_5").startswith("Layer 5: ")
    assert caption("map_each_expert_layer_12").startswith("Layer 12, ")
