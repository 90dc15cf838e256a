"""`load_model`: from a checkpoint's name to a probed model, with no more read than was asked for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pickle import UnpicklingError
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
    PreTrainedModel,
)
from transformers.quantizers import AutoQuantizationConfig

from moescope.errors import EnvironmentFailure, ModelError, UsageError
from moescope.models import checkpoint, layout
from moescope.models.facts import ModelFacts, bytes_needed, gather_facts
from moescope.models.moe import MoEModel
from moescope.models.probe import probe

_TOKENIZER_WORDS = ("tokenizer", "vocab", "spiece", "sentencepiece", "tekken", "tiktoken")


def load_model(
    name_or_path: str = checkpoint.NANO,
    *,
    revision: str | None = None,
    dtype: str | torch.dtype | None = None,
    device: str | torch.device | None = None,
    layers: Sequence[int] | None = None,
) -> MoEModel:
    """Loads a Mixture-of-Experts model and proves with a tiny forward pass that it can be looked into.

    Args:
        name_or_path: "nano" (the embedded model), a checkpoint's folder, or a Hugging Face hub id.
        revision: Branch, tag or commit of a hub repository.
        dtype: For the weights, such as "bfloat16". Default: the checkpoint's own; float32 for nano.
        device: "cpu", "cuda:1", ..., or "auto" (the default): spread over the GPUs there are, the CPU if none.
        layers: MoE layers (decoder block indices, -1 the last) that will be looked at: only the blocks down to the
            deepest are built, read and, from the hub, downloaded. Default: the whole model, which predictions need.

    Raises:
        ModelError: There is no such checkpoint, it is not a Mixture-of-Experts model, its family can't be looked into,
            or the probe found something other than it should.
        UsageError: A layer, dtype or device that does not exist.
        EnvironmentFailure: Too little memory or disk, or the hub fails.
    """
    placed = _device_map(device)
    with checkpoint.located(name_or_path, revision) as source, _quiet(bars=name_or_path != checkpoint.NANO):
        config = _config(source)
        wanted = _dtype(dtype, source.name, config)
        whole = _on_meta(config, source.name)
        where = layout.find_layout(whole, source.name)
        facts = gather_facts(whole, where, source.name)
        num_blocks = _num_blocks(layers, where, source.name)
        with _memory(source.name, bytes_needed(whole, where, num_blocks, wanted), placed, facts.layers):
            hf = _read(source, config, whole, where, num_blocks, wanted, placed)
        tokenizer = _tokenizer(source)
    here = layout.find_layout(hf, source.name)
    model = MoEModel(
        source.name,
        hf,
        facts,
        here,
        revision=source.revision,
        tokenizer=tokenizer,
        complete=num_blocks == facts.num_blocks,
    )
    probe(model)
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
) -> CheckpointReport:
    """Facts of a checkpoint and the memory it needs, from its configuration alone; arguments as of `load_model`.

    Raises:
        ModelError: There is no such checkpoint, or its family can't be looked into.
        UsageError: A layer or dtype that does not exist.
    """
    with checkpoint.located(name_or_path, revision) as source, _quiet(bars=True):
        config = _config(source)
        whole = _on_meta(config, source.name)
        where = layout.find_layout(whole, source.name)
        wanted = _dtype(dtype, source.name, config)
        num_bytes = bytes_needed(whole, where, _num_blocks(layers, where, source.name), wanted)
        return CheckpointReport(gather_facts(whole, where, source.name), wanted, num_bytes)


def _read(
    source: checkpoint.Source,
    config: Any,
    whole: PreTrainedModel,
    where: layout.Layout,
    num_blocks: int,
    dtype: torch.dtype,
    device_map: str | dict[str, str],
) -> PreTrainedModel:
    """The model with its weights, down to block `num_blocks`."""
    complete = num_blocks == where.num_blocks
    auto_class: Any = _auto_class(config, source.name) if complete else AutoModel
    is_beyond = (lambda key: False) if complete else layout.beyond(whole, where, num_blocks)
    if not complete:
        config = layout.truncated(config, num_blocks)
        if not layout.same_shapes(whole, _on_meta(config, source.name)):
            raise ModelError(
                f"the first {num_blocks} blocks of {source.name} can't be had alone: its weights depend on its depth",
                remedy="load the whole model: leave `layers` out",
            )
    dequantizing = _dequantizing(config, source.name)
    try:
        with checkpoint.weights_folder(source, lambda key: not is_beyond(key)) as folder:
            hf, report = auto_class.from_pretrained(
                folder,
                config=config,
                dtype=dtype,
                device_map=device_map,
                output_loading_info=True,
                **dequantizing,
            )
    except (RuntimeError, OSError, ValueError, KeyError, SafetensorError, UnpicklingError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        raise ModelError(
            f"the weights of {source.name} can't be read: {_first_line(error)}",
            expected="tensors of the names and shapes its config.json declares",
            remedy="copy or download the checkpoint again",
        ) from error
    if dtype == torch.float64:  # grouped_mm, transformers' choice, knows 32 bits and fewer
        hf.set_experts_implementation("eager")
    missing = sorted(report["missing_keys"])
    lacking = [key for key in missing if not is_beyond(key)]
    if lacking:
        raise ModelError(
            f"{source.name} lacks {len(lacking)} tensors: {', '.join(lacking[:3])}",
            expected="all tensors its config.json declares",
            remedy="copy or download the checkpoint again",
        )
    # What stands after the blocks was not read. Nobody should take the values it was filled with for weights.
    for key in missing:
        torch.nn.init.constant_(hf.get_parameter(key), float("nan"))
    return hf


def _dequantizing(config: Any, name: str) -> dict[str, Any]:
    """What makes transformers expand quantized weights, whose experts would go past the seam, as it reads them."""
    declared = getattr(config, "quantization_config", None)
    if declared is None:
        return {}
    method = declared.get("quant_method") if isinstance(declared, dict) else declared.quant_method
    method = getattr(method, "value", method)
    try:
        quantization = declared if not isinstance(declared, dict) else AutoQuantizationConfig.from_dict(declared)
    except ValueError:
        quantization = None
    if not hasattr(quantization, "dequantize"):
        raise ModelError(
            f"the weights of {name} are quantized ({method}), and transformers can't expand them",
            expected="weights in float32, bfloat16 or float16, or quantized by a method it can expand (mxfp4, fp8)",
            remedy="use a checkpoint of the same model that is not quantized",
        )
    quantization.dequantize = True
    return {"quantization_config": quantization}


def _config(source: checkpoint.Source) -> Any:
    try:
        return AutoConfig.from_pretrained(source.folder)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(
            f"transformers {transformers.__version__} does not know the model in {source.name}: {_first_line(error)}",
            expected="a config.json with a model_type it knows",
            remedy="update transformers; a model that brings code of its own can't be loaded",
        ) from error


def _on_meta(config: Any, name: str) -> PreTrainedModel:
    """The whole model's modules, without weights."""
    auto_class = _auto_class(config, name)
    with torch.device("meta"):
        return auto_class.from_config(config)


def _auto_class(config: Any, name: str) -> Any:
    """What builds a model with its head; those that also see are run on text alone."""
    for auto_class in (AutoModelForCausalLM, AutoModelForImageTextToText):
        if type(config) in auto_class._model_mapping:
            return auto_class
    raise ModelError(
        f"{name} ({config.model_type}) is not a causal language model",
        expected="a decoder that transformers loads with AutoModelForCausalLM or AutoModelForImageTextToText",
        remedy="docs/families.md lists the families that can be looked into",
    )


def _num_blocks(layers: Sequence[int] | None, where: layout.Layout, name: str) -> int:
    if layers is None:
        return where.num_blocks
    chosen = layout.from_the_end(layers, where.num_blocks)
    unknown = [layer for layer in chosen if layer not in where.experts]
    if unknown or not chosen:
        raise layout.no_such_layer(unknown, list(where.experts), name)
    return max(chosen) + 1


def _dtype(dtype: str | torch.dtype | None, name: str, config: Any) -> torch.dtype:
    if dtype is None and name != checkpoint.NANO:
        declared = config.dtype or layout.text_config(config).dtype
        return declared if isinstance(declared, torch.dtype) else torch.float32
    found = (
        getattr(torch, (dtype or "float32").removeprefix("torch."), None)
        if not isinstance(dtype, torch.dtype)
        else dtype
    )
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
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
        found = "has no numbers of 64 bits, in which sums are kept" if isinstance(error, TypeError) else "is not here"
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
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise EnvironmentFailure(
            f"memory ran out while loading {name} ({needed / 1e9:.1f} GB of weights)", remedy=remedy
        ) from error


def _tokenizer(source: checkpoint.Source) -> Any:
    """The checkpoint's tokenizer; None where it has none, which only matters once text is to be read."""
    # Without files of one, transformers makes up an empty tokenizer of the family's kind.
    if not any(word in file.name for file in source.folder.iterdir() for word in _TOKENIZER_WORDS):
        return None
    try:
        return AutoTokenizer.from_pretrained(source.folder)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


@contextmanager
def _quiet(bars: bool) -> Iterator[None]:
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


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
