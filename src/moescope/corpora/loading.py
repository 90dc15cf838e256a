"""The public `load_corpus`: a name or a path -> a source."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moescope.errors import CorpusError

if TYPE_CHECKING:
    from moescope.corpora.base import Corpus


@cache
def presets() -> dict[str, dict[str, Any]]:
    """Datasets of the Hugging Face hub that need only a name, from presets.toml."""
    return tomllib.loads(files("moescope.corpora").joinpath("presets.toml").read_text("utf-8"))


def load_corpus(
    name_or_path: str | Path = "embedded",
    *,
    text_field: str | None = None,
    domain_field: str | None = None,
    num_domains: int | None = None,
    domains: Sequence[str] | None = None,
    config: str | None = None,
    split: str | None = None,
    revision: str | None = None,
) -> Corpus:
    """Loads a corpus: the embedded one, files of this machine, or a dataset of the Hugging Face hub.

    Args:
        name_or_path: `embedded`; a preset (`pile`, `c4`, ...); a folder whose sub-folders are domains; one file (.txt,
            .jsonl, .jsonl.gz, .jsonl.zst, .parquet); or a dataset of the hub (`owner/name`). A path that exists comes
            before a name of the same spelling, except `embedded`.
        text_field: Field of a record that holds the text; default `text`, or the preset's.
        domain_field: Field of a record that holds the domain; dots go into nested records (`meta.pile_set_name`).
            Default: sub-folders are domains, a file or dataset is one domain; or the preset's.
        num_domains: Only the first so many domains, in the corpus' order: embedded and presets as listed, sub-folders
            by name, values of a domain field by frequency. The corpus' `notes` say which.
        domains: Only these, in this order.
        config: Configuration of a hub dataset.
        split: Part of a hub dataset; default: validation, test or train, the first there is.
        revision: Commit, tag or branch of a hub dataset.

    Returns:
        The corpus.

    Raises:
        CorpusError: No such name, path, field or domain, or nothing to read; with what to do about it.
    """
    name = str(name_or_path)
    path = Path(name_or_path).expanduser()
    corpus: Corpus
    if name == "embedded":
        from moescope.corpora.embedded import EmbeddedCorpus

        corpus = EmbeddedCorpus()
    elif path.exists():
        from moescope.corpora.files import FilesCorpus

        corpus = FilesCorpus(path, text_field=text_field or "text", domain_field=domain_field)
    elif name in presets() or _could_be_on_hub(name_or_path):
        from moescope.corpora.huggingface import HuggingFaceCorpus

        preset = presets().get(name, {})
        corpus = HuggingFaceCorpus(
            preset.get("id", name),
            text_field=text_field or preset.get("text_field", "text"),
            domain_field=domain_field or preset.get("domain_field"),
            domains=domains or (None if domain_field else preset.get("domains")),
            config=config or preset.get("config"),
            split=split or preset.get("split"),
            revision=revision or preset.get("revision"),
            name=name if preset else None,
        )
    else:
        raise CorpusError(
            f"there is no corpus {name!r}: no file or folder of that name, and no preset",
            expected=f"embedded, {', '.join(presets())}, a file, a folder, or a dataset of the hub (owner/name)",
            remedy="check the spelling and the folder you are in",
        )
    if domains is not None:
        corpus = corpus.only(domains)
    return corpus if num_domains is None else corpus.first(num_domains)


def _could_be_on_hub(name: str | Path) -> bool:
    """Whether a string looks like `owner/name` and not like a path."""
    if not isinstance(name, str) or name.count("/") != 1 or name[0] in "./~" or name.endswith("/"):
        return False
    return not name.endswith((".txt", ".jsonl", ".gz", ".zst", ".parquet", ".json", ".csv"))
