"""`load_model`: from a checkpoint's name to a probed model, with no more read than was asked for."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from os import PathLike
from types import NoneType
from typing import Any

import torch
import transformers
from transformers import AutoModel, PreTrainedModel

from moescope.errors import EnvironmentFailure, ModelError, UsageError, of_type, warn, whole_numbers
from moescope.models import checkpoint, layout
from moescope.models.architecture import Architecture, read_architecture
from moescope.models.expansion import check_declared, check_expansion, expanding
from moescope.models.facts import ModelFacts, bytes_needed, gather_facts
from moescope.models.gate import Stored, is_in_block_from
from moescope.models.given import is_model, wrap
from moescope.models.moe import MoEModel
from moescope.models.patching import Shared
from moescope.models.probe import probe
from moescope.models.refusal import is_out_of_memory, refusing
from moescope.models.tokenizer import load_tokenizer, refuse_beyond

_WEIGHTS = "tensors of the names and shapes its config.json declares"
_AGAIN = "copy or download the checkpoint again"
# Weights may be fewer than config.json declares by what these elements take before that is refused unread.
_SLACK = 2**26
# Tensors that checkpoints hold beside their weights: positions, scales of activations and of caches, and weights of
# modules that predict several tokens at once, which transformers leaves out.
_NO_WEIGHT = re.compile(r"rotary|inv_freq|scale|_extra_state|position_ids|masked_bias|mtp")
_DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16, "F64": torch.float64}


def load_model(
    name_or_path: str | PreTrainedModel = checkpoint.NANO,
    *,
    tokenizer: Any = None,
    revision: str | None = None,
    dtype: str | torch.dtype | None = None,
    device: str | torch.device | None = None,
    layers: Sequence[int] | None = None,
    trust_remote_code: bool = False,
) -> MoEModel:
    """Loads a Mixture-of-Experts model and proves with a tiny forward pass that it can be looked into.

    A checkpoint is data: no code that it brings is run, and nothing outside its folder is read. An already loaded
    model of transformers is taken as it is (adapters merged, quantized where its experts still go through
    transformers' experts interface); its experts go through moescope from then on, which gives the same outputs.

    Args:
        name_or_path: "nano" (the embedded model), a checkpoint's folder, a Hugging Face hub id, or an already loaded
            model of transformers.
        tokenizer: The tokenizer of an already loaded model; a checkpoint has its own.
        revision: Branch, tag or commit of a hub repository.
        dtype: For the weights, such as "bfloat16". Default: the checkpoint's own; float32 for nano.
        device: "cpu", "cuda:1", ..., or "auto" (the default): spread over the GPUs there are, the CPU if none.
        layers: MoE layers (decoder block indices, -1 the last) that will be looked at: only the blocks down to the
            deepest are built, read and, from the hub, downloaded. Default: the whole model, which predictions need.
        trust_remote_code: Run the Python code that the checkpoint brings, where transformers does not know the model
            or the tokenizer itself; a warning names the files. That code can do whatever you can do.

    Raises:
        ModelError: There is no such checkpoint, it is not a Mixture-of-Experts model, its family can't be looked into,
            its files are not what they should be, or the probe found something other than it should.
        UsageError: A layer, dtype or device that does not exist, or an argument of the wrong type.
        EnvironmentFailure: Too little memory or disk, or the hub fails.
    """
    _check_types(revision, trust_remote_code)
    if is_model(name_or_path):
        return wrap(name_or_path, tokenizer, revision=revision, dtype=dtype, device=device, layers=layers)
    name, wanted_layers = _checked_arguments(name_or_path, tokenizer, layers)
    placed = _device_map(device)
    with (
        checkpoint.located(name, revision, with_code=trust_remote_code) as source,
        _quiet(name != checkpoint.NANO),
    ):
        found = read_architecture(source, trust_remote_code=trust_remote_code)
        files_of = checkpoint.weight_map(source)
        whole, where, facts = _structure(found, files_of, source.name)
        num_blocks = _num_blocks(wanted_layers, where, source.name)
        wanted = _dtype(dtype, source, found.config, files_of)
        needed = bytes_needed(whole, where, num_blocks, wanted)
        with _memory(source.name, needed, placed, facts.layers):
            if files_of is None:
                files_of = checkpoint.single_file(source)
            hf, stored = _read(source, found, files_of, whole, where, num_blocks, wanted, placed)
        own = load_tokenizer(
            source.folder, found.config, source.name, num_rows=facts.vocab_size, trust_remote_code=trust_remote_code
        )
    here = layout.find_layout(hf, source.name)
    model = MoEModel(
        source.name,
        hf,
        facts,
        here,
        revision=source.revision,
        tokenizer=own.tokenizer,
        tokenizer_problem=own.problem,
        complete=num_blocks == facts.num_blocks,
    )
    if own.beyond:
        refuse_beyond(hf.get_input_embeddings(), own.beyond, source.name)
    with refusing(f"a forward pass of {source.name} fails", expected="a model that runs", remedy=_AGAIN):
        probe(model)
    if stored:
        check_expansion(model, stored, found.config)
    return model


@dataclass(frozen=True)
class CheckpointReport:
    """What a checkpoint is and what it would take, known before any weight is read.

    Attributes:
        facts: Facts of the whole checkpoint.
        dtype: The dtype it would be loaded in.
        num_bytes: Bytes in memory of the weights that the layers asked need.
    """

    facts: ModelFacts
    dtype: torch.dtype
    num_bytes: int


def inspect_checkpoint(
    name_or_path: str = checkpoint.NANO,
    *,
    revision: str | None = None,
    dtype: str | torch.dtype | None = None,
    layers: Sequence[int] | None = None,
    trust_remote_code: bool = False,
) -> CheckpointReport:
    """Facts of a checkpoint and the memory it needs, from its configuration alone; arguments as of `load_model`.

    Raises:
        ModelError: There is no such checkpoint, or its family can't be looked into.
        UsageError: A layer or dtype that does not exist.
    """
    _check_types(revision, trust_remote_code)
    name, wanted_layers = _checked_arguments(name_or_path, None, layers)
    with checkpoint.located(name, revision, with_code=trust_remote_code) as source, _quiet(True):
        found = read_architecture(source, trust_remote_code=trust_remote_code)
        files_of = checkpoint.weight_map(source)
        whole, where, facts = _structure(found, files_of, source.name)
        wanted = _dtype(dtype, source, found.config, files_of)
        num_bytes = bytes_needed(whole, where, _num_blocks(wanted_layers, where, source.name), wanted)
        return CheckpointReport(facts, wanted, num_bytes)


def _check_types(revision: Any, trust_remote_code: Any) -> None:
    of_type(revision, (str, NoneType), "revision", "a branch, tag or commit (str)")
    # "no" is true to Python, and would have run the checkpoint's code.
    of_type(trust_remote_code, bool, "trust_remote_code", "True or False")


def _checked_arguments(name_or_path: Any, tokenizer: Any, layers: Any) -> tuple[str, Sequence[int] | None]:
    """The name as text and the layers as they are.

    Raises:
        UsageError: Arguments of the wrong type.
    """
    if not isinstance(name_or_path, str | PathLike):
        raise UsageError(
            f"name_or_path is a {type(name_or_path).__name__}",
            expected="nano, a checkpoint's folder, a hub id, or a loaded model of transformers",
        )
    if tokenizer is not None:
        raise UsageError(
            f"a tokenizer was given for the checkpoint {name_or_path}, which has its own",
            expected="a tokenizer with an already loaded model only",
            remedy="save that tokenizer into the checkpoint's folder, or load the model with transformers, give both",
        )
    return str(name_or_path), None if layers is None else whole_numbers(layers, "layers")


def _structure(
    found: Architecture, files_of: Mapping[str, str] | None, name: str
) -> tuple[PreTrainedModel, layout.Layout, ModelFacts]:
    """The whole model's modules without weights, where its parts are, and the facts."""
    if files_of is not None:
        found.check_tensors(files_of)
    whole = found.on_meta()
    with refusing(
        f"the structure of {name} can't be used", expected="decoder blocks with routed experts", remedy=_AGAIN
    ):
        where = layout.find_layout(whole, name)
        facts = gather_facts(whole, where, name)
    return whole, where, facts


def _read(
    source: checkpoint.Source,
    found: Architecture,
    files_of: Mapping[str, str],
    whole: PreTrainedModel,
    where: layout.Layout,
    num_blocks: int,
    dtype: torch.dtype,
    device_map: str | dict[str, str],
) -> tuple[PreTrainedModel, Mapping[str, Stored]]:
    """The model with its weights, down to block `num_blocks`, and the tensors it was expanded from, if any."""
    complete = num_blocks == where.num_blocks
    is_beyond = (lambda key: False) if complete else layout.beyond(whole, where, num_blocks)
    config = found.config
    if not complete:
        config = layout.truncated(config, num_blocks)
        if not layout.same_shapes(whole, found.on_meta(config)):
            raise ModelError(
                f"the first {num_blocks} blocks of {source.name} can't be had alone: its weights depend on its depth",
                remedy="load the whole model: leave `layers` out",
            )
    config, quantization = expanding(config, source.name)
    needed = {key: file for key, file in files_of.items() if not is_beyond(key)}
    with checkpoint.staged(source, found.declared, needed, code=found.code) as ready:
        check_declared(config, ready.stored, source.name)
        _check_amount(whole, is_beyond, ready.stored, source.name)
        with refusing(f"the weights of {source.name} can't be read", expected=_WEIGHTS, remedy=_AGAIN):
            hf, report = (found.auto_class if complete else AutoModel).from_pretrained(
                ready.folder,
                config=config,
                dtype=dtype,
                device_map=device_map,
                output_loading_info=True,
                local_files_only=True,
                trust_remote_code=bool(found.code),
                **quantization,
            )
    if dtype == torch.float64:  # grouped_mm, transformers' choice, knows 32 bits and fewer
        hf.set_experts_implementation("eager")
    _check_report(hf, report, is_beyond, source.name)
    if quantization:
        _cast(hf, dtype)
    return hf, ready.stored if quantization else {}


def _cast(hf: PreTrainedModel, dtype: torch.dtype) -> None:
    """Gives parameters the dtype asked for: of quantized checkpoints transformers leaves the others as they are."""
    kept = tuple(hf._get_dtype_plan(dtype))
    for name, parameter in hf.named_parameters():
        if parameter.dtype != dtype and parameter.is_floating_point() and not any(part in name for part in kept):
            parameter.data = parameter.data.to(dtype)


def _check_amount(
    whole: PreTrainedModel, is_beyond: Callable[[str], bool], stored: Mapping[str, Stored], name: str
) -> None:
    """Refuses a config.json that declares far more weights than there are, before memory is taken for them."""
    declared = sum(parameter.numel() for key, parameter in whole.named_parameters() if not is_beyond(key))
    # Several weights in one element: two of 4 bits in a byte, eight in an int32.
    there = sum(tensor.numel * {"U8": 2, "I8": 2, "I32": 8, "F4": 2}.get(tensor.dtype, 1) for tensor in stored.values())
    if declared > there + _SLACK:
        raise ModelError(
            f"the config.json of {name} declares {declared:,} weights for the layers asked, its files hold {there:,}",
            expected=_WEIGHTS,
            remedy=_AGAIN,
        )


def _check_report(hf: PreTrainedModel, report: Any, is_beyond: Callable[[str], bool], name: str) -> None:
    """Refuses what transformers did not find, and names what it had no use for."""
    missing = sorted(report["missing_keys"])
    lacking = [key for key in missing if not is_beyond(key)]
    if lacking:
        raise ModelError(
            f"{name} lacks {len(lacking)} tensors: {', '.join(lacking[:3])}",
            expected="all tensors its config.json declares",
            remedy=_AGAIN,
        )
    depth = layout.depth(layout.text_config(hf.config))
    unused = sorted(
        key
        for key in report["unexpected_keys"]
        if not is_beyond(key) and not _NO_WEIGHT.search(key) and not is_in_block_from(depth, key)
    )
    if unused:
        warn(
            f"{name} has {len(unused)} tensors that {hf.config.model_type} has no use for ({', '.join(unused[:3])}): "
            "what is measured is the model without them",
            stacklevel=2,
        )
    # What stands after the blocks was not read. Nobody should take the values it was filled with for weights.
    for key in missing:
        torch.nn.init.constant_(hf.get_parameter(key), float("nan"))


def _num_blocks(layers: Sequence[int] | None, where: layout.Layout, name: str) -> int:
    if layers is None:
        return where.num_blocks
    chosen = layout.from_the_end(layers, where.num_blocks)
    unknown = [layer for layer in chosen if layer not in where.experts]
    if unknown or not chosen:
        raise layout.no_such_layer(unknown, list(where.experts), name)
    return max(chosen) + 1


def _dtype(
    dtype: str | torch.dtype | None, source: checkpoint.Source, config: Any, files_of: Mapping[str, str] | None
) -> torch.dtype:
    if dtype is None and source.name != checkpoint.NANO:
        declared = config.dtype or layout.text_config(config).dtype
        if isinstance(declared, torch.dtype) and declared in _DTYPES.values():
            return declared
        return _DTYPES[checkpoint.stored_dtype(source, files_of)]
    found = (
        getattr(torch, str(dtype or "float32").removeprefix("torch."), None)
        if not isinstance(dtype, torch.dtype)
        else dtype
    )
    if not isinstance(found, torch.dtype) or found not in _DTYPES.values():
        raise UsageError(f"no dtype {dtype}", expected="float32, bfloat16, float16 or float64")
    return found


def _device_map(device: str | torch.device | None) -> str | dict[str, str]:
    """What transformers calls a device_map."""
    if device is None or str(device) == "auto":
        return "auto" if torch.cuda.is_available() else {"": "cpu"}
    try:
        chosen = torch.device(device)
        # Sums are kept in 64 bits beside the model. Apple's mps has none (TypeError); meta holds no numbers at all.
        torch.zeros(1, device=chosen, dtype=torch.float64).item()
    except (RuntimeError, AssertionError, NotImplementedError, TypeError) as error:
        count = torch.cuda.device_count()
        there = ", ".join(["cpu", *(f"cuda:{index}" for index in range(count))])
        no_doubles = isinstance(error, TypeError) and isinstance(device, str | torch.device)
        found = "has no numbers of 64 bits, in which sums are kept" if no_doubles else "is not here"
        raise UsageError(
            f"no device {device}: it {found}",
            expected=f'"auto" or one of: {there}',
            remedy="name one of these, or leave the device out",
        ) from error
    return {"": str(chosen)}


@contextmanager
def _memory(name: str, needed: int, device_map: str | dict[str, str], layers: Sequence[int]) -> Iterator[None]:
    """Refuses what can't fit before reading it, and says so if memory runs out all the same."""
    import psutil

    remedy = f"ask for fewer layers (it has {layout.spans(layers)}), a smaller dtype, or use a larger machine"
    on_cpu = device_map == {"": "cpu"}
    free = psutil.virtual_memory().available
    if on_cpu and needed > free:
        raise EnvironmentFailure(
            f"the weights of {name} that were asked for take {needed / 1e9:.1f} GB; {free / 1e9:.1f} GB are free",
            remedy=remedy,
        )
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise EnvironmentFailure(
            f"memory ran out while loading {name} ({needed / 1e9:.1f} GB of weights)", remedy=remedy
        ) from error


@contextmanager
def _quieted(bars: bool) -> Iterator[None]:
    """Keeps transformers from reporting tensors left unread: when blocks are left out, that is as it should be."""
    before = transformers.logging.get_verbosity()
    hide = not bars and transformers.logging.is_progress_bar_enabled()
    transformers.logging.set_verbosity_error()
    if hide:
        transformers.logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers.logging.set_verbosity(before)
        if hide:
            transformers.logging.enable_progress_bar()


# Verbosity is the process's: of several threads that load models the last restores it.
_quiet = Shared(_quieted)
