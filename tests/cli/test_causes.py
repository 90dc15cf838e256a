"""`moescope ablate` and `moescope atlas` on a tiny model."""

import re

import numpy as np
import pandas as pd
import pytest

from moescope.results.reading import Results


def test_an_expert_is_ablated_beside_its_controls(moescope, here, tiny, shelf):
    given = ["--model", tiny, "--corpus", shelf, "--num-tokens", 3000]
    outcome = moescope("ablate", *given, "--layer", 2, "--expert", 3)
    assert outcome.code == 0, outcome.err
    assert outcome.out.splitlines()[-1] == "Results: results/ablate"
    assert re.search(r"expert 3\b.*layer 2\b", outcome.out)
    assert re.search(r"\b7 controls\b.*\b20\b", outcome.err)
    folder = here / "results" / "ablate"
    frame = pd.read_csv(folder / "tables" / "ablate.csv").set_index("domain")
    assert list(frame.index) == ["all", "code", "law", "verse"]
    assert frame.num_tokens["all"] == frame.num_tokens.iloc[1:].sum()
    assert (frame.num_documents[frame.ci_low.notna()] >= 8).all()
    assert frame.ci_low[frame.num_documents < 8].isna().all()
    assert frame.ci_low["all"] <= frame.delta_loss["all"] <= frame.ci_high["all"]
    assert np.allclose(frame.loss_ablated - frame.loss, frame.delta_loss)
    # A byte a token: the tiny tokenizer's tokens are bytes.
    assert (frame.num_bytes == frame.num_tokens).all()
    assert np.allclose(frame.bits_per_byte, frame.loss / np.log(2))
    assert np.allclose(frame.excess, frame.delta_loss - frame.delta_loss_control)
    controls = pd.read_csv(folder / "tables" / "ablate_controls.csv")
    assert sorted(controls.experts.unique().tolist()) == [0, 1, 2, 4, 5, 6, 7]
    every = controls[controls.domain == "all"]
    assert frame.delta_loss_control["all"] == pytest.approx(every.delta_loss.mean())
    assert {path.name for path in (folder / "figures").iterdir()} == {"ablate.pdf", "ablate.png"}
    manifest = Results.read(folder).manifest
    assert (manifest.command, manifest.layers, manifest.options["experts"]) == ("ablate", [2], [3])


def test_several_experts_are_ablated_together(moescope, here, tiny, shelf):
    given = ["--model", tiny, "--corpus", shelf, "--num-tokens", 1500, "--controls", 4]
    assert moescope("ablate", *given, "--layer", 1, "--experts", 3, 5).code == 0
    assert moescope("ablate", *given, "--layer", 1, "--experts", 3, "--out", "three").code == 0
    both = pd.read_csv(here / "results" / "ablate" / "tables" / "ablate.csv").iloc[0]
    three = pd.read_csv(here / "three" / "tables" / "ablate.csv").iloc[0]
    assert both.num_selected > three.num_selected
    assert both.loss == pytest.approx(three.loss, abs=1e-6)
    assert both.delta_loss != pytest.approx(three.delta_loss, abs=1e-5)
    controls = pd.read_csv(here / "results" / "ablate" / "tables" / "ablate_controls.csv")
    pairs = [set(map(int, experts.split())) for experts in controls.experts.unique()]
    assert len(pairs) == 4
    assert all(len(pair) == 2 and not pair & {3, 5} for pair in pairs)


def test_what_cannot_be_ablated_leaves_nothing(moescope, here, tiny, shelf):
    given = ["--model", tiny, "--corpus", shelf, "--num-tokens", 300]
    for words, message in (
        (["--layer", 9, "--expert", 1], "no MoE layer 9"),
        (["--layer", 1, "--expert", 8], "no expert 8"),
        (["--layer", 1, "--experts", 2, 2], "named twice"),
        (["--layer", 1, "--expert", 2, "--layers", 1], "--layers"),
        (["--layer", 1], "--expert"),
    ):
        outcome = moescope("ablate", *given, *words)
        assert outcome.code == 2, words
        assert message in outcome.err
    assert not (here / "results").exists() or not list((here / "results").iterdir())


@pytest.mark.slow
def test_the_atlas_has_a_command_and_findings(moescope, here, tiny, shelf):
    given = ["--model", tiny, "--corpus", shelf, "--num-tokens", 3000]
    outcome = moescope("atlas", *given, "--layers", 1, 2)
    assert outcome.code == 0, outcome.err
    folder = here / "results" / "atlas"
    frame = pd.read_csv(folder / "tables" / "atlas.csv")
    assert sorted(frame.layer.unique()) == [1, 2]
    assert list((folder / "state").glob("atlas_text_*.safetensors"))
    assert "correlation" in outcome.out
    outcome = moescope("atlas", *given, "--method", "exact", "--experts", 0, 7, "--out", "exact")
    assert outcome.code == 0, outcome.err
    exact = pd.read_csv(here / "exact" / "tables" / "atlas.csv")
    assert sorted(exact.expert.unique()) == [0, 7]
    manifest = Results.read(here / "exact").manifest
    assert manifest.options["atlas"]["method"] == "exact"
    outcome = moescope("atlas", *given, "--experts", 8)
    assert (outcome.code, "no expert 8" in outcome.err) == (2, True)
