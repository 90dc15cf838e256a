"""Exact and first-order effects of ablations against plain loops of full passes."""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

from moescope.corpora import Batch
from moescope.errors import ModelError, UsageError
from moescope.interventions import Ablate, Scale, intervening
from moescope.interventions.ablation import Ablation, ablation_effects, check_ablations
from moescope.interventions.gradient import first_order_effects
from moescope.interventions.rerun import experts_giving, keep, run_again, starting_at
from moescope.models import MoEModel, load_model
from tests.families import SOME_FAMILIES, build, padded_batch, save

LENGTHS = [21, 30, 9, 2, 30]


def batch_of(lengths: list[int], seed: int = 0) -> Batch:
    ids_BS, tokens, keep_T = padded_batch(lengths, seed=seed)
    return Batch(ids_BS, keep_T, tokens)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory):
    made: dict[str, MoEModel] = {}

    def get(family: str) -> MoEModel:
        if family not in made:
            folder = tmp_path_factory.mktemp(family)
            made[family] = load_model(str(save(build(family), folder)), device="cpu")
        return made[family]

    return get


@torch.no_grad()
def document_losses(model: MoEModel, batch: Batch) -> Tensor:
    """Nats of each document from the family's own logits, in float64, one token after the other."""
    logits_BSV = model.hf(input_ids=batch.input_ids_BS, use_cache=False).logits.double()
    losses_B = torch.zeros(batch.input_ids_BS.shape[0], dtype=torch.float64)
    length = batch.input_ids_BS.shape[1]
    for place, following in zip(batch.keep_T.tolist(), batch.tokens.next_token_ids_T.tolist(), strict=True):
        if following >= 0:
            row, column = divmod(place, length)
            losses_B[row] -= logits_BSV[row, column].log_softmax(-1)[following]
    return losses_B


@pytest.mark.parametrize("family", SOME_FAMILIES)
def test_exact_effects_equal_a_full_pass_for_each_ablation(models, family: str) -> None:
    model, batch = models(family), batch_of(LENGTHS)
    plain_B = document_losses(model, batch)
    assert torch.allclose(keep(model, batch, []).losses_BS.double().sum(1), plain_B, rtol=1e-5)
    ablations = [Ablation(layer, (expert,)) for layer in model.layers for expert in (0, 3)]
    ablations.append(Ablation(model.layers[-1], (1, 2)))
    for batch_tokens in (64, 8192):
        effects_BP = ablation_effects(model, batch, ablations, batch_tokens=batch_tokens)
        for place, ablation in enumerate(ablations):
            with intervening(model, [Ablate(ablation.layer, expert) for expert in ablation.experts]):
                changed_B = document_losses(model, batch)
            assert torch.allclose(effects_BP[:, place], changed_B - plain_B, atol=2e-4), (family, ablation)
    assert effects_BP.abs().max() > 0.01
    assert all(seam.at_rest for seam in model.seams.values())


def test_a_document_no_token_of_which_chose_the_expert_is_not_touched(models) -> None:
    model, batch = models("olmoe"), batch_of([2, 30, 3, 2, 4])
    kept = keep(model, batch, model.layers)
    ablations = [Ablation(layer, (expert,)) for layer in model.layers for expert in range(model.num_experts)]
    effects_BP = ablation_effects(model, batch, ablations)
    untouched = 0
    for place, ablation in enumerate(ablations):
        chose_BS = (kept.calls[ablation.layer].expert_ids_NK == ablation.experts[0]).any(1).view(5, 30)
        for row, length in enumerate([2, 30, 3, 2, 4]):
            if not bool(chose_BS[row, :length].any()):
                assert effects_BP[row, place] == 0.0
                untouched += 1
    assert untouched > 20


@pytest.mark.parametrize("family", SOME_FAMILIES)
def test_run_again_from_any_layer_nothing_changed_gives_the_same(models, family: str) -> None:
    model, batch = models(family), batch_of(LENGTHS)
    with torch.inference_mode():
        whole_BSM = model.last_hidden(batch.input_ids_BS)
    kept = keep(model, batch, model.layers)
    for layer in model.layers:
        again_BSM = run_again(model, layer, kept.input_ids_BS, kept.inputs[layer], kept.outputs[layer])
        assert torch.allclose(again_BSM, whole_BSM, atol=1e-4), layer
    with torch.inference_mode():
        assert torch.equal(model.last_hidden(batch.input_ids_BS), whole_BSM)  # and leaves nothing behind


def test_blocks_below_compute_nothing(models) -> None:
    model, batch = models("olmoe"), batch_of(LENGTHS)
    kept = keep(model, batch, [2])
    ran: list[int] = []
    with ExitStack() as stack:
        for index, block in enumerate(model.blocks):
            hook = partial(lambda index, *_: ran.append(index), index)
            stack.enter_context(block.self_attn.register_forward_hook(hook))
        run_again(model, 2, kept.input_ids_BS, kept.inputs[2], kept.outputs[2])
    assert ran == [2, 3]


def test_contexts_leave_nothing_behind_on_errors(models) -> None:
    model, batch = models("olmoe"), batch_of(LENGTHS)
    hidden_BSM = torch.zeros(len(LENGTHS), 30, model.model_width)
    with pytest.raises(ZeroDivisionError), starting_at(model, 2, hidden_BSM), experts_giving(model, 2, hidden_BSM):
        raise ZeroDivisionError
    assert not any("forward" in vars(block) for block in model.blocks)
    assert "forward" not in vars(model.experts(2))
    assert document_losses(model, batch).isfinite().all()


def test_gradient_equals_finite_differences(tmp_path: Path) -> None:
    """In float64 the derivative of each document's loss in the expert's weights times -1 is the estimate."""
    # Every token goes to all experts: no step can carry one over the edge to another, where there is no derivative.
    model = load_model(str(save(build("olmoe", num_experts_per_tok=8), tmp_path)), dtype="float64", device="cpu")
    batch = batch_of(LENGTHS)
    found = first_order_effects(model, batch)
    plain_B = document_losses(model, batch)
    assert torch.allclose(found.losses_B, plain_B, rtol=1e-6)
    assert found.predicted_B.tolist() == [length - 1 for length in LENGTHS]
    # The norms and routers of OLMoE compute in float32 whatever the dtype: steps can't be smaller.
    step, checked = 1e-2, 0
    for position, layer in enumerate(model.layers):
        for expert in (0, 5):
            changed = []
            for sign in (1, -1):
                with intervening(model, [Scale(layer, expert, factor=1 - sign * step)]):
                    changed.append(document_losses(model, batch))
            expected_B = (changed[0] - changed[1]) / (2 * step)
            effects_B = found.effects_BLE[:, position, expert]
            assert torch.allclose(effects_B, expected_B, rtol=5e-3, atol=1e-3)
            checked += int((expected_B.abs() > 0.01).sum())
    assert checked > 10


@pytest.mark.slow
def test_gradients_come_out_the_same_to_the_bit(request: pytest.FixtureRequest) -> None:
    threads = torch.get_num_threads()
    request.addfinalizer(lambda: torch.set_num_threads(threads))
    torch.set_num_threads(4)
    model, batch = load_model("nano", device="cpu"), batch_of([128] * 12)
    first, *others = (first_order_effects(model, batch) for _ in range(3))
    assert all(torch.equal(other.effects_BLE, first.effects_BLE) for other in others)
    assert not torch.are_deterministic_algorithms_enabled()


def test_curvature_is_half_the_squared_slope_of_each_token(tmp_path: Path) -> None:
    """Slopes by finite differences, one token's weight after the other."""
    model = load_model(str(save(build("olmoe", num_experts_per_tok=8), tmp_path)), dtype="float64", device="cpu")
    batch = batch_of([6])
    found = first_order_effects(model, batch)
    step = 5e-3
    for position, (layer, expert) in enumerate([(0, 1), (1, 4), (2, 0), (3, 7)]):
        squares = slopes = 0.0
        for place in range(6):
            changed = []
            for sign in (1, -1):
                with intervening(model, [Scale(layer, expert, factor=1 - sign * step, positions=[place])]):
                    changed.append(float(document_losses(model, batch)))
            slope = (changed[0] - changed[1]) / (2 * step)
            slopes += slope
            squares += slope**2
        assert float(found.effects_BLE[0, position, expert]) == pytest.approx(slopes, rel=1e-2, abs=1e-3)
        assert float(found.curvatures_BLE[0, position, expert]) == pytest.approx(squares / 2, rel=2e-2, abs=1e-4)


@pytest.mark.parametrize("family", SOME_FAMILIES)
def test_gradient_asks_nothing_of_parameters_and_counts_what_was_chosen(models, family: str) -> None:
    model, batch = models(family), batch_of(LENGTHS)
    asking = [parameter.requires_grad for parameter in model.hf.parameters()]
    found = first_order_effects(model, batch)
    assert [parameter.requires_grad for parameter in model.hf.parameters()] == asking
    assert all(parameter.grad is None for parameter in model.hf.parameters())
    records: list = []
    model.listen(batch.input_ids_BS, batch.tokens, batch.keep_T, layers=model.layers, on_routing=records.append)
    for position, record in enumerate(records):
        for row in range(len(LENGTHS)):
            own_T = batch.tokens.rows_T == row
            chosen_TE = record.selected_TE[own_T]
            assert torch.equal(found.selected_BLE[row, position], chosen_TE.sum(0).long())
            weights_E = torch.zeros(model.num_experts)
            weights_E.index_add_(0, record.expert_ids_TK[own_T].flatten(), record.weights_TK[own_T].flatten())
            assert torch.allclose(found.weights_BLE[row, position].float(), weights_E, atol=1e-5)
    assert (found.effects_BLE[found.selected_BLE == 0] == 0).all()
    some = first_order_effects(model, batch, layers=[model.layers[-1]])
    assert torch.allclose(some.effects_BLE[:, 0], found.effects_BLE[:, -1], atol=1e-6)


def test_the_whole_depth_is_needed(tmp_path: Path) -> None:
    shallow = load_model(str(save(build("olmoe"), tmp_path)), layers=[1], device="cpu")
    batch = batch_of(LENGTHS)
    with pytest.raises(ModelError, match="down to layer 1"):
        first_order_effects(shallow, batch)
    with pytest.raises(ModelError, match="down to layer 1"):
        ablation_effects(shallow, batch, [Ablation(1, (0,))])


def test_ablations_that_make_no_sense(models) -> None:
    model = models("olmoe")
    for ablation, message in (
        (Ablation(4, (0,)), "no MoE layer 4"),
        (Ablation(0, (8,)), "no expert 8"),
        (Ablation(0, ()), "no expert"),
        (Ablation(0, (1, 1)), "twice"),
    ):
        with pytest.raises(UsageError, match=message):
            check_ablations(model, [ablation])


def test_nothing_to_predict(models) -> None:
    model, batch = models("olmoe"), batch_of([1, 1])
    assert (ablation_effects(model, batch, [Ablation(0, (0,))]) == 0).all()
    found = first_order_effects(model, batch)
    assert (found.effects_BLE == 0).all()
    assert (found.losses_B == 0).all()
