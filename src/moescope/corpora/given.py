"""Which source a Python object is: texts, paths, records, a frame, a dataset."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moescope.corpora.names import listed, printable, shown
from moescope.errors import CorpusError, UsageError

if TYPE_CHECKING:
    from moescope.corpora.base import Corpus

# Where a dataset has several parts and none is named.
SPLITS = ("validation", "test", "train")

# What looks like a name or a path rather than like a text.
NAME = re.compile(r"[\w.~/\\:+@-]{1,255}", re.ASCII)

EXPECTED = (
    "`embedded`, a preset, a file, a folder, a dataset of the hub (owner/name), - for standard input; in Python also a "
    "list or mapping of texts, a list of paths, a list of records, a pandas DataFrame or a dataset"
)


def existing(name: str | os.PathLike[str]) -> Path | None:
    """The path of that spelling, if there is something."""
    try:
        path = Path(os.fspath(name)).expanduser()
        return path if os.fspath(name) and path.exists() else None
    except (OSError, ValueError, RuntimeError, TypeError):
        # Longer than a path may be, a zero byte in it, a user that does not exist, bytes.
        return None


def part_of(name: str, parts: Iterable[str], split: str | None) -> str:
    """The part of a dataset to read: the one named, or validation, test or train, the first there is."""
    parts = list(map(str, parts))
    chosen = split or next((part for part in SPLITS if part in parts), parts[0] if parts else "")
    if chosen not in parts:
        raise CorpusError(f"dataset {name} has no part {chosen!r}", expected=f"one of {listed(parts)}")
    return chosen


def of_object(source: Any, fields: dict[str, str | None], split: str | None) -> Corpus:
    """The corpus that a Python object is.

    Raises:
        CorpusError: It holds no text, or paths that do not exist.
        UsageError: It is no such thing.
    """
    from moescope.corpora.base import Corpus
    from moescope.corpora.objects import DatasetTable, FrameTable, RecordsTable, TableCorpus
    from moescope.corpora.records import Fields

    if isinstance(source, Corpus):
        return source
    # Who passes an object of these libraries has imported them.
    pandas, datasets = sys.modules.get("pandas"), sys.modules.get("datasets")
    if pandas is not None and isinstance(source, pandas.DataFrame):
        read = Fields.of(**fields)
        return TableCorpus(FrameTable(source, read), read, "dataframe")
    if datasets is not None:
        if isinstance(source, datasets.DatasetDict | datasets.IterableDatasetDict):
            source = source[part_of("given", source, split)]
        if isinstance(source, datasets.Dataset):
            read = Fields.of(**fields)
            return TableCorpus(DatasetTable(source, read), read, _dataset_name(source))
        if isinstance(source, datasets.IterableDataset):
            from moescope.corpora.huggingface import HuggingFaceCorpus

            name = _dataset_name(source)
            return HuggingFaceCorpus(name, **fields, split=str(source.split or ""), name=name, dataset=source)
    if isinstance(source, Mapping):
        return _of_mapping(source, fields)
    items = in_order(source)
    if items and all(isinstance(item, Mapping) for item in items):
        return TableCorpus(RecordsTable(items), Fields.of(**fields), "records")
    if items and all(isinstance(item, str | os.PathLike) for item in items):
        return _of_list(items, fields)
    found = "an empty list" if isinstance(source, list) and not source else f"of type {type(source).__name__}"
    if items:
        found = f"a list of {listed(sorted({type(item).__name__ for item in items}))}"
    raise UsageError(f"the corpus given is {found}", expected=EXPECTED)


def _dataset_name(dataset: Any) -> str:
    name = dataset.info.dataset_name
    return name if isinstance(name, str) and name else "dataset"


def in_order(source: Any) -> list[Any]:
    """The items of a list, a tuple, a pandas Series, an array; none of what is no collection in order."""
    ordered = isinstance(source, Sequence) or (hasattr(source, "tolist") and hasattr(source, "__len__"))
    return list(source) if ordered and not isinstance(source, str | bytes | bytearray | memoryview) else []


def _of_mapping(source: Mapping[Any, Any], fields: dict[str, str | None]) -> Corpus:
    """Texts, or paths, by domain."""
    from moescope.corpora.files import FilesCorpus
    from moescope.corpora.objects import TextsCorpus

    if not source or not all(isinstance(domain, str) for domain in source):
        raise UsageError(
            "the mapping given has no entries" if not source else "the mapping given has keys that are no names",
            expected="lists of texts by the names of their domains",
        )
    by_domain: dict[str, list[Any]] = {}
    for domain, some in source.items():
        # One text, or one path, may stand for itself.
        items = [some] if isinstance(some, str | os.PathLike) else in_order(some)
        wrong = [item for item in items if not isinstance(item, str | os.PathLike)]
        if wrong or not (items or isinstance(some, list | tuple)):
            kind = f"a list with {type(wrong[0]).__name__} in it" if wrong else type(some).__name__
            raise UsageError(f"domain {shown(domain)!r} of the mapping given is {kind}", expected=EXPECTED)
        by_domain[domain] = items
    items = [item for some in by_domain.values() for item in some]
    if any(isinstance(item, os.PathLike) for item in items):
        if fields["domain_field"] is not None:
            raise UsageError("both paths by domain and a domain_field are given", remedy="leave one of them out")
        paths = {domain: _paths(some) for domain, some in by_domain.items()}
        return FilesCorpus(paths, text_field=fields["text_field"], name="files")
    return TextsCorpus(by_domain)


def _of_list(items: Sequence[str | os.PathLike[str]], fields: dict[str, str | None]) -> Corpus:
    """A list of paths, or of texts."""
    from moescope.corpora.files import FilesCorpus, bare_name
    from moescope.corpora.objects import TextsCorpus

    paths = [item for item in items if isinstance(item, os.PathLike) or existing(item) is not None]
    if not paths and not all(NAME.fullmatch(str(item)) for item in items):
        return TextsCorpus({"texts": [str(item) for item in items]})
    given = _paths(items)
    if fields["domain_field"] is not None:
        return FilesCorpus({"": given}, **fields, name="files")
    by_domain: dict[str, list[Path]] = {}
    for path in given:
        name, count = bare_name(path.resolve()), 1
        while name in by_domain:
            count += 1
            name = f"{bare_name(path.resolve())} ({count})"
        by_domain[name] = [path]
    return FilesCorpus(by_domain, text_field=fields["text_field"], name="files")


def _paths(items: Sequence[str | os.PathLike[str]]) -> list[Path]:
    paths = []
    for item in items:
        path = existing(item)
        if path is None or not (path.is_file() or path.is_dir()):
            raise CorpusError(
                f"{shown(printable(str(item)))!r} is no file or folder",
                expected="paths of files and folders, or texts of several words",
                remedy="check the spelling; give short texts by domain, as in {'domain': ['text']}",
            )
        paths.append(path)
    return paths
