"""A question is one folder and one line: command line, report and Python API then have it."""

import json

import pytest

import moescope
from moescope.analyses import registry, words
from moescope.cli.app import build
from moescope.cli.failures import launch
from tests.analyses.runs import small_corpus, tiny_model
from tests.analyses.toy.analysis import Toy

ENTRY = registry.Entry(
    "toy", "routing", "Toy: how many tokens each layer saw.", "tests.analyses.toy.analysis:Toy",
    "tests.analyses.toy.options:ToyOptions", in_report={"step": 7},
)  # fmt: skip


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    words._captions.cache_clear()
    monkeypatch.setattr(registry, "ENTRIES", (*registry.ENTRIES, ENTRY))
    yield
    words._captions.cache_clear()


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    tiny_model(folder)
    return folder


@pytest.fixture(scope="module")
def corpus_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    small_corpus(folder)
    return folder


def test_the_command_line_has_it(model_folder, corpus_folder, tmp_path, capsys):
    assert launch(build(), ["--help"]) == 0
    assert "how many tokens each layer saw" in capsys.readouterr().out
    assert launch(build(), ["toy", "--help"]) == 0
    text = capsys.readouterr().out
    assert "--step" in text and "so many at a time" in text and "Step" in text
    out = tmp_path / "out"
    sample = ["--model", str(model_folder), "--corpus", str(corpus_folder), "--num-tokens", "600"]
    assert launch(build(), ["toy", *sample, "--step", "3", "--out", str(out)]) == 0
    out_text = capsys.readouterr().out
    assert "Layers are not shown to see different" in out_text and "Tokens were counted" in out_text
    (finding,) = json.loads((out / "findings.json").read_text())
    assert (finding["topic"], finding["verdict"], finding["p_value"]) == ("toy", "not shown", 1.0)
    (fact,) = json.loads((out / "facts.json").read_text())
    assert (fact["topic"], fact["title"]) == ("toy", "Tokens were counted")
    assert (out / "tables" / "toy.csv").is_file() and (out / "figures" / "toy_steps.png").is_file()
    assert json.loads((out / "manifest.json").read_text())["options"]["toy"] == {"step": 3}


def test_its_bad_options_are_named_as_flags(model_folder, tmp_path, capsys):
    arguments = ["toy", "--model", str(model_folder), "--step", "0", "--out", str(tmp_path / "out")]
    assert launch(build(), arguments) == 2
    assert "--step 0" in capsys.readouterr().err


def test_the_report_has_it(model_folder, corpus_folder, tmp_path, capsys):
    out = tmp_path / "out"
    sample = ["--model", str(model_folder), "--corpus", str(corpus_folder), "--num-tokens", "600"]
    assert launch(build(), ["report", "--analyses", "toy", "entropy", *sample, "--out", str(out)]) == 0
    page = (out / "index.html").read_text(encoding="utf-8")
    assert "Layers are not shown to see different" in page
    assert 'id="toy"' in page and "Tokens were counted" in page and "Steps of each layer." in page


def test_python_has_it(model_folder, corpus_folder):
    model, corpus = moescope.load_model(str(model_folder)), moescope.load_corpus(str(corpus_folder))
    run = moescope.capture(model, corpus, analyses=["toy"], num_tokens=600)
    assert run.tables["toy"].attrs["num_experts"] == model.num_experts
    assert set(run.frames) == {"toy"} and list(run.figures) == ["toy_steps"]
    assert run.figures["toy_steps"] is not run.figures["toy_steps"]
    assert [(finding.topic, finding.verdict) for finding in run.findings] == [("toy", "not shown")]
    assert [fact.topic for fact in run.facts] == ["toy"]
    everything = registry.find("toy", in_report=True)
    assert everything == Toy(step=7)
