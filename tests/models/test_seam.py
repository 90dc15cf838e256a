"""The seam: transforms, listeners, and that it leaves nothing behind."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from moescope.models import MoEModel, load_model
from moescope.models.experts import SortedOutputs
from moescope.models.seam import ExpertCall, StopForward, Transform, hooked, transformed
from tests.families import build, padded_batch, save


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> MoEModel:
    return load_model(str(save(build("olmoe"), tmp_path_factory.mktemp("olmoe"))))


@pytest.fixture
def ids_BS() -> Tensor:
    return padded_batch([9, 9, 9], seed=2)[0]


def unchanged(call: ExpertCall) -> tuple[Tensor, Tensor]:
    return call.expert_ids_NK, call.weights_NK


@torch.no_grad()
def test_a_transform_that_changes_nothing_changes_nothing_bit_for_bit(model: MoEModel, ids_BS: Tensor) -> None:
    plain = model.hf(input_ids=ids_BS).logits
    with transformed(model.seams, {layer: [unchanged, unchanged] for layer in model.layers}):
        assert torch.equal(model.hf(input_ids=ids_BS).logits, plain)
    assert torch.equal(model.hf(input_ids=ids_BS).logits, plain)


@torch.no_grad()
def test_transforms_are_applied_in_order_to_what_the_one_before_left(model: MoEModel, ids_BS: Tensor) -> None:
    seen: list[ExpertCall] = []

    def double(call: ExpertCall) -> tuple[Tensor, Tensor]:
        seen.append(call)
        return call.expert_ids_NK, 2 * call.weights_NK

    def halve(call: ExpertCall) -> tuple[Tensor, Tensor]:
        seen.append(call)
        return call.expert_ids_NK, call.weights_NK / 2

    plain = model.hf(input_ids=ids_BS).logits
    with transformed(model.seams, {2: [double, halve]}):
        assert torch.equal(model.hf(input_ids=ids_BS).logits, plain)
    first, second = seen
    assert first.layer == second.layer == 2
    assert torch.equal(second.weights_NK, 2 * first.weights_NK)
    assert first.logits_NE is not None
    probabilities_NE = first.logits_NE.softmax(-1)
    assert torch.allclose(first.weights_NK, probabilities_NE.gather(1, first.expert_ids_NK))
    assert first.hidden_NM.shape == (27, 32)


@torch.no_grad()
def test_a_layer_whose_weights_are_zero_passes_its_input_on(model: MoEModel, ids_BS: Tensor) -> None:
    """An OLMoE block without its experts' sum is its attention alone: computed here from the block's own parts."""

    def silence(call: ExpertCall) -> tuple[Tensor, Tensor]:
        return call.expert_ids_NK, torch.zeros_like(call.weights_NK)

    block = model.blocks[1]
    caught: dict[str, Tensor] = {}
    handles = [
        block.post_attention_layernorm.register_forward_hook(
            lambda module, inputs, output: caught.update(residual=inputs[0])
        ),
        block.register_forward_hook(lambda module, inputs, output: caught.update(out=output)),
    ]
    with transformed(model.seams, {1: [silence]}):
        model.hf(input_ids=ids_BS)
    for handle in handles:
        handle.remove()
    assert torch.equal(caught["out"], caught["residual"])


@torch.no_grad()
def test_a_transform_may_choose_other_experts(model: MoEModel, ids_BS: Tensor) -> None:
    def only_expert_5(call: ExpertCall) -> tuple[Tensor, Tensor]:
        ids_N1 = torch.full_like(call.expert_ids_NK[:, :1], 5)
        return ids_N1, torch.ones_like(call.weights_NK[:, :1])

    class Ear:
        wants_outputs = True

        def __call__(self, call: ExpertCall, outputs: SortedOutputs | None) -> None:
            assert outputs is not None
            self.call, self.outputs = call, outputs

    ear = Ear()
    with transformed(model.seams, {1: [only_expert_5]}):
        model.seams[1].listener = ear
        heard = model.hf(input_ids=ids_BS).logits
    with transformed(model.seams, {1: [only_expert_5]}):
        unheard = model.hf(input_ids=ids_BS).logits
    assert torch.allclose(heard, unheard, atol=1e-5)
    assert ear.call.expert_ids_NK.shape == (27, 1)
    assert ear.outputs.offsets_E1 == [0] * 6 + [27] * 3
    expected = model.expert_outputs(1, ear.call.hidden_NM, [5])[0]
    assert torch.allclose(ear.outputs.outputs_AM, expected, atol=1e-6)


@pytest.mark.parametrize("wants_outputs", [False, True])
def test_gradients_of_the_weights_equal_finite_differences(ids_BS: Tensor, wants_outputs: bool, tmp_path: Path) -> None:
    """One backward pass gives dloss/dw of every assignment, through all later routers: what the atlas is built on.

    The norms and routers of OLMoE compute in float32 whatever the dtype, hence the tolerance. A zero is added to the
    weights; to put a leaf in their place would cut them off from the layers before.
    """
    model = load_model(str(save(build("olmoe"), tmp_path)), dtype="float64")
    added: dict[int, Tensor] = {}

    class Ear:
        def __init__(self) -> None:
            self.wants_outputs = wants_outputs

        def __call__(self, call: ExpertCall, outputs: SortedOutputs | None) -> None:
            pass

    def add_zero(call: ExpertCall) -> tuple[Tensor, Tensor]:
        added[call.layer] = torch.zeros_like(call.weights_NK).requires_grad_()
        return call.expert_ids_NK, call.weights_NK + added[call.layer]

    def nudge(place: tuple[int, int], step: float) -> Transform:
        def transform(call: ExpertCall) -> tuple[Tensor, Tensor]:
            weights_NK = call.weights_NK.clone()
            weights_NK[place] += step
            return call.expert_ids_NK, weights_NK

        return transform

    def loss() -> Tensor:
        hidden_BSM = model.last_hidden(ids_BS)
        assert hidden_BSM is not None
        return F.cross_entropy(model.logits(hidden_BSM.flatten(0, 1))[:-1], ids_BS.flatten()[1:])

    with transformed(model.seams, {layer: [add_zero] for layer in model.layers}):
        for seam in model.seams.values():
            seam.listener = Ear()
        loss().backward()
    assert set(added) == set(model.layers)
    for layer, place in [(0, (4, 0)), (1, (20, 1)), (3, (26, 0))]:
        measured = []
        for step in (1e-3, -1e-3):
            with torch.no_grad(), transformed(model.seams, {layer: [nudge(place, step)]}):
                measured.append(float(loss()))
        gradient_NK = added[layer].grad
        assert gradient_NK is not None
        assert float(gradient_NK[place]) == pytest.approx((measured[0] - measured[1]) / 2e-3, rel=5e-3)


def test_contexts_nest_and_leave_nothing_behind(model: MoEModel, ids_BS: Tensor) -> None:
    class Boom(Exception):
        pass

    def boom(call: ExpertCall) -> tuple[Tensor, Tensor]:
        raise Boom

    with transformed(model.seams, {1: [unchanged]}):
        with pytest.raises(Boom), transformed(model.seams, {1: [boom], 2: [unchanged]}):
            assert len(model.seams[1].transforms) == 2
            model.hf(input_ids=ids_BS)
        assert model.seams[1].transforms == (unchanged,)
        assert model.seams[2].at_rest
        with hooked(model.seams):
            model.seams[0].stop = True
            with pytest.raises(StopForward):
                model.hf(input_ids=ids_BS)
        assert model.seams[0].at_rest
    assert all(seam.at_rest for seam in model.seams.values())
    assert not any(seam.router._forward_hooks for seam in model.seams.values())


@torch.no_grad()
def test_the_pass_ends_at_the_deepest_layer_asked(model: MoEModel) -> None:
    ids_BS, tokens, keep_T = padded_batch([5, 6])
    ran: list[int] = []
    handles = [
        block.self_attn.register_forward_hook(lambda module, inputs, output, index=index: ran.append(index))
        for index, block in enumerate(model.blocks)
    ]
    head: list[object] = []
    handles.append(model.hf.lm_head.register_forward_hook(lambda *args: head.append(args)))
    records = []
    assert model.listen(ids_BS, tokens, keep_T, layers=[0, 1], on_routing=records.append) is None
    assert ran == [0, 1]
    assert [record.layer for record in records] == [0, 1]
    ran.clear()
    predicted = model.listen(ids_BS, tokens, keep_T, layers=[0], on_routing=records.append, predictions=True)
    assert ran == [0, 1, 2, 3]
    assert predicted is not None
    assert sum(call[1][0].shape[-2] for call in head) == keep_T.shape[0]  # the head sees kept rows only
    for handle in handles:
        handle.remove()


def test_two_models_do_not_hear_each_other(model: MoEModel, tmp_path: Path) -> None:
    other = load_model(str(save(build("olmoe", seed=9), tmp_path)))
    ids_BS, tokens, keep_T = padded_batch([5, 6])
    first: list = []
    second: list = []

    def on_first(record: object) -> None:
        first.append(record)
        other.listen(ids_BS, tokens, keep_T, layers=[0], on_routing=second.append)

    model.listen(ids_BS, tokens, keep_T, layers=[0, 1], on_routing=on_first)
    assert [record.layer for record in first] == [0, 1]
    assert [record.layer for record in second] == [0, 0]
    assert not torch.equal(first[0].logits_TE, second[0].logits_TE)
    assert torch.equal(second[0].logits_TE, second[1].logits_TE)
