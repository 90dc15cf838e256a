"""`moescope weights`: no text, only the layers asked for."""

import json

import pytest


@pytest.mark.slow
def test_weights_of_some_layers(moescope, here, tiny):
    outcome = moescope("weights", "--model", tiny, "--layers", 0, 2, "--pairs", 3)
    assert outcome.code == 0, outcome.err
    assert outcome.out.splitlines()[-1] == "Results: results/weights"
    manifest = json.loads((here / "results" / "weights" / "manifest.json").read_text())
    assert (manifest["layers"], manifest["corpus"], manifest["num_tokens"]) == ([0, 2], None, 0)
    assert manifest["options"]["weights"] == {"pairs": 3}
    assert "tokens" not in outcome.out


def test_bad_input(moescope, tiny):
    assert moescope("weights", "--model", tiny, "--pairs", -1).code == 2
    outcome = moescope("weights", "--model", tiny, "--layers", 9)
    assert outcome.code == 2 and "MoE layer" in outcome.err
