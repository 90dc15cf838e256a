"""`moescope profile` and `profiles.py`: what they leave behind, what they say, what they refuse."""

import json

import pytest

from moescope.analyses.profile.schema import ExpertProfile
from moescope.cli.profile import lines
from moescope.cli.thesis import profiles
from moescope.results.reading import Results


@pytest.fixture
def given(tiny, shelf):
    return ["--model", tiny, "--corpus", shelf, "--num_tokens", 2000]


def test_one_expert(moescope, here, given):
    outcome = moescope("profile", "--layer", 1, "--expert", 3, *given)
    assert outcome.code == 0, outcome.err
    folder = here / "results" / "profile"
    assert [path.name for path in (folder / "profiles").iterdir()] == ["L01E03.json"]
    assert (folder / "figures" / "profile_L01E03.pdf").exists()
    profile = ExpertProfile.model_validate_json((folder / "profiles" / "L01E03.json").read_text("utf-8"))
    assert (profile.layer, profile.expert) == (1, 3)
    assert profile.missing == {}
    assert "Expert 3 of layer 1" in outcome.out
    assert "statistical label" in outcome.out
    assert outcome.out.splitlines()[-1] == "Results: results/profile"
    manifest = Results.read(folder).manifest
    assert manifest.layers == [1]
    assert manifest.options["profile"]["experts"] == [3]


def test_the_thesis_command(here, given, monkeypatch, capfd):
    words = ["profiles.py", "--expert_id", 2, "--layer", 1, *given, "--no-effects", "--no-neighbors"]
    monkeypatch.setattr("sys.argv", [str(word) for word in words])
    assert profiles() == 0
    assert (here / "results" / "profile" / "profiles" / "L01E02.json").exists()
    assert capfd.readouterr().out.splitlines()[-1] == "Results: results/profile"


@pytest.mark.slow
def test_all_experts_of_some_layers(moescope, here, given):
    outcome = moescope("profile", "--layers", 0, 2, *given[:-1], 5000, "--no-effects", "--no-predictions")
    assert outcome.code == 0, outcome.err
    text = (here / "results" / "profile" / "profiles" / "profiles.jsonl").read_text("utf-8")
    found = [json.loads(line) for line in text.splitlines()]
    assert [(one["layer"], one["expert"]) for one in found] == [(layer, e) for layer in (0, 2) for e in range(8)]
    assert all(one["tokens"]["predicted"] is None for one in found)
    assert "label" in outcome.out.replace("statistical label", "")  # the finding


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--layer", 1, "--expert", 8], "no expert 8"),
        (["--layer", 9, "--expert", 1], "9"),
        (["--layer", 1, "--expert", -1], "no expert -1"),
        (["--contexts", 0], "contexts"),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(moescope, here, given, words, said):
    outcome = moescope("profile", *words, *given)
    assert outcome.code == 2
    assert said in outcome.err
    assert not (here / "results").exists()


def test_nothing_in_a_profile_is_markup_for_the_terminal(moescope, here, given):
    assert moescope("profile", "--layer", 1, "--expert", 3, *given, "--no-effects", "--no-neighbors").code == 0
    file = here / "results" / "profile" / "profiles" / "L01E03.json"
    found = json.loads(file.read_text("utf-8"))
    found["label"]["text"] = "[bold]x[/bold] [/]"
    shown = "\n".join(line.plain for line in lines(ExpertProfile.model_validate(found)))
    assert "[bold]x[/bold] [/]" in shown
