"""What a configuration says of a model that is not run: for routing that was recorded elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moescope.errors import ModelError, UsageError
from moescope.models import checkpoint, layout
from moescope.models.architecture import read_architecture
from moescope.models.facts import ModelFacts, gather_facts
from moescope.models.refusal import refusing
from moescope.models.tokenizer import load_tokenizer

MOST_BLOCKS = 2_000
"""Blocks of a configuration at most: they are built, without weights, to be looked at."""
_CONFIG = "config.json"


@dataclass(frozen=True)
class Declared:
    """A model as its configuration has it.

    Attributes:
        name: As it was asked for.
        revision: The commit of a hub repository; None for others.
        facts: Its facts.
        tokenizer: Its tokenizer; None where there is none beside the configuration, or it can't be used.
    """

    name: str
    revision: str | None
    facts: ModelFacts
    tokenizer: Any


def declared_model(name_or_path: str, *, tokenizer: str | None = None) -> Declared:
    """Reads a configuration, and the tokenizer beside it; no weights.

    Args:
        name_or_path: "nano", a checkpoint's folder or one with its config.json alone, a config.json, or a hub id.
        tokenizer: A folder or hub id whose tokenizer is taken instead.

    Raises:
        ModelError: There is no such model, or its family can't be looked into.
        UsageError: The tokenizer asked for can't be used.
    """
    with _located(name_or_path) as source:
        found = read_architecture(source, trust_remote_code=False)
        depth = getattr(layout.text_config(found.config), "num_hidden_layers", 0)
        if not isinstance(depth, int) or depth > MOST_BLOCKS:
            raise ModelError(
                f"the {_CONFIG} of {name_or_path} declares {depth} blocks", expected=f"{MOST_BLOCKS:,} at most"
            )
        with refusing(
            f"the structure of {name_or_path} can't be used",
            expected="decoder blocks with routed experts",
            remedy=f"give the model's own {_CONFIG}",
        ):
            whole = found.on_meta()
            where = layout.find_layout(whole, source.name)
            facts = gather_facts(whole, where, source.name)
        own = load_tokenizer(
            source.folder, found.config, source.name, num_rows=facts.vocab_size, trust_remote_code=False
        ).tokenizer
        if tokenizer is not None:
            own = _tokenizer(tokenizer)
        return Declared(source.name, source.revision, facts, own)


def named_tokenizer(name_or_path: str) -> Any:
    """A tokenizer without its model.

    Raises:
        UsageError: There is none, or it can't be used.
    """
    return _tokenizer(name_or_path)


def _tokenizer(name_or_path: str) -> Any:
    from transformers import AutoTokenizer

    if name_or_path == checkpoint.NANO:
        return declared_model(name_or_path).tokenizer
    try:
        return AutoTokenizer.from_pretrained(name_or_path, trust_remote_code=False)
    except Exception as error:
        raise UsageError(
            f"`tokenizer={name_or_path}` can't be used: {str(error).splitlines()[0] if str(error) else error!r}",
            expected="a folder with tokenizer.json, or a hub id",
        ) from error


@contextmanager
def _located(name_or_path: str) -> Iterator[checkpoint.Source]:
    path = Path(name_or_path).expanduser()
    if path.is_file() and path.name == _CONFIG:
        yield checkpoint.Source(str(path.parent), path.parent)
    elif path.is_dir() and (path / _CONFIG).is_file():
        yield checkpoint.Source(name_or_path, path)
    else:
        with checkpoint.located(name_or_path, None) as source:
            yield source
