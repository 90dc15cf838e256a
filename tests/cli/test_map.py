"""`moescope map`, `moescope contribution` and `dim_reduc.py` on a tiny model, as a shell calls them."""

import subprocess
import sys

import pandas as pd
import pytest

from moescope.cli.thesis import dim_reduc
from moescope.results.reading import Results


@pytest.fixture
def given(tiny, shelf):
    return ["--model", tiny, "--corpus", shelf]


@pytest.mark.slow
def test_the_thesis_command(here, given, monkeypatch, capfd):
    words = ["dim_reduc.py", "--num_tokens", 1500, "--layers", 0, 3, *given]
    monkeypatch.setattr("sys.argv", [str(word) for word in words])
    assert dim_reduc() == 0
    out = capfd.readouterr().out
    assert out.splitlines()[-1] == "Results: results/map"
    assert "recover the expert" in out
    folder = here / "results" / "map"
    options = Results.read(folder).manifest.options["map"]
    assert (options["method"], options["metric"], options["num_neighbors"]) == ("umap", "cosine", 15)
    assert sorted(pd.read_csv(folder / "tables" / "map.csv").layer.unique()) == [0, 3]
    quality = pd.read_csv(folder / "tables" / "map_quality.csv")
    assert quality.num_points.between(50, 400).all()
    figures = {path.stem for path in (folder / "figures").glob("*.png")}
    assert figures == {"map_means", "map_recovery"} | {
        f"map_{kind}layer_{layer}" for kind in ("", "each_expert_") for layer in (0, 3)
    }


def test_options_reach_the_map(moescope, here, given):
    words = [
        "--method",
        "PCA",
        "--num-samples",
        7,
        "--num_neighbors",
        3,
        "--num-components",
        4,
        "--metric",
        "euclidean",
    ]
    outcome = moescope("map", *words, *given, "--num-tokens", 900, "--layers", 2)
    assert outcome.code == 0, outcome.err
    quality = pd.read_csv(here / "results" / "map" / "tables" / "map_quality.csv").iloc[0]
    assert (quality.method, quality.metric, quality.num_neighbors) == ("pca", "euclidean", 3)
    assert quality.num_components == 4 and quality.num_points <= 7 * quality.num_experts


def test_more_neighbors_than_outputs(moescope, here, given):
    outcome = moescope("map", *given, "--num-neighbors", 400)
    assert outcome.code == 2
    assert outcome.err.startswith("error: --num-neighbors 400 in a layer of at most 400 outputs")
    assert "--method pca" in outcome.err
    assert list(here.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--num-neighbors", 1], "--num-neighbors 1\nExpected: 2 or more"),
        (["--num-samples", 0], "--num-samples 0\nExpected: 1 or more"),
        (["--method", "tsne"], "tsne is none of umap, pca"),
        (["--layers", 9], "0-3"),
    ],
)
def test_what_makes_no_sense(moescope, here, given, words, said):
    outcome = moescope("map", *given, *words)
    assert outcome.code == 2
    assert said in outcome.err


@pytest.mark.slow
def test_contribution(moescope, here, given):
    outcome = moescope("contribution", *given, "--num-tokens", 1500)
    assert outcome.code == 0, outcome.err
    folder = here / "results" / "contribution"
    tables = {path.stem for path in (folder / "tables").glob("*.csv")}
    assert tables == {"contribution", "contribution_domains", "contribution_top", "promoted_tokens"}
    assert (folder / "arrays" / "mean_outputs.npz").is_file()
    part = moescope("contribution", *given, "--num-tokens", 1500, "--layers", 1, "--out", "part")
    assert part.code == 0, part.err
    assert "promoted tokens are left out" in part.err
    assert not (here / "part" / "tables" / "promoted_tokens.csv").exists()


def test_help_needs_neither_torch_nor_umap():
    code = (
        "import sys; from moescope.cli.thesis import dim_reduc; sys.argv = ['dim_reduc.py', '--help']; dim_reduc(); "
        "sys.exit(bool({'torch', 'umap', 'numba', 'sklearn', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "--num-neighbors" in done.stdout and "trustworthiness" in done.stdout
