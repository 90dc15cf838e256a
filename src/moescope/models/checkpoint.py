"""Where a checkpoint's files are, and which of them hold the blocks asked for."""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from moescope.errors import EnvironmentFailure, ModelError, MoescopeError, UsageError, warn
from moescope.models.gate import Stored, inside, read_generation, read_headers, read_index

NANO = "nano"
_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"

_ADAPTER = "adapter_config.json"
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
_SMALL_FILES = ("*.json", "*.jinja", "*.model", "*.txt", "*.tiktoken")


@dataclass(frozen=True)
class Source:
    """A checkpoint that exists: a folder here, or a repository of the Hugging Face hub.

    Attributes:
        name: As the user called it.
        folder: Where its configuration and tokenizer are, on this machine.
        repository: Hub id to fetch weights from; None for a folder that holds them.
        revision: The commit of a hub repository; None for a folder.
    """

    name: str
    folder: Path
    repository: str | None = None
    revision: str | None = None


@dataclass(frozen=True)
class Staged:
    """Weights that are on this machine and passed the gate.

    Attributes:
        folder: What transformers may load from: config.json and an index of the tensors needed, nothing else.
        stored: Every tensor of the files needed, by name, as the files declare it.
    """

    folder: Path
    stored: Mapping[str, Stored]


@contextmanager
def located(name_or_path: str, revision: str | None, *, with_code: bool = False) -> Iterator[Source]:
    """Finds a checkpoint by name: "nano", a folder, or a hub id. Fetches no weights yet, and code only `with_code`.

    Raises:
        ModelError: There is no such checkpoint, or the folder is none.
        UsageError: A revision of what has none.
        EnvironmentFailure: The hub answered that it can't serve now.
    """
    path = Path(name_or_path).expanduser()
    if revision is not None and (name_or_path == NANO or path.is_dir()):
        raise UsageError(
            f"revision {revision} of {name_or_path}, which is no repository of the hub",
            expected="a revision with a hub id only",
            remedy="leave the revision out; a folder holds one state of a model",
        )
    if name_or_path == NANO:
        with as_file(files("moescope.models") / NANO) as folder:
            yield _local(NANO, folder)
        return
    if path.is_dir():
        yield _local(name_or_path, path)
    elif path.suffix == ".gguf" and path.exists():
        raise _is_gguf(name_or_path, path.name)
    elif path.exists():
        raise ModelError(
            f"{name_or_path} is a file",
            expected="a checkpoint's folder, a hub id, or the name nano",
            remedy=f"give the folder that holds it: {path.parent}",
        )
    elif not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name_or_path) or name_or_path.startswith("."):
        raise ModelError(
            f"there is no folder {name_or_path}",
            expected="a checkpoint's folder, a hub id such as allenai/OLMoE-1B-7B-0924, or the name nano",
            remedy="check the spelling; a relative path counts from the current folder",
        )
    else:
        yield _from_hub(name_or_path, revision, with_code)


def weight_map(source: Source) -> dict[str, str] | None:
    """The file that each tensor is in, by the tensor's name; None where weights would have to be fetched to know.

    Raises:
        ModelError: The index or header that names the tensors can't be used.
        EnvironmentFailure: The index can't be fetched.
    """
    if source.repository is None and (single := _file(source, _SINGLE)) is not None:
        return dict.fromkeys(read_headers([single], source.name), _SINGLE)
    index = _file(source, _INDEX)
    return read_index(index, source.name) if index is not None else None


def single_file(source: Source) -> dict[str, str]:
    """`weight_map` of a hub repository whose weights are in one file, which is fetched.

    Raises:
        ModelError: There is no such file, or it is no safetensors file.
        EnvironmentFailure: It can't be fetched.
    """
    single = _file(source, _SINGLE)
    if single is None:
        raise _no_weights(source.name, _listed(source))
    return dict.fromkeys(read_headers([single], source.name), _SINGLE)


def stored_dtype(source: Source, files_of: Mapping[str, str] | None) -> str:
    """The float dtype that most weights are stored in, as safetensors names it; BF16 where all are quantized.

    Of a hub repository the headers alone are fetched.

    Raises:
        ModelError: Headers can't be read, or weights are not there.
        EnvironmentFailure: They can't be fetched.
    """
    counts: Counter[str] = Counter()
    if source.repository is None:
        files = [inside(source.folder, file, source.name) for file in sorted(set((files_of or {}).values()))]
        for tensor in read_headers([file for file in files if file is not None], source.name).values():
            counts[tensor.dtype] += tensor.numel
    else:
        from huggingface_hub import get_safetensors_metadata

        try:
            metadata = get_safetensors_metadata(source.repository, revision=source.revision)
        except Exception as error:
            raise _hub_failure(source.repository, error) from error
        counts.update(metadata.parameter_count)
    return max(("BF16", "F32", "F16", "F64"), key=lambda dtype: counts[dtype])


@contextmanager
def staged(
    source: Source, config: Mapping[str, Any], files_of: Mapping[str, str], *, code: Sequence[str] = ()
) -> Iterator[Staged]:
    """Fetches these tensors, and stages them in a folder that holds nothing else transformers could read or run.

    Args:
        source: The checkpoint.
        config: What its config.json says, past the gate.
        files_of: The tensors needed, each with the file it is in; a part of `weight_map(source)`.
        code: Code of the checkpoint's own that is trusted; where there is any, its Python files are staged too.

    Raises:
        ModelError: Files are missing or are not what the index says.
        EnvironmentFailure: They can't be fetched.
    """
    shards = sorted(set(files_of.values()))
    folder = _download(source, shards) if source.repository else source.folder
    found = {shard: inside(folder, shard, source.name) for shard in shards}
    missing = [shard for shard, path in found.items() if path is None]
    if missing:
        raise ModelError(
            f"{source.name} lacks {len(missing)} of its weight files: {', '.join(missing[:5])}",
            expected=f"all files that {_INDEX} names for the layers asked",
            remedy="copy or download the checkpoint again",
        )
    stored = read_headers([path for path in found.values() if path is not None], source.name)
    astray = [key for key, shard in files_of.items() if key not in stored or stored[key].file != found[shard]]
    if astray:
        raise ModelError(
            f"{len(astray)} tensors of {source.name} are not in the files that {_INDEX} names: {', '.join(astray[:3])}",
            expected="each tensor in the file that the index says",
            remedy="copy or download the checkpoint again",
        )
    with TemporaryDirectory(prefix="moescope-") as temporary:
        # transformers joins these names to the folder's, and an absolute name stays what it is. Links are not
        # followed: what they point to in the hub's cache has no suffix to tell its format by.
        places = {key: str(stored[key].file.absolute()) for key in files_of}
        written = {_INDEX: {"metadata": {}, "weight_map": places}, "config.json": dict(config)}
        generation = _file(source, "generation_config.json")
        if generation is not None:
            written[generation.name] = read_generation(generation, source.name)
        for name, content in written.items():
            (Path(temporary) / name).write_text(json.dumps(content), encoding="utf-8")
        for path in source.folder.glob("*.py") if code else ():
            shutil.copy(path, temporary)
        yield Staged(Path(temporary), stored)


def _local(name: str, folder: Path) -> Source:
    names = sorted(path.name for path in folder.iterdir())
    if not any(inside(folder, file, name) for file in (_SINGLE, _INDEX)):
        raise _no_weights(str(folder), names)
    if inside(folder, "config.json", name) is None:
        raise _no_checkpoint(str(folder), names)
    if _ADAPTER in names:
        _warn_of_adapter(name)
    return Source(name, folder)


def _no_checkpoint(name: str, names: Sequence[str]) -> ModelError:
    return ModelError(
        f"{name} is no checkpoint: it holds {_listing(names)}",
        expected=f"config.json beside {_SINGLE} or {_INDEX}, as save_pretrained writes them",
        remedy="give the folder that those files are in",
    )


def _no_weights(name: str, names: Sequence[str]) -> ModelError:
    """What is there instead of safetensors weights, and what to do about it."""
    expected = f"config.json beside {_SINGLE} or {_INDEX}, as save_pretrained writes them"
    for file in names:
        if file.endswith(".gguf"):
            return _is_gguf(name, file)
    if _ADAPTER in names:
        return ModelError(
            f"{name} holds an adapter (PEFT: {_ADAPTER}), not a model",
            expected=expected,
            remedy="merge it into its base model and hand the result over, as in: "
            "model = peft.PeftModel.from_pretrained(base_model, FOLDER).merge_and_unload(); "
            "moescope.load_model(model, tokenizer=tokenizer)",
        )
    pickles = [file for file in names if Path(file).suffix in _PICKLES]
    if pickles:
        return ModelError(
            f"the weights of {name} are pickles ({_listing(pickles)}), which can run code when they are read",
            expected=expected,
            remedy="use a checkpoint in safetensors; if you trust this one, convert it where that is safe: "
            "AutoModelForCausalLM.from_pretrained(FOLDER).save_pretrained(NEW_FOLDER)",
        )
    return _no_checkpoint(name, names)


def _is_gguf(name: str, file: str) -> ModelError:
    return ModelError(
        f"{name} holds GGUF weights ({file}), which moescope does not read",
        expected=f"config.json beside {_SINGLE} or {_INDEX}, as save_pretrained writes them",
        remedy="use the safetensors checkpoint that it was made from (its page names it), or let transformers expand "
        "it (package gguf): model = AutoModelForCausalLM.from_pretrained(FOLDER, gguf_file=FILE); "
        "moescope.load_model(model, tokenizer=tokenizer)",
    )


def _warn_of_adapter(name: str) -> None:
    warn(
        f"{name} holds an adapter ({_ADAPTER}) beside whole weights: the adapter is not applied, what is measured are "
        "the weights alone. To measure both, merge them (PEFT's merge_and_unload) and load the result",
        stacklevel=2,
    )


def _listing(names: Sequence[str]) -> str:
    return (", ".join(names[:5]) + (", ..." if len(names) > 5 else "")) if names else "nothing"


def _listed(source: Source) -> list[str]:
    """Names of a checkpoint's files; those of a hub repository as the hub lists them."""
    if source.repository is None:
        return sorted(path.name for path in source.folder.iterdir())
    from huggingface_hub import HfApi

    try:
        return sorted(HfApi().list_repo_files(source.repository, revision=source.revision))
    except Exception as error:
        raise _hub_failure(source.repository, error) from error


def _file(source: Source, name: str) -> Path | None:
    """One file of a checkpoint, fetched if it is on the hub; None if the checkpoint has no such file."""
    if source.repository is None:
        return inside(source.folder, name, source.name)
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    try:
        return Path(hf_hub_download(source.repository, name, revision=source.revision))
    except EntryNotFoundError:
        return None
    except Exception as error:
        raise _hub_failure(source.repository, error) from error


def _from_hub(repository: str, revision: str | None, with_code: bool) -> Source:
    from huggingface_hub import snapshot_download

    patterns = [*_SMALL_FILES, "*.py"] if with_code else list(_SMALL_FILES)
    try:
        folder = Path(snapshot_download(repository, revision=revision, allow_patterns=patterns))
    except Exception as error:
        raise _hub_failure(repository, error) from error
    # The cache keeps each commit in a folder of its name.
    source = Source(repository, folder, repository, folder.name)
    if not (folder / "config.json").is_file():
        raise _no_weights(repository, _listed(source))
    if (folder / _ADAPTER).is_file():
        _warn_of_adapter(repository)
    return source


def _download(source: Source, names: list[str]) -> Path:
    from huggingface_hub import snapshot_download

    assert source.repository is not None
    try:
        return Path(snapshot_download(source.repository, revision=source.revision, allow_patterns=names))
    except Exception as error:
        raise _hub_failure(source.repository, error) from error


def _hub_failure(repository: str, error: Exception) -> MoescopeError:
    from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError, RevisionNotFoundError

    local = f"or download it elsewhere (hf download {repository} --local-dir FOLDER) and give that folder's path"
    if isinstance(error, GatedRepoError):
        return ModelError(
            f"{repository} is gated: its owner must let you in",
            remedy=f"accept its terms on its page and log in with `hf auth login`, {local}",
        )
    if isinstance(error, RevisionNotFoundError):
        return ModelError(f"{repository} has no such revision", remedy="see its page for branches, tags and commits")
    if isinstance(error, RepositoryNotFoundError | HFValidationError):
        return ModelError(
            f"there is no folder and no hub repository {repository}",
            expected="a checkpoint's folder, a hub id such as allenai/OLMoE-1B-7B-0924, or the name nano",
            remedy="check the spelling; private repositories need `hf auth login`",
        )
    if isinstance(error, OSError) and error.errno == 28:
        return EnvironmentFailure(f"no disk space left to download {repository}", remedy="free some, or set HF_HOME")
    return ModelError(
        f"{repository} is no folder here, not all of it that is needed is in the local cache, and the hub can't be "
        f"reached ({type(error).__name__})",
        expected="a checkpoint's folder, a hub id that can be reached, or the name nano",
        remedy=f"check the network, {local}",
    )
