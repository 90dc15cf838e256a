"""Text to token ids as the model's own tokenizer does by default, and which of them are special."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from moescope.corpora.chat import ChatTokens, tokens_of
from moescope.corpora.document import Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Ids = NDArray[np.int64]

# A word of which the pieces are the same with and without special tokens around it.
SAMPLE = "word"


class TextEncoder:
    """A tokenizer's defaults, taken apart: the text's own tokens, and what is put around them.

    Attributes:
        prefix: Special tokens that the tokenizer puts before a text (often one that begins a text, often none).
        suffix: Special tokens that it puts after a text.
        padding_id: What fills up short rows; never counted, and no counted token ever sees it.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self.prefix, self.suffix = self._added_by_default()
        special = set(tokenizer.all_special_ids)
        # The token for unknown text stands for the text's own; it is special only if it has another role besides.
        roles = {getattr(tokenizer, f"{role}_token_id", None) for role in ("bos", "eos", "pad", "sep", "cls", "mask")}
        special -= {tokenizer.unk_token_id} - roles
        special.update(self.prefix.tolist(), self.suffix.tolist())
        # Ids may have holes between them: the largest one counts, not how many there are.
        largest = max((len(tokenizer), *tokenizer.get_vocab().values(), *special))
        self._special_V = np.zeros(largest + 1, dtype=np.bool_)
        self._special_V[np.array(sorted(special), dtype=np.int64)] = True
        padding_ids = (tokenizer.pad_token_id, tokenizer.eos_token_id, 0)
        self.padding_id: int = next(token for token in padding_ids if token is not None)

    def encode(self, texts: Sequence[str]) -> list[Ids]:
        """Token ids of each text, without what the tokenizer adds around it."""
        backend = getattr(self._tokenizer, "backend_tokenizer", None)
        if backend is not None and backend.truncation is None and backend.padding is None:
            # The same ids, a quarter faster: it does not keep track of which characters a token came from.
            encodings = backend.encode_batch_fast(list(texts), add_special_tokens=False)
            return [np.array(encoding.ids, dtype=np.int64) for encoding in encodings]
        encoded = self._tokenizer(
            list(texts),
            add_special_tokens=False,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
        )
        return [np.array(ids, dtype=np.int64) for ids in encoded["input_ids"]]

    def encode_chat(self, messages: Sequence[Message], role: str | None) -> ChatTokens:
        """A conversation through the tokenizer's chat template; see `moescope.corpora.chat.tokens_of`."""
        return tokens_of(self._tokenizer, messages, role)

    def is_special(self, ids: Ids) -> NDArray[np.bool_]:
        """Where a token is special: added by the tokenizer, or spelled out in the text."""
        return self._special_V[ids]

    def _added_by_default(self) -> tuple[Ids, Ids]:
        plain = self._tokenizer(SAMPLE, add_special_tokens=False)["input_ids"]
        whole = self._tokenizer(SAMPLE)["input_ids"]
        for start in range(len(whole) - len(plain) + 1):
            if whole[start : start + len(plain)] == plain:
                end = start + len(plain)
                return np.array(whole[:start], dtype=np.int64), np.array(whole[end:], dtype=np.int64)
        special = set(self._tokenizer.all_special_ids)
        own = [position for position, token in enumerate(whole) if token not in special]
        return np.array(whole[: own[0]], dtype=np.int64), np.array(whole[own[-1] + 1 :], dtype=np.int64)
