"""Effects on a prompt: KL, ranks and log-probabilities against scipy and plain passes; controls; what is refused."""

from __future__ import annotations

import dataclasses
import json
import math
from contextlib import ExitStack
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.special import log_softmax
from scipy.stats import entropy, rankdata

import moescope
from moescope.analyses.intervention.analysis import compare
from moescope.errors import ModelError, MoescopeWarning, UsageError
from moescope.interventions import Ablate, Replace, Scale, Set, count_usage, intervening
from moescope.interventions.controls import Usage, matched_draws, matched_experts
from moescope.models import MoEModel, load_model
from tests.families import build, save

PROMPT = "What is in a name?"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> MoEModel:
    made = build("olmoe", num_experts=40, num_hidden_layers=3)
    return load_model(str(save(made, tmp_path_factory.mktemp("olmoe"))))


@pytest.fixture(scope="module")
def usage(model: MoEModel) -> Usage:
    return count_usage(model, [1, 2], num_tokens=1_000)


def log_probabilities(model: MoEModel, changes: list) -> np.ndarray:
    """Of every position, by scipy."""
    ids_1S = torch.tensor([model.tokenizer(PROMPT)["input_ids"]])
    with torch.no_grad(), intervening(model, changes):
        return log_softmax(model.hf(input_ids=ids_1S).logits[0].double().numpy(), axis=-1)


def test_an_effect_is_what_two_plain_passes_show(model: MoEModel, usage: Usage) -> None:
    changes = [Set(1, 7, 0.6, positions=[5]), Set(2, 3, 0.3, positions=[6, -1])]
    study = moescope.intervene(model, PROMPT, changes, usage=usage, top=6, controls=4)
    before, after = log_probabilities(model, []), log_probabilities(model, changes)
    assert study.target == 5
    assert study.kl["position"].tolist() == list(range(5, len(PROMPT)))
    assert study.kl["token"].tolist() == [character.replace(" ", "␣") for character in PROMPT[5:]]
    for row in study.kl.to_dict("records"):
        here = row["position"]
        assert row["kl"] == pytest.approx(entropy(np.exp(before[here]), np.exp(after[here])), rel=1e-6, abs=1e-12)
        controls = [
            entropy(
                np.exp(before[here]),
                np.exp(
                    log_probabilities(model, [dataclasses.replace(c, expert=draw[c.layer, c.expert]) for c in changes])[
                        here
                    ]
                ),
            )
            for draw in study.draws
        ]
        assert row["num_controls"] == len(controls) == 4
        assert row["kl_control_median"] == pytest.approx(np.median(controls), rel=1e-6, abs=1e-12)
        assert row["kl_control_q95"] == pytest.approx(np.quantile(controls, 0.95), rel=1e-6, abs=1e-12)
        assert row["kl_control_share_as_large"] == np.mean([kl >= row["kl"] for kl in controls])
    for position, rows in study.next_tokens.groupby("position"):
        ranks_before = rankdata(-before[position], method="min") - 1
        ranks_after = rankdata(-after[position], method="min") - 1
        assert set(rows["next_token_id"]) == set(np.flatnonzero(np.minimum(ranks_before, ranks_after) < 6))
        for row in rows.to_dict("records"):
            token = row["next_token_id"]
            assert (row["rank_before"], row["rank_after"]) == (ranks_before[token], ranks_after[token])
            assert row["log_probability_before"] == pytest.approx(before[position, token], rel=1e-9)
            assert row["log_probability_change"] == pytest.approx(
                after[position, token] - before[position, token], rel=1e-6, abs=1e-9
            )
            assert row["probability_after"] == pytest.approx(math.exp(after[position, token]))
            assert (
                row["log_probability_change_control_q05"]
                <= row["log_probability_change_control_median"]
                <= row["log_probability_change_control_q95"]
            )


def test_what_the_tokens_chose(model: MoEModel, usage: Usage) -> None:
    study = moescope.intervene(model, PROMPT, [Replace(1, 0), Set(2, 1, 0.5)], usage=usage, controls=1)
    assert study.target == 0
    experts = study.experts
    assert len(experts) == len(PROMPT) * 2 * 2
    caught: dict[int, torch.Tensor] = {}
    with ExitStack() as stack:
        for layer in (1, 2):
            hook = partial(lambda layer, _, __, output: caught.update({layer: output[0].softmax(-1)}), layer)
            stack.enter_context(model.seams[layer].router.register_forward_hook(hook))
        log_probabilities(model, [])
    for (index, layer), rows in experts.groupby(["index", "layer"]):
        best = caught[layer][index].topk(2)
        assert rows["expert"].tolist() == best.indices.tolist()
        assert rows["weight"].tolist() == pytest.approx(best.values.tolist(), rel=1e-5)


def test_a_sweep_shares_its_base_and_ends_where_nothing_changes(model: MoEModel, usage: Usage) -> None:
    first = moescope.intervene(model, PROMPT, [Replace(1, 0, positions=4)], usage=usage, controls=0)
    expert = first.prompt.selected(1, 4)[0]
    factors = [0.0, 0.5, 1.0, 2.0]
    study = compare(
        model,
        PROMPT,
        [(factor, [Scale(1, expert, factor, positions=4)]) for factor in factors],
        usage=usage,
        controls=20,
        generate=5,
    )
    at_target = study.kl[study.kl["position"] == 4].set_index("value")["kl"]
    assert at_target.index.tolist() == factors
    assert at_target[1.0] == 0
    assert (study.kl[study.kl["value"] == 1.0]["kl"] == 0).all()
    assert (at_target[[0.0, 0.5, 2.0]] > 0).all()
    # Of the controls only those that the token chose can be scaled; its other choice is the second control.
    other = study.prompt.selected(1, 4)[1]
    acting = sum(draw[1, expert] == other for draw in study.draws)
    assert (study.kl[study.kl["value"] == 0.0]["num_controls_acting"] == acting).all()
    assert (study.kl["num_other_choices"] == 1).all()
    ablated = moescope.intervene(model, PROMPT, [Ablate(1, other, positions=4)], usage=usage, controls=0)
    zero = study.kl[(study.kl["value"] == 0.0)]
    assert zero["other_choices_kl_median"].tolist() == pytest.approx(ablated.kl["kl"].tolist(), rel=1e-9, abs=1e-12)
    generated = study.generated
    assert generated["run"].tolist() == ["base", *["changed", "control"] * 4]
    unchanged = generated[(generated["run"] == "changed") & (generated["value"] == 1.0)]
    assert unchanged["text"].tolist() == [generated["text"][0]]
    assert unchanged["num_as_base"].tolist() == [5]
    assert set(study.figures) == {"sweep", "kl_by_position"}
    assert set(ablated.figures) == {"next_tokens", "kl_by_position"}


def test_everything_fits_into_json_and_comes_again(model: MoEModel, usage: Usage) -> None:
    def study() -> str:
        made = moescope.intervene(model, PROMPT, [Set(1, 5, 0.2, positions=-1)], usage=usage, generate=3)
        return made.files["intervene.json"]

    text = study()
    assert text == study()
    known = json.loads(text, parse_constant=pytest.fail)  # NaN is no JSON
    assert known["schema_version"] == 2
    assert known["tokens"][5] == {"index": 5, "token_id": model.tokenizer("i")["input_ids"][0], "token": "i"}
    assert known["changes"] == [
        [{"kind": "set", "layer": 1, "expert": 5, "positions": [-1], "renormalize": False, "value": 0.2}]
    ]
    assert set(known["tables"]) == {"kl", "next_tokens", "experts", "controls", "continuations"}
    assert known["target_index"] == len(PROMPT) - 1


def test_usage_is_counted_as_the_routers_choose(model: MoEModel, usage: Usage) -> None:
    assert usage.num_tokens == 1_000
    assert {layer: int(counts_E.sum()) for layer, counts_E in usage.counts.items()} == {1: 2_000, 2: 2_000}
    counts = {1: np.zeros(40, int), 2: np.zeros(40, int)}
    for batch in usage.sampler:
        model.listen(
            batch.input_ids_BS,
            batch.tokens,
            batch.keep_T,
            layers=[1, 2],
            on_routing=lambda r: np.add.at(counts[r.layer], r.expert_ids_TK.numpy().ravel(), 1),
        )
    assert all((counts[layer] == usage.counts[layer]).all() for layer in (1, 2))


def test_matched_experts_are_near_in_usage_seeded_and_never_the_target() -> None:
    counts_E = np.random.default_rng(0).lognormal(5, 1, 64).astype(np.int64)
    distance_E = np.abs(np.log((counts_E + 1) / (counts_E[9] + 1)))
    drawn = matched_experts(counts_E, 9)
    assert len(set(drawn)) == 20
    assert 9 not in drawn
    assert set(drawn) <= set(np.argsort(distance_E)[:31])
    assert drawn == matched_experts(counts_E, 9)
    assert drawn != matched_experts(counts_E, 9, seed=1)
    assert sorted(matched_experts(counts_E[:8], 3)) == [0, 1, 2, 4, 5, 6, 7]
    assert not {1, 2} & set(matched_experts(counts_E[:8], 3, exclude=[1, 2]))
    # Over seeds every one of the pool is drawn, and no other.
    pool = set().union(*(matched_experts(counts_E, 9, seed=seed) for seed in range(40)))
    assert pool == set(np.argsort(distance_E, kind="stable")[1:31])


def test_draws_for_several_experts_are_different_and_hold_no_target() -> None:
    generator = np.random.default_rng(0)
    counts = {1: generator.integers(1, 900, 64), 7: generator.integers(1, 900, 64)}
    targets = [(1, 9), (1, 3), (7, 9)]
    draws = matched_draws(counts, targets, num=25)
    assert len({tuple(draw.values()) for draw in draws}) == 25
    for draw in draws:
        assert list(draw) == targets
        assert draw[1, 9] != draw[1, 3]
        assert not {9, 3} & {draw[1, 9], draw[1, 3]}
        assert draw[7, 9] != 9
    assert draws == matched_draws(counts, targets, num=25)
    assert matched_draws({0: np.arange(3)}, [(0, 0), (0, 1)], num=5) == []


def test_what_cannot_be_asked(model: MoEModel, usage: Usage, tmp_path) -> None:
    prompt = moescope.intervene(model, PROMPT, [Replace(1, 0)], usage=usage, controls=0).prompt
    chosen = prompt.selected(1, 4)
    missing = next(expert for expert in range(40) if expert not in chosen)
    never = next(expert for expert in range(40) if not (prompt.expert_ids[1] == expert).any())
    listed = "0 W, 1 h, 2 a"
    for options, words in (
        (
            {"changes": [Scale(1, missing, 2.0, positions=4)]},
            ["token 4 (␣)", f"expert {missing}", f"{chosen[0]} (", "Set"],
        ),
        ({"changes": [Ablate(1, missing, positions=[4])]}, ["nothing to ablate", f"{chosen[1]} ("]),
        ({"changes": [Ablate(1, never)]}, ["none of the tokens selects", str(chosen[0])]),
        ({"changes": [Replace(1, 0, positions=18)]}, ["position 18 is past the prompt", "18 tokens", listed]),
        ({"changes": [Replace(1, 0)], "target": 30}, ["target index 30", "18 tokens", listed]),
        ({"changes": [Replace(1, 0)], "target": -19}, ["target index -19", "-18 to -1"]),
        ({"changes": [Replace(1, 40)]}, ["no expert 40", "0-39"]),
        ({"changes": [Replace(3, 0)]}, ["layer 3", "0-2"]),
        ({"changes": []}, ["there is no change"]),
        ({"changes": [Replace(1, 0)], "prompt": ""}, ["the prompt is empty"]),
        ({"changes": [Replace(1, 0)], "prompt": "x" * 257}, ["257 tokens", "256"]),
        ({"changes": [Replace(1, 0)], "prompt": "x" * 250, "generate": 7}, ["250 tokens and 7 more"]),
        ({"changes": [Replace(1, 0)], "top": 0}, ["`top=0`"]),
    ):
        with pytest.raises(UsageError) as caught:
            moescope.intervene(model, **{"prompt": PROMPT, "usage": usage, **options})
        assert all(word in str(caught.value) for word in words), str(caught.value)
    with pytest.raises(UsageError, match="different experts"):
        compare(model, PROMPT, [(0.0, [Set(1, 2, 0.0)]), (1.0, [Set(1, 3, 1.0)])], usage=usage)
    part = load_model(str(save(build("olmoe"), tmp_path)), layers=[1])
    with pytest.raises(ModelError, match="without its head"):
        moescope.intervene(part, PROMPT, [Replace(1, 0)])


def test_positions_in_what_is_generated(model: MoEModel, usage: Usage) -> None:
    changes = [Set(1, 5, 3.0, positions=[len(PROMPT) + 1])]
    study = moescope.intervene(model, PROMPT, changes, usage=usage, controls=0, generate=8)
    assert study.target == len(PROMPT) - 1
    assert (study.kl["kl"] == 0).all()
    changed = study.generated.set_index("run").loc["changed"]
    assert changed["num_as_base"] >= 2


def test_fewer_controls_than_asked_is_said(tmp_path) -> None:
    small = load_model(str(save(build("olmoe"), tmp_path)))
    with pytest.warns(MoescopeWarning, match="7 controls instead of 20"):
        study = moescope.intervene(small, PROMPT, [Set(1, 5, 0.2)])
    assert (study.kl["num_controls"] == 7).all()
    assert isinstance(study.controls, pd.DataFrame)
    assert sorted(study.controls["control_expert"]) == [0, 1, 2, 3, 4, 6, 7]


def test_the_usage_of_a_changed_model_is_not_kept(model: MoEModel) -> None:
    """Controls are matched by the usage of the model as it is in force at the call, also if that changes again."""
    ask = {"prompt": PROMPT, "changes": [Set(2, 5, 0.2)], "controls": 3}
    before = moescope.intervene(model, **ask)
    with intervening(model, [Replace(1, 0)]):
        inside = moescope.intervene(model, **ask)
        expected = count_usage(model, [2])
    after = moescope.intervene(model, **ask)
    assert before.usage is not None and inside.usage is not None and after.usage is not None
    assert (inside.usage.counts[2] == expected.counts[2]).all()
    assert (inside.usage.counts[2] != before.usage.counts[2]).any()
    assert (after.usage.counts[2] == before.usage.counts[2]).all()
    edited = load_model(model.name)  # of its own: the other tests' usage is of weights that no one edited
    router = edited.seams[2].router.weight
    with torch.no_grad():
        router.copy_(router.roll(1, 0))
    turned = moescope.intervene(edited, **ask)
    assert turned.usage is not None
    assert turned.usage.counts[2].tolist() == np.roll(before.usage.counts[2], 1).tolist()


def test_a_study_is_an_outcome(model: MoEModel, usage: Usage, tmp_path) -> None:
    study = moescope.intervene(model, PROMPT, [Set(1, 5, 0.2, positions=[3])], usage=usage, controls=2)
    assert set(study.frames) == {"kl", "next_tokens", "experts", "controls"}
    manifest = study.manifest
    assert (manifest.command, manifest.layers, manifest.corpus) == ("intervene", [1], "embedded")
    assert manifest.options["changes"][0][0]["value"] == 0.2
    assert manifest.options["target_index"] == 3
    assert 0 < manifest.pass_seconds <= manifest.total_seconds
    folder = study.save(tmp_path / "study")
    assert pd.read_csv(folder / "tables" / "kl.csv")["kl"].tolist() == pytest.approx(study.kl["kl"].tolist())
    assert json.loads((folder / "intervene.json").read_text("utf-8"))["model"] == model.name
    assert {path.name for path in (folder / "figures").glob("*.png")} == {"next_tokens.png", "kl_by_position.png"}
    alone = moescope.intervene(model, PROMPT, [Set(1, 5, 0.2)], controls=0)
    assert (alone.manifest.corpus, alone.manifest.domains) == (None, [])
    assert alone.kl["kl_control_share_as_large"].isna().all()
