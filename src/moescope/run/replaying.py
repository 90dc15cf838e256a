"""Trace -> records -> statistics: what a forward pass does, from routing that was recorded earlier."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from moescope.records import Confidence, Routing, TokenBatch
from moescope.results.phases import ALL_PHASES

if TYPE_CHECKING:
    from moescope.statistics.base import Statistic
    from moescope.traces import Trace
    from moescope.traces.blocks import Block


def replay(
    trace: Trace,
    statistics: Mapping[str, Sequence[Statistic]],
    *,
    layers: Sequence[int],
    wanted: Mapping[int, int] | None = None,
    on_batch: Callable[[int], None] | None = None,
) -> None:
    """Updates statistics with recorded routing, as `feed` does with that of a pass.

    Args:
        trace: The recording.
        statistics: Accumulators of all tokens under "all", of prompt and generated tokens under "prompt", "generated".
        layers: MoE layers to look at.
        wanted: Most tokens to take of each document, by its hash; None: all of all documents.
        on_batch: Called after each block with the number of tokens it counted.
    """
    domain_ids = {domain.name: position for position, domain in enumerate(trace.facts.domains)}
    if "document_id" not in trace.columns:
        statistics = {
            phase: [statistic for statistic in of_phase if not statistic.needs_documents]
            for phase, of_phase in statistics.items()
        }
    for block in trace.blocks(layers, wanted):
        for phase, of_phase in statistics.items():
            part = block
            if phase != ALL_PHASES:
                part = block.part(block.generated_T == (phase == "generated"))
            if part.num_tokens:
                _update(part, of_phase, trace, layers, domain_ids)
        if on_batch is not None:
            on_batch(block.num_tokens)
    if "document_id" not in trace.columns:
        for statistic in chain(*statistics.values()):
            for name in statistic.state:
                if name.startswith("documents_"):  # what was counted as one row is not a document
                    statistic._combine(name, -statistic.state[name])


def _update(
    block: Block, statistics: Sequence[Statistic], trace: Trace, layers: Sequence[int], domain_ids: Mapping[str, int]
) -> None:
    nothing_T = np.full(block.num_tokens, -1, dtype=np.int64)
    predicted_T = block.predicted_token_ids_T
    tokens = TokenBatch(
        token_ids_T=_ids(nothing_T if block.token_ids_T is None else block.token_ids_T),
        next_token_ids_T=_ids(nothing_T if block.next_token_ids_T is None else block.next_token_ids_T),
        positions_T=_ids(block.positions_T),
        rows_T=_ids(block.rows_T),
        document_hashes_B=_ids([document.document_hash for document in block.documents]),
        domain_ids_B=_ids([domain_ids[document.domain] for document in block.documents]),
        predicted_token_ids_T=None if predicted_T is None else _ids(predicted_T),
    )
    previous: Routing | None = None
    for position, layer in enumerate(layers):
        ids_TK = _ids(block.expert_ids_TLK[:, position])
        measures = {
            field: torch.from_numpy(np.ascontiguousarray(block.measures[name][:, position], dtype=np.float32))
            for name, field in _MEASURES.items()
            if name in block.measures
        }
        routing = Routing(
            tokens=tokens,
            layer=layer,
            expert_ids_TK=ids_TK,
            weights_TK=torch.full(ids_TK.shape, torch.nan)
            if block.weights_TLK is None
            else torch.from_numpy(np.ascontiguousarray(block.weights_TLK[:, position], dtype=np.float32)),
            num_experts=trace.info.num_experts,
            scoring=trace.info.scoring,
            previous=previous,
            confidence=Confidence(**measures),
            ranked="ranks" in trace.columns,
        )
        for statistic in statistics:
            statistic.update(routing)
        previous = replace(routing, previous=None)
        if "selected_TE" in vars(routing):
            vars(previous)["selected_TE"] = routing.selected_TE


_MEASURES = {
    "router_entropy": "entropy_T",
    "top1_probability": "top1_probability_T",
    "topk_mass": "topk_mass_T",
    "margin": "margin_T",
    "boundary_margin": "boundary_margin_T",
}
"""A trace's columns, and the fields of `Confidence`."""


def _ids(values: Any) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values, dtype=np.int64))
