"""The fact of silent experts against a table made by hand."""

import pandas as pd

from moescope.analyses.finding import facts
from tests.report.folders import results


def test_silent_experts_are_not_those_never_selected():
    silent = pd.DataFrame(
        {
            "layer": [1, 7],
            "expert": [2, 0],
            "num_tokens": [400, 400],
            "num_selected": [10, 52],
            "selection_frequency": [0.025, 0.13],
            "output_norm_mean": [0.0, 1e-5],
            "output_norm_median_of_layer": [1.5, 2.0],
        }
    )
    every = pd.DataFrame({"layer": [1] * 4 + [7] * 4, "expert": [0, 1, 2, 3] * 2, "saliency_mean": 1.0})
    every = every.assign(num_selected=[10, 0, 3, 4, 52, 0, 0, 1])
    (finding,) = facts(results({"contribution": every, "contribution_silent": silent}))
    assert finding.title == "2 of 8 experts are selected and silent"
    assert finding.text.index("expert 0 of layer 7") < finding.text.index("expert 2 of layer 1")
    assert "13.0 % of the tokens" in finding.text and "never selected: 3 experts of 8" in finding.text
