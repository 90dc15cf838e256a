"""One model, several threads and tasks: what a pass asks of it, and what is in force on it, is nobody else's."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import moescope
from moescope.errors import ModelError, MoescopeWarning, UsageError, noted, unwarned, warn
from moescope.interventions import Ablate, Replace, Scale, Set, intervening
from moescope.interventions.controls import count_usage
from moescope.interventions.gradient import _frozen
from moescope.interventions.rerun import experts_giving, starting_at
from moescope.models import MoEModel, load_model
from moescope.models.head import giving
from moescope.models.seam import transformed
from moescope.records import Routing
from tests.analyses.runs import small_corpus
from tests.families import build, padded_batch, save, tokenizer

CHANGES = [Ablate(0, 1), Replace(1, 2), Set(2, 3, 2.0, positions=[0, 2]), Scale(3, 4, 3.0)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> MoEModel:
    return load_model(str(save(build("olmoe"), tmp_path_factory.mktemp("olmoe"))))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return small_corpus(tmp_path_factory.mktemp("text"))


@torch.no_grad()
def logits(model: MoEModel, ids_BS: Tensor) -> Tensor:
    return model.hf(input_ids=ids_BS).logits


def listened(model: MoEModel, lengths: list[int], pause: Callable[[], None] = lambda: None) -> list[Tensor]:
    """Experts and logits of each layer; `pause` is called in the middle of the pass."""
    found: list[Tensor] = []

    def on_routing(routing: Routing) -> None:
        assert routing.logits_TE is not None
        found.extend([routing.expert_ids_TK, routing.weights_TK, routing.logits_TE])
        if routing.layer == 1:
            pause()

    ids_BS, tokens, keep_T = padded_batch(lengths, seed=sum(lengths))
    model.listen(ids_BS, tokens, keep_T, layers=model.layers, on_routing=on_routing)
    return found


def in_thread(action: Callable[[], Any]) -> Any:
    """What an action returns in a thread of its own."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(action).result(timeout=300)


def equal(first: list[Tensor], second: list[Tensor]) -> bool:
    return len(first) == len(second) and all(map(torch.equal, first, second))


def test_a_pass_in_the_middle_of_another(model: MoEModel) -> None:
    alone = {lengths: listened(model, list(lengths)) for lengths in ((9, 5), (12, 3, 4))}
    inner: list[list[Tensor]] = []
    outer = listened(model, [9, 5], lambda: inner.append(in_thread(lambda: listened(model, [12, 3, 4]))))
    assert equal(outer, alone[9, 5])
    assert equal(inner[0], alone[12, 3, 4])
    assert all(seam.at_rest for seam in model.seams.values())
    assert not any(seam.router._forward_hooks for seam in model.seams.values())


def test_interventions_are_those_of_the_thread(model: MoEModel) -> None:
    ids_BS = padded_batch([9])[0]
    plain, heard = logits(model, ids_BS), listened(model, [9, 5])
    with intervening(model, CHANGES):
        changed = logits(model, ids_BS)
        assert torch.equal(in_thread(lambda: logits(model, ids_BS)), plain)
        assert equal(in_thread(lambda: listened(model, [9, 5])), heard)
        assert in_thread(lambda: model.info.interventions) == ()
        assert torch.equal(logits(model, ids_BS), changed)
        within = contextvars.copy_context()
        assert torch.equal(in_thread(lambda: within.run(logits, model, ids_BS)), changed)
    assert not torch.equal(changed, plain)
    assert torch.equal(logits(model, ids_BS), plain)


def test_several_threads_with_changes_of_their_own_generate(model: MoEModel) -> None:
    """Positions, caches and the router's logits are each thread's."""
    prompts = {index: padded_batch([5 + index], seed=index)[0] for index in range(4)}

    def run(index: int) -> list[int]:
        with intervening(model, [*CHANGES[index : index + 1], Set(2, 3, 2.0, positions=[-1, 6])]):
            ids_1S = prompts[index]
            options = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None}
            return model.generate(ids_1S, attention_mask=torch.ones_like(ids_1S), **options)[0].tolist()

    alone = [run(index) for index in prompts]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(3):
            assert list(pool.map(run, prompts)) == alone


def test_tasks_of_one_event_loop(model: MoEModel) -> None:
    ids_BS = padded_batch([9])[0]
    plain = logits(model, ids_BS)

    async def task(changes: list[Any]) -> Tensor:
        with intervening(model, changes):
            await asyncio.sleep(0)
            found = logits(model, ids_BS)
            await asyncio.sleep(0)
            assert torch.equal(await asyncio.to_thread(logits, model, ids_BS), found)
        return found

    async def both() -> list[Tensor]:
        return list(await asyncio.gather(task(CHANGES), task([])))

    changed, unchanged = asyncio.run(both())
    assert torch.equal(unchanged, plain)
    assert not torch.equal(changed, plain)


def test_contexts_left_in_another_order_than_entered(model: MoEModel) -> None:
    ids_BS = padded_batch([9])[0]
    plain = logits(model, ids_BS)

    def passes(changes: list[Any]) -> Iterator[Tensor]:
        with intervening(model, changes):
            yield logits(model, ids_BS)

    first, second = passes(CHANGES[:1]), passes(CHANGES[1:])
    next(first), next(second)
    first.close()
    second.close()
    assert all(seam.at_rest for seam in model.seams.values())
    assert torch.equal(logits(model, ids_BS), plain)


def test_replaced_modules_are_replaced_for_the_thread_alone(model: MoEModel) -> None:
    ids_BS = padded_batch([9])[0]
    plain = logits(model, ids_BS)
    states_BSM, outputs_NM = torch.zeros(1, 9, 32), torch.zeros(9, 32)
    for context in (
        giving(model.decoder, states_BSM),
        starting_at(model, 2, states_BSM),
        experts_giving(model, 2, outputs_NM),
    ):
        with context:
            assert not torch.equal(logits(model, ids_BS), plain)
            assert torch.equal(in_thread(lambda: logits(model, ids_BS)), plain)
    assert not any("forward" in vars(module) for module in model.hf.modules())


def test_parameters_ask_for_gradients_again_when_the_last_thread_is_done() -> None:
    module = torch.nn.Linear(2, 2)
    entered, leave = threading.Event(), threading.Event()

    def other() -> None:
        with _frozen(module):
            entered.set()
            leave.wait(60)

    with _frozen(module):
        thread = threading.Thread(target=other)
        thread.start()
        entered.wait(60)
    assert not module.weight.requires_grad  # the other thread is still at it
    leave.set()
    thread.join()
    assert module.weight.requires_grad


def test_captures_in_threads_count_what_one_alone_does(model: MoEModel, corpus: Any) -> None:
    def run(seed: int) -> tuple[Any, list[Any]]:
        found = moescope.capture(model, corpus, ["usage"], 600, seed=seed, batch_tokens=200)
        return found.tables["usage"]["num_selected"].values, found.manifest.notes

    alone = [run(seed) for seed in range(3)]
    with ThreadPoolExecutor(3) as pool:
        together = list(pool.map(run, range(3)))
    for (counts, notes), (expected, expected_notes) in zip(together, alone, strict=True):
        assert np.array_equal(counts, expected)
        assert notes == expected_notes


def test_a_capture_says_which_interventions_were_in_force(model: MoEModel, corpus: Any) -> None:
    plain = moescope.capture(model, corpus, ["usage"], 300)
    with intervening(model, [Ablate(0, 1)]), intervening(model, [Set(2, 3, 2.0, positions=[1])]):
        run = moescope.capture(model, corpus, ["usage"], 300)
    assert plain.manifest.interventions == []
    assert [(change["kind"], change["layer"], change["expert"]) for change in run.manifest.interventions] == [
        ("ablate", 0, 1),
        ("set", 2, 3),
    ]
    assert run.manifest.interventions[1]["value"] == 2.0
    assert "2 interventions in force (ablate expert 1 of layer 0, set expert 3 of layer 2)" in run.manifest.notes[0]
    assert "changed" in run.context.caption
    for key, statistic in run.statistics.items():
        with pytest.raises(UsageError, match="different models"):
            plain.statistics[key].merge(statistic)
    with transformed(model.seams, {1: [lambda call: (call.expert_ids_NK, 2 * call.weights_NK)]}):
        assert model.info.interventions[0]["layer"] == 1


def test_usage_counted_with_other_changes_is_refused(model: MoEModel, corpus: Any) -> None:
    with intervening(model, [Replace(0, 1)]):
        usage = count_usage(model, [1], corpus=corpus, num_tokens=200)
        assert usage.model.interventions[0]["kind"] == "replace"
    with pytest.raises(UsageError, match="with other changes in force"):
        moescope.intervene(model, "apple pear", [Set(1, 1, 0.5)], usage=usage, controls=2)


def test_loading_a_model_again_while_it_runs_and_is_changed() -> None:
    hf = build("olmoe")
    first = load_model(hf, tokenizer=tokenizer())
    alone, rules = listened(first, [9, 5]), first.rules
    again: list[MoEModel] = []
    assert equal(listened(first, [9, 5], lambda: again.append(in_thread(lambda: load_model(hf)))), alone)
    with intervening(first, [Replace(0, 1)]):
        within = load_model(hf)
    assert within.rules == again[0].rules == rules
    assert equal(listened(within, [9, 5]), alone)


def test_numbers_of_experts_are_read_when_they_are_used(corpus: Any) -> None:
    model = load_model(build("olmoe"), tokenizer=tokenizer())
    routers = [seam.router for seam in model.seams.values()]
    for router in routers:
        router.top_k = 3
    assert model.num_experts_per_token == model.info.num_experts_per_token == 3
    run = moescope.capture(model, corpus, ["usage"], 300)
    assert run.manifest.num_experts_per_token == 3
    assert run.tables["usage"]["num_selected"].sum() == 3 * 300 * len(model.layers)
    assert any("sends tokens to 3 experts, and was loaded with 2" in note for note in run.manifest.notes)
    routers[0].top_k = 2
    with pytest.raises(ModelError, match="different numbers of experts: 2 at layer 0, 3 at layer 1"):
        moescope.capture(model, corpus, ["usage"], 300)


def test_rules_are_found_again_when_a_bias_was_edited() -> None:
    model = load_model(build("deepseek_v3"))
    layer = model.layers[0]
    router = model.seams[layer].router
    bias = next(tensor for name, tensor in router.named_buffers() if "bias" in name)
    with torch.no_grad():
        bias.neg_()
    model.refresh()
    assert torch.equal(model.rules[layer].bias_E, bias.float())
    with intervening(model, [Replace(layer, 0)]):
        listened(model, [9])


def test_edited_weights_are_noted(corpus: Any) -> None:
    model = load_model(build("olmoe"), tokenizer=tokenizer())
    assert model.info.changes == ()
    with torch.no_grad():
        model.experts(1).down_proj[5] = 0.0
    run = moescope.capture(model, corpus, ["entropy"], 300)
    assert any("1 tensors of the model's weights were edited" in note for note in run.manifest.notes)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda hf: hf.set_experts_implementation("eager"), "experts implementation of .* was set to eager"),
        (lambda hf: hf.train(), r"training mode[\s\S]*eval"),
        (lambda hf: setattr(hf.model.layers[1].mlp, "experts", build("olmoe").model.layers[1].mlp.experts), "layer 1"),
    ],
)
def test_models_that_passes_no_longer_show_are_refused(change: Callable[[Any], Any], said: str, corpus: Any) -> None:
    model = load_model(build("olmoe"), tokenizer=tokenizer())
    change(model.hf)
    with pytest.raises(ModelError, match=said):
        moescope.capture(model, corpus, ["entropy"], 300)
    with pytest.raises(ModelError, match=said), intervening(model, [Ablate(0, 1)]):
        pass


def test_records_that_do_not_fit_the_model_are_refused(model: MoEModel) -> None:
    for change in (
        lambda call: (call.expert_ids_NK + 7, call.weights_NK),
        lambda call: (call.expert_ids_NK[:, :1], call.weights_NK[:, :1]),
    ):
        with transformed(model.seams, {1: [change]}), pytest.raises(ModelError, match="experts of layer 1 were called"):
            listened(model, [9])


def test_warnings_are_noted_by_the_thread_that_warns() -> None:
    notes: list[str] = []
    with noted(notes), pytest.warns(MoescopeWarning, match="mine"):
        in_thread(lambda: _ignoring("other"))
        warn("mine")
        with unwarned():
            warn("said before")
    assert notes == ["mine"]


def _ignoring(message: str) -> None:
    with unwarned():
        warn(message)
