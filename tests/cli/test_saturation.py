"""`moescope saturation` on a tiny model and a disturbed copy of it."""

import pandas as pd
import pytest
import torch

from moescope.results.reading import Results
from tests import families


@pytest.fixture(scope="module")
def disturbed(tmp_path_factory):
    """The tiny model with a little noise in its routers: a state that training might have left behind."""
    model = families.build("olmoe")
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, weights in model.named_parameters():
            if name.endswith("gate.weight"):
                weights += 0.1 * torch.randn(weights.shape, generator=generator)
    return families.save(model, tmp_path_factory.mktemp("run") / "step-7")


def test_a_checkpoint_and_the_model_itself(moescope, here, tiny, shelf, disturbed):
    given = ["--model", tiny, "--corpus", shelf, "--num-tokens", 2000, "--layers", 0, 3]
    outcome = moescope("saturation", *given, "--checkpoint", disturbed, tiny, "--share", 50, 100)
    assert outcome.code == 0, outcome.err
    assert outcome.out.splitlines()[-1] == "Results: results/saturation"
    assert "step-7" in outcome.out
    folder = here / "results" / "saturation"
    frame = pd.read_csv(folder / "tables" / "saturation.csv")
    assert frame[["checkpoint", "layer"]].values.tolist() == [["step-7", 0], ["step-7", 3], ["tiny", 0], ["tiny", 3]]
    assert (frame.num_tokens == 2000).all()
    itself, other = frame[frame.checkpoint == "tiny"], frame[frame.checkpoint == "step-7"]
    assert (itself.topk_saturation == 1).all()
    assert (itself.top1_saturation == 1).all()
    assert (other.topk_saturation < 1).all()
    assert (other.topk_saturation > other.topk_saturation_independent).all()
    assert {path.name for path in (folder / "figures").iterdir()} == {
        f"saturation_{name}.{kind}" for name in ("over_training", "by_layer") for kind in ("pdf", "png")
    }
    manifest = Results.read(folder).manifest
    assert (manifest.command, manifest.layers, manifest.num_tokens) == ("saturation", [0, 3], 2000)
    assert manifest.options["labels"] == ["step-7", "tiny"]


def test_what_cannot_be_compared_leaves_nothing(moescope, here, tiny, shelf, disturbed, tmp_path):
    given = ["--model", tiny, "--corpus", shelf, "--num-tokens", 300]
    other = families.save(families.build("olmoe", num_experts=4), tmp_path / "four")
    for words, message in (
        (["--checkpoint", other], "experts per layer: 4"),
        (["--checkpoint", tmp_path / "nothing"], "no folder"),
        (["--checkpoint", disturbed, "--share", 1, 2], "2 shares of training for 1 checkpoints"),
        ([], "--checkpoint"),
    ):
        outcome = moescope("saturation", *given, *words)
        assert outcome.code == 2
        assert message in outcome.err
    assert list(here.iterdir()) == []
