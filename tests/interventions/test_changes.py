"""Changes of weights, against a plain re-implementation of the MoE block, token by token."""

from __future__ import annotations

import random

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from moescope.errors import UsageError
from moescope.interventions import Ablate, Change, Replace, Scale, Set, intervening
from moescope.models import MoEModel, load_model
from tests.families import build, padded_batch, save

NUM_EXPERTS, NUM_SELECTED, LENGTH = 12, 4, 10


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> MoEModel:
    """One layer, float64: an effect can be predicted to the last digits."""
    made = build("olmoe", num_hidden_layers=1, num_experts=NUM_EXPERTS, num_experts_per_tok=NUM_SELECTED)
    return load_model(str(save(made, tmp_path_factory.mktemp("one_layer"))), dtype="float64")


@pytest.fixture(scope="module")
def ids_BS() -> Tensor:
    return padded_batch([LENGTH, LENGTH], seed=5)[0]


@torch.no_grad()
def block(model: MoEModel, ids_BS: Tensor, changes: list[Change]) -> tuple[Tensor, Tensor]:
    """The MoE block's input and output, rows of the flattened batch."""
    caught: list[tuple[Tensor, Tensor]] = []
    handle = model.blocks[0].mlp.register_forward_hook(
        lambda module, inputs, output: caught.append((inputs[0].flatten(0, 1), output.flatten(0, 1)))
    )
    with handle, intervening(model, changes):
        model.hf(input_ids=ids_BS)
    return caught[0]


def expert_output(model: MoEModel, expert: int, x_M: Tensor) -> Tensor:
    weights = model.expert_weights(0)
    assert weights.gate_EFM is not None
    inner_F = F.silu(weights.gate_EFM[expert] @ x_M) * (weights.up_EFM[expert] @ x_M)
    return weights.down_EMF[expert] @ inner_F


def plain_weights(model: MoEModel, x_M: Tensor, position: int, changes: list[Change]) -> dict[int, float]:
    """What METRICS says, in plain Python: expert -> applied weight of one token."""
    here = [change for change in changes if change.indices is None or position in change.indices]
    router_EM = model.expert_weights(0).router_EM
    assert router_EM is not None
    logits = (router_EM @ x_M).tolist()

    def routed(gone: set[int]) -> dict[int, float]:
        left = [expert for expert in range(NUM_EXPERTS) if expert not in gone]
        shares = torch.tensor([logits[expert] for expert in left]).softmax(-1).tolist()
        best = sorted(zip(left, shares, strict=True), key=lambda pair: -pair[1])[:NUM_SELECTED]
        return dict(best)

    former = sum(routed(set()).values())
    weights = routed({change.expert for change in here if isinstance(change, Replace)})
    by_router = dict(weights)
    forced = [change.expert for change in here if isinstance(change, Set)]
    for change in here:
        if isinstance(change, Set):
            if change.expert not in weights:
                least = min((e for e in weights if e not in forced), key=lambda e: by_router[e])
                del weights[least]
            weights[change.expert] = change.value
        elif isinstance(change, Scale | Ablate) and change.expert in weights:
            weights[change.expert] *= change.factor if isinstance(change, Scale) else 0.0
    if any(change.renormalize for change in here) and sum(weights.values()) != 0:
        ratio = former / sum(weights.values())
        weights = {expert: ratio * weight for expert, weight in weights.items()}
    return weights


def random_changes(seed: int) -> list[Change]:
    draw = random.Random(seed)
    changes: list[Change] = []
    for expert in draw.sample(range(NUM_EXPERTS), draw.randint(1, 4)):
        more = {
            "positions": draw.choice([None, draw.randrange(LENGTH), draw.sample(range(LENGTH), 4)]),
            "renormalize": draw.random() < 0.3,
        }
        changes.append(
            draw.choice(
                [
                    Scale(0, expert, draw.choice([0.0, 0.5, 3.0, -1.0]), **more),
                    Set(0, expert, draw.choice([0.0, 0.1, 0.7]), **more),
                    Ablate(0, expert, **more),
                    Replace(0, expert, **more),
                ]
            )
        )
    return changes


@pytest.mark.parametrize("seed", range(40))
def test_the_block_computes_what_a_plain_one_does(model: MoEModel, ids_BS: Tensor, seed: int) -> None:
    changes = random_changes(seed)
    inputs_NM, outputs_NM = block(model, ids_BS, changes)
    for row, (x_M, y_M) in enumerate(zip(inputs_NM, outputs_NM, strict=True)):
        weights = plain_weights(model, x_M, row % LENGTH, changes)
        assert len(weights) == NUM_SELECTED
        expected_M = sum(weight * expert_output(model, expert, x_M) for expert, weight in weights.items())
        # The router's softmax is float32 whatever the model's dtype.
        assert torch.allclose(y_M, expected_M, rtol=1e-5, atol=1e-6 * float(y_M.abs().max() + 1))


@pytest.mark.parametrize("kind", ["scale", "set", "ablate"])
def test_predicted_effect_equals_measured_effect(model: MoEModel, ids_BS: Tensor, kind: str) -> None:
    """The layer's output changes by (new weight - old weight) x the expert's own output, to float precision."""
    inputs_NM, before_NM = block(model, ids_BS, [])
    rule = model.rules[0]
    logits_NE = inputs_NM @ model.seams[0].router.weight.detach().T
    ids_NK, weights_NK = rule.route(logits_NE)
    assert weights_NK.dtype == torch.float32
    checked = 0
    for expert in range(NUM_EXPERTS):
        change = {"scale": Scale(0, expert, 2.5), "set": Set(0, expert, 0.3), "ablate": Ablate(0, expert)}[kind]
        _, after_NM = block(model, ids_BS, [change])
        for row in range(inputs_NM.shape[0]):
            hits = ids_NK[row] == expert
            if not bool(hits.any()):
                if kind != "set":
                    assert torch.equal(after_NM[row], before_NM[row])
                continue
            old = float(weights_NK[row][hits])
            new = {"scale": 2.5 * old, "set": 0.3, "ablate": 0.0}[kind]
            predicted_M = (new - old) * expert_output(model, expert, inputs_NM[row])
            assert torch.allclose(after_NM[row] - before_NM[row], predicted_M, rtol=1e-6, atol=1e-9)
            checked += 1
    assert checked == ids_NK.numel()


def test_only_the_positions_asked_for_are_changed(model: MoEModel, ids_BS: Tensor) -> None:
    _, before_NM = block(model, ids_BS, [])
    _, after_NM = block(model, ids_BS, [Set(0, 3, 1.0, positions=[2, -1])])
    changed_N = ((after_NM - before_NM).abs() > 1e-9).any(-1)
    assert changed_N.nonzero().flatten().tolist() == [2, LENGTH - 1, LENGTH + 2, 2 * LENGTH - 1]


def test_setting_keeps_what_else_is_set(model: MoEModel, ids_BS: Tensor) -> None:
    """With as many experts set as a token has slots, exactly those are left; with one more, it is refused."""
    inputs_NM, outputs_NM = block(model, ids_BS, [Set(0, expert, 0.001 * expert) for expert in range(NUM_SELECTED)])
    expected_NM = torch.stack(
        [sum(0.001 * e * expert_output(model, e, x_M) for e in range(NUM_SELECTED)) for x_M in inputs_NM]
    )
    assert torch.allclose(outputs_NM, expected_NM, rtol=1e-9)
    with pytest.raises(UsageError, match="5 experts of layer 0 are set at one token"):
        block(model, ids_BS, [Set(0, expert, 0.1) for expert in range(NUM_SELECTED + 1)])
    # At different tokens they are not too many.
    block(model, ids_BS, [Set(0, expert, 0.1, positions=[expert]) for expert in range(NUM_SELECTED + 1)])


def test_order_matters_only_for_changes_of_one_expert(model: MoEModel, ids_BS: Tensor) -> None:
    for seed in range(10):
        changes = random_changes(seed)
        _, one_NM = block(model, ids_BS, changes)
        _, other_NM = block(model, ids_BS, changes[::-1])
        assert torch.allclose(one_NM, other_NM, rtol=1e-6, atol=1e-9)


def test_a_sum_of_zero_is_left_alone(model: MoEModel, ids_BS: Tensor) -> None:
    _, outputs_NM = block(model, ids_BS, [Ablate(0, e, renormalize=True) for e in range(NUM_EXPERTS)])
    assert bool((outputs_NM == 0).all())


def test_gradients_pass(model: MoEModel, ids_BS: Tensor) -> None:
    """Through every kind of change that keeps weights: the model's own parameters get gradients."""
    with intervening(model, [Scale(0, 1, 0.5, renormalize=True), Set(0, 2, 0.1), Replace(0, 3)]):
        model.hf(input_ids=ids_BS).logits.sum().backward()
    gradient = model.seams[0].router.weight.grad
    assert gradient is not None
    assert bool(gradient.abs().sum() > 0)
    model.hf.zero_grad()


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Scale(0, 1, float("nan")), "`factor=nan`"),
        (lambda: Set(0, 1, float("inf")), "`value=inf`"),
        (lambda: Ablate(0, 1, positions=[]), "no position"),
    ],
)
def test_changes_that_make_no_sense(make, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        make()


def test_what_the_model_has_not_is_refused(model: MoEModel) -> None:
    for changes, said in (
        ([Scale(1, 0, 1.0)], "layer 1"),
        ([Ablate(0, 12)], "no expert 12"),
        ([Ablate(0, -1)], "no expert -1"),
        ([Replace(0, expert) for expert in range(9)], "9 of 12 experts are replaced"),
        (["ablate"], "is not a change"),
    ):
        with pytest.raises(UsageError, match=said), intervening(model, changes):
            pass
    assert model.seams[0].at_rest
    with pytest.raises(TypeError):
        Change(0, 1)
