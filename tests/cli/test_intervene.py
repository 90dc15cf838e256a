"""`moescope intervene` and `interv.py`: what is printed and left behind, and what is refused."""

import json
import re
import subprocess
import sys

import pandas as pd
import pytest
import torch
from transformers import AutoTokenizer, OlmoeForCausalLM

from moescope.analyses.intervention.analysis import compare
from moescope.cli.app import new_app
from moescope.cli.intervene import intervene as intervene_command
from moescope.cli.intervene import pairs
from moescope.interventions import Set, count_usage
from moescope.models import load_model
from moescope.results.reading import Results

PROMPT = "the court of appeal"
KL_COLUMNS = {"change", "value", "position", "token", "kl", "kl_control_median", "kl_control_q05", "kl_control_q95"}


@pytest.fixture
def intervene(moescope, tiny):
    def run(*words, prompt=PROMPT):
        return moescope("intervene", "--model", tiny, "--prompt", prompt, *words)

    return run


def read(folder, name):
    return pd.read_csv(folder / "tables" / f"{name}.csv", keep_default_na=False, na_values=[""])


@pytest.fixture(scope="module")
def chosen(tiny) -> dict[tuple[int, int], list[int]]:
    """By layer and token of the prompt the experts it chose, best first, from transformers' own model."""
    model = OlmoeForCausalLM.from_pretrained(tiny).eval()
    ids_1S = AutoTokenizer.from_pretrained(tiny)(PROMPT, return_tensors="pt").input_ids
    with torch.no_grad():
        logits = model(ids_1S, output_router_logits=True).router_logits
    return {
        (layer, token): logits_E.topk(2).indices.tolist()
        for layer, logits_SE in enumerate(logits)
        for token, logits_E in enumerate(logits_SE)
    }


def test_no_change_named_is_a_sweep(intervene, here):
    outcome = intervene("--layer", 1, "--expert", 5, "--target-index", 4)
    assert outcome.code == 0, outcome.err
    folder = here / "results" / "intervene"
    assert outcome.out.splitlines()[-1] == "Results: results/intervene"
    lines = outcome.out.splitlines()
    for index, character in enumerate(PROMPT):
        shown = character.replace(" ", "␣")
        assert any(
            line.split()[:3] == ["→", "4", shown] if index == 4 else line.split()[:2] == [str(index), shown]
            for line in lines
        ), index
    assert re.search(r"expert 5\b.*layer 1\b.*\b4 \(c\)", outcome.out, re.IGNORECASE)
    assert re.search(r"KL.*\b4 \(c\).*nats", outcome.out)
    kl = read(folder, "kl")
    assert set(kl.columns) > KL_COLUMNS
    assert sorted(set(kl["value"])) == [0, 0.05, 0.1, 0.2, 0.5, 1]
    assert len(kl) == 6 * (len(PROMPT) - 4)
    assert (kl["num_controls"] == 7).all()
    assert re.search(r"\b7 controls\b.*\b20\b", outcome.err)
    assert {path.name for path in (folder / "figures").iterdir()} == {
        f"{name}.{kind}" for name in ("sweep", "kl_by_position") for kind in ("pdf", "png")
    }
    known = json.loads((folder / "intervene.json").read_text(encoding="utf-8"))
    assert known["target_index"] == 4
    assert [token["token"] for token in known["tokens"]] == [character.replace(" ", "␣") for character in PROMPT]
    assert len(known["tables"]["kl"]) == len(kl)
    manifest = Results.read(folder).manifest
    assert (manifest.command, manifest.layers) == ("intervene", [1])
    assert {change["kind"] for changes in manifest.options["changes"] for change in changes} == {"set"}
    assert manifest.corpus == "embedded"
    assert manifest.options["values"] == [0, 0.05, 0.1, 0.2, 0.5, 1]


def test_the_thesis_command(moescope, here, tiny):
    words = ["--prompt", "Data collected by Barack Obama", "--target_idx", 4, "--expert_id", 5, "--layer", 1]
    made = []

    def app():
        made.append(new_app("interv.py", ""))
        made[-1].default(intervene_command)
        return made[-1]

    outcome = moescope("--model", tiny, *words, app=app)
    assert outcome.code == 0, outcome.err
    assert len(set(read(here / "results" / "intervene", "kl")["value"])) == 6


def test_help_says_it_all_and_costs_no_torch():
    code = """import sys
from moescope.cli import main
sys.argv = ["moescope", "intervene", "--help"]
assert main() == 0
print([name for name in ("torch", "numpy", "pandas", "matplotlib") if name in sys.modules])"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    for option in (
        "--prompt",
        "--target-index",
        "--layer",
        "--expert",
        "--scale",
        "--set",
        "--ablate",
        "--replace",
        "--renormalize",
        "--positions",
        "--generate",
        "--controls",
        "--seed",
        "--model",
        "--out",
        "--force",
    ):
        assert option in done.stdout
    assert "--layers" not in done.stdout


def test_every_kind_of_change(intervene, here, chosen):
    first, second = chosen[2, 3]
    at = ["--layer", 2, "--target-index", 3, "--controls", 2, "--expert"]
    for name, words in {
        "scale": [first, "--scale", -1, 0, 1],
        "ablate": [first, "--ablate"],
        "all": [0, "--replace", "--renormalize", "--positions", "all", "--generate", 6],
    }.items():
        outcome = intervene(*at, *words, "--out", name)
        assert outcome.code == 0, outcome.err
    experts = read(here / "scale", "experts")
    assert experts[experts["index"] == 3].sort_values("rank")["expert"].tolist() == [first, second]
    scale = read(here / "scale", "kl")
    assert (scale[scale["value"] == 1]["kl"] == 0).all()
    ablate = read(here / "ablate", "kl")
    assert scale[scale["value"] == 0]["kl"].tolist() == pytest.approx(ablate["kl"].tolist(), abs=1e-12)
    assert (ablate["num_other_choices"] == 1).all()
    assert (ablate["num_controls"] == 2).all()
    assert ablate["change"].unique().tolist() == ["ablated"]
    generated = read(here / "all", "continuations")
    assert generated["run"].tolist() == ["base", "changed", "control"]
    assert (generated["num_tokens"] == 6).all()
    assert "next_tokens.pdf" in {path.name for path in (here / "ablate" / "figures").iterdir()}
    assert pairs([2], [first, second]) == [(2, first), (2, second)]
    changes = Results.read(here / "all").manifest.options["changes"]
    assert changes[0][0]["positions"] is None and changes[0][0]["renormalize"] is True


def test_experts_of_several_layers_and_the_same_seed_leaves_the_same(intervene, here, tiny):
    words = ["--set", 0.3, "--target-index", -2, "--positions", 3, -2, -1, "--generate", 3, "--controls", 3]
    for name in ("a", "b"):
        outcome = intervene("--layer", 1, 3, "--expert", 5, 2, *words, "--out", name)
        assert outcome.code == 0, outcome.err
    for path in (here / "a" / "tables").glob("*.csv"):
        assert path.read_bytes() == (here / "b" / "tables" / path.name).read_bytes()
    assert (here / "a" / "intervene.json").read_bytes() == (here / "b" / "intervene.json").read_bytes()
    known = json.loads((here / "a" / "intervene.json").read_text())
    assert [(each["layer"], each["expert"]) for each in known["experts"]] == [(1, 5), (3, 2)]
    assert known["target_index"] == len(PROMPT) - 2
    assert Results.read(here / "a").manifest.options["changes"][0][0]["positions"] == [3, -2, -1]
    # Both are changed: the effect is that of a pass with both changes, and of no other.
    model, changes = load_model(str(tiny)), [Set(*at, 0.3, positions=[3, -2, -1]) for at in ((1, 5), (3, 2))]
    usage = count_usage(model, [1, 3], num_tokens=100)
    kl = read(here / "a", "kl")["kl"].tolist()
    both, *either = (
        compare(model, PROMPT, [(0.3, some)], target=-2, controls=0, usage=usage).kl["kl"].tolist()
        for some in (changes, changes[:1], changes[1:])
    )
    assert kl == pytest.approx(both, rel=1e-6, abs=1e-12)
    assert all(kl != pytest.approx(alone, rel=1e-3) for alone in either)


def test_what_cannot_be_done_leaves_nothing(intervene, here, moescope, tiny, chosen):
    taken = chosen[1, 4]
    (here / "asked").mkdir()
    (here / "asked" / "thesis.tex").write_text("years")
    other = next(expert for expert in range(8) if expert not in taken)
    at = ["--layer", 1, "--expert"]
    for words, messages in (
        ([*at, 5, "--target-index", 19], ["target index 19", "19 tokens", "0 t, 1 h, 2 e"]),
        ([*at, other, "--target-index", 4, "--scale", 2], ["does not select", f"{taken[0]} (", "`Set`"]),
        ([*at, other, "--target-index", 4, "--ablate"], ["does not select", f"{taken[1]} (", "`Set`"]),
        ([*at, 8], ["no expert 8", "0-7"]),
        ([*at, -1], ["no expert -1"]),
        (["--layer", 4, "--expert", 0], ["layer 4", "0-3"]),
        ([*at, 5, "--scale", 1, "--set", 1], ["--scale and --set were given together"]),
        ([*at, 5, "--ablate", "--replace"], ["--ablate and --replace"]),
        ([*at, 5, 6, "--set", 0.1, 0.2], ["2 values to sweep for 2 experts"]),
        ([*at, 5, 6], ["6 values to sweep for 2 experts", "--ablate"]),
        ([*at, 5, 5, "--set", 0.1], ["named twice"]),
        (["--layer", 1, 2, "--expert", 5, "--set", 0.1], ["2 layers for 1 experts"]),
        ([*at, 5, "--positions", "some"], ["--positions some", "all"]),
        ([*at, 5, "--positions", 40], ["position 40 is past the prompt"]),
        ([*at, 5, "--set", "nan"], ["`value=nan`"]),
        ([*at, 5, "--set", "much"], ["much"]),
        ([*at, 5, "--generate", 250], ["250 more", "256"]),
        ([*at, 5, "--controls", 0], [">= 1"]),
        ([*at], ["--expert"]),
        (["--expert", 5], ["--layer"]),
        ([*at, 5, "--out", "asked"], ["exists already"]),
    ):
        outcome = intervene(*words)
        assert outcome.code == 2, words
        assert all(message in outcome.err for message in messages), outcome.err
    for prompt, message in (("", "prompt is empty"), ("  ", "prompt is empty"), ("x" * 300, "300 tokens")):
        outcome = intervene(*at, 5, prompt=prompt)
        assert outcome.code == 2
        assert message in outcome.err
    assert "--prompt" in moescope("intervene", "--model", tiny, *at, 5).err
    assert [path.name for path in here.iterdir()] == ["asked"]
