"""Top contexts against a plain loop: every document alone through transformers' own model, every expert by hand."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from moescope.corpora import Sampler
from moescope.models import load_model
from moescope.one_pass import feed
from moescope.statistics.samples.contexts import NO_TOKEN, TopContexts
from tests.analyses.runs import small_corpus
from tests.contracts.statistics_cases import LAYERS, NUM_EXPERTS, outputs_of
from tests.families import build, save
from tests.records import random_batch

CONTEXTS, BEFORE, AFTER = 5, 4, 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save(build("olmoe"), tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def batches(folder, tmp_path_factory):
    corpus = small_corpus(tmp_path_factory.mktemp("corpora") / "shelf")
    tokenizer = load_model(str(folder), device="cpu").tokenizer
    return list(Sampler(corpus, tokenizer, num_tokens=2500, max_positions=256, batch_tokens=900))


@torch.no_grad()
def by_hand(folder, batches, layer: int) -> list[dict[int, dict[int, tuple[float, float]]]]:
    """For each expert and document: (value, weight) at each position that selected it."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model.set_experts_implementation("eager")
    experts = model.model.layers[layer].mlp.experts
    seen = []
    experts.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append((*args, *kwargs.values())), with_kwargs=True
    )  # fmt: skip
    found: list[dict[int, dict[int, tuple[float, float]]]] = [{} for _ in range(8)]
    for batch in batches:
        tokens = batch.tokens
        for row, document in enumerate(tokens.document_hashes_B.tolist()):
            mine = (tokens.rows_T == row).nonzero().squeeze(1).tolist()
            seen.clear()
            model(torch.tensor([[int(tokens.token_ids_T[t]) for t in mine]]))
            hidden, ids, weights = seen[0]
            shades: list[dict[int, tuple[float, float]]] = [{} for _ in range(8)]
            for place, t in enumerate(mine):
                for expert, weight in zip(ids[place].tolist(), weights[place].tolist(), strict=True):
                    gate, up = (experts.gate_up_proj[expert].double() @ hidden[place].double()).chunk(2)
                    output = experts.down_proj[expert].double() @ (torch.nn.functional.silu(gate) * up)
                    shades[expert][int(tokens.positions_T[t])] = (weight * float(output.norm()), weight)
            for expert, own in enumerate(shades):
                if own:
                    found[expert][document] = own
    return found


def test_against_a_plain_loop(folder, batches):
    model = load_model(str(folder), device="cpu")
    statistic = TopContexts(layers=[1, 3], num_experts=8, num_contexts=CONTEXTS, before=BEFORE, after=AFTER)
    feed(model, batches, [statistic], layers=[1, 3])
    table = statistic.compute()
    text = {}
    for batch in batches:
        for t, row in enumerate(batch.tokens.rows_T.tolist()):
            key = int(batch.tokens.document_hashes_B[row]), int(batch.tokens.positions_T[t])
            text[key] = int(batch.tokens.token_ids_T[t])
    found = by_hand(folder, batches, layer=3)
    at = table.sel(layer=3)
    for expert in range(8):
        best = {d: max(value for value, _ in own.values()) for d, own in found[expert].items()}
        ranked = sorted(best.values(), reverse=True)[:CONTEXTS]
        assert int(at["num_contexts"][expert]) == len(ranked)
        assert int(at["num_selected"][expert]) == sum(map(len, found[expert].values()))
        np.testing.assert_allclose(at["context_value"][expert, : len(ranked)], ranked, rtol=1e-4)
        documents = at["context_document_hash"][expert, : len(ranked)].values.tolist()
        assert len(set(documents)) == len(documents)
        for place, document in enumerate(documents):
            cell = at.isel(expert=expert, context=place)
            own, position = found[expert][document], int(cell["context_position"])
            # Which of two that are alike but for rounding comes first is not the loop's to say.
            assert own[position][0] == pytest.approx(best[document], rel=1e-4)
            assert best[document] == pytest.approx(ranked[place], rel=1e-4)
            assert float(cell["context_weight"]) == pytest.approx(own[position][1], rel=1e-4)
            for offset in range(-BEFORE, AFTER + 1):
                around = cell.sel(window=offset)
                expected = text.get((document, position + offset), NO_TOKEN)
                assert int(around["window_token_id"]) == expected
                if expected == NO_TOKEN:
                    assert np.isnan(around["window_value"])
                else:
                    shade = own.get(position + offset, (0.0, 0.0))[0]
                    assert float(around["window_value"]) == pytest.approx(shade, rel=1e-4)


def test_one_context_of_a_document_and_ties_by_hash_alone():
    tokens = random_batch(3, num_documents=30)
    records = outputs_of(tokens, 3)
    # every output as long as every other, every weight the same: nothing but ties
    flat = [
        dataclasses.replace(
            record,
            outputs_AM=torch.ones_like(record.outputs_AM),
            routing=dataclasses.replace(record.routing, weights_TK=torch.ones_like(record.routing.weights_TK)),
        )
        for record in records
    ]
    tables = []
    for seed in (0, 0, 1):
        statistic = TopContexts(layers=LAYERS, num_experts=NUM_EXPERTS, num_contexts=6, seed=seed)
        for record in flat:
            statistic.update(record)
        tables.append(statistic.compute())
    documents = tables[0]["context_document_hash"].values
    assert all(len(set(row)) == 6 for layer in documents for row in layer.tolist())
    assert tables[0].identical(tables[1])
    assert not tables[0].identical(tables[2])


def test_an_expert_no_token_selected_has_no_context():
    tokens = random_batch(1, num_documents=4)
    statistic = TopContexts(layers=LAYERS, num_experts=NUM_EXPERTS + 1)
    record = outputs_of(tokens, 1)[0]
    statistic.update(dataclasses.replace(record, offsets_E1=[*record.offsets_E1, record.offsets_E1[-1]]))
    table = statistic.compute().sel(layer=LAYERS[0], expert=NUM_EXPERTS)
    assert int(table["num_contexts"]) == 0
    assert np.isnan(table["context_value"].values).all()
    assert (table["window_token_id"].values == NO_TOKEN).all()
