"""Where a checkpoint's files are, and which of them hold the blocks asked for."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path
from tempfile import TemporaryDirectory

from moescope.errors import EnvironmentFailure, ModelError, MoescopeError, UsageError

NANO = "nano"
_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"
_PICKLED = ("pytorch_model.bin", "pytorch_model.bin.index.json")
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


@contextmanager
def located(name_or_path: str, revision: str | None) -> Iterator[Source]:
    """Finds a checkpoint by name: "nano", a folder, or a hub id. Fetches no weights yet.

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
        yield _from_hub(name_or_path, revision)


@contextmanager
def weights_folder(source: Source, is_needed: Callable[[str], bool]) -> Iterator[Path]:
    """A folder that transformers can load from and that names only the shards with tensors that are needed.

    Args:
        source: The checkpoint.
        is_needed: Of a tensor's name in the checkpoint.

    Raises:
        ModelError: Files are missing.
        EnvironmentFailure: They can't be fetched.
    """
    index_path = _file(source, _INDEX)
    if index_path is None or (source.repository is None and (source.folder / _SINGLE).is_file()):
        yield _unsharded(source)
        return
    index = json.loads(index_path.read_text(encoding="utf-8"))
    kept: Mapping[str, str] = {key: shard for key, shard in index["weight_map"].items() if is_needed(key)}
    shards = sorted(set(kept.values()))
    folder = _download(source, shards) if source.repository else source.folder
    missing = [shard for shard in shards if not (folder / shard).is_file()]
    if missing:
        raise ModelError(
            f"{source.name} lacks {len(missing)} of its weight files: {', '.join(missing[:5])}",
            expected=f"all files that {_INDEX} names for the layers asked",
            remedy="copy or download the checkpoint again",
        )
    with TemporaryDirectory(prefix="moescope-") as staged:
        # transformers joins these names to the folder's, and an absolute name stays what it is. Links are not
        # followed: what they point to in the hub's cache has no suffix to tell its format by.
        index["weight_map"] = {key: str((folder / shard).absolute()) for key, shard in kept.items()}
        index.setdefault("metadata", {})
        (Path(staged) / _INDEX).write_text(json.dumps(index), encoding="utf-8")
        for name in ("config.json", "generation_config.json"):
            if (source.folder / name).is_file():
                shutil.copy(source.folder / name, staged)
        yield Path(staged)


def _local(name: str, folder: Path) -> Source:
    has_weights = any((folder / file).is_file() for file in (_SINGLE, _INDEX, *_PICKLED))
    if not (folder / "config.json").is_file() or not has_weights:
        raise ModelError(
            f"{folder} is no checkpoint: it holds {_listing(folder)}",
            expected=f"config.json beside {_SINGLE} or {_INDEX}, as save_pretrained writes them",
            remedy="give the folder that those files are in",
        )
    return Source(name, folder)


def _listing(folder: Path) -> str:
    names = sorted(path.name for path in folder.iterdir())
    return (", ".join(names[:5]) + (", ..." if len(names) > 5 else "")) if names else "nothing"


def _unsharded(source: Source) -> Path:
    if source.repository is None:
        return source.folder
    single = _file(source, _SINGLE)
    return single.parent if single else _download(source, [*_PICKLED, "pytorch_model-*.bin"])


def _file(source: Source, name: str) -> Path | None:
    """One file of a checkpoint, fetched if it is on the hub; None if the checkpoint has no such file."""
    if source.repository is None:
        path = source.folder / name
        return path if path.is_file() else None
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    try:
        return Path(hf_hub_download(source.repository, name, revision=source.revision))
    except EntryNotFoundError:
        return None
    except Exception as error:
        raise _hub_failure(source.repository, error) from error


def _from_hub(repository: str, revision: str | None) -> Source:
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(repository, revision=revision, allow_patterns=list(_SMALL_FILES)))
    except Exception as error:
        raise _hub_failure(repository, error) from error
    if not (folder / "config.json").is_file():
        raise ModelError(
            f"the hub repository {repository} holds no config.json",
            expected="a checkpoint in transformers' format",
            remedy="see on its page which format it is in; a converted copy may exist",
        )
    # The cache keeps each commit in a folder of its name.
    return Source(repository, folder, repository, folder.name)


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
