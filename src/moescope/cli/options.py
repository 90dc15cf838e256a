"""The options commands share, said once: names, units, defaults and what they mean."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Group, Parameter, validators

if TYPE_CHECKING:
    from cyclopts import Token

MODEL = Group.create_ordered("Model")
TEXT = Group.create_ordered("Text")
RUN = Group.create_ordered("Run")
OUTPUT = Group.create_ordered("Output")

AT_LEAST_ONE = validators.Number(gte=1)

Count = Annotated[int | None, Parameter(validator=AT_LEAST_ONE, group=MODEL)]
Name = Annotated[str | None, Parameter(group=TEXT)]


def one_of(*words: str, group: Group) -> Parameter:
    """An option that is one of some words, whichever of their letters are capital."""

    def convert(_: Any, tokens: Sequence[Token]) -> str:
        given = tokens[0].value
        if given.lower() not in words:
            raise ValueError(f"{given} is none of {', '.join(words)}")
        return given.lower()

    return Parameter(converter=convert, group=group)


@Parameter(name="*")
@dataclass(kw_only=True)
class ModelChoice:
    """Which model."""

    model: Annotated[str, Parameter(group=MODEL)] = "nano"
    """Model to look into: nano (ships with moescope, needs no network), a folder with a checkpoint, or a Hugging Face
    id such as allenai/OLMoE-1B-7B-0924."""

    revision: Annotated[str | None, Parameter(group=MODEL)] = None
    """Branch, tag or commit of a Hugging Face model. Default: its main branch."""

    dtype: Annotated[Literal["float32", "bfloat16", "float16"] | None, Parameter(group=MODEL)] = None
    """Number format to compute in. Default: the checkpoint's own (nano: float32)."""

    device: Annotated[str | None, Parameter(group=MODEL)] = None
    """Where to compute: cpu, cuda, cuda:1, ... Default: auto, spread over the GPUs there are, the CPU if none."""

    trust_remote_code: Annotated[
        bool, Parameter(name="--trust-remote-code", negative="", show_default=False, group=MODEL)
    ] = False
    """Run Python code that the checkpoint brings, where transformers does not know the model or its tokenizer; a
    warning names the files. That code can do whatever you can do: read it first. Default: none is run."""


@Parameter(name="*")
@dataclass(kw_only=True)
class ModelOptions(ModelChoice):
    """Which model, and how much of it."""

    layers: Annotated[
        list[int] | None, Parameter(name=["--layers", "-l"], consume_multiple=(1, None), negative="", group=MODEL)
    ] = None
    """MoE layers to look at, numbered from 0 as the checkpoint's decoder blocks, as in --layers 1 7 15. Only these and
    what lies before them are loaded and run. Default: all."""


@Parameter(name="*")
@dataclass(kw_only=True)
class TextOptions:
    """Which text, and how much of it."""

    corpus: Annotated[str, Parameter(group=TEXT)] = "embedded"
    """Text to run through the model: embedded (22 domains, ships with moescope); a folder, whose sub-folders are the
    domains (.txt, .jsonl, .jsonl.gz, .jsonl.zst, .parquet); one such file; a preset (pile, c4); or a Hugging Face
    dataset id, which is streamed."""

    text_field: Name = None
    """Field of a record that holds the text. Default: text, or the preset's."""

    domain_field: Name = None
    """Field of a record that names its domain; dots lead into nested records, as in meta.pile_set_name. Default:
    sub-folders are domains, a file or data set is one domain, a preset has its own."""

    config: Name = None
    """Configuration of a Hugging Face dataset that has several."""

    split: Name = None
    """Part of a Hugging Face dataset. Default: validation, test or train, the first there is."""

    domains: Annotated[list[str] | None, Parameter(consume_multiple=(1, None), negative="", group=TEXT)] = None
    """Only these domains, by name. Default: all."""

    num_domains: Annotated[int | None, Parameter(validator=AT_LEAST_ONE, group=TEXT)] = None
    """Only the first so many domains, in the corpus' order. Default: all."""

    num_tokens: Annotated[int, Parameter(validator=AT_LEAST_ONE, group=TEXT)] = 100_000
    """Tokens to count, split evenly over the domains. Padding and special tokens never count."""

    sequence_length: Annotated[int | None, Parameter(validator=validators.Number(gte=2), group=TEXT)] = None
    """Longest stretch of one document, in tokens. Default: a thirtieth of its domain's tokens, but at least 128, and
    at most what the model can attend to."""

    seed: Annotated[int, Parameter(group=TEXT)] = 0
    """Chooses the documents, the stretch taken of each, and the replicates behind intervals. The same seed on the same
    machine gives the same tables."""


@Parameter(name="*")
@dataclass(kw_only=True)
class OutputOptions:
    """Where to leave what came out."""

    out: Annotated[Path | None, Parameter(group=OUTPUT)] = None
    """Folder for the results; must not exist yet. Default: results/COMMAND, or results/COMMAND-2, -3, ... if taken."""

    force: Annotated[bool, Parameter(negative="", show_default=False, group=OUTPUT)] = False
    """Replace the results folder named with --out."""


@Parameter(name="*")
@dataclass(kw_only=True)
class RunOptions(OutputOptions):
    """How to run, and where to leave what came out."""

    batch_tokens: Annotated[int, Parameter(validator=AT_LEAST_ONE, group=RUN)] = 8192
    """Tokens in one forward pass, padding included. Fewer take less memory; what is measured stays the same."""


@Parameter(name="*")
@dataclass(kw_only=True)
class DepthOptions:
    """How much of the model to run."""

    predictions: Annotated[bool | None, Parameter(group=RUN)] = None
    """Run the whole model to learn which next token it predicts; only the vocabulary analysis asks. Default: yes
    without --layers, no with --layers."""


@Parameter(name="*")
@dataclass(kw_only=True)
class Loudness:
    """How much the terminal is told."""

    verbose: Annotated[bool, Parameter(name=["--verbose", "-v"], negative="", show_default=False, group=OUTPUT)] = False
    """Let transformers, datasets and Python say all that they have to say."""


# A dataclass lists the fields of its last base first: so the help page begins with the model.


@Parameter(name="*")
@dataclass(kw_only=True)
class InfoOptions(Loudness, ModelOptions):
    """What `info` can be told."""


@Parameter(name="*")
@dataclass(kw_only=True)
class WeightsOptions(Loudness, OutputOptions, ModelOptions):
    """What a look at weights alone can be told."""


@Parameter(name="*")
@dataclass(kw_only=True)
class InterveneOptions(Loudness, OutputOptions, ModelChoice):
    """What an intervention on a prompt can be told beside the prompt and the changes."""


@Parameter(name="*")
@dataclass(kw_only=True)
class CaptureOptions(Loudness, DepthOptions, RunOptions, TextOptions, ModelOptions):
    """What a run of text through a model can be told."""


@Parameter(name="*")
@dataclass(kw_only=True)
class CompareOptions(Loudness, RunOptions, TextOptions, ModelOptions):
    """What a comparison of models on the same text can be told."""
