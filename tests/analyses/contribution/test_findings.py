"""The facts of contribution against tables made by hand."""

import pandas as pd

from moescope.analyses.finding import Fact, facts, find
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


def found(**given) -> list[Fact]:
    # The shares are levels: that the expert of the largest share has more than an even one is no claim.
    assert find(results(given)) == []
    return facts(results(given))


def test_layers_with_an_output_near_zero():
    frame = contribution({1: [1.0, 2.0, 3.0], 2: [0.01, 0.02, 90.0], 3: [2.0, 2.0, 2.0], 7: [4.0, 4.0, NAN]})
    (fact,) = found(contribution=frame)
    assert fact.topic == "contribution"
    assert fact.title.endswith("at layer 2")
    assert "layer 2: 0.0200" in fact.text and "median layer: 2." in fact.text
    assert found(contribution=contribution({1: [1.0], 2: [0.5], 3: [0.9]})) == []


def test_the_largest_share_as_measured_on_the_evaluation_half():
    (fact,) = found(contribution_top=leaders())
    assert fact.topic == "contribution"
    assert fact.title == "Expert 0 of layer 7 has 45.0 % of its layer's output"
    for numbers in (
        "45.0 %",
        "41.0 to 49.0 %",
        "25.0 %",
        "480 tokens",
        "1 expert at layer 7 and 2 at layer 1",
        "from 2.",
    ):
        assert numbers in fact.text
    # The layer is chosen on the half on which the expert is.
    (other,) = found(contribution_top=leaders(selection_half_output_share=[0.5, 0.47]))
    assert other.title.startswith("Expert 3 of layer 1 has 40.0 %")
    unknown = leaders(output_share_ci_low=[NAN, NAN], output_share_ci_high=[NAN, NAN])
    assert "too few documents for an interval" in found(contribution_top=unknown)[0].text
    assert found(contribution_top=leaders(output_share=[NAN, NAN])) == []
