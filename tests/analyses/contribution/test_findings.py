"""The findings of contribution against tables made by hand."""

import pandas as pd

from moescope.analyses.finding import find
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
        "selection_half_output_share": [0.41, 0.47],
        "num_experts_for_half": [2, 1],
    }
    return pd.DataFrame(columns | changes)


def test_layers_with_an_output_near_zero():
    frame = contribution({1: [1.0, 2.0, 3.0], 2: [0.01, 0.02, 90.0], 3: [2.0, 2.0, 2.0], 7: [4.0, 4.0, NAN]})
    (finding,) = find(results({"contribution": frame}))
    assert (finding.topic, finding.verdict) == ("contribution", "shown")
    assert finding.title.endswith("at layer 2")
    assert "layer 2: 0.0200" in finding.text and "median layer: 2." in finding.text
    assert find(results({"contribution": contribution({1: [1.0], 2: [0.5], 3: [0.9]})})) == []


def test_the_largest_share_as_measured_on_the_evaluation_half():
    (finding,) = find(results({"contribution_top": leaders()}))
    assert (finding.topic, finding.verdict) == ("contribution", "shown")
    assert "Expert 0 of layer 7" in finding.title
    for numbers in (
        "45.0 %",
        "41.0 to 49.0 %",
        "25.0 %",
        "480 tokens",
        "1 expert at layer 7 and 2 at layer 1",
        "from 2.",
    ):
        assert numbers in finding.text
    (finding,) = find(results({"contribution_top": leaders(output_share_ci_low=[0.1, 0.2])}))
    assert finding.verdict == "not shown" and "does not exceed" in finding.title
    unknown = leaders(output_share_ci_low=[NAN, NAN], output_share_ci_high=[NAN, NAN])
    assert find(results({"contribution_top": unknown}))[0].verdict == "not testable"
