"""From what the seam sees to records: order, padding, what came before."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from moescope.models import MoEModel, load_model
from moescope.models.listening import by_weight
from moescope.records import ExpertOutputs, Routing
from tests.families import build, padded_batch, save


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> MoEModel:
    return load_model(str(save(build("deepseek_v2"), tmp_path_factory.mktemp("deepseek_v2"))))


@given(st.data())
def test_sorting_by_weight_equals_python_sorting(data: st.DataObject) -> None:
    num_tokens, num_slots = data.draw(st.integers(0, 6)), data.draw(st.integers(1, 5))
    weights = st.sampled_from([0.0, -0.0, 0.25, 0.5, 1.0, -1.0, 2.0**-100])
    rows = [
        (
            data.draw(st.lists(weights, min_size=num_slots, max_size=num_slots)),
            data.draw(st.permutations(range(8)))[:num_slots],
        )
        for _ in range(num_tokens)
    ]
    weights_TK = torch.tensor([row[0] for row in rows], dtype=torch.float32).reshape(num_tokens, num_slots)
    ids_TK = torch.tensor([row[1] for row in rows], dtype=torch.int64).reshape(num_tokens, num_slots)
    sorted_ids_TK, sorted_weights_TK, ranks_TK = by_weight(ids_TK, weights_TK)
    for token, (row_weights, row_ids) in enumerate(rows):
        expected = sorted(zip(row_ids, row_weights, strict=True), key=lambda pair: (-pair[1], pair[0]))
        assert sorted_ids_TK[token].tolist() == [expert for expert, _ in expected]
        assert sorted_weights_TK[token].tolist() == [weight for _, weight in expected]
        if ranks_TK is not None:
            assert [sorted_ids_TK[token, rank].item() for rank in ranks_TK[token]] == list(row_ids)


def test_routers_that_do_not_sort_are_sorted_and_outputs_know_their_rank(model: MoEModel) -> None:
    ids_BS, tokens, keep_T = padded_batch([12, 3, 20])
    routings: list[Routing] = []
    outputs: list[ExpertOutputs] = []
    seen: dict[int, torch.Tensor] = {}
    handles = [
        model.experts(layer).register_forward_pre_hook(
            lambda module, args, layer=layer: seen.__setitem__(layer, args[1][keep_T])
        )
        for layer in model.layers
    ]
    model.listen(
        ids_BS,
        tokens,
        keep_T,
        layers=model.layers,
        on_routing=routings.append,
        on_outputs=outputs.append,
        needs_inputs=True,
    )
    for handle in handles:
        handle.remove()
    reordered = [not torch.equal(seen[routing.layer], routing.expert_ids_TK) for routing in routings]
    for routing, record in zip(routings, outputs, strict=True):
        ids_A = routing.expert_ids_TK[record.token_rows_A, record.ranks_A]
        expected_A = torch.arange(16).repeat_interleave(torch.tensor(record.offsets_E1).diff())
        assert torch.equal(ids_A, expected_A)
        pairs = {(int(row), int(rank)) for row, rank in zip(record.token_rows_A, record.ranks_A, strict=True)}
        assert len(pairs) == routing.expert_ids_TK.numel() == record.outputs_AM.shape[0]
        assert torch.equal(routing.expert_ids_TK.sort(1).values, seen[routing.layer].sort(1).values)
    # Group-limited selection takes its experts unsorted, so that something was put in order here.
    assert any(reordered)
    assert all(bool((r.weights_TK[:, :-1] >= r.weights_TK[:, 1:]).all()) for r in routings)


def test_records_of_all_tokens_equal_those_of_some(model: MoEModel) -> None:
    """Without padding nothing is selected or copied; the same batch with a token left out must agree on the rest."""
    ids_BS, tokens, keep_T = padded_batch([9, 9])
    everything: list[Routing] = []
    most: list[Routing] = []
    all_outputs: list[ExpertOutputs] = []
    most_outputs: list[ExpertOutputs] = []
    options = {"layers": model.layers, "needs_inputs": True}
    model.listen(ids_BS, tokens, keep_T, on_routing=everything.append, on_outputs=all_outputs.append, **options)
    left = keep_T[keep_T != 4]
    model.listen(ids_BS, tokens, left, on_routing=most.append, on_outputs=most_outputs.append, **options)
    for whole, part in zip(everything, most, strict=True):
        for name in ("expert_ids_TK", "weights_TK", "logits_TE", "selection_values_TE", "inputs_TM"):
            assert torch.equal(getattr(whole, name)[left], getattr(part, name)), name
    for whole, part in zip(all_outputs, most_outputs, strict=True):
        kept_A = whole.token_rows_A != 4
        assert torch.equal(whole.outputs_AM[kept_A], part.outputs_AM)
        assert torch.equal(whole.ranks_A[kept_A], part.ranks_A)
        assert torch.equal(left[part.token_rows_A], whole.token_rows_A[kept_A])


def test_previous_is_the_layer_before_and_carries_no_chain(model: MoEModel) -> None:
    ids_BS, tokens, keep_T = padded_batch([9, 4])
    routings: list[Routing] = []

    def on_routing(routing: Routing) -> None:
        assert routing.selected_TE.shape == (13, 16)
        routings.append(routing)

    model.listen(ids_BS, tokens, keep_T, layers=model.layers, on_routing=on_routing)
    first, second = routings
    assert first.previous is None
    assert second.previous is not None
    assert second.previous.layer == first.layer
    assert second.previous.previous is None
    assert second.previous.logits_TE is None
    assert torch.equal(second.previous.expert_ids_TK, first.expert_ids_TK)
    assert second.previous.selected_TE is first.selected_TE  # computed once
    assert second.tokens is tokens


def test_nothing_is_computed_that_no_one_asked_for(model: MoEModel) -> None:
    ids_BS, tokens, keep_T = padded_batch([9, 4])
    routings: list[Routing] = []
    model.listen(ids_BS, tokens, keep_T, layers=model.layers, on_routing=routings.append, needs_logits=False)
    for routing in routings:
        assert routing.logits_TE is routing.selection_values_TE is routing.inputs_TM is None
        assert routing.weights_TK.is_inference()
