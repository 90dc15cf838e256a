"""`moescope similarity` and `sim.py` on a tiny model, as a shell calls them."""

import numpy as np
import pandas as pd
import pytest

from moescope.cli.thesis import sim
from moescope.results.reading import Results


@pytest.fixture
def given(tiny, shelf):
    return ["--model", tiny, "--corpus", shelf, "--layers", 1]


def test_the_thesis_command_in_capitals(here, given, monkeypatch, capfd):
    words = ["sim.py", "--num_tokens", 1500, "--method", "CKA", *given]
    monkeypatch.setattr("sys.argv", [str(word) for word in words])
    assert sim() == 0
    out = capfd.readouterr().out
    assert out.splitlines()[-1] == "Results: results/similarity"
    assert "random" in out
    folder = here / "results" / "similarity"
    options = Results.read(folder).manifest.options["similarity"]
    assert (options["method"], options["estimator"], options["num_samples"]) == ("cka", "minibatch", 10_000)
    summary = pd.read_csv(folder / "tables" / "similarity.csv")
    assert summary.measure[0] == "cka"
    assert summary.num_samples[0] == 1500
    assert np.isfinite(summary["median_control"]).all()
    with np.load(folder / "arrays" / "similarity.npz") as arrays:
        assert arrays["cka"].shape == (1, 8, 8)
    assert {path.name for path in (folder / "figures").iterdir()} == {
        f"similarity_layer_1{name}.{kind}" for name in ("", "_controls") for kind in ("pdf", "png")
    }
    assert (folder / "state" / "layer_inputs_10000.safetensors").is_file()


@pytest.mark.slow
def test_exact_leaves_no_scratch_behind(moescope, here, given):
    scratch = here / "scratch"
    scratch.mkdir()
    words = ["--num-tokens", 800, "--estimator", "Exact", "--scratch", scratch]
    outcome = moescope("similarity", *words, "--no-control", *given)
    assert outcome.code == 0, outcome.err
    assert "no baseline" in outcome.out
    assert not list(scratch.iterdir())
    frame = pd.read_csv(here / "results" / "similarity" / "tables" / "similarity.csv")
    assert "median_control" not in frame
    again = moescope("similarity", "--num-tokens", 800, "--method", "cosine", *given, "--out", "cosine")
    assert again.code == 0, again.err
    assert set(pd.read_csv(here / "cosine" / "tables" / "similarity.csv").measure) == {"cosine", "centered_cosine"}


def test_routed_mode_compares_by_cosine(moescope, here, given):
    outcome = moescope("similarity", "--mode", "routed", "--num-tokens", 1500, *given)
    assert outcome.code == 0, outcome.err
    frame = pd.read_csv(here / "results" / "similarity" / "tables" / "similarity_pairs.csv")
    assert (frame.num_shared > 0).all()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--num-tokens", 3], "cka of 3 tokens"),
        (["--num-samples", 3], "cka of 3 tokens"),
        (["--mode", "routed", "--method", "cka"], "--method cka compares"),
        (["--method", "pearson"], "none of cka, cosine"),
    ],
)
def test_bad_input_is_said_and_writes_nothing(moescope, here, given, words, said):
    outcome = moescope("similarity", *words, *given)
    assert outcome.code == 2
    assert said in outcome.err
    assert list(here.iterdir()) == []
