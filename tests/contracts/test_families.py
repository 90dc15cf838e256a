"""What every model family must satisfy, on tiny random models of each: the contract of `moescope.models`."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from moescope.models import MoEModel, load_model
from moescope.models.seam import IMPLEMENTATION, hooked
from moescope.records import ExpertOutputs, Routing
from tests.families import FAMILIES, VOCAB_SIZE, build, padded_batch, save

LENGTHS = [9, 1, 24, 13, 24]
LOOP_FAMILIES = ["olmoe", "mixtral", "qwen3_moe"]


class Case:
    """One family: its checkpoint, the model moescope loaded of it, and transformers' own, untouched."""

    def __init__(self, family: str, folder: Path) -> None:
        self.family = family
        self.folder = save(build(family), folder)
        self.model: MoEModel = load_model(str(folder))
        self.reference: PreTrainedModel = AutoModelForCausalLM.from_pretrained(folder).eval()


@pytest.fixture(scope="module", params=list(FAMILIES))
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    return Case(request.param, tmp_path_factory.mktemp(request.param))


def listen(
    model: MoEModel, lengths: list[int] = LENGTHS, **options
) -> tuple[list[Routing], list[ExpertOutputs], Tensor | None]:
    ids_BS, tokens, keep_T = padded_batch(lengths)
    routings: list[Routing] = []
    outputs: list[ExpertOutputs] = []
    listens = options.pop("outputs", False)
    options = {"layers": model.layers, "on_outputs": outputs.append if listens else None, **options}
    predicted = model.listen(ids_BS, tokens, keep_T, on_routing=routings.append, **options)
    return routings, outputs, predicted


@torch.no_grad()
def test_facts_and_probe(case: Case) -> None:
    model, config = case.model, case.reference.config
    dense = {
        "qwen2_moe": {1},
        "deepseek_v2": {0},
        "deepseek_v3": {0, 1},
        "glm4_moe": {0},
        "ernie4_5_moe": {0},
        "dots1": {0},
    }
    expected = tuple(layer for layer in range(config.num_hidden_layers) if layer not in dense.get(case.family, ()))
    assert model.layers == model.checkpoint_layers == model.probe.layers == expected
    assert model.complete
    assert model.num_blocks == config.num_hidden_layers
    assert (model.model_width, model.vocab_size, model.max_positions) == (32, VOCAB_SIZE, 256)
    assert model.num_parameters == model.num_loaded_parameters == sum(p.numel() for p in case.reference.parameters())
    routings, _, _ = listen(model, needs_inputs=True)
    for routing in routings:
        num_tokens = sum(LENGTHS)
        assert routing.expert_ids_TK.shape == routing.weights_TK.shape == (num_tokens, model.num_experts_per_token)
        assert routing.logits_TE is not None
        assert routing.logits_TE.shape == (num_tokens, model.num_experts)
        assert routing.inputs_TM is not None
        assert routing.inputs_TM.shape == (num_tokens, model.model_width)
    routers = {
        "olmoe": ("softmax", False, 1.0, False, 1),
        "mixtral": ("softmax", True, 1.0, False, 1),
        "qwen2_moe": ("softmax", False, 1.0, False, 1),
        "qwen3_moe": ("softmax", True, 1.0, False, 1),
        "deepseek_v2": ("softmax", False, 16.0, False, 4),
        "deepseek_v3": ("sigmoid", True, 2.5, True, 4),
        "gpt_oss": ("softmax", True, 1.0, False, 1),
        "glm4_moe": ("sigmoid", True, 2.0, True, 1),
        "granitemoe": ("softmax", True, 1.0, False, 1),
        "phimoe": ("softmax", False, 1.0, False, 1),
        "ernie4_5_moe": ("softmax", True, 1.0, True, 1),
        "hunyuan_v1_moe": ("softmax", True, 1.0, False, 1),
        "flex_olmo": ("softmax", False, 1.0, False, 1),
        "dots1": ("sigmoid", True, 2.5, True, 4),
    }
    found = model.router
    assert (found.scoring, found.renormalizes, found.scaling, found.bias_corrected, found.num_groups) == routers[
        case.family
    ]
    shared = {
        "qwen2_moe": 1,
        "deepseek_v2": 2,
        "deepseek_v3": 1,
        "glm4_moe": 1,
        "ernie4_5_moe": 2,
        "hunyuan_v1_moe": 1,
        "dots1": 2,
    }
    assert model.num_shared_experts == shared.get(case.family, 0)


@torch.no_grad()
def test_logits_are_bit_equal_with_and_without_us(case: Case) -> None:
    ids_BS, _, _ = padded_batch(LENGTHS)
    expected = case.reference(input_ids=ids_BS).logits
    assert case.reference.config._experts_implementation != IMPLEMENTATION
    assert torch.equal(case.model.hf(input_ids=ids_BS).logits, expected)
    heard: list[int] = []

    class Ear:
        wants_outputs = False

        def __call__(self, call, outputs) -> None:
            heard.append(call.layer)

    with hooked(case.model.seams):
        for seam in case.model.seams.values():
            seam.listener = Ear()
        assert torch.equal(case.model.hf(input_ids=ids_BS).logits, expected)
        assert heard == list(case.model.layers)
        for seam in case.model.seams.values():
            seam.listener.wants_outputs = True
        computed = case.model.hf(input_ids=ids_BS).logits
    assert torch.allclose(computed, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


@torch.no_grad()
def test_expert_outputs_combine_to_what_the_family_computes(case: Case) -> None:
    routings, outputs, _ = listen(case.model, outputs=True, needs_inputs=True)
    assert [record.routing.layer for record in outputs] == list(case.model.layers)
    for routing, record in zip(routings, outputs, strict=True):
        assert record.routing is routing
        assert routing.inputs_TM is not None
        experts = case.model.experts(routing.layer)
        weighted_AM = record.outputs_AM.double() * record.weights_A.double()[:, None]
        combined_TM = torch.zeros(routing.inputs_TM.shape, dtype=torch.float64)
        combined_TM.index_add_(0, record.token_rows_A, weighted_AM)
        # The family's own loop over experts, as it stands in its modeling file.
        own_TM = type(experts).forward.__wrapped__(
            experts, routing.inputs_TM, routing.expert_ids_TK, routing.weights_TK
        )
        assert torch.allclose(combined_TM, own_TM.double(), rtol=1e-5, atol=1e-5 * float(own_TM.abs().max()))
        assert record.offsets_E1[0] == 0
        assert record.offsets_E1[-1] == record.outputs_AM.shape[0] == routing.expert_ids_TK.numel()
        for expert in range(case.model.num_experts):
            outputs_nM, token_rows_n, weights_n = record.of(expert)
            hits = routing.expert_ids_TK == expert
            assert torch.equal(token_rows_n, hits.any(1).nonzero().squeeze(1))
            assert torch.equal(weights_n, routing.weights_TK[hits])
            assert torch.allclose(
                outputs_nM,
                case.model.expert_outputs(routing.layer, routing.inputs_TM[token_rows_n], [expert])[0],
                atol=1e-6,
            )


@torch.no_grad()
def test_every_expert_equals_the_familys_own_with_that_expert_forced(case: Case) -> None:
    generator = torch.Generator().manual_seed(3)
    for layer in case.model.layers:
        experts = case.model.experts(layer)
        inputs_NM = torch.randn((11, 32), generator=generator)
        ours_ENM = case.model.expert_outputs(layer, inputs_NM, rows=4)
        wide_ENM = case.model.expert_outputs(layer, inputs_NM, dtype=torch.float64)
        assert wide_ENM.dtype == torch.float64
        for expert in range(case.model.num_experts):
            ids_N1 = torch.full((11, 1), expert)
            own_NM = type(experts).forward.__wrapped__(experts, inputs_NM, ids_N1, torch.ones(11, 1))
            assert torch.allclose(ours_ENM[expert], own_NM, atol=1e-6)
            assert torch.allclose(wide_ENM[expert].float(), own_NM, atol=1e-5)


@torch.no_grad()
def test_weights_of_one_orientation_give_the_experts_outputs(case: Case) -> None:
    layer = case.model.layers[-1]
    inputs_NM = torch.randn((5, 32), generator=torch.Generator().manual_seed(4))
    weights = case.model.expert_weights(layer)
    num_experts, width = case.model.num_experts, case.model.expert_width
    assert weights.gate_EFM is not None
    assert weights.gate_EFM.shape == weights.up_EFM.shape == (num_experts, width, 32)
    assert weights.down_EMF.shape == (num_experts, 32, width)
    gate_ENF = torch.einsum("nm,efm->enf", inputs_NM, weights.gate_EFM)
    up_ENF = torch.einsum("nm,efm->enf", inputs_NM, weights.up_EFM)
    if case.family == "gpt_oss":
        gate_ENF = (gate_ENF + weights.gate_bias_EF[:, None]).clamp(max=7.0)
        up_ENF = (up_ENF + weights.up_bias_EF[:, None]).clamp(-7.0, 7.0)
        inner_ENF = (up_ENF + 1) * gate_ENF * torch.sigmoid(1.702 * gate_ENF)
        out_ENM = torch.einsum("enf,emf->enm", inner_ENF, weights.down_EMF) + weights.down_bias_EM[:, None]
    else:
        assert weights.down_bias_EM is None
        out_ENM = torch.einsum("enf,emf->enm", torch.nn.functional.silu(gate_ENF) * up_ENF, weights.down_EMF)
    assert torch.allclose(out_ENM, case.model.expert_outputs(layer, inputs_NM), atol=1e-5)
    routings, _, _ = listen(case.model, layers=[layer], needs_inputs=True)
    assert weights.router_EM is not None
    logits_TE = routings[0].inputs_TM @ weights.router_EM.T
    if case.family == "gpt_oss":
        logits_TE = logits_TE + case.model.seams[layer].router.bias
    assert torch.allclose(logits_TE, routings[0].logits_TE, atol=1e-5)


@torch.no_grad()
def test_rank_is_by_weight_with_ties_to_the_lower_id(case: Case) -> None:
    for routing in listen(case.model)[0]:
        assert bool((routing.weights_TK[:, :-1] >= routing.weights_TK[:, 1:]).all())
        tied = routing.weights_TK[:, :-1] == routing.weights_TK[:, 1:]
        assert bool((routing.expert_ids_TK[:, :-1] < routing.expert_ids_TK[:, 1:])[tied].all())


@torch.no_grad()
def test_the_rule_found_routes_as_the_family_does(case: Case) -> None:
    for routing in listen(case.model)[0]:
        rule = case.model.rules[routing.layer]
        assert routing.logits_TE is not None
        ids_TK, weights_TK = rule.route(routing.logits_TE)
        assert torch.equal(ids_TK.sort(1).values, routing.expert_ids_TK.sort(1).values)
        assert torch.allclose(weights_TK.sort(1).values, routing.weights_TK.sort(1).values, rtol=1e-4, atol=1e-6)
        values_TE = routing.probabilities_TE if routing.selection_values_TE is None else routing.selection_values_TE
        taken_T = values_TE.gather(1, routing.expert_ids_TK).amin(1)
        left_T = values_TE.scatter(1, routing.expert_ids_TK, float("-inf")).amax(1)
        assert bool((taken_T >= left_T).all())
        without_TK, _ = rule.route(routing.logits_TE, excluded=torch.tensor([0, 3]))
        assert not bool(torch.isin(without_TK, torch.tensor([0, 3])).any())


@torch.no_grad()
def test_padding_changes_no_record(case: Case) -> None:
    together, _, _ = listen(case.model)
    ids_BS, tokens, _ = padded_batch(LENGTHS)
    row = 3
    alone_ids_BS = ids_BS[row : row + 1, : LENGTHS[row]]
    alone: list[Routing] = []
    case.model.listen(
        alone_ids_BS, tokens, torch.arange(LENGTHS[row]), layers=case.model.layers, on_routing=alone.append
    )
    here_T = tokens.rows_T == row
    for padded, plain in zip(together, alone, strict=True):
        assert torch.equal(padded.expert_ids_TK[here_T], plain.expert_ids_TK)
        assert torch.allclose(padded.weights_TK[here_T], plain.weights_TK, atol=1e-5)


@torch.no_grad()
def test_head_and_predictions_are_the_familys_own(case: Case) -> None:
    ids_BS, _, keep_T = padded_batch(LENGTHS)
    out = case.reference(input_ids=ids_BS, output_hidden_states=True)
    hidden_BSM = case.model.last_hidden(ids_BS)
    assert hidden_BSM is not None
    logits_TV = case.model.logits(hidden_BSM.flatten(0, 1)[keep_T])
    expected_TV = out.logits.flatten(0, 1)[keep_T]
    assert torch.allclose(logits_TV, expected_TV, atol=1e-5 * float(expected_TV.abs().max()))
    _, _, predicted_T = listen(case.model, predictions=True)
    assert predicted_T is not None
    assert predicted_T.dtype == torch.int64
    assert torch.equal(predicted_T, expected_TV.argmax(-1))


def test_layers_asked_are_the_same_when_only_they_are_loaded(case: Case, tmp_path: Path) -> None:
    folder = save(build(case.family), tmp_path, max_shard_size="15KB")
    layer = case.model.layers[-2]
    whole, whole_outputs, _ = listen(case.model, layers=[layer], outputs=True)
    part = load_model(str(folder), layers=[layer])
    assert part.layers == tuple(known for known in case.model.layers if known <= layer)
    assert part.checkpoint_layers == case.model.layers
    assert not part.complete
    assert len(part.blocks) == layer + 1
    assert part.num_parameters == case.model.num_parameters > part.num_loaded_parameters
    assert part.config_hash == case.model.config_hash
    routings, outputs, _ = listen(part, layers=[layer], outputs=True)
    assert torch.equal(routings[0].logits_TE, whole[0].logits_TE)
    assert torch.equal(routings[0].expert_ids_TK, whole[0].expert_ids_TK)
    assert torch.equal(routings[0].weights_TK, whole[0].weights_TK)
    assert torch.equal(outputs[0].outputs_AM, whole_outputs[0].outputs_AM)


@torch.no_grad()
def test_nothing_is_changed_by_listening_also_after_an_exception(case: Case) -> None:
    model = case.model

    def snapshot() -> dict[str, object]:
        return {
            "weights": {name: tensor.clone() for name, tensor in model.hf.state_dict().items()},
            "hooks": [
                (len(m._forward_hooks), len(m._forward_pre_hooks), "forward" in vars(m)) for m in model.hf.modules()
            ],
            "seams": {layer: copy.copy(vars(seam)) for layer, seam in model.seams.items()},
            "config": model.hf.config.to_json_string(),
            "training": model.hf.training,
        }

    before = snapshot()
    listen(model, outputs=True, predictions=True)

    class Boom(Exception):
        pass

    def boom(record: object) -> None:
        raise Boom

    ids_BS, tokens, keep_T = padded_batch(LENGTHS)
    for callbacks in ({"on_routing": boom}, {"on_routing": lambda record: None, "on_outputs": boom}):
        with pytest.raises(Boom):
            model.listen(ids_BS, tokens, keep_T, layers=model.layers, **callbacks)
    after = snapshot()
    assert all(torch.equal(after["weights"][name], tensor) for name, tensor in before.pop("weights").items())
    del after["weights"]
    assert after == before
    assert all(seam.at_rest for seam in model.seams.values())
    assert torch.equal(model.hf(input_ids=ids_BS).logits, case.reference(input_ids=ids_BS).logits)


@pytest.mark.parametrize("family", LOOP_FAMILIES)
@pytest.mark.parametrize("batch_size", [1, 7, 64])
@pytest.mark.parametrize("padded", [False, True])
@torch.no_grad()
def test_selection_and_weights_equal_a_plain_loop_over_router_logits(
    family: str, batch_size: int, padded: bool, tmp_path: Path
) -> None:
    folder = save(build(family, seed=5), tmp_path)
    model = load_model(str(folder))
    reference = AutoModelForCausalLM.from_pretrained(folder).eval()
    num_selected = reference.config.num_experts_per_tok
    renormalizes = family != "olmoe"
    documents = [1 + (5 * index) % 12 if padded else 12 for index in range(64)]
    routings: dict[int, list[Routing]] = {layer: [] for layer in model.layers}
    expected: dict[int, list[tuple[list[int], list[float]]]] = {layer: [] for layer in model.layers}
    entropies: dict[int, list[float]] = {layer: [] for layer in model.layers}
    for start in range(0, 64, batch_size):
        lengths = documents[start : start + batch_size]
        ids_BS, tokens, keep_T = padded_batch(lengths, seed=start)
        model.listen(ids_BS, tokens, keep_T, layers=model.layers, on_routing=lambda r: routings[r.layer].append(r))
        for row, length in enumerate(lengths):
            out = reference(input_ids=ids_BS[row : row + 1, :length], output_router_logits=True)
            for layer, logits_SE in zip(model.layers, out.router_logits, strict=True):
                for logits_E in logits_SE.double().numpy():
                    scores = np.exp(logits_E - logits_E.max())
                    scores = (scores / scores.sum()).tolist()
                    best = sorted(range(len(scores)), key=lambda expert: (-scores[expert], expert))[:num_selected]
                    weights = [scores[expert] for expert in best]
                    if renormalizes:
                        weights = [weight / sum(weights) for weight in weights]
                    expected[layer].append((best, weights))
                    entropies[layer].append(-sum(score * math.log(score) for score in scores))
    for layer in model.layers:
        ids_TK = torch.cat([routing.expert_ids_TK for routing in routings[layer]])
        weights_TK = torch.cat([routing.weights_TK for routing in routings[layer]])
        assert ids_TK.tolist() == [best for best, _ in expected[layer]]
        loop_TK = torch.tensor([weights for _, weights in expected[layer]], dtype=torch.float64)
        assert torch.allclose(weights_TK.double(), loop_TK, rtol=1e-5, atol=1e-7)
        entropies_T = torch.cat([_entropies(routing.probabilities_TE) for routing in routings[layer]])
        assert torch.allclose(entropies_T, torch.tensor(entropies[layer], dtype=torch.float64), atol=1e-5)


def _entropies(probabilities_TE: Tensor) -> Tensor:
    return -torch.special.xlogy(probabilities_TE.double(), probabilities_TE.double()).sum(1)
