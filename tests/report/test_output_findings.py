"""The sentences about outputs against tables made by hand."""

import pandas as pd
import pytest

from moescope.report.findings import find
from moescope.report.words import caption
from tests.report.folders import results
from tests.report.reading import denies, names, unsaid
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
    assert finding.topic == "contribution" and names(finding.title, "layer", 2)
    assert not any(names(finding.title, "layer", layer) for layer in (1, 3, 7))
    assert unsaid(finding.text, "2", "0.0200", "2") == []
    assert find(results({"contribution": contribution({1: [1.0], 2: [0.5], 3: [0.9]})})) == []


def test_the_largest_share_as_measured_on_the_other_half():
    (finding,) = find(results({"contribution_leaders": leaders()}))
    assert finding.topic == "contribution"
    assert names(finding.title, "expert", 0) and names(finding.title, "layer", 7) and not denies(finding.title)
    assert unsaid(finding.text, "45.0", "41.0", "49.0", "25.0", "480", "1", "2", "2") == []
    (finding,) = find(results({"contribution_leaders": leaders(output_share_ci_low=[0.1, 0.2])}))
    assert denies(finding.title) and not names(finding.title, "expert", 0)


def test_what_neighbours_recover():
    (finding,) = find(results({"map_quality": quality()}))
    assert finding.topic == "map" and not denies(finding.title)
    assert "expert" in finding.title and "domain" in finding.title
    experts, domains = ("90.0", "200", "86.0", "94.0", "25.0"), ("70.0", "61.0", "79.0", "50.0")
    assert unsaid(finding.text, *experts, "80.0", *domains) == []
    assert names(finding.text, "layer", 7) and names(finding.text, "layer", 1)


@pytest.mark.parametrize(
    ("changes", "denied", "of_domains"),
    [
        ({"domain_ci_low": [0.4, 0.4]}, True, True),  # the expert, but not the domain
        ({"domain_chance": [1.0, 1.0]}, False, False),  # one domain: nothing to recover
        ({"expert_ci_low": [0.2, 0.2]}, True, False),
        ({"expert_ci_low": [NAN, NAN]}, True, False),
    ],
)
def test_what_neighbours_do_not_recover(changes, denied, of_domains):
    (finding,) = find(results({"map_quality": quality(**changes)}))
    assert "expert" in finding.title
    assert (denies(finding.title), "domain" in finding.title) == (denied, of_domains)


def test_captions_name_their_layer():
    assert names(caption("map_layer_5"), "layer", 5)
    assert names(caption("map_each_expert_layer_12"), "layer", 12)
