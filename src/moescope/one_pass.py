"""Corpus x model -> records -> statistics, in one forward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from moescope.corpora import Batch
    from moescope.models import MoEModel
    from moescope.records import ExpertOutputs, Routing
    from moescope.statistics.base import Statistic


def feed(
    model: MoEModel,
    batches: Iterable[Batch],
    statistics: Iterable[Statistic],
    *,
    layers: Sequence[int],
    on_batch: Callable[[int], None] | None = None,
) -> None:
    """Runs every batch through the model once and updates all statistics; computes nothing that none of them needs.

    Args:
        model: The model to listen to.
        batches: Batches of text.
        statistics: Accumulators; those that look at a layer not in `layers` get nothing of it, and those fed with
            expert outputs are given only the layers they were made for.
        layers: MoE layers to look at; the forward pass stops after the deepest unless someone needs predictions.
        on_batch: Called after each batch with the number of tokens it counted.
    """
    during: list[Statistic] = []
    after: list[Statistic] = []
    of_outputs: list[Statistic] = []
    for statistic in statistics:
        if statistic.needs_outputs:
            of_outputs.append(statistic)
        elif statistic.needs_predictions:
            after.append(statistic)
        else:
            during.append(statistic)
    kept: list[Routing] = []

    def on_routing(routing: Routing) -> None:
        for statistic in during:
            statistic.update(routing)
        if after:
            kept.append(replace(routing, logits_TE=None, selection_values_TE=None, previous=None, inputs_TM=None))

    def on_outputs(outputs: ExpertOutputs) -> None:
        for statistic in of_outputs:
            if outputs.routing.layer in statistic.layers:
                statistic.update(outputs)

    for batch in batches:
        kept.clear()
        placed = batch.to(model.device)
        predicted_T = model.listen(
            placed.input_ids_BS,
            placed.tokens,
            placed.keep_T,
            layers=layers,
            on_routing=on_routing,
            on_outputs=on_outputs if of_outputs else None,
            needs_logits=any(statistic.needs_logits for statistic in during),
            needs_inputs=any(statistic.needs_inputs for statistic in during),
            predictions=bool(after),
        )
        if after:
            tokens = replace(placed.tokens, predicted_token_ids_T=predicted_T)
            for routing in kept:
                complete = replace(routing, tokens=tokens)
                for statistic in after:
                    statistic.update(complete)
        if on_batch is not None:
            on_batch(placed.tokens.num_tokens)
