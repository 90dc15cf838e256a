"""Commands on a tiny model and a small corpus: what they leave behind and what they say."""

import json
import shutil

import pandas as pd
import pytest

from moescope.analyses import registry
from moescope.cli.thesis import METRICS, router_metrics
from moescope.results.reading import Results


@pytest.fixture
def given(tiny, shelf):
    return ["--model", tiny, "--corpus", shelf]


def test_one_question_leaves_a_folder_and_says_where(moescope, here, given, report):
    outcome = moescope("entropy", *given, "--num-tokens", 3000, "--layers", 0, 2, "--seed", 5)
    assert outcome.code == 0, outcome.err
    assert outcome.err == ""
    assert outcome.out.splitlines()[-1] == "Results: results/entropy"
    assert "entropy" in outcome.out
    folder = here / "results" / "entropy"
    assert {path.name for path in folder.iterdir()} == {
        "tables",
        "arrays",
        "state",
        "figures",
        "findings.json",
        "facts.json",
        "manifest.json",
    }
    frame = pd.read_csv(folder / "tables" / "router_entropy.csv")
    assert sorted(set(frame["layer"])) == [0, 2]
    assert set(frame["domain"]) == {"all", "law", "verse", "code"}
    manifest = Results.read(folder).manifest
    assert (manifest.command, manifest.seed, manifest.layers, manifest.num_tokens) == ("entropy", 5, [0, 2], 3000)
    assert manifest.analyses == ["entropy"]
    assert manifest.options["command_line"].startswith("moescope entropy --model ")

    again = moescope("entropy", *given, "--num_tokens", 3000, "-l", 0, "-l", 2, "--seed", 5)
    assert again.out.splitlines()[-1] == "Results: results/entropy-2"
    first, second = (here / "results" / name / "tables" / "router_entropy.csv" for name in ("entropy", "entropy-2"))
    assert first.read_bytes() == second.read_bytes()
    # A report's pass of the same tokens finds the same, but for the order of sums.
    pd.testing.assert_frame_equal(frame, pd.read_csv(report.folder / "tables" / "router_entropy.csv"), rtol=1e-5)


def test_report_asks_everything_and_writes_a_page(report):
    assert report.outcome.code == 0, report.outcome.err
    said = report.outcome.err.splitlines()
    assert all(line.startswith("note: ") for line in said)
    assert len(said) == 3
    for kind in ("predicted tokens", "promoted tokens"):
        assert [line for line in said if kind in line and "--predictions" in line]
    assert [line for line in said if line.startswith("note: atlas ")]
    assert report.outcome.out.splitlines()[-1] == "Results: mine"
    kept = {name for name in registry.names() if name != "atlas"}
    results = Results.read(report.folder)
    assert set(results.manifest.analyses) == kept | {"relations"}
    assert (results.manifest.num_tokens, results.manifest.layers) == (3000, [0, 2])
    assert {path.stem for path in (report.folder / "tables").glob("*.csv")} >= {"usage", "router_entropy", "paths"}
    page = (report.folder / "index.html").read_text()
    assert "16 experts" in page
    figures = {path.stem for path in (report.folder / "figures").glob("*.png")}
    assert figures == {path.stem for path in (report.folder / "figures").glob("*.pdf")}
    assert page.count('<img src="figures/') == len(figures) > 20


def test_a_report_is_refused_in_its_place_and_rebuilt_from_its_folder(moescope, here, given, report):
    shutil.copytree(report.folder, here / "mine")
    page = (here / "mine" / "index.html").read_text()
    refused = moescope("report", *given, "--out", "mine")
    assert refused.code == 2
    assert "--force" in refused.err
    assert (here / "mine" / "index.html").read_text() == page

    (here / "mine" / "index.html").unlink()
    rebuilt = moescope("report", "--from", "mine")
    assert rebuilt.code == 0
    assert (here / "mine" / "index.html").read_text() == page
    assert rebuilt.out == report.outcome.out


def test_report_without_some_parts(moescope, here, given):
    kept = ["entropy", "coactivation"]
    others = [name for name in registry.names() if name not in kept]
    outcome = moescope("report", *given, "--num-tokens", 600, "--layers", 1, "--skip", *others, "--out", "some")
    assert outcome.code == 0, outcome.err
    assert sorted(Results.read(here / "some").manifest.analyses) == sorted(kept)

    unknown = moescope("report", *given, "--skip", "astrology")
    assert unknown.code == 2 and "there is no analysis named 'astrology'" in unknown.err
    both = moescope("report", *given, "--analyses", "entropy", "--skip", "usage")
    assert both.code == 2 and "--analyses was given with --skip" in both.err


def test_predictions_on_request(moescope, here, given):
    outcome = moescope("vocabulary", *given, "--num-tokens", 3000, "--layers", 1, "--predictions")
    assert outcome.code == 0, outcome.err
    frame = pd.read_csv(here / "results" / "vocabulary" / "tables" / "vocabulary.csv")
    assert set(frame["reading"]) == {"input", "predicted", "next"}
    assert set(frame["layer"]) == {1}


@pytest.mark.slow
def test_the_thesis_command(here, given, monkeypatch, capfd):
    words = ["router_metrics.py", *given, "--num_tokens", 600, "--layers", 1]
    words += ["--num_experts", 8, "--topk", 2, "--num_domains", 2]
    monkeypatch.setattr("sys.argv", [str(word) for word in words])
    assert router_metrics() == 0
    assert capfd.readouterr().out.splitlines()[-1] == "Results: results/router_metrics"
    manifest = Results.read(here / "results" / "router_metrics").manifest
    assert manifest.analyses == METRICS
    assert len(manifest.domains) == 2
    assert manifest.layers == [1]


def test_force_replaces_results_and_nothing_else(moescope, here, given):
    (here / "precious").mkdir()
    (here / "precious" / "thesis.tex").write_text("years")
    refused = moescope("entropy", *given, "--out", "precious", "--force")
    assert refused.code == 2
    assert (here / "precious" / "thesis.tex").read_text() == "years"
    for seed in (1, 2):
        assert (
            moescope(
                "entropy", *given, "--num-tokens", 1000, "--out", "mine", "--layers", 0, "--seed", seed, "--force"
            ).code
            == 0
        )
    assert Results.read(here / "mine").manifest.seed == 2


def test_info_in_words_and_in_json(moescope, tiny):
    words = moescope("info", "--model", tiny)
    assert words.code == 0, words.err
    assert words.err == ""
    assert "8 a layer, 2 selected for each token" in words.out
    assert "the whole model" in words.out
    facts = json.loads(moescope("info", "--model", tiny, "--layers", 1, "--json").out)
    assert facts["family"] == "olmoe"
    assert (facts["num_experts"], facts["num_experts_per_token"], facts["num_blocks"]) == (8, 2, 4)
    assert facts["moe_layers"] == [0, 1, 2, 3]
    assert facts["loaded_layers"][-1] == 1
    assert facts["num_loaded_parameters"] < facts["num_parameters"]
    assert facts["loaded_bytes"] >= 4 * facts["num_loaded_parameters"]
    assert facts["probe"]["num_tokens"] > 0


def test_fewer_tokens_than_asked_go_on_with_a_warning(moescope, here, given):
    outcome = moescope("entropy", *given, "--num-tokens", 10**6, "--layers", 0)
    assert outcome.code == 0
    lines = outcome.err.splitlines()
    assert lines
    assert all(line.startswith("warning: ") for line in lines)
    assert "1,000,000" in outcome.err
