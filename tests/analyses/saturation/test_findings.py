"""The fact of router saturation from tables made by hand: topic and numbers."""

import pandas as pd

from moescope.analyses.finding import facts, find
from tests.report.folders import results


def saturation() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "checkpoint": ["early", "early", "late", "late"],
            "share_of_training_percent": [5.0, 5.0, 25.0, 25.0],
            "layer": [1, 7, 1, 7],
            "topk_saturation": [0.3, 0.4, 0.6, 0.8],
            "topk_saturation_chance": [0.25] * 4,
            "top1_saturation": [0.2, 0.3, 0.5, 0.6],
        }
    )


def test_the_checkpoint_most_similar_to_the_final_model() -> None:
    given = results({"saturation": saturation()})
    assert find(given) == []
    (fact,) = facts(given)
    assert fact.topic == "saturation"
    assert fact.title.endswith("late")
    for part in ("70.0 %", "25.0 %", "55.0 %", "layer 7 (80.0 %)", "layer 1 (60.0 %)", "early: 35.0 %"):
        assert part in fact.text


def test_one_layer_and_one_checkpoint() -> None:
    (fact,) = facts(results({"saturation": saturation().iloc[2:3]}))
    assert "60.0 %" in fact.text
    assert "layer" not in fact.text
    assert facts(results({"saturation": saturation().assign(topk_saturation=float("nan"))})) == []
