"""`manifest.json`: what was run, on what, with what."""

from __future__ import annotations

import importlib.metadata
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import psutil
from pydantic import BaseModel, ConfigDict, Field

if TYPE_CHECKING:
    from moescope.context import Context, ModelInfo
    from moescope.corpora import Corpus, Sampler

MANIFEST = "manifest.json"
SCHEMA_VERSION = 3
"""Of the manifest and the tables beside it; 2 had no interventions and no verdicts."""
_SHOWN = 5
# A manifest may be anyone's: numbers that are read from one are of a size that can be computed with.
Count = Annotated[int, Field(ge=0, lt=2**63)]
Index = Annotated[int, Field(ge=0, lt=2**31)]
Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class DomainSample(BaseModel):
    """How much of one domain was counted; `label` is what tables call it, where that is not its name."""

    name: str
    label: str | None = None
    group: str | None = None
    num_tokens: Count
    num_documents: Count


class Manifest(BaseModel):
    """What was run, on what, with what: enough to run it again. A run that read no text names no corpus."""

    model_config = ConfigDict(extra="forbid")

    schema_version: int = SCHEMA_VERSION
    command: str
    moescope_version: str
    torch_version: str
    transformers_version: str
    model: str
    revision: str | None
    family: str
    config_hash: str
    dtype: str
    device: str
    corpus: str | None
    corpus_fingerprint: str | None
    domains: list[DomainSample]
    num_tokens: Count
    seed: int
    layers: list[Index] = Field(max_length=10_000)
    num_experts: Index
    num_experts_per_token: Index
    analyses: list[str]
    options: dict[str, Any]
    interventions: list[dict[str, Any]] = []
    notes: list[str] = []
    failures: list[str] = []
    pass_seconds: Seconds
    total_seconds: Seconds
    peak_memory_bytes: Count


def make_manifest(
    context: Context,
    *,
    command: str,
    analyses: Sequence[str],
    options: Mapping[str, Any],
    corpus: Corpus | None = None,
    sampler: Sampler | None = None,
    notes: Sequence[str] = (),
    failures: Sequence[str] = (),
    pass_seconds: float,
    total_seconds: float,
) -> Manifest:
    """The manifest of a run.

    Args:
        context: What was looked at.
        command: What the run is called.
        analyses: The questions answered, by name.
        options: Everything that was set, by name.
        corpus: Where the text came from; None where none was read.
        sampler: What chose the tokens; None where no text was read.
        notes: What was left out or fell short, in order; what corpus and sampler noted is put around them.
        failures: What could not be made, and why.
        pass_seconds: Duration of the forward passes.
        total_seconds: Duration of everything.
    """
    model = context.model
    notes = [*_about(model), *notes]
    domains: list[DomainSample] = []
    if corpus is not None and sampler is not None:
        notes = [*corpus.notes, *notes, *sampler.warnings]
        options = {**options, "window": sampler.window}
        counts = zip(corpus.domains, corpus.labels, sampler.num_tokens_D, sampler.num_documents_D, strict=True)
        domains = [
            DomainSample(
                name=name,
                label=label if label != name else None,
                group=corpus.groups.get(name),
                num_tokens=int(tokens),
                num_documents=int(documents),
            )
            for name, label, tokens, documents in counts
        ]
    return Manifest(
        command=command,
        moescope_version=importlib.metadata.version("moescope"),
        torch_version=importlib.metadata.version("torch"),
        transformers_version=importlib.metadata.version("transformers"),
        model=model.name,
        revision=model.revision,
        family=model.family,
        config_hash=model.config_hash,
        dtype=model.dtype,
        device=model.device,
        corpus=context.corpus_name or None,
        corpus_fingerprint=context.corpus_fingerprint or None,
        domains=domains,
        num_tokens=context.num_tokens,
        seed=context.seed,
        layers=list(context.layers),
        num_experts=model.num_experts,
        num_experts_per_token=model.num_experts_per_token,
        analyses=list(analyses),
        options=dict(options),
        interventions=[dict(change) for change in model.interventions],
        notes=list(notes),
        failures=list(failures),
        pass_seconds=round(pass_seconds, 3),
        total_seconds=round(total_seconds, 3),
        peak_memory_bytes=peak_memory_bytes(),
    )


def _about(model: ModelInfo) -> list[str]:
    """What was in force on the model or changed on it, in sentences."""
    changes = [
        f"{change['kind']} expert {change['expert']} of layer {change['layer']}"
        if "expert" in change
        else f"{change['kind']} at layer {change['layer']}"
        for change in model.interventions
    ]
    count = f"{len(changes)} intervention{'s' if len(changes) > 1 else ''}"
    shown = ", ".join(changes[:_SHOWN]) + (", ..." if len(changes) > _SHOWN else "")
    in_force = [f"these are numbers of a changed model: {count} in force ({shown})"] if changes else []
    return [*in_force, *model.changes]


def peak_memory_bytes() -> int:
    """Largest resident set of this process so far, in bytes."""
    if sys.platform == "win32":
        return int(psutil.Process().memory_info().peak_wset)
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
