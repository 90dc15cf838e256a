"""What a checkpoint's files must be before any other library sees them: a checkpoint is data from strangers.

Files lie inside the checkpoint's folder, are of bounded size and hold what their names say. Entries of config.json
that would load code or reach for other files never get any further. Tensor names, shapes and places are those that
the safetensors headers and the index agree on.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from moescope.errors import ModelError
from moescope.models.refusal import refusing

MOST_BLOCKS = 1024
_MOST_EXPERTS = 2**16
_DEEPEST = 32  # levels of nesting in config.json
_LARGEST_NUMBER = 2**63 - 1
_LARGEST = {"config.json": 16 * 2**20, "generation_config.json": 2**20}
_LARGEST_JSON = 64 * 2**20
_LARGEST_TOKENIZER = 256 * 2**20

# Entries that choose code to run (kernels from the hub among it), other files to read, or how work is spread over
# machines. What computes attention and experts is for moescope and torch to choose, not for a checkpoint.
_NOT_FOR_A_CHECKPOINT = re.compile(
    r"^(auto_map|custom_\w+|_?attn_implementation\w*|_?experts_implementation\w*|\w*kernel_config|use_kernels?"
    r"|allow_all_kernels|fusion_config|transformers_weights|extra_files|distributed_config|device_mesh|\w*_(tp|pp|ep)_plan"
    r"|attribute_map|sub_configs\w*|_?name_or_path|_commit_hash|return_dict|use_return_dict|trust_remote_code"
    r"|code_revision|gguf_file|base_model_name_or_path|__\w+)$"
)
_BLOCKS = re.compile(r"^(num_hidden_layers|n_layers?|num_layers|depth|\w*_layers)$")
_IS_DEPTH = re.compile(r"^(num_hidden_layers|n_layers?|num_layers)$")
_EXPERTS = re.compile(r"^((num|n|moe_num)_(local_|routed_|shared_)?experts?|moe_n\w*experts)$")
_IN_BLOCK = re.compile(r"(?:^|\.)(\d+)\.")


@dataclass(frozen=True)
class Stored:
    """A tensor as a safetensors file declares it."""

    name: str
    file: Path
    dtype: str
    shape: tuple[int, ...]

    @property
    def numel(self) -> int:
        """Elements, as many as the shape says."""
        return math.prod(self.shape)


def inside(folder: Path, name: str, checkpoint: str) -> Path | None:
    """A regular file of a checkpoint's folder; None where there is none.

    The hub's cache keeps a snapshot's files as links to its blobs beside it: these links may leave the folder.

    Raises:
        ModelError: The name, or a symbolic link, leads out of the folder.
    """
    if not is_inner_name(name):
        raise ModelError(
            f"{checkpoint} names a file outside its folder: {name!r}",
            expected="names of files in the same folder",
            remedy="this checkpoint reaches for files it has no business with: don't use it",
        )
    path = folder / name
    if not path.is_file():
        return None
    home, real = folder.resolve(), path.resolve()
    homes = [home, home.parent.parent / "blobs"] if home.parent.name == "snapshots" else [home]
    if not any(real.is_relative_to(allowed) for allowed in homes):
        raise ModelError(
            f"{name} of {checkpoint} is a symbolic link that leads out of its folder, to {real}",
            expected="files in the folder itself, or the links of a Hugging Face cache",
            remedy="copy the file into the folder, or give the folder that it is in",
        )
    return path


def is_inner_name(name: Any) -> bool:
    """Whether a file's name, as a checkpoint gives it, stays below the checkpoint's folder."""
    if not isinstance(name, str) or not name or "\0" in name or len(name) > 1024:
        return False
    for path in (PurePosixPath(name), PureWindowsPath(name)):
        if path.is_absolute() or path.drive or path.root or ".." in path.parts:
            return False
    return not name.startswith("~")


def read_json(path: Path, checkpoint: str) -> dict[str, Any]:
    """A JSON file that holds one object.

    Raises:
        ModelError: It is too large, no JSON, or something other than an object.
    """
    expected, remedy = "one JSON object", "copy or download the checkpoint again"
    limit = _LARGEST.get(path.name, _LARGEST_JSON)
    with refusing(f"{path.name} of {checkpoint} can't be read", expected=expected, remedy=remedy):
        size = path.stat().st_size
        if not 0 < size <= limit:
            raise ModelError(
                f"{path.name} of {checkpoint} has {size:,} bytes", expected=f"1 to {limit:,}", remedy=remedy
            )
        value = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(value, dict):
        raise ModelError(
            f"{path.name} of {checkpoint} holds a {type(value).__name__}", expected=expected, remedy=remedy
        )
    return value


def read_config(path: Path, checkpoint: str) -> dict[str, Any]:
    """A checkpoint's config.json without the entries that are not for a checkpoint to decide.

    Raises:
        ModelError: It can't be read, or a number in it is one that no model has.
    """
    config = read_json(path, checkpoint)
    if not isinstance(config.get("model_type"), str):
        raise ModelError(
            f"transformers can't tell which model {checkpoint} is: model_type in its config.json is "
            f"{config.get('model_type')!r}",
            expected="a model_type that transformers knows, such as olmoe",
            remedy="copy or download the checkpoint again; a checkpoint in another format has to be converted",
        )
    config = _admitted(config)
    _check_entries(config, checkpoint, where="", level=0)
    return config


def read_generation(path: Path, checkpoint: str) -> dict[str, Any]:
    """A checkpoint's generation_config.json, without what is not for a checkpoint to decide.

    Raises:
        ModelError: It can't be read, or transformers can't use it.
    """
    from transformers import GenerationConfig

    config = _admitted(read_json(path, checkpoint))
    with refusing(
        f"{path.name} of {checkpoint} can't be used",
        expected="settings that transformers knows",
        remedy="copy or download the checkpoint again, or remove the file: it only matters for generating text",
    ):
        GenerationConfig.from_dict(dict(config))
    return config


def own_code(config: Mapping[str, Any]) -> list[str]:
    """The code that an `auto_map` names, as "file.py" or "repository: file.py"."""
    declared = config.get("auto_map")
    named: list[Any] = []
    for value in declared.values() if isinstance(declared, dict) else [declared]:
        named += value if isinstance(value, list) else [value]
    found = []
    for reference in named:
        if isinstance(reference, str) and reference:
            repository, _, place = reference.rpartition("--")
            file = f"{place.rpartition('.')[0]}.py"
            found.append(f"{repository}: {file}" if repository else file)
    return sorted(set(found))


def read_index(path: Path, checkpoint: str) -> dict[str, str]:
    """Which file each tensor is in, as a safetensors index says.

    Raises:
        ModelError: It can't be read, names no tensors, or names files that are no safetensors of the same folder.
    """
    weight_map = read_json(path, checkpoint).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ModelError(
            f"{path.name} of {checkpoint} has a weight_map of type {type(weight_map).__name__}, with no tensors in it",
            expected="tensor names, each with the name of its file",
            remedy="copy or download the checkpoint again",
        )
    for file in sorted({str(file) for file in weight_map.values()}):
        if not is_inner_name(file) or not file.endswith(".safetensors") or any(sign in file for sign in "*?["):
            raise ModelError(
                f"{path.name} of {checkpoint} says that weights are in {file!r}",
                expected="names of safetensors files in the same folder",
                remedy="weights from elsewhere are not read, and neither are pickles: use a checkpoint that has them "
                "as safetensors files of its own",
            )
    return weight_map


def read_headers(files: Iterable[Path], checkpoint: str) -> dict[str, Stored]:
    """Every tensor of these safetensors files, from their headers alone.

    Raises:
        ModelError: A file is no safetensors file, is cut short, or holds a tensor that another one holds too.
    """
    from safetensors import safe_open

    stored: dict[str, Stored] = {}
    for file in files:
        with (
            refusing(
                f"the weights of {checkpoint} can't be read: {file.name}{'' if file.stat().st_size else ' is empty'}",
                expected="a whole safetensors file",
                remedy="copy or download the checkpoint again",
            ),
            safe_open(file, framework="numpy") as opened,
        ):
            for name in opened.keys():  # noqa: SIM118 - it is no mapping
                part = opened.get_slice(name)
                if name in stored:
                    raise ModelError(
                        f"{checkpoint} holds the tensor {name} twice, in {stored[name].file.name} and {file.name}",
                        expected="each tensor in one file",
                        remedy="copy or download the checkpoint again, into an empty folder",
                    )
                stored[name] = Stored(name, file, str(part.get_dtype()), tuple(part.get_shape()))
    return stored


def check_depth(num_blocks: int, tensor_names: Iterable[str], checkpoint: str) -> None:
    """Refuses a config.json that declares more blocks than there are tensors of, before they are built.

    Raises:
        ModelError: It does.
    """
    # A block's number is the first in a tensor's name; those of experts follow.
    found = (_IN_BLOCK.search(name) for name in tensor_names)
    numbers = [int(match[1]) for match in found if match and len(match[1]) < 7]
    if numbers and num_blocks > max(numbers) + 1:
        raise ModelError(
            f"the config.json of {checkpoint} declares {num_blocks} blocks, its tensors are of {max(numbers) + 1}",
            expected="tensors of every block",
            remedy="copy or download the checkpoint again",
        )


def is_in_block_from(num_blocks: int, name: str) -> bool:
    """Whether a tensor is of a block that lies after the first `num_blocks`."""
    match = _IN_BLOCK.search(name)
    return match is not None and int(match[1]) >= num_blocks


def check_tokenizer_files(folder: Path, checkpoint: str) -> None:
    """Refuses tokenizer files that lead out of the folder or are too large to be any.

    Raises:
        ModelError: They do, or are.
    """
    for path in folder.iterdir():
        if path.suffix in (".json", ".model", ".txt", ".tiktoken", ".jinja") and path.is_file():
            if ".safetensors.index" in path.name:
                continue
            inside(folder, path.name, checkpoint)
            if (size := path.stat().st_size) > _LARGEST_TOKENIZER:
                raise ModelError(
                    f"{path.name} of {checkpoint} has {size:,} bytes", expected=f"at most {_LARGEST_TOKENIZER:,}"
                )


def _check_entries(part: Mapping[str, Any], checkpoint: str, where: str, level: int) -> None:
    """Refuses nesting and numbers that no model has, and that would keep whoever builds it busy for ever."""
    if level > _DEEPEST:
        raise ModelError(
            f"config.json of {checkpoint} is nested more than {_DEEPEST} levels deep",
            expected="a model's configuration",
        )
    for name, value in part.items():
        full = f"{where}{name}"
        for item in _flat(value):
            if isinstance(item, dict):
                _check_entries(item, checkpoint, f"{full}.", level + 1)
            elif isinstance(item, int) and not isinstance(item, bool):
                _check_number(name, full, item, checkpoint)
        if _IS_DEPTH.match(name) and value is not None and (not isinstance(value, int) or isinstance(value, bool)):
            raise _odd(full, value, checkpoint, "a whole number")


def _check_number(name: str, full: str, value: int, checkpoint: str) -> None:
    if _IS_DEPTH.match(name) and value < 1:
        raise _odd(full, value, checkpoint, "at least one block")
    if _BLOCKS.match(name) and value > MOST_BLOCKS:
        raise _odd(full, value, checkpoint, f"at most {MOST_BLOCKS:,}")
    if _EXPERTS.match(name) and value > _MOST_EXPERTS:
        raise _odd(full, value, checkpoint, f"at most {_MOST_EXPERTS:,}")
    if abs(value) > _LARGEST_NUMBER:
        raise _odd(full, "a number of more than 64 bits", checkpoint, "a number that fits into 64 bits")


def _odd(full: str, value: Any, checkpoint: str, expected: str) -> ModelError:
    shown = repr(value) if len(repr(value)) < 60 else f"a {type(value).__name__}"
    return ModelError(
        f"{full} in the config.json of {checkpoint} is {shown}",
        expected=expected,
        remedy="copy or download the checkpoint again",
    )


def _flat(value: Any, level: int = 0) -> Iterator[Any]:
    """The value, or what is in it if it is a list of any depth."""
    if isinstance(value, list) and level <= _DEEPEST:
        for item in value:
            yield from _flat(item, level + 1)
    else:
        yield value


def _admitted(part: Any, level: int = 0) -> Any:
    """What a checkpoint may decide; deeper than any configuration is, everything is left for `_check_entries`."""
    if level > 2 * _DEEPEST:
        return part
    if isinstance(part, dict):
        return {
            name: _admitted(value, level + 1)
            for name, value in part.items()
            if not _NOT_FOR_A_CHECKPOINT.match(name) and name not in _methods()
        }
    return [_admitted(item, level + 1) for item in part] if isinstance(part, list) else part


@cache
def _methods() -> frozenset[str]:
    """Names that would replace a method of transformers' configurations."""
    from transformers import PreTrainedConfig

    return frozenset(name for name in dir(PreTrainedConfig) if callable(getattr(PreTrainedConfig, name)))
