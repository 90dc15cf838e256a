"""The options that commands share: names, units, defaults and what they mean."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation, Overflow
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args, get_origin

from cyclopts import Group, Parameter, validators

if TYPE_CHECKING:
    from cyclopts import Token

MODEL = Group.create_ordered("Model")
TEXT = Group.create_ordered("Text")
RUN = Group.create_ordered("Run")
OUTPUT = Group.create_ordered("Output")
IMPORT = Group("Import", sort_key=-1)

AT_LEAST_ONE = validators.Number(gte=1)

# A layer or a range of layers; a number with a power of ten or the letter of one.
_LAYERS = re.compile(r"(-?\d{1,6})(?:-(\d{1,6}))?")
_COUNT = re.compile(r"([+-]?(?:\d{1,30}\.?\d{0,30}|\.\d{1,30})(?:e[+-]?\d{1,2})?)([kmb]?)", re.IGNORECASE)
_FACTORS = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9}
MAX_LAYERS = 10_000
MAX_COUNT = 10**15

Count = Annotated[int | None, Parameter(validator=AT_LEAST_ONE, group=MODEL)]
Name = Annotated[str | None, Parameter(group=TEXT)]


def is_choice(kind: Any) -> bool:
    """Whether a type is one of some words, or such and None."""
    return all(part is type(None) or get_origin(part) is Literal for part in get_args(kind) or [kind]) or (
        get_origin(kind) is Literal
    )


def choice_of(kind: Any) -> Callable[[Any, Sequence[Token]], str]:
    """Reads one of a type's words, whichever of their letters are capital."""
    literals = [kind] if get_origin(kind) is Literal else [part for part in get_args(kind) if part is not type(None)]
    choices = [word for literal in literals for word in get_args(literal)]

    def convert(_: Any, tokens: Sequence[Token]) -> str:
        given = tokens[0].value
        if given.lower() not in choices:
            raise ValueError(f"{given} is none of {', '.join(choices)}")
        return given.lower()

    return convert


def to_layers(_: Any, tokens: Sequence[Token]) -> list[int] | None:
    """Layers as they are typed: `1 7 15`, `0,1`, `0-3`, `-1` (from the end), `all` (None)."""
    words = [word for token in tokens for word in token.value.replace(",", " ").split()]
    if not words:
        raise ValueError("no layer was named")
    if "all" in (word.lower() for word in words):
        if len(words) > 1:
            raise ValueError(f"all stands alone, and {' '.join(words)} was given")
        return None
    layers: list[int] = []
    for word in words:
        match = _LAYERS.fullmatch(word)
        if match is None:
            raise ValueError(f"{word} is no layer: a number (7; -1 is the last), a range (0-3) or all")
        first = int(match[1])
        last = int(match[2]) if match[2] else first
        if last < first or last - first > MAX_LAYERS:
            raise ValueError(f"{word} is no range of layers: the first number must be the smaller one")
        layers += range(first, last + 1)
    return layers


def to_count(_: Any, tokens: Sequence[Token]) -> int:
    """A whole number as it is typed: `100000`, `100_000`, `100,000`, `1e5`, `100k`, `1.5M`."""
    given = tokens[0].value
    match = _COUNT.fullmatch(given.replace(",", "").replace("_", ""))
    if match is None:
        raise ValueError(f'unable to convert "{given}" into int: write 100000, 1e5, 100k or 2M')
    try:
        count = Decimal(match[1]) * _FACTORS[match[2].lower()]
    except (InvalidOperation, Overflow) as error:
        raise ValueError(f"{given} is no number of tokens") from error
    if abs(count) > MAX_COUNT or count != int(count):
        raise ValueError(f"{given} is no whole number up to {MAX_COUNT:,}")
    return int(count)


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
        list[int] | None,
        Parameter(
            name=["--layers", "--layer", "-l"],
            consume_multiple=(1, None),
            negative="",
            group=MODEL,
            converter=to_layers,
        ),
    ] = None
    """MoE layers to look at, numbered from 0 as the checkpoint's decoder blocks, as in --layers 1 7 15, --layers 0-3
    or --layers 0,1; -1 is the last. Only these and what lies before them are loaded and run. Default: all."""


@Parameter(name="*")
@dataclass(kw_only=True)
class TextOptions:
    """Which text, and how much of it."""

    corpus: Annotated[str, Parameter(allow_leading_hyphen=True, group=TEXT)] = "embedded"
    """Text to run through the model: embedded (22 domains, ships with moescope); a folder, whose sub-folders are the
    domains (.txt, .md and other plain text, .jsonl, .json, .csv, .tsv, each also .gz or .zst; .parquet, .arrow); one
    such file; - for standard input; a preset (pile, c4); or a Hugging Face dataset id, which is streamed."""

    text_field: Name = None
    """Field of a record that holds the text, or a conversation, read through the model's chat template. Default: text
    or else messages, or the preset's."""

    domain_field: Name = None
    """Field of a record that names its domain; dots lead into nested records, as in meta.pile_set_name;
    messages.role makes each role of a conversation a domain. Default: sub-folders are domains, a file or data set is
    one domain, a preset has its own."""

    config: Name = None
    """Configuration of a Hugging Face dataset that has several."""

    split: Name = None
    """Part of a Hugging Face dataset. Default: validation, test or train, the first there is."""

    domains: Annotated[list[str] | None, Parameter(consume_multiple=(1, None), negative="", group=TEXT)] = None
    """Only these domains, by name. Default: all."""

    num_domains: Annotated[int | None, Parameter(validator=AT_LEAST_ONE, group=TEXT)] = None
    """Only the first so many domains, in the corpus' order. Default: all."""

    num_tokens: Annotated[int, Parameter(validator=AT_LEAST_ONE, converter=to_count, group=TEXT)] = 100_000
    """Tokens to count (100000, 1e5 or 100k), split evenly over the domains. Padding and special tokens never count."""

    sequence_length: Annotated[int | None, Parameter(validator=validators.Number(gte=2), group=TEXT)] = None
    """Longest window of one document, in tokens, and at most what the model can attend to. A long one takes the tokens
    from fewer documents, which the intervals are over. Default: a thirtieth of its domain's tokens, but at least
    128."""

    seed: Annotated[int, Parameter(group=TEXT)] = 0
    """Chooses the documents, the stretch taken of each, and the replicates behind intervals. The same seed on the same
    machine gives the same tables."""


@Parameter(name="*")
@dataclass(kw_only=True)
class OutputOptions:
    """Where results are written."""

    out: Annotated[Path | None, Parameter(group=OUTPUT)] = None
    """Folder for the results; must not exist yet. Default: results/COMMAND, or results/COMMAND-2, -3, ... if taken."""

    force: Annotated[bool, Parameter(negative="", show_default=False, group=OUTPUT)] = False
    """Replace the results folder named with --out."""


@Parameter(name="*")
@dataclass(kw_only=True)
class RunOptions(OutputOptions):
    """How to run, and where results are written."""

    batch_tokens: Annotated[int, Parameter(validator=AT_LEAST_ONE, group=RUN)] = 8192
    """Tokens in one forward pass, padding included. Fewer take less memory; results are the same but for rounding."""


@Parameter(name="*")
@dataclass(kw_only=True)
class DepthOptions:
    """How much of the model to run."""

    predictions: Annotated[bool | None, Parameter(group=RUN)] = None
    """Run the whole model, which predicted tokens, promoted tokens and losses take. Default: yes without --layers,
    no with them."""


@Parameter(name="*")
@dataclass(kw_only=True)
class Verbosity:
    """What is printed beside results."""

    verbose: Annotated[bool, Parameter(name=["--verbose", "-v"], negative="", show_default=False, group=OUTPUT)] = False
    """Print the logs and warnings of transformers, datasets and Python as well."""


# A dataclass lists the fields of its last base first: so the help page begins with the model.


@Parameter(name="*")
@dataclass(kw_only=True)
class InfoOptions(Verbosity, ModelOptions):
    """Options of `info`."""


@Parameter(name="*")
@dataclass(kw_only=True)
class WeightsOptions(Verbosity, OutputOptions, ModelOptions):
    """Options of a run that reads no text."""

    seed: Annotated[int, Parameter(group=RUN)] = 0
    """Seed of what is drawn at random: the sample of pairs, the random directions of baselines."""


@Parameter(name="*")
@dataclass(kw_only=True)
class InterveneOptions(Verbosity, OutputOptions, ModelChoice):
    """Options of an intervention beside the prompt and the changes."""


@Parameter(name="*")
@dataclass(kw_only=True)
class CaptureOptions(Verbosity, DepthOptions, RunOptions, TextOptions, ModelOptions):
    """Options of a run of text through a model."""


@Parameter(name="*")
@dataclass(kw_only=True)
class TracedOptions(CaptureOptions):
    """Options of a run of text through a model, or of routing that was recorded earlier."""

    trace: Annotated[Path | None, Parameter(group=MODEL)] = None
    """Routing that was recorded earlier, in place of --model and --corpus: a folder that `moescope trace` wrote, or a
    recording of another engine (docs/traces.md)."""

    num_tokens: Annotated[
        int | None, Parameter(validator=AT_LEAST_ONE, converter=to_count, show_default=False, group=TEXT)
    ] = None  # type: ignore[assignment]
    """Tokens to count (100000, 1e5 or 100k), split evenly over the domains. Padding and special tokens never count.
    Default: 100000; of a trace all."""

    seed: Annotated[int | None, Parameter(show_default=False, group=TEXT)] = None  # type: ignore[assignment]
    """Chooses the documents, the stretch taken of each, and the replicates behind intervals. The same seed on the same
    machine gives the same tables. Default: 0; the seed that a trace was recorded with."""

    def replaced_by_trace(self) -> list[str]:
        """Flags that were given and make no sense beside --trace."""
        plain = CaptureOptions()
        names = ("model", "revision", "dtype", "device", "trust_remote_code", "corpus", "text_field", "domain_field",
                 "config", "split", "domains", "num_domains", "sequence_length", "predictions")  # fmt: skip
        return [f"--{name.replace('_', '-')}" for name in names if getattr(self, name) != getattr(plain, name)]


@Parameter(name="*")
@dataclass(kw_only=True)
class WholeDepthOptions(Verbosity, RunOptions, TextOptions, ModelChoice):
    """Options of a run of text through the whole model."""


@Parameter(name="*")
@dataclass(kw_only=True)
class CompareOptions(Verbosity, RunOptions, TextOptions, ModelOptions):
    """Options of a comparison of passes over the same text."""


@Parameter(name="*")
@dataclass(kw_only=True)
class ImportOptions(Verbosity, OutputOptions):
    """Options of an import."""

    format: Annotated[str, Parameter(group=IMPORT)] = "auto"
    """What wrote the files: vllm, sglang, sglang-recorder, tensorrt-llm, tensorrt-llm-eplb, megatron, bigmoeonedge,
    ollama, olmoe, imatrix (llama.cpp), moe-trace (llama.cpp) or counts (.npz). Default: by their look."""

    model: Annotated[str | None, Parameter(group=MODEL)] = None
    """The model that was traced: a Hugging Face id, a folder, or a config.json; its weights are not read. It tells the
    layers without experts, the number of experts and the texts of tokens. Default: what the recording tells."""

    tokenizer: Annotated[str | None, Parameter(group=MODEL)] = None
    """A folder or Hugging Face id whose tokenizer gives the texts of tokens. Default: the model's."""

    domain: Annotated[str | None, Parameter(group=IMPORT)] = None
    """The domain of all of it. Default: the field `domain` of each record, else the file's name."""

    domain_field: Annotated[str | None, Parameter(group=IMPORT)] = None
    """Field of a record that names its domain; dots lead into nested records."""
