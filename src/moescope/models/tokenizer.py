"""A checkpoint's tokenizer: loaded without running code of its own, and compared once with the model beside it."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from moescope.errors import ModelError, UsageError, warn
from moescope.models.gate import check_tokenizer_files, inside, is_inner_name, own_code, read_json
from moescope.models.refusal import refusing

_WORDS = ("tokenizer", "vocab", "spiece", "sentencepiece", "tekken", "tiktoken")
_CONFIG = "tokenizer_config.json"
_FAST = "tokenizer.json"
_REFUSES = "_moescope_refuses"
# An embedding may have more rows than there are tokens: padding to a round number, room for tokens to come.
_LEAST_COVERED = 0.5
_EXPECTED = f"{_FAST} or {_CONFIG} beside config.json"
_REMEDY = "save the model's tokenizer into the same folder; moescope info and moescope weights work without one"


@dataclass(frozen=True)
class Tokenizer:
    """A tokenizer that fits its model, or the reason why there is none.

    Attributes:
        tokenizer: The tokenizer; None where there is none that can be used.
        problem: Why there is none; raised when text is to be read.
        beyond: Tokens, by id, for which the embedding has no row.
    """

    tokenizer: Any
    problem: ModelError | None
    beyond: Mapping[int, str]


def load_tokenizer(folder: Path, config: Any, name: str, *, num_rows: int, trust_remote_code: bool) -> Tokenizer:
    """The tokenizer in a checkpoint's folder. That it can't be used is no error until text is to be read.

    Args:
        folder: The checkpoint's folder.
        config: The model's configuration.
        name: The checkpoint, in messages.
        num_rows: Rows of the model's embedding.
        trust_remote_code: Whether a tokenizer's own code may run.
    """
    try:
        return fitted(_load(folder, config, name, trust_remote_code), name, num_rows, declared=config)
    except ModelError as problem:
        return Tokenizer(None, problem, {})


def given_tokenizer(tokenizer: Any, config: Any, name: str, num_rows: int) -> Tokenizer:
    """A tokenizer that someone hands over with a model.

    Raises:
        UsageError: It is no tokenizer of transformers.
        ModelError: It is not this model's.
    """
    if tokenizer is None:
        problem = ModelError(
            f"{name} was loaded without a tokenizer",
            expected="load_model(model, tokenizer=...) where text is to be read",
            remedy="hand it over: tokenizer=AutoTokenizer.from_pretrained(...)",
        )
        return Tokenizer(None, problem, {})
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise UsageError(
            f"tokenizer is a {type(tokenizer).__name__}",
            expected="a tokenizer of transformers, such as AutoTokenizer.from_pretrained gives",
            remedy="wrap one of the tokenizers library: transformers.PreTrainedTokenizerFast(tokenizer_object=...)",
        )
    return fitted(tokenizer, name, num_rows, declared=config)


def fitted(tokenizer: Any, name: str, num_rows: int, *, declared: Any) -> Tokenizer:
    """Compares a tokenizer with the model: every token that text can become needs a row of the embedding.

    Tokens that were added beyond the last row (a padding token, reserved ones) are named in a warning; text that holds
    them is refused when it is read. Padding is never looked at: a padding token without a row is given up.

    Args:
        tokenizer: The tokenizer; it is left as it is.
        name: The checkpoint, in messages.
        num_rows: Rows of the model's embedding.
        declared: The model's configuration.

    Raises:
        ModelError: The tokenizer is another model's.
    """
    with refusing(f"the tokenizer of {name} can't be used", expected="one that turns text into ids", remedy=_REMEDY):
        ids = {str(token): int(number) for token, number in tokenizer.get_vocab().items()}
        added = {int(number) for number in tokenizer.added_tokens_decoder}
        sample = [int(number) for number in tokenizer("word")["input_ids"]]
        special = {int(number) for number in tokenizer.all_special_ids}
    if not ids or not sample:
        found = "turns a word into no tokens" if ids else "has no tokens"
        raise ModelError(f"the tokenizer of {name} {found}", expected=_EXPECTED, remedy=_REMEDY)
    beyond = {number: token for token, number in sorted(ids.items(), key=lambda pair: pair[1]) if number >= num_rows}
    others = [number for number in beyond if number not in added]
    if others or any(number >= num_rows for number in sample):
        raise ModelError(
            f"the tokenizer of {name} has tokens up to id {max(ids.values())}, the model's embedding {num_rows} rows",
            expected="a row for every token",
            remedy="this tokenizer is another model's: put the model's own into the folder",
        )
    if beyond:
        if tokenizer.pad_token_id is not None and int(tokenizer.pad_token_id) in beyond:
            tokenizer = copy.deepcopy(tokenizer)
            tokenizer.pad_token = None
        _warn(
            f"{len(beyond)} tokens of {name} ({_some(list(beyond.values()))}) have ids beyond the embedding's "
            f"{num_rows} rows: text that holds them can't be read"
        )
    known = len(set(ids.values()))
    if known < _LEAST_COVERED * num_rows:
        _warn(
            f"the tokenizer of {name} has {known:,} tokens, the model's embedding {num_rows:,} rows: it may be another "
            "model's"
        )
    _check_ends(tokenizer, name, declared, set(ids.values()), special | added)
    return Tokenizer(tokenizer, None, beyond)


def refuse_beyond(embedding: nn.Module, beyond: Mapping[int, str], name: str) -> None:
    """Has an embedding refuse ids for which it has no row, in place of the library's index error."""
    rows = embedding.weight.shape[0]  # type: ignore[union-attr,index]

    def check(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        largest = int(inputs[0].max()) if inputs and inputs[0].numel() else 0
        if largest >= rows:
            raise ModelError(
                f"the text holds the token {beyond.get(largest, '?')!r} (id {largest}), for which {name} has no "
                f"embedding ({rows} rows)",
                expected="text made of the tokens that the model was trained with",
                remedy="take the token out of the text, or use the checkpoint whose embedding was resized for it",
            )

    if not vars(embedding).setdefault(_REFUSES, False):  # a model in memory may be looked into more than once
        embedding.register_forward_pre_hook(check)
        vars(embedding)[_REFUSES] = True


def _load(folder: Path, config: Any, name: str, trust_remote_code: bool) -> Any:
    names = sorted(file.name for file in folder.iterdir())
    found = [file for file in names if any(word in file for word in _WORDS)]
    # Without files of one, transformers makes up an empty tokenizer of the family's kind.
    if not found:
        raise ModelError(f"{name} has no tokenizer", expected=_EXPECTED, remedy=_REMEDY)
    check_tokenizer_files(folder, name)
    path = inside(folder, _CONFIG, name)
    declared = read_json(path, name) if path is not None else {}
    versions = declared.get("fast_tokenizer_files") or []
    if not isinstance(versions, list) or not all(is_inner_name(version) for version in versions):
        raise ModelError(f"{_CONFIG} of {name} names files outside its folder", expected=_EXPECTED, remedy=_REMEDY)
    code = own_code(declared)
    if code and not trust_remote_code and _FAST not in names:
        raise ModelError(
            f"the tokenizer of {name} is code of its own ({', '.join(code)}), which was not run",
            expected=f"a {_FAST}, which holds no code",
            remedy="convert it to a tokenizer.json (a converted copy may be on the hub), or read the code and, if you "
            "trust it, load the model with trust_remote_code=True",
        )
    runs_code = bool(code) and trust_remote_code
    if runs_code:
        warn_of_code(f"the tokenizer of {name}", code)
    with refusing(
        f"the tokenizer of {name} ({_some(found)}) can't be read",
        expected="files that this version of transformers and tokenizers reads",
        remedy="update tokenizers and transformers, or save the tokenizer again with the versions installed here; what "
        "needs no text (moescope info, moescope weights) works without",
        install="install what the message names, or put a tokenizer.json into the folder",
    ):
        if code and not runs_code:  # the code is a wrapper around tokenizer.json, which says all there is to say
            return PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
        return AutoTokenizer.from_pretrained(folder, config=config, trust_remote_code=runs_code, local_files_only=True)


def warn_of_code(what: str, code: list[str]) -> None:
    """Says which code of a checkpoint's own is about to run."""
    _warn(f"{what} runs code of its own, as trust_remote_code allows: {', '.join(code)}")


def _check_ends(tokenizer: Any, name: str, declared: Any, ids: set[int], special: set[int]) -> None:
    """A text's end, as the model's configuration has it, is a special token of the model's own tokenizer."""
    end = getattr(declared, "eos_token_id", None)
    ends = [number for number in (end if isinstance(end, list) else [end]) if isinstance(number, int)]
    if ends and special and all(number in ids and number not in special for number in ends):
        token = tokenizer.convert_ids_to_tokens(ends[0])
        _warn(
            f"the token that ends a text for {name} (id {ends[0]}) is {token!r} in its tokenizer, no special token: "
            "the tokenizer may be another model's"
        )


def _warn(message: str) -> None:
    warn(message, stacklevel=2)


def _some(names: list[str]) -> str:
    return ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")
