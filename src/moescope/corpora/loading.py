"""The public `load_corpus`: a name, a path or a Python object -> a source."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moescope.corpora.given import EXPECTED, NAME, existing, in_order, of_object, part_of
from moescope.corpora.names import printable, shown
from moescope.errors import CorpusError, UsageError

if TYPE_CHECKING:
    from typing import TypeAlias

    import pandas as pd
    from datasets import Dataset, IterableDataset

    from moescope.corpora.base import Corpus

    Item: TypeAlias = str | os.PathLike[str] | Mapping[str, Any]
    Source: TypeAlias = (
        str | os.PathLike[str] | Corpus | Mapping[str, Any] | Sequence[Item] | pd.DataFrame | Dataset | IterableDataset
    )


@cache
def presets() -> dict[str, dict[str, Any]]:
    """Datasets of the Hugging Face hub that need only a name, from presets.toml."""
    return tomllib.loads(files("moescope.corpora").joinpath("presets.toml").read_text("utf-8"))


def load_corpus(
    source: Source = "embedded",
    *,
    text_field: str | None = None,
    domain_field: str | None = None,
    num_domains: int | None = None,
    domains: Sequence[str] | None = None,
    config: str | None = None,
    split: str | None = None,
    revision: str | None = None,
) -> Corpus:
    """Loads a corpus: the embedded one, files, a dataset of the Hugging Face hub, or what a program holds.

    Args:
        source: `embedded`; a preset (`pile`, `c4`, ...); a folder whose sub-folders are domains, or one that
            `datasets.save_to_disk` left; one file (.txt, .md, .jsonl, .json, .csv, .tsv, each also .gz or .zst;
            .parquet, .arrow); a dataset of the hub (`owner/name`); or `-` for standard input. A path that exists comes
            before a name of the same spelling, except `embedded`.

            In Python also: texts by domain (`{"a": ["one text", "another"]}`), paths by domain (as `pathlib.Path`), a
            list of texts (one domain), a list of paths (each a domain, or one collection with `domain_field`), a list
            of records, a pandas DataFrame, a `datasets.Dataset`, or a corpus.
        text_field: Field of a record that holds the text, or a conversation (a list of messages with roles, which the
            model reads through its chat template). Default: `text`, or else `messages`; or the preset's.
        domain_field: Field of a record that holds the domain; dots go into nested records (`meta.pile_set_name`);
            `messages.role` makes each role of a conversation a domain. Default: sub-folders are domains, a file or
            dataset is one domain; or the preset's.
        num_domains: Only the first so many domains, in the corpus' order: embedded and presets as listed, sub-folders
            by name, values of a domain field by frequency. The corpus' `notes` say which.
        domains: Only these, in this order.
        config: Configuration of a hub dataset.
        split: Part of a dataset; default: validation, test or train, the first there is.
        revision: Commit, tag or branch of a hub dataset.

    Returns:
        The corpus.

    Raises:
        CorpusError: No such name, path, field or domain, or nothing to read; with what to do about it.
        UsageError: An argument of another type.
    """
    _check_types(text_field=text_field, domain_field=domain_field, config=config, split=split, revision=revision)
    names = in_order(domains)
    if domains is not None and (not all(isinstance(name, str) for name in names) or not (names or domains == [])):
        raise UsageError(f"domains is {domains!r}", expected="a list of names of domains")
    if num_domains is not None and (not isinstance(num_domains, int) or isinstance(num_domains, bool)):
        raise UsageError(f"num_domains is {num_domains!r}", expected="a positive whole number")
    fields = {"text_field": text_field, "domain_field": domain_field}
    corpus: Corpus
    if not isinstance(source, str | os.PathLike):
        corpus = of_object(source, fields, split)
    elif source == "embedded":
        from moescope.corpora.embedded import EmbeddedCorpus

        corpus = EmbeddedCorpus()
    elif source == "-":
        from moescope.corpora.piped import read_pipe

        corpus = read_pipe(None, **fields)
    elif (path := existing(source)) is not None:
        corpus = _of_path(path, fields, split)
    else:
        corpus = _of_name(source, fields, names, {"config": config, "split": split, "revision": revision})
    if domains is not None:
        corpus = corpus.only(names)
    return corpus if num_domains is None else corpus.first(num_domains)


def _of_path(path: Path, fields: dict[str, str | None], split: str | None) -> Corpus:
    from moescope.corpora.files import FilesCorpus

    if path.is_fifo():
        from moescope.corpora.piped import read_pipe

        return read_pipe(path, **fields)
    if not path.is_file() and not path.is_dir():
        raise CorpusError(f"{printable(str(path))} is neither a file nor a folder", expected=EXPECTED)
    parts = (
        sorted(part.name for part in path.iterdir() if part.is_dir()) if (path / "dataset_dict.json").is_file() else []
    )
    if not parts:
        return FilesCorpus(path, **fields)
    # What `DatasetDict.save_to_disk` left: a folder for each part.
    chosen = part_of(path.name, parts, split)
    corpus = FilesCorpus(path / chosen, **fields, name=printable(path.name))
    if split is None:
        corpus.notes = (f"of the dataset {corpus.name} the part {chosen!r} is read", *corpus.notes)
    return corpus


def _of_name(
    source: str | os.PathLike[str],
    fields: dict[str, str | None],
    domains: Sequence[str] | None,
    where: dict[str, str | None],
) -> Corpus:
    name = source if isinstance(source, str) else printable(str(source))
    if not isinstance(source, str) or (name not in presets() and not _could_be_on_hub(name)):
        a_text = len(name.split()) > 3
        raise CorpusError(
            f"there is no corpus {shown(name)!r}: no file or folder of that name, and no preset",
            expected=f"embedded, {', '.join(presets())}, a file, a folder, or a dataset of the hub (owner/name)",
            remedy="give texts as a list" if a_text else "check the spelling and the folder you are in",
        )
    from moescope.corpora.huggingface import HuggingFaceCorpus

    preset = presets().get(name, {})
    return HuggingFaceCorpus(
        preset.get("id", name),
        text_field=fields["text_field"] or preset.get("text_field"),
        domain_field=fields["domain_field"] or preset.get("domain_field"),
        domains=domains or (None if fields["domain_field"] else preset.get("domains")),
        config=where["config"] or preset.get("config"),
        split=where["split"] or preset.get("split"),
        revision=where["revision"] or preset.get("revision"),
        name=name if preset else None,
    )


def _check_types(**arguments: Any) -> None:
    for name, value in arguments.items():
        if value is not None and not isinstance(value, str):
            raise UsageError(f"{name} is {value!r}", expected="a name (str)")


def _could_be_on_hub(name: str) -> bool:
    """Whether a string looks like `owner/name` and not like a path."""
    if name.count("/") != 1 or name[0] in "./~" or name.endswith("/") or not NAME.fullmatch(name):
        return False
    return not name.lower().endswith(
        (".txt", ".md", ".jsonl", ".gz", ".zst", ".parquet", ".json", ".csv", ".tsv", ".arrow", ".zip", ".tar")
    )
