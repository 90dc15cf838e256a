"""Traces in and out: routing recorded from a pass, opened, and imported from other engines."""

from __future__ import annotations

import importlib.metadata
import shutil
import tempfile
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from moescope.errors import UsageError
from moescope.results import ResultsFolder
from moescope.traces.facts import FACTS, UNKNOWN, TracedDomain, TraceFacts
from moescope.traces.reading import Trace
from moescope.traces.writing import TraceWriter, write_counts, write_facts

if TYPE_CHECKING:
    from moescope.models.declared import Declared
    from moescope.traces.readers.base import Counted, Recording

PRODUCER = f"moescope {importlib.metadata.version('moescope')}"


def open_trace(
    path: str | Path | Sequence[str | Path],
    *,
    format: str = "auto",
    model: str | None = None,
    tokenizer: str | None = None,
    domain: str | None = None,
    domain_field: str | None = None,
) -> Trace:
    """Opens recorded routing, to be asked with `capture(open_trace(PATH), analyses=[...])`.

    A folder that `moescope trace` wrote is read as it is. Recordings of other engines are converted first, into a
    temporary folder that goes with the trace; the other arguments are those of `import_trace`.

    Raises:
        UsageError: There is no such recording, or it is not what it should be; says what was found.
    """
    paths = _paths(path)
    if len(paths) == 1 and (paths[0] / FACTS).is_file():
        if format != "auto" or model or tokenizer or domain or domain_field:
            raise UsageError(
                f"{paths[0]} is a trace of moescope: it says itself what model and domains it is of",
                remedy="leave the other arguments out",
            )
        return Trace(paths[0])
    folder = Path(tempfile.mkdtemp(prefix="moescope-trace-"))
    try:
        write_import(
            paths,
            folder,
            format=format,
            model=model,
            tokenizer=tokenizer,
            domain=domain,
            domain_field=domain_field,
        )
        trace = Trace(folder)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    weakref.finalize(trace, shutil.rmtree, folder, ignore_errors=True)
    return trace


def import_trace(
    path: str | Path | Sequence[str | Path],
    out: str | Path | ResultsFolder,
    *,
    format: str = "auto",
    model: str | None = None,
    tokenizer: str | None = None,
    domain: str | None = None,
    domain_field: str | None = None,
    progress: Callable[[int], None] | None = None,
) -> Trace:
    """Converts recordings of another engine to a trace.

    Args:
        path: A file, several, or a folder.
        out: The trace's folder; must not exist yet.
        format: "auto", or one of `moescope.traces.readers.READERS`.
        model: The model that was traced: a hub id, a checkpoint's folder, or a config.json. It tells the layers without
            experts, the number of experts, and the texts of tokens. None: what the recording tells.
        tokenizer: A folder or hub id whose tokenizer gives the texts of tokens; None: the model's.
        domain: The domain of everything.
        domain_field: Field of each record that names its domain (dots lead into nested objects). None, and no
            `domain`: the field `domain` where records have it, else the file's name.
        progress: Called with the number of tokens just written.

    Raises:
        UsageError: A recording that is not what it should be, or an `out` that exists.
        EnvironmentFailure: The disk refuses.
    """
    with out if isinstance(out, ResultsFolder) else ResultsFolder(out) as folder:
        write_import(
            _paths(path), folder.writing_to, format=format, model=model, tokenizer=tokenizer, domain=domain,
            domain_field=domain_field, progress=progress,
        )  # fmt: skip
    return Trace(folder.path)


def write_import(
    paths: Sequence[Path],
    folder: Path,
    *,
    format: str = "auto",
    model: str | None = None,
    tokenizer: str | None = None,
    domain: str | None = None,
    domain_field: str | None = None,
    progress: Callable[[int], None] | None = None,
) -> None:
    """`import_trace` into a folder that exists and is empty."""
    from moescope.traces import readers
    from moescope.traces.readers.base import Counted, Request, Shape

    if domain is not None and domain_field is not None:
        raise UsageError("`domain` was given with `domain_field`", remedy="give one of the two")
    declared, texts = _declared(model, tokenizer)
    shape = None
    if declared is not None:
        facts = declared.facts
        shape = Shape(facts.num_blocks, facts.layers, facts.num_experts, facts.num_experts_per_token)
    request = Request(tuple(paths), shape, domain, domain_field)
    found = readers.read(format, request)
    name = Path(paths[0]).name
    if isinstance(found, Counted):
        _write_counted(folder, found, declared, name)
    else:
        _write_recording(folder, found, declared, texts, name, progress)


def _write_recording(
    folder: Path,
    found: Recording,
    declared: Declared | None,
    tokenizer: Any,
    corpus: str,
    progress: Callable[[int], None] | None,
) -> None:
    with TraceWriter(folder, layers=found.layers, num_experts=found.num_experts) as writer:
        for block in found.blocks:
            writer.add(block)
            if progress is not None:
                progress(block.num_tokens)
    num_experts = found.num_experts
    if num_experts is None:
        num_experts = max(writer.largest_expert + 1, writer.num_experts_per_token)
        found.notes.append(f"experts are counted by the largest id: {num_experts}; the model would tell")
    token_ids = writer.token_ids
    vocab_size = declared.facts.vocab_size if declared is not None else (token_ids[-1] + 1 if token_ids else 0)
    if token_ids and token_ids[-1] >= vocab_size:
        raise UsageError(
            f"{corpus} holds token id {token_ids[-1]:,}", expected=f"0 to {vocab_size - 1:,}, as the model has",
            remedy="give the model that was traced",
        )  # fmt: skip
    facts = TraceFacts(
        **_model_facts(declared, found.model),
        producer=PRODUCER,
        engine=found.engine,
        layers=found.layers,
        num_experts=num_experts,
        num_experts_per_token=writer.num_experts_per_token,
        vocab_size=vocab_size,
        tokenizer_hash=tokenizer_hash(tokenizer),
        corpus=corpus,
        sample_hash=writer.sample_hash,
        domains=[
            TracedDomain(name=name, num_tokens=tokens, num_documents=writer.num_documents[name])
            for name, tokens in sorted(writer.num_tokens.items())
        ],
        columns=sorted(writer.columns | {"expert_ids"} | ({"ranks"} if found.ranked else set())),
        phases=writer.phases,
        num_tokens=sum(writer.num_tokens.values()),
        notes=found.notes,
    )
    write_facts(folder, facts, texts_of(tokenizer, token_ids))


def _write_counted(folder: Path, found: Counted, declared: Declared | None, corpus: str) -> None:
    write_counts(folder, found.layers, found.domains, found.counts_LDE)
    facts = TraceFacts(
        **_model_facts(declared, found.model),
        producer=PRODUCER,
        engine=found.engine,
        layers=found.layers,
        num_experts=found.counts_LDE.shape[2],
        num_experts_per_token=found.num_experts_per_token,
        vocab_size=declared.facts.vocab_size if declared is not None else 0,
        corpus=corpus,
        domains=[
            TracedDomain(name=name, num_tokens=int(tokens), num_documents=0)
            for name, tokens in zip(found.domains, found.tokens_D, strict=True)
        ],
        columns=["counts"],
        num_tokens=int(np.sum(found.tokens_D)),
        notes=found.notes,
    )
    write_facts(folder, facts)


def _declared(model: str | None, tokenizer: str | None) -> tuple[Declared | None, Any]:
    """The model's configuration and the tokenizer to be used, where they are named."""
    if model is None and tokenizer is None:
        return None, None
    from moescope.models.declared import declared_model, named_tokenizer

    if model is None:
        assert tokenizer is not None
        return None, named_tokenizer(tokenizer)
    declared = declared_model(model, tokenizer=tokenizer)
    return declared, declared.tokenizer


def _model_facts(declared: Declared | None, name: str | None) -> dict[str, Any]:
    if declared is None:
        return {"model": name or UNKNOWN}
    facts = declared.facts
    return {
        "model": declared.name,
        "revision": declared.revision,
        "family": facts.family,
        "config_hash": facts.config_hash,
        "num_shared_experts": facts.num_shared_experts,
        "model_width": facts.model_width,
        "expert_width": facts.expert_width,
    }


def texts_of(tokenizer: Any, token_ids: Sequence[int]) -> dict[int, str]:
    """The texts of tokens as tables show them; nothing without a tokenizer."""
    if tokenizer is None:
        return {}
    from moescope.models.token_text import token_texts

    return token_texts(tokenizer, token_ids)


def tokenizer_hash(tokenizer: Any) -> str | None:
    """SHA-256 of a tokenizer's vocabulary."""
    if tokenizer is None:
        return None
    import hashlib
    import json

    vocabulary = json.dumps(tokenizer.get_vocab(), sort_keys=True)
    return f"sha256:{hashlib.sha256(vocabulary.encode()).hexdigest()}"


def _paths(path: str | Path | Sequence[str | Path]) -> list[Path]:
    given = [path] if isinstance(path, str | Path) else list(path)
    return [Path(each).expanduser() for each in given]
