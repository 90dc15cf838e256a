"""`record_trace`: routing of a pass over text, written as a trace."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from moescope.context import Context
from moescope.corpora import Batch, Sampler
from moescope.errors import UsageError, at_least
from moescope.models.given import check_model
from moescope.results import ResultsFolder
from moescope.results.manifest import make_manifest
from moescope.run.tracing import PRODUCER, texts_of, tokenizer_hash
from moescope.statistics.entropy import confidence_of
from moescope.traces.blocks import Block, Source
from moescope.traces.facts import TracedDomain, TraceFacts
from moescope.traces.reading import Trace
from moescope.traces.writing import TraceWriter, write_facts

if TYPE_CHECKING:
    from moescope.corpora import Corpus
    from moescope.models import MoEModel
    from moescope.records import Routing

COMMAND = "trace"


def record_trace(
    model: MoEModel,
    corpus: Corpus,
    out: str | Path | ResultsFolder,
    num_tokens: int = 100_000,
    layers: Sequence[int] | None = None,
    *,
    seed: int = 0,
    sequence_length: int | None = None,
    batch_tokens: int = 8192,
    predictions: bool | None = None,
    with_text: bool = False,
    generate: int = 0,
    temperature: float | None = None,
    command_line: str | None = None,
    progress: Callable[[int], None] | None = None,
) -> Trace:
    """Runs the corpus through the model once and writes what every router decided for every token.

    The sample is that of `capture` with the same arguments, and so are the answers that the trace gives.

    Args:
        model: From `load_model`.
        corpus: From `load_corpus`.
        out: The trace's folder; must not exist yet.
        num_tokens: Tokens to count, split evenly over the corpus' domains.
        layers: MoE layers (decoder block indices); None for all. The pass stops after the deepest.
        seed: Chooses documents and windows, and generated tokens where a temperature is given.
        sequence_length: Longest window of a document, in tokens; None: what the sampling rule and the model allow.
        batch_tokens: Padded tokens in a batch.
        predictions: Whether to run the whole depth and record the model's most probable next tokens. None: no.
        with_text: Whether the documents' texts are kept.
        generate: Tokens that the model writes after each window, recorded as generated tokens; the most probable next
            token each time, unless a temperature is given.
        temperature: Draws generated tokens from the model's probabilities at this temperature.
        command_line: The command as it was typed, for the manifest.
        progress: Called after each batch with the number of tokens counted in it.

    Raises:
        UsageError: A layer or number that does not exist or makes no sense, or an `out` that exists.
        EnvironmentFailure: The disk refuses.
    """
    started = time.perf_counter()
    check_model(model)
    _check(model, predictions, generate, temperature)
    model.refresh()
    chosen = model.check_layers(layers)
    longest = model.max_positions
    if generate and longest is not None:
        if generate >= longest:
            raise UsageError(f"`generate={generate}`", expected=f"less than the model's {longest} positions")
        longest -= generate
    sampler = Sampler(
        corpus,
        model.tokenizer,
        num_tokens=num_tokens,
        seed=seed,
        sequence_length=sequence_length,
        max_positions=longest,
        batch_tokens=batch_tokens,
    )
    folder = out if isinstance(out, ResultsFolder) else ResultsFolder(out)
    sampling: dict[str, Any] = {
        "num_tokens": num_tokens,
        "sequence_length": sequence_length,
        "batch_tokens": batch_tokens,
        "predictions": bool(predictions),
        "generate": generate,
        "temperature": temperature,
        "window": sampler.window,
    }
    with folder:
        notes: list[str] = []
        with TraceWriter(
            folder.writing_to, layers=chosen, num_experts=model.num_experts, with_text=with_text
        ) as writer:
            for batch in sampler:
                for block in _recorded(model, corpus, batch, chosen, bool(predictions), generate, temperature, seed):
                    writer.add(block)
                if progress is not None:
                    progress(batch.tokens.num_tokens)
        seconds = time.perf_counter() - started
        facts = _facts(model, corpus, sampler, writer, chosen, seed, sampling)
        write_facts(folder.writing_to, facts, texts_of(model.tokenizer, writer.token_ids))
        context = Context(
            model=model.info, layers=tuple(chosen), domains=corpus.labels, groups=corpus.label_groups,
            corpus_name=corpus.name, num_tokens=facts.num_tokens, seed=seed, predictions=bool(predictions),
            corpus_fingerprint=corpus.fingerprint,
        )  # fmt: skip
        if command_line is not None:
            sampling["command_line"] = command_line
        folder.write_manifest(
            make_manifest(
                context,
                command=COMMAND,
                analyses=[],
                options=sampling,
                corpus=corpus,
                sampler=sampler,
                notes=notes,
                pass_seconds=seconds,
                total_seconds=time.perf_counter() - started,
            )
        )
    return Trace(folder.path)


def _check(model: MoEModel, predictions: bool | None, generate: int, temperature: float | None) -> None:
    at_least(0, generate=generate)
    if (predictions or generate) and not model.complete:
        raise UsageError(
            f"`{'predictions=True' if predictions else f'generate={generate}'}` needs all {model.num_blocks} blocks of "
            f"{model.name}, and fewer are loaded",
            remedy="load the model without `layers`",
        )
    if temperature is not None and not (generate and 0 < temperature < float("inf")):
        raise UsageError(
            f"`temperature={temperature}`{'' if generate else ' without `generate`'}",
            expected="a positive number, with generated tokens to draw",
        )


def _recorded(
    model: MoEModel,
    corpus: Corpus,
    batch: Batch,
    layers: list[int],
    predictions: bool,
    generate: int,
    temperature: float | None,
    seed: int,
) -> Iterator[Block]:
    """The routing of a batch; with generated tokens, of its rows and what the model writes after them."""
    generated_T = np.zeros(batch.tokens.num_tokens, dtype=np.bool_)
    if generate:
        batch, generated_T = _continued(model, batch, generate, temperature, seed)
    routings: list[Routing] = []
    placed = batch.to(model.device)
    measures: dict[str, list[np.ndarray]] = {}

    def on_routing(routing: Routing) -> None:
        confidence = confidence_of(routing)
        for name, values_T in (
            ("router_entropy", confidence.entropy_T),
            ("top1_probability", confidence.top1_probability_T),
            ("topk_mass", confidence.topk_mass_T),
            ("margin", confidence.margin_T),
            ("boundary_margin", confidence.boundary_margin_T),
        ):
            assert values_T is not None
            measures.setdefault(name, []).append(values_T.float().cpu().numpy())
        routings.append(replace(routing, logits_TE=None, selection_values_TE=None, previous=None))

    predicted_T = model.listen(
        placed.input_ids_BS, placed.tokens, placed.keep_T, layers=layers, on_routing=on_routing,
        predictions=predictions,
    )  # fmt: skip
    tokens = batch.tokens
    id_type = np.uint8 if model.num_experts <= 256 else np.uint16
    yield Block(
        documents=[
            Source(
                document.document_id if document is not None else str(document_hash),
                document_hash,
                corpus.labels[domain_id],
                document.source if document is not None else "",
                document.text if document is not None else None,
            )
            for document, document_hash, domain_id in zip(
                batch.documents, tokens.document_hashes_B.tolist(), tokens.domain_ids_B.tolist(), strict=True
            )
        ],
        rows_T=tokens.rows_T.numpy(),
        positions_T=tokens.positions_T.numpy(),
        generated_T=generated_T,
        expert_ids_TLK=np.stack([routing.expert_ids_TK.cpu().numpy().astype(id_type) for routing in routings], axis=1),
        token_ids_T=tokens.token_ids_T.numpy(),
        next_token_ids_T=tokens.next_token_ids_T.numpy(),
        predicted_token_ids_T=None if predicted_T is None else predicted_T.cpu().numpy(),
        weights_TLK=np.stack([routing.weights_TK.cpu().numpy() for routing in routings], axis=1),
        measures={name: np.stack(values, axis=1) for name, values in measures.items()},
    )


def _continued(
    model: MoEModel, batch: Batch, generate: int, temperature: float | None, seed: int
) -> tuple[Batch, np.ndarray]:
    """A batch with what the model writes after each row's last counted token; and which tokens it wrote."""
    written = [ids.tolist() for ids in _generated(model, batch, generate, temperature, seed)]
    width = batch.input_ids_BS.shape[1]
    columns_T = batch.keep_T % width
    tokens = batch.tokens
    rows: list[list[int]] = []
    parts: dict[str, list[Tensor]] = {}
    generated: list[np.ndarray] = []
    for row, new in enumerate(written):
        own = (tokens.rows_T == row).nonzero().squeeze(1)
        end = int(columns_T[own].max()) + 1
        rows.append([*batch.input_ids_BS[row, :end].tolist(), *new])
        first = int(tokens.positions_T[own[-1]]) + 1
        added = {
            "columns": torch.arange(end, end + len(new)),
            "token_ids_T": torch.tensor(new, dtype=torch.int64),
            "next_token_ids_T": torch.tensor([*new[1:], -1][: len(new)], dtype=torch.int64),
            "positions_T": torch.arange(first, first + len(new)),
            "rows_T": torch.full((len(new),), row),
        }
        before = {
            "columns": columns_T[own],
            **{name: getattr(tokens, name)[own] for name in added if name != "columns"},
        }
        for name, values in added.items():
            parts.setdefault(name, []).append(torch.cat([before[name], values]))
        generated.append(np.repeat([False, True], [len(own), len(new)]))
    longest = max(map(len, rows))
    input_ids_BS = torch.full((len(rows), longest), int(batch.input_ids_BS[0, 0]))
    for row, ids in enumerate(rows):
        input_ids_BS[row, : len(ids)] = torch.tensor(ids)
    joined = {name: torch.cat(values) for name, values in parts.items()}
    keep_T = joined["rows_T"] * longest + joined.pop("columns")
    return Batch(input_ids_BS, keep_T, replace(tokens, **joined), batch.documents), np.concatenate(generated)


def _generated(model: MoEModel, batch: Batch, generate: int, temperature: float | None, seed: int) -> Iterator[Tensor]:
    """What the model writes after each row, up to a special token, which is left out."""
    width = batch.input_ids_BS.shape[1]
    tokens, columns_T = batch.tokens, batch.keep_T % width
    special = torch.tensor(sorted(model.tokenizer.all_special_ids), dtype=torch.int64)
    padding = next(
        token for token in (model.tokenizer.pad_token_id, model.tokenizer.eos_token_id, 0) if token is not None
    )
    ends = [int(columns_T[tokens.rows_T == row].max()) + 1 for row in range(tokens.num_documents)]
    longest = max(ends)
    input_ids = torch.full((len(ends), longest), padding)
    mask = torch.zeros((len(ends), longest), dtype=torch.int64)
    for row, end in enumerate(ends):  # on the right is what goes on
        input_ids[row, longest - end :] = batch.input_ids_BS[row, :end]
        mask[row, longest - end :] = 1
    drawn = (
        {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
        if temperature
        else {"do_sample": False}
    )
    with torch.random.fork_rng(), torch.inference_mode():
        torch.manual_seed((seed * 1_000_003 + int(tokens.document_hashes_B[0])) % 2**63)
        output = model.generate(
            input_ids.to(model.device),
            attention_mask=mask.to(model.device),
            max_new_tokens=generate,
            pad_token_id=padding,
            **drawn,
        )
    for ids in output[:, longest:].cpu():
        stop = torch.isin(ids, special).nonzero()
        yield ids[: int(stop[0])] if len(stop) else ids


def _facts(
    model: MoEModel,
    corpus: Corpus,
    sampler: Sampler,
    writer: TraceWriter,
    layers: list[int],
    seed: int,
    sampling: dict[str, Any],
) -> TraceFacts:
    info = model.info
    return TraceFacts(
        producer=PRODUCER,
        engine="transformers",
        model=info.name,
        revision=info.revision,
        family=info.family,
        config_hash=info.config_hash,
        dtype=info.dtype,
        device=info.device,
        router_rule=model.router.rule,
        scoring=info.scoring,
        selects_by=info.selects_by,
        layers=layers,
        num_experts=info.num_experts,
        num_experts_per_token=info.num_experts_per_token,
        num_shared_experts=info.num_shared_experts,
        model_width=info.model_width,
        expert_width=info.expert_width,
        vocab_size=info.vocab_size,
        interventions=[dict(change) for change in info.interventions],
        changes=list(info.changes),
        tokenizer_hash=tokenizer_hash(model.tokenizer),
        corpus=corpus.name,
        corpus_fingerprint=corpus.fingerprint,
        sample_hash=writer.sample_hash,
        seed=seed,
        domains=[
            TracedDomain(
                name=name,
                group=corpus.label_groups.get(name),
                num_tokens=writer.num_tokens.get(name, 0),
                num_documents=writer.num_documents.get(name, 0),
            )
            for name in corpus.labels
        ],
        sampling=sampling,
        columns=sorted(writer.columns | {"expert_ids", "ranks"}),
        phases=writer.phases,
        num_tokens=sum(writer.num_tokens.values()),
        notes=[*corpus.notes, *sampler.warnings],
    )
