"""Real records filled with seeded random routing: what statistics are tested with.

`random_batch` makes a `TokenBatch`, `random_routings` the `Routing` of each layer over it (chained by `previous`),
`random_outputs` the `ExpertOutputs` of one routing, `only_documents` the part of some records that belongs to some of
the batch's documents. Everything is a function of its seed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch

from moescope.records import ExpertOutputs, Routing, TokenBatch
from moescope.statistics.saturation import RoutingPair

VOCAB_SIZE = 50


def random_batch(
    seed: int = 0,
    *,
    num_documents: int = 12,
    num_domains: int = 3,
    lengths: Sequence[int] | None = None,
    max_length: int = 40,
    domain_ids: Sequence[int] | None = None,
    vocab_size: int = VOCAB_SIZE,
    predictions: bool = True,
    shuffle: bool = False,
) -> TokenBatch:
    """Documents of varied lengths (the first has one token), hashes never repeated between seeds.

    Token types are drawn from a distribution with a long tail. `shuffle` mixes the order of the tokens, which no
    statistic may rely on.
    """
    generator = np.random.default_rng([seed, 7])
    if lengths is None:
        lengths = generator.integers(1, max_length + 1, num_documents)
        lengths[:1] = 1
    if domain_ids is None:
        domain_ids = generator.integers(0, num_domains, len(lengths))
    lengths = np.asarray(lengths, dtype=np.int64)
    num_tokens = int(lengths.sum())
    rows_T = np.repeat(np.arange(len(lengths)), lengths)
    starts_B = generator.integers(0, 5, len(lengths))
    positions_T = np.arange(num_tokens) - np.repeat(np.cumsum(lengths) - lengths, lengths) + starts_B[rows_T]
    token_ids_T = np.minimum(generator.geometric(0.1, num_tokens) - 1, vocab_size - 1)
    next_T = np.append(token_ids_T[1:], -1)
    last_T = np.append(rows_T[1:] != rows_T[:-1], True) if num_tokens else np.zeros(0, bool)
    next_T = np.where(last_T, -1, next_T[:num_tokens])
    predicted_T = np.where(generator.random(num_tokens) < 0.4, next_T, generator.integers(0, vocab_size, num_tokens))
    predicted_T = np.where(predicted_T < 0, 0, predicted_T)
    order = generator.permutation(num_tokens) if shuffle else np.arange(num_tokens)
    hashes_B = generator.integers(np.iinfo(np.int64).min, np.iinfo(np.int64).max, len(lengths))

    def tensor(values: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(values, dtype=np.int64))

    return TokenBatch(
        token_ids_T=tensor(token_ids_T[order]),
        next_token_ids_T=tensor(next_T[order]),
        positions_T=tensor(positions_T[order]),
        rows_T=tensor(rows_T[order]),
        document_hashes_B=tensor(hashes_B),
        domain_ids_B=tensor(np.asarray(domain_ids)),
        predicted_token_ids_T=tensor(predicted_T[order]) if predictions else None,
    )


def random_routings(
    tokens: TokenBatch,
    seed: int = 0,
    *,
    layers: Sequence[int] = (1, 4, 5),
    num_experts: int = 8,
    num_experts_per_token: int = 2,
    specialization: float = 1.0,
    document_effect: float = 0.0,
    scoring: str = "softmax",
    renormalize: bool = False,
    corrected: bool = False,
    logits: bool = True,
    inputs_width: int | None = None,
) -> list[Routing]:
    """One `Routing` a layer, ids sorted by applied weight as the seam hands them on.

    Logits are normal noise plus an offset per (layer, domain, expert) times `specialization`, per (layer, token type,
    expert), and per (layer, document, expert) times `document_effect`; with `specialization=0` domains do not matter.
    `corrected` adds a bias to the values that selection goes by.
    """
    generator = np.random.default_rng([seed, 11])
    num_tokens = tokens.num_tokens
    num_domains = int(tokens.domain_ids_B.max()) + 1 if tokens.num_documents else 1
    num_types = int(tokens.token_ids_T.max()) + 1 if num_tokens else 1
    routings: list[Routing] = []
    previous: Routing | None = None
    for layer in layers:
        fixed = np.random.default_rng([layer, 13])  # the same experts' tastes for every batch
        offsets_DE = fixed.normal(size=(64, num_experts))[:num_domains]
        types_VE = fixed.normal(size=(256, num_experts))[np.arange(num_types) % 256]
        documents_BE = generator.normal(size=(tokens.num_documents, num_experts))
        logits_TE = generator.normal(size=(num_tokens, num_experts))
        logits_TE += types_VE[tokens.token_ids_T.numpy()]
        logits_TE += specialization * offsets_DE[tokens.domain_ids_T.numpy()]
        logits_TE += document_effect * documents_BE[tokens.rows_T.numpy()]
        logits_TE = torch.from_numpy(logits_TE).float()
        scores_TE = torch.softmax(logits_TE, dim=-1) if scoring == "softmax" else torch.sigmoid(logits_TE)
        values_TE = scores_TE + torch.from_numpy(fixed.normal(size=num_experts)).float() * 0.02 if corrected else None
        ids_TK = (scores_TE if values_TE is None else values_TE).topk(num_experts_per_token, dim=-1).indices
        weights_TK = scores_TE.gather(1, ids_TK)
        if renormalize:
            weights_TK = weights_TK / weights_TK.sum(dim=-1, keepdim=True)
        by_id_TK = ids_TK.argsort(dim=-1)
        ids_TK, weights_TK = ids_TK.gather(1, by_id_TK), weights_TK.gather(1, by_id_TK)
        order_TK = weights_TK.argsort(dim=-1, descending=True, stable=True)
        inputs_TM = None
        if inputs_width is not None:
            inputs_TM = torch.from_numpy(generator.normal(size=(num_tokens, inputs_width))).float()
        routing = Routing(
            tokens=tokens,
            layer=layer,
            expert_ids_TK=ids_TK.gather(1, order_TK),
            weights_TK=weights_TK.gather(1, order_TK),
            num_experts=num_experts,
            logits_TE=logits_TE if logits else None,
            scoring=scoring,
            selection_values_TE=values_TE,
            previous=None if previous is None else dataclasses.replace(previous, previous=None),
            inputs_TM=inputs_TM,
        )
        routings.append(routing)
        previous = routing
    return routings


def random_outputs(routing: Routing, seed: int = 0, *, width: int = 6) -> ExpertOutputs:
    """Expert outputs of one routing: normal noise around an offset of each expert, sorted by expert."""
    generator = np.random.default_rng([seed, 17])
    num_tokens, num_ranks = routing.expert_ids_TK.shape
    experts_A = routing.expert_ids_TK.reshape(-1)
    order_A = experts_A.argsort(stable=True)
    offsets_EM = np.random.default_rng([routing.layer, 19]).normal(size=(routing.num_experts, width))
    outputs_AM = generator.normal(size=(num_tokens * num_ranks, width)) + offsets_EM[experts_A[order_A].numpy()]
    counts_E = torch.bincount(experts_A, minlength=routing.num_experts)
    return ExpertOutputs(
        routing=routing,
        outputs_AM=torch.from_numpy(outputs_AM).float(),
        token_rows_A=order_A // num_ranks,
        ranks_A=order_A % num_ranks,
        offsets_E1=[0, *counts_E.cumsum(0).tolist()],
    )


def batch_of_documents(tokens: TokenBatch, rows: Sequence[int]) -> tuple[TokenBatch, torch.Tensor]:
    """The part of a batch that belongs to some of its documents, and the indices of the tokens kept."""
    rows_tensor = torch.tensor(list(rows), dtype=torch.int64)
    new_row_B = torch.full((tokens.num_documents,), -1, dtype=torch.int64)
    new_row_B[rows_tensor] = torch.arange(len(rows_tensor))
    keep_T = (new_row_B[tokens.rows_T] >= 0).nonzero().squeeze(1)
    predicted_T = tokens.predicted_token_ids_T
    part = TokenBatch(
        token_ids_T=tokens.token_ids_T[keep_T],
        next_token_ids_T=tokens.next_token_ids_T[keep_T],
        positions_T=tokens.positions_T[keep_T],
        rows_T=new_row_B[tokens.rows_T[keep_T]],
        document_hashes_B=tokens.document_hashes_B[rows_tensor],
        domain_ids_B=tokens.domain_ids_B[rows_tensor],
        predicted_token_ids_T=None if predicted_T is None else predicted_T[keep_T],
    )
    return part, keep_T


def only_documents(
    records: Sequence[Routing] | Sequence[ExpertOutputs] | Sequence[RoutingPair], rows: Sequence[int]
) -> list[Routing] | list[ExpertOutputs] | list[RoutingPair]:
    """Those records restricted to some of the batch's documents (all records of one and the same batch).

    `rows` may be empty, which gives records of no tokens. Records of the result share one `TokenBatch`, as those of a
    forward pass do.
    """
    first = records[0]
    tokens = first.routing.tokens if isinstance(first, ExpertOutputs) else first.tokens
    part, keep_T = batch_of_documents(tokens, rows)

    def cut(routing: Routing) -> Routing:
        def rows_of(tensor: torch.Tensor | None) -> torch.Tensor | None:
            return None if tensor is None else tensor[keep_T]

        return dataclasses.replace(
            routing,
            tokens=part,
            expert_ids_TK=routing.expert_ids_TK[keep_T],
            weights_TK=routing.weights_TK[keep_T],
            logits_TE=rows_of(routing.logits_TE),
            selection_values_TE=rows_of(routing.selection_values_TE),
            previous=None if routing.previous is None else cut(routing.previous),
            inputs_TM=rows_of(routing.inputs_TM),
        )

    def cut_outputs(outputs: ExpertOutputs) -> ExpertOutputs:
        routing = cut(outputs.routing)
        new_T = torch.full((tokens.num_tokens,), -1, dtype=torch.int64)
        new_T[keep_T] = torch.arange(keep_T.shape[0])
        kept_A = (new_T[outputs.token_rows_A] >= 0).nonzero().squeeze(1)
        counts_E = torch.bincount(routing.expert_ids_TK.reshape(-1), minlength=routing.num_experts)
        return ExpertOutputs(
            routing=routing,
            outputs_AM=outputs.outputs_AM[kept_A],
            token_rows_A=new_T[outputs.token_rows_A[kept_A]],
            ranks_A=outputs.ranks_A[kept_A],
            offsets_E1=[0, *counts_E.cumsum(0).tolist()],
        )

    if isinstance(first, RoutingPair):
        return [RoutingPair(cut(record.checkpoint), cut(record.final)) for record in records]
    return [cut_outputs(record) if isinstance(record, ExpertOutputs) else cut(record) for record in records]
