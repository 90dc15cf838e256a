"""Quantized weights, whose experts would go past the seam, are expanded as they are read, and that is checked.

FP8: 8-bit floats in blocks, each with a scale; the blocks at the edges of a matrix may be partial. transformers infers
a block's size from the number of scales, which is wrong where the last block is partial; here the size is the one that
config.json declares, and a scale grid that does not fit it is refused. MXFP4: 4-bit floats in blocks of 32 that share
a power of two. After loading, one tensor of each kind is expanded again, in float64 and from the formula alone.
"""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Mapping
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from transformers.integrations.finegrained_fp8 import Fp8Dequantize
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.quantizer_finegrained_fp8 import FineGrainedFP8HfQuantizer
from transformers.utils.quantization_config import FineGrainedFP8Config, Mxfp4Config

from moescope.errors import ModelError
from moescope.models.gate import Stored
from moescope.models.moe import MoEModel
from moescope.models.refusal import refusing

_FP8 = "moescope-fp8"
_REMEDY = "use a checkpoint of the same model that is not quantized"
_FLOATS_OF_4_BITS = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
_EXPERT = re.compile(r"(?:^|\.)(\d+)\.(?:.+\.)?experts\.(\d+)\.(gate_proj|up_proj|down_proj|w1|w2|w3)\.weight$")
_PACKED = re.compile(r"(?:^|\.)(\d+)\.(?:.+\.)?experts\.(gate_up_proj|down_proj)_blocks$")
_PARTS = {"gate_proj": "gate_EFM", "w1": "gate_EFM", "up_proj": "up_EFM", "w3": "up_EFM"}
_PARTS |= {"down_proj": "down_EMF", "w2": "down_EMF"}


class BlockDequantize(Fp8Dequantize):
    """transformers' expansion of FP8 weights, with the block size that config.json declares."""

    def _dequantize_one(self, quantized: Tensor, scales: Tensor, output_dtype: torch.dtype | None = None) -> Tensor:
        if not quantized.dtype.is_floating_point or quantized.element_size() != 1 or quantized.ndim < 2:
            raise ValueError(f"weights of {quantized.dtype}, where 8-bit floats were declared")
        declared = self.hf_quantizer.quantization_config.weight_block_size
        rows, columns = quantized.shape[-2:]
        block = block_size(rows, columns, tuple(scales.shape), declared)
        wide = scales.float() if scales.dtype.is_floating_point else (scales.float() - 127).exp2()
        if scales.numel() > 1:
            wide = wide.repeat_interleave(block[0], -2)[..., :rows, :].repeat_interleave(block[1], -1)[..., :columns]
        return (quantized.float() * wide).to(output_dtype or torch.bfloat16)


@register_quantizer(_FP8)
class BlockFP8Quantizer(FineGrainedFP8HfQuantizer):
    """transformers' quantizer for FP8 with `BlockDequantize` in it."""

    def get_load_operations(self) -> dict[str, Any]:
        """What expands a tensor as it is read."""
        return {"dequantize": BlockDequantize}


@register_quantization_config(_FP8)
class BlockFP8Config(FineGrainedFP8Config):
    """transformers' configuration for FP8, under the name of `BlockFP8Quantizer`."""

    def __init__(self, **declared: Any) -> None:
        super().__init__(**declared)
        self.quant_method = _FP8  # type: ignore[assignment]


def block_size(rows: int, columns: int, grid: tuple[int, ...], declared: Any) -> tuple[int, int]:
    """Rows and columns that one scale stands for: the whole matrix, one row, or a block of the declared size.

    Raises:
        ValueError: The scales are none of these.
    """
    if not grid or set(grid) == {1}:
        return rows, columns
    if grid[-2:] == (rows, 1) and declared is None:
        return 1, columns
    if isinstance(declared, list | tuple) and len(declared) == 2 and all(int(size) > 0 for size in declared):
        height, width = (int(size) for size in declared)
        if grid[-2:] == (-(-rows // height), -(-columns // width)):
            return height, width
    raise ValueError(
        f"{' x '.join(map(str, grid))} scales for a matrix of {rows} x {columns}, with weight_block_size {declared}"
    )


def expanding(config: Any, name: str) -> tuple[Any, dict[str, Any]]:
    """What makes transformers expand quantized weights as it reads them; nothing where config.json declares none.

    Returns:
        The configuration to load with, and further arguments of `from_pretrained`.

    Raises:
        ModelError: They are quantized in a way whose expansion can't be checked.
    """
    declared = _declared(config)
    if not declared:
        return config, {}
    method = declared.get("quant_method") if isinstance(declared, dict) else getattr(declared, "quant_method", declared)
    if method not in ("fp8", "mxfp4"):
        raise ModelError(
            f"the weights of {name} are quantized ({method}), and moescope has no expansion of that kind to "
            "check them by",
            expected="weights in float32, bfloat16 or float16, or quantized as fp8 or mxfp4",
            remedy=f"{_REMEDY}; or expand it with the package that it was made with and hand the model over: "
            "moescope.load_model(model, tokenizer=tokenizer)",
        )
    with refusing(
        f"the quantization_config of {name} can't be used", expected="what transformers writes for it", remedy=_REMEDY
    ):
        if method == "mxfp4":
            return config, {"quantization_config": Mxfp4Config.from_dict({**declared, "dequantize": True})}
        ours = {**declared, "quant_method": _FP8, "dequantize": True}
        made = BlockFP8Config.from_dict(ours)
        config = copy.deepcopy(config)
        for part in (config, config.get_text_config()):
            if getattr(part, "quantization_config", None) is not None:
                part.quantization_config = ours
        return config, {"quantization_config": made}


def check_declared(config: Any, stored: Mapping[str, Stored], name: str) -> None:
    """Refuses weights of few bits that config.json does not declare: read as they are, they would lack their scales.

    Raises:
        ModelError: There are such weights.
    """
    if _declared(config):
        return
    narrow = sorted(key for key, tensor in stored.items() if _is_narrow(key, tensor))
    if narrow:
        raise ModelError(
            f"{len(narrow)} tensors of {name} are stored as {stored[narrow[0]].dtype} ({narrow[0]}, ...), but its "
            "config.json declares no quantization",
            expected="a quantization_config, or weights in float32, bfloat16 or float16",
            remedy=_REMEDY,
        )


@torch.no_grad()
def check_expansion(model: MoEModel, stored: Mapping[str, Stored], config: Any) -> None:
    """Expands one tensor of each kind again and compares it with what was loaded.

    Kinds are told apart by how values and scales are stored, by whether the last blocks are partial, and by where
    they go: a matrix of its own, or a part of an expert.

    Args:
        model: The loaded model.
        stored: What the files hold.
        config: The checkpoint's configuration, which declares how they are quantized.

    Raises:
        ModelError: A tensor was not expanded as its formula says, or no tensor of a kind could be compared.
    """
    compared: dict[tuple[Any, ...], bool] = {}
    quantization = _declared(config)
    declared = quantization.get("weight_block_size", (128, 128)) if quantization["quant_method"] == "fp8" else None
    for name, tensor in stored.items():
        if not _is_narrow(name, tensor):
            continue
        scales = _scales_of(name, stored)
        kind = _kind(name, tensor, scales, declared)
        if compared.get(kind):
            continue
        loaded = _loaded(name, model)
        if isinstance(loaded, str):  # not loaded: deeper than what was asked for
            continue
        compared[kind] = loaded is not None
        if loaded is not None:
            _compare(model, name, loaded, tensor, scales, declared)
    unchecked = sorted({f"{kind[0]} of {kind[1]}" for kind, done in compared.items() if not done})
    if unchecked:
        raise ModelError(
            f"quantized weights of {model.name} ({', '.join(unchecked)}) can't be compared with what was loaded",
            expected="names that tell which tensor becomes which",
            remedy=_REMEDY,
        )


def _compare(model: MoEModel, name: str, loaded: Tensor, tensor: Stored, scales: Stored | None, declared: Any) -> None:
    with refusing(f"{name} of {model.name} can't be expanded", expected="values and scales", remedy=_REMEDY):
        expected = _expanded(name, tensor, scales, declared)
        if expected.shape != loaded.shape:
            raise ValueError(f"it has the shape {tuple(expected.shape)}, not {tuple(loaded.shape)}")
    size = expected.abs()
    error = float(((loaded.double().cpu() - expected).abs() / (size + 1e-3 * size.max()).clamp_min(1e-300)).max())
    allowed = 2 * torch.finfo(loaded.dtype).eps  # rounding to the dtype that was asked for, and to float32 before
    if not error <= allowed:
        raise ModelError(
            f"{name} of {model.name} was expanded wrongly: it differs by {error:.1e} from what its values and scales "
            "say",
            expected=f"a relative difference of at most {allowed:.0e}",
            remedy=_REMEDY,
        )


def _declared(config: Any) -> Any:
    return getattr(config, "quantization_config", None) or getattr(
        config.get_text_config(), "quantization_config", None
    )


def _is_narrow(name: str, tensor: Stored) -> bool:
    """Whether a tensor holds weights in 8 bits or fewer; scales are not weights."""
    if "scale" in name.rpartition(".")[2]:
        return False
    return tensor.dtype.startswith(("F8", "F6", "F4")) or (tensor.dtype in ("U8", "I8") and len(tensor.shape) >= 2)


def _scales_of(name: str, stored: Mapping[str, Stored]) -> Stored | None:
    stem, _, last = name.rpartition(".")
    names = [f"{name}_scale_inv", f"{name}_scale", f"{stem}.scale", f"{stem}.qscale_weight"]
    if last.endswith("_blocks"):
        names = [f"{name.removesuffix('_blocks')}_scales"]
    return next((stored[other] for other in names if other in stored), None)


def _kind(name: str, tensor: Stored, scales: Stored | None, declared: Any) -> tuple[Any, ...]:
    where = "experts" if _EXPERT.search(name) or _PACKED.search(name) else "matrices"
    grid = scales.shape if scales is not None else ()
    is_partial = False
    if isinstance(declared, list | tuple) and len(tensor.shape) == 2:
        is_partial = any(length % max(int(size), 1) for length, size in zip(tensor.shape, declared, strict=False))
    part = _PACKED.search(name)
    return where, tensor.dtype, scales and scales.dtype, len(grid), math.prod(grid) > 1, is_partial, part and part[2]


def _loaded(name: str, model: MoEModel) -> Tensor | str | None:
    """What became of a stored tensor, upright; None if that can't be told, "beyond" if it was not loaded."""
    packed, expert = _PACKED.search(name), _EXPERT.search(name)
    number = re.search(r"(?:^|\.)layers\.(\d+)\.(.+)$", name)
    if number and int(number[1]) >= len(model.blocks):
        return "beyond"
    if packed and int(packed[1]) in model.layers:
        module = model.experts(int(packed[1]))
        weight_xx = getattr(module, packed[2])[0].detach()
        return weight_xx.T if module.is_transposed else weight_xx
    if expert and int(expert[1]) in model.layers:
        part = getattr(model.expert_weights(int(expert[1])), _PARTS[expert[3]])
        return part[int(expert[2])] if part is not None else None
    tail = f".{number[1]}.{number[2]}" if number else name.rpartition(".layers.")[2]
    for path, parameter in model.hf.named_parameters():
        if path == name or (number and path.endswith(tail) and path.startswith(model.layout.blocks_path)):
            return parameter.detach()[0] if parameter.ndim == 3 else parameter.detach()
    return None


def _expanded(name: str, tensor: Stored, scales: Stored | None, declared: Any) -> Tensor:
    """A stored tensor (of packed experts, the first) in float64, from the formula."""
    if scales is None:
        raise ValueError("it has no scales")
    values, scales_xx = _read(tensor), _read(scales)
    wide = scales_xx.double() if scales_xx.dtype.is_floating_point else torch.exp2(scales_xx.double() - 127)
    if name.endswith("_blocks"):
        table = torch.tensor([*_FLOATS_OF_4_BITS, *(-value for value in _FLOATS_OF_4_BITS)], dtype=torch.float64)
        codes = values[0].long()
        pairs = torch.stack([table[codes % 16], table[codes // 16]], dim=-1).flatten(-2)
        return (pairs * wide[0][..., None]).flatten(-2)
    if values.ndim == 3:  # all experts in one
        values, wide = values[0], wide[0] if wide.ndim == 3 else wide
    rows, columns = values.shape
    height, width = block_size(rows, columns, tuple(wide.shape), declared)
    down, across = torch.arange(rows) // height, torch.arange(columns) // width
    grid = wide.reshape(1, 1) if wide.numel() == 1 else wide
    return values.double() * grid[down][:, across]


def _read(tensor: Stored) -> Tensor:
    with safe_open(tensor.file, framework="pt") as opened:
        return opened.get_tensor(tensor.name)
