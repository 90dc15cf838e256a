"""Where the decoder blocks, experts and routers of a model are, and how a model with fewer blocks is declared.

All of it is read off the modules; the model may be on the meta device.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from moescope.errors import ModelError, UsageError, whole_numbers
from moescope.models.seam import enters

# Lists in configs that hold one entry a block are cut; these hold block indices, or something else altogether.
_NOT_PER_BLOCK = re.compile(r"^(mlp_only_layers|architectures|.*_token_ids?|.*_indices|.*_ids|label2id|id2label)$")
_DEPTHS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")
_SIGNS_OF_MOE = re.compile(r"^(num|n|moe_num)_(local_|routed_)?experts$")
_LAST_NORM = re.compile(r"^(norm|norm_f|ln_f|final_norm|final_layer_?norm)$")
_COUNTS_OF_SHARED = ("n_shared_experts", "num_shared_experts", "moe_num_shared_experts", "num_shared_expert")


@dataclass(frozen=True)
class Layout:
    """Where things are in one model.

    Attributes:
        blocks_path: Dotted name of the list of decoder blocks.
        num_blocks: Its length.
        experts: Dotted name of the experts module, by decoder block index, ascending.
    """

    blocks_path: str
    num_blocks: int
    experts: Mapping[int, str]

    def experts_module(self, model: nn.Module, layer: int) -> nn.Module:
        """The module that enters the seam."""
        return model.get_submodule(self.experts[layer])

    def moe_block(self, model: nn.Module, layer: int) -> nn.Module:
        """The module that holds router, experts and shared experts."""
        return model.get_submodule(self.experts[layer].rpartition(".")[0])

    def router_candidates(self, model: nn.Module, layer: int) -> dict[str, nn.Module]:
        """Modules beside the experts, outer ones first."""
        experts = self.experts_module(model, layer)
        inside = set(experts.modules())
        block = self.moe_block(model, layer)
        return {name: module for name, module in block.named_modules() if name and module not in inside}


def find_layout(model: nn.Module, name: str) -> Layout:
    """Finds the decoder blocks and the experts modules that enter the seam.

    Raises:
        ModelError: There are none (no MoE, or a family that computes its experts in a way of its own), or a block has
            several.
    """
    found: dict[str, dict[int, list[str]]] = {}
    for path, module in model.named_modules():
        if enters(module) and (position := _block_position(model, path)) is not None:
            blocks_path, layer = position
            found.setdefault(blocks_path, {}).setdefault(layer, []).append(path)
    if not found:
        raise _no_experts(model, name)
    # A model with several stacks (a vision tower, a speech head) has its language model's blocks in the deepest one.
    blocks_path = max(found, key=lambda path: (len(found[path]), -len(path)))
    several = {layer: paths for layer, paths in found[blocks_path].items() if len(paths) > 1}
    if several:
        layer, paths = next(iter(several.items()))
        raise ModelError(
            f"{name}: block {layer} has {len(paths)} sets of experts ({', '.join(paths)})",
            expected="one set of routed experts in a block",
            remedy="this family can't be looked into yet; docs/families.md lists those that can",
        )
    blocks = model.get_submodule(blocks_path)
    assert isinstance(blocks, nn.ModuleList)
    experts = {layer: paths[0] for layer, paths in sorted(found[blocks_path].items())}
    return Layout(blocks_path, len(blocks), experts)


def num_shared_experts(config: Any, block: nn.Module) -> int:
    """Experts that every token goes through, beside the routed ones: 0 where the block has none."""
    if not any("shared" in name and any(True for _ in child.parameters()) for name, child in block.named_children()):
        return 0
    for name in _COUNTS_OF_SHARED:
        value = getattr(config, name, None)
        if isinstance(value, int) and value > 0:
            return value
    return 1


def text_config(config: Any) -> Any:
    """The part of a config that describes the language model."""
    return config.get_text_config()


def truncated(config: Any, num_blocks: int) -> Any:
    """A copy of a config that declares only the first `num_blocks` decoder blocks.

    Lists with one entry a block are cut to that length.
    """
    config = copy.deepcopy(config)
    part = text_config(config)
    before = depth(part)
    for name, value in list(vars(part).items()):
        if isinstance(value, list | tuple) and len(value) == before and not _NOT_PER_BLOCK.match(name):
            setattr(part, name, value[:num_blocks])
    for name in _DEPTHS:
        if name in vars(part):
            setattr(part, name, num_blocks)
    return config


def depth(config: Any) -> int:
    """Decoder blocks that a language model's config declares."""
    return int(config.num_hidden_layers)


def beyond(whole: PreTrainedModel, where: Layout, num_blocks: int) -> Callable[[str], bool]:
    """Tells of a tensor, by its name in model or checkpoint, whether the first `num_blocks` blocks can do without it.

    That is so for deeper blocks, for the norm after the last one, and for the head.
    """
    backbone_path, _, list_name = where.blocks_path.rpartition(".")
    in_block = re.compile(rf"(?:^|\.){re.escape(list_name)}\.(\d+)\.")
    after = list(last_norms(whole, where))
    after += [name for name, child in whole.named_children() if child is whole.get_output_embeddings()]
    prefixes = tuple(f"{prefix}{name}." for name in after for prefix in ("", f"{backbone_path}."))

    def is_beyond(key: str) -> bool:
        match = in_block.search(key)
        return int(match[1]) >= num_blocks if match else key.startswith(prefixes)

    return is_beyond


def last_norms(model: nn.Module, where: Layout) -> dict[str, nn.Module]:
    """The norm after the last block, by its name beside the list of blocks; empty where a family has none."""
    backbone = model.get_submodule(where.blocks_path.rpartition(".")[0])
    return {name: child for name, child in backbone.named_children() if _LAST_NORM.match(name)}


def same_shapes(whole: nn.Module, short: nn.Module) -> bool:
    """Whether every parameter of a shortened model is one of the whole model's, of the same shape."""
    shapes = {name: parameter.shape for name, parameter in whole.named_parameters()}
    return all(shapes.get(name) == parameter.shape for name, parameter in short.named_parameters())


def no_such_layer(unknown: Sequence[int], known: Sequence[int], name: str) -> UsageError:
    """The error for layers that are not among the MoE layers of a model."""
    what = f"{name} has no MoE layer {', '.join(map(str, unknown))}" if unknown else "no layer was asked for"
    return UsageError(
        what,
        expected=f"some of its MoE layers, which count from 0: {spans(known)}",
        remedy="name some of these, or none for all",
    )


def from_the_end(layers: Sequence[int], num_blocks: int) -> list[int]:
    """Layers with negative ones counted from the model's last decoder block, which is -1."""
    return [layer + num_blocks if -num_blocks <= layer < 0 else layer for layer in whole_numbers(layers, "layers")]


def spans(numbers: Iterable[int]) -> str:
    """`[0, 1, 2, 5]` as "0-2, 5"."""
    parts: list[list[int]] = []
    for number in sorted(numbers):
        if parts and number == parts[-1][-1] + 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    return ", ".join(f"{part[0]}-{part[-1]}" if len(part) > 1 else str(part[0]) for part in parts)


def _block_position(model: nn.Module, path: str) -> tuple[str, int] | None:
    """`("model.layers", 3)` for "model.layers.3.mlp.experts"; None outside any list of modules."""
    parts = path.split(".")
    for end, part in enumerate(parts):
        if part.isdigit() and isinstance(model.get_submodule(".".join(parts[:end])), nn.ModuleList):
            return ".".join(parts[:end]), int(part)
    return None


def _no_experts(model: nn.Module, name: str) -> ModelError:
    config = model.config
    part = text_config(config)
    counts = [
        (key, value)
        for key, value in {**vars(config), **vars(part)}.items()
        if _SIGNS_OF_MOE.match(key) and isinstance(value, int) and value > 1
    ]
    classes = sorted({type(m).__name__ for m in model.modules() if re.search(r"Experts?($|[A-Z])", type(m).__name__)})
    if not counts and not classes:
        return ModelError(
            f"{name} is not a Mixture-of-Experts model: its blocks ({part.model_type}) hold no experts",
            expected="a model whose feed-forward layers are split into routed experts",
            remedy='try model "nano", or see docs/families.md for families that have experts',
        )
    sign = f"{counts[0][0]}={counts[0][1]}" if counts else f"modules {', '.join(classes)}"
    return ModelError(
        f"{name} has experts ({sign}), but the family {part.model_type} computes them in a way of its own",
        expected="experts that transformers dispatches through its experts interface (ALL_EXPERTS_FUNCTIONS)",
        remedy="this family can't be looked into; docs/families.md lists those that can and why the others can't",
    )
