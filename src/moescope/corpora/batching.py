"""Which tokens of a corpus are counted, and how they are laid out in batches.

Two steps that know nothing of each other: windows of documents are chosen (`Sampler.windows`), then packed into padded
rows (`pack`). So how many tokens fit into a batch changes no number.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from moescope.corpora.base import Corpus
from moescope.corpora.document import Document, stable_hash
from moescope.corpora.names import listed, shown
from moescope.corpora.packing import Batch, Window, lay_out, pack
from moescope.corpora.problems import Problems
from moescope.corpora.tokenizing import Ids, TextEncoder
from moescope.errors import CorpusError, UsageError, warn

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Fewest tokens that the cap on one document comes down to, and the share of its domain's budget it may have at most.
MIN_WINDOW = 128
# Findings are chosen on one half of the documents and measured on the other: 30 give each half about 15 of a domain.
MAX_SHARE = 30

# Longest row where no one asks for another: attention's cost grows with the square of it.
DEFAULT_SEQUENCE_LENGTH = 4096

# Documents tokenized at a time, and batches' worth of rows among which rows of like length are sought.
CHUNK_DOCUMENTS = 64
LOOK_AHEAD_BATCHES = 16

# Where a long document was cut, its last tokens may not be what they are in the whole: they are left alone.
UNSURE_TOKENS = 16


class Sampler:
    """Batches of a corpus' tokens: as many of each domain, few of each document, the same for the same seed.

    `num_tokens` are split evenly over the domains, the remainder over the first ones. Of one document at most `window`
    tokens are taken, as one run whose position in the document is drawn by seed: `sequence_length` less what the
    tokenizer adds, or `max(128, domain budget / 30)` where none is given, and never more than the model takes. Padding
    and special tokens, and what a chat template puts around messages, are never counted. Iterating again gives the
    same batches. Memory does not depend on `num_tokens`.

    Args:
        corpus: Where documents come from.
        tokenizer: The model's tokenizer; text becomes tokens as it does by default.
        num_tokens: Tokens to count, at least one for each domain.
        seed: Draws documents and windows.
        sequence_length: Longest row in tokens, with what the tokenizer adds. One that is given also caps what is taken
            of a document, so with a large one the tokens come from fewer documents (which is then warned); None for
            the rule above and rows of at most 4,096.
        max_positions: Longest row the model takes; None where it has no limit.
        batch_tokens: Padded size B x S a batch has at most. A row that is longer makes a batch of its own.

    Attributes:
        window: Tokens taken of one document at most.
        budget_D: Tokens asked for, by domain.
        num_tokens_D: Tokens counted so far in this iteration, by domain; final once exhausted.
        num_documents_D: Documents they are from.
        padding_share: Share of padding in all tokens fed so far.
        warnings: Text missing or skipped, in sentences; complete once exhausted, when each is also warned.

    Raises:
        UsageError: A number that makes no sense.
        CorpusError: While iterating: the corpus has no text.
    """

    def __init__(
        self,
        corpus: Corpus,
        tokenizer: PreTrainedTokenizerBase,
        *,
        num_tokens: int,
        seed: int = 0,
        sequence_length: int | None = None,
        max_positions: int | None = None,
        batch_tokens: int = 8192,
    ) -> None:
        for name, value in (
            ("num_tokens", num_tokens),
            ("sequence_length", sequence_length),
            ("batch_tokens", batch_tokens),
        ):
            if value is not None and (not isinstance(value, int | np.integer) or isinstance(value, bool) or value < 1):
                raise UsageError(f"{name} is {value!r}", expected="a positive whole number of tokens")
        num_domains = len(corpus.domains)
        if num_tokens < num_domains:
            raise UsageError(
                f"num_tokens is {num_tokens}, and corpus {corpus.name} has {num_domains} domains",
                expected="at least one token for each domain",
                remedy=f"ask for more tokens, or for fewer domains (at most {num_tokens})",
            )
        self._corpus = corpus
        self._encoder = TextEncoder(tokenizer)
        self._seed = seed
        self._batch_tokens = batch_tokens
        self.num_tokens = num_tokens
        self.budget_D = num_tokens // num_domains + (np.arange(num_domains) < num_tokens % num_domains)
        added = len(self._encoder.prefix) + len(self._encoder.suffix)
        longest = DEFAULT_SEQUENCE_LENGTH if sequence_length is None else sequence_length
        if max_positions is not None:
            longest = min(longest, max_positions)
        self._sequence_length, self._longest = sequence_length, longest
        if longest <= added:
            raise UsageError(
                f"rows of {longest} tokens have no room for text beside the {added} tokens that the tokenizer adds",
                expected=f"a sequence_length of at least {added + 1}",
            )
        by_budget = max(MIN_WINDOW, num_tokens // num_domains // MAX_SHARE)
        self._default_window = min(by_budget, longest - added)
        self.window = self._default_window if sequence_length is None else longest - added
        self._start()

    def _start(self) -> None:
        self.num_tokens_D = np.zeros(len(self._corpus.domains), dtype=np.int64)
        self.num_documents_D = np.zeros(len(self._corpus.domains), dtype=np.int64)
        self.warnings: list[str] = []
        self._fed = self._padded = self._alone = 0

    @property
    def identity(self) -> dict[str, Any]:
        """What tells this sample of text from others, as plain values."""
        corpus = [self._corpus.name, self._corpus.fingerprint, *self._corpus.domains]
        return {"corpus": corpus, "num_tokens": int(self.num_tokens), "seed": int(self._seed), "window": self.window}

    @property
    def padding_share(self) -> float:
        """Share of padding in all tokens fed so far."""
        return 1 - self._fed / self._padded if self._padded else 0.0

    def __iter__(self) -> Iterator[Batch]:
        """Yields batches; starts anew each time."""
        self._start()
        problems = Problems()
        waiting: list[Window] = []
        size = 0
        for window in self.windows(problems):
            waiting.append(window)
            size += len(window.row)
            if size >= LOOK_AHEAD_BATCHES * self._batch_tokens:
                batches = pack(waiting, self._batch_tokens)
                # Rows that fill less than half a batch wait for others of their length.
                smallest = min(range(len(batches)), key=lambda index: _size(batches[index]))
                waiting = batches.pop(smallest) if 2 * _size(batches[smallest]) < self._batch_tokens else []
                size = _size(waiting)
                yield from map(self._batch, batches)
        yield from map(self._batch, pack(waiting, self._batch_tokens))
        self._finish(problems)

    def windows(self, problems: Problems) -> Iterator[Window]:
        """Chooses what is counted, and counts it: windows in the order in which the corpus gives documents."""
        wanted = set(self._corpus.domains)
        domain_ids = {domain: index for index, domain in enumerate(self._corpus.domains)}
        chunk: list[tuple[Document, int]] = []
        in_chunk_D = np.zeros_like(self.budget_D)
        for document in self._corpus.stream(self._seed, wanted, problems):
            domain_id = domain_ids[document.domain]
            chunk.append((document, domain_id))
            in_chunk_D[domain_id] += 1
            # No more than would do if each document gave a whole window.
            enough = np.all(in_chunk_D * self.window >= self.budget_D - self.num_tokens_D)
            if len(chunk) == CHUNK_DOCUMENTS or enough:
                yield from self._windows_of(chunk, wanted, problems)
                chunk = []
                in_chunk_D[:] = 0
                if not wanted:
                    return
        yield from self._windows_of(chunk, wanted, problems)

    def _windows_of(
        self, chunk: Sequence[tuple[Document, int]], wanted: set[str], problems: Problems
    ) -> Iterator[Window]:
        if not chunk:
            return
        encoded = self._encoder.encode([document.text for document, _ in chunk if not document.messages])
        texts = iter(encoded)
        for document, domain_id in chunk:
            ids = next(texts) if not document.messages else None
            left = int(self.budget_D[domain_id] - self.num_tokens_D[domain_id])
            if left == 0:
                continue
            if ids is not None:
                fixed, alone = self._encoder.is_special(ids), True
            else:
                conversation = self._conversation(document, problems)
                if conversation is None:
                    continue
                ids, fixed, alone = conversation
            if np.count_nonzero(~fixed) < 2:
                problems.add("one_token", document.document_id)
                continue
            window = self._window(document, domain_id, ids, fixed, left, alone=alone)
            num_counted = len(window.counted)
            if num_counted == 0:
                continue
            self.num_tokens_D[domain_id] += num_counted
            self.num_documents_D[domain_id] += 1
            if num_counted == left:
                wanted.discard(document.domain)
            yield window

    def _conversation(self, document: Document, problems: Problems) -> tuple[Ids, NDArray[np.bool_], bool] | None:
        """Ids of a conversation, which of them are not counted, and whether the tokenizer's own frame goes around."""
        try:
            chat = self._encoder.encode_chat(document.messages, document.role)
        except ValueError as error:
            problems.add("chat_refused", f"{document.document_id}: {error}")
            return None
        except LookupError as error:
            raise UsageError(
                f"roles of conversations in {self._corpus.name} can't be told apart: {error}",
                expected="a fast tokenizer (tokenizer.json)",
                remedy="leave the domain field out, or use a model whose tokenizer has a tokenizer.json",
            ) from error
        if not chat.templated:
            problems.add("no_template", document.document_id)
        if chat.changed:
            problems.add("chat_changed", document.document_id, chat.changed)
        return chat.ids, self._encoder.is_special(chat.ids) | ~chat.content, not chat.templated

    def _window(
        self,
        document: Document,
        domain_id: int,
        ids: Ids,
        fixed: NDArray[np.bool_],
        left: int,
        *,
        alone: bool,
    ) -> Window:
        """A run of a document's tokens.

        Args:
            document: The document.
            domain_id: Index of its domain.
            ids: Its tokens.
            fixed: Which of them are fed and not counted: special tokens, and what a chat template puts around messages.
            left: Tokens its domain still wants.
            alone: Whether `ids` lack what the tokenizer puts around a text; a chat template has put it there.
        """
        usable = len(ids) - UNSURE_TOKENS if document.truncated and len(ids) > UNSURE_TOKENS else len(ids)
        document_hash = stable_hash(self._corpus.name, document.document_id)
        length = min(self.window, usable)
        draw = stable_hash(self._seed, document_hash, "window")
        start = draw % (usable - length + 1)
        if document.messages and (counted := np.flatnonzero(~fixed[:usable])).size:
            # Of a conversation in which one side says little, a window anywhere might hold none of it.
            first = counted[draw % max(1, len(counted) - length + 1)]
            start = min(int(first), usable - length)
        positions = start + np.flatnonzero(~fixed[start : start + length])
        if len(positions) > left:
            positions = positions[:left]
            length = int(positions[-1]) + 1 - start
        end = start + length
        following = np.append(np.where(fixed, -1, ids), -1)
        prefix = self._encoder.prefix if alone or start > 0 else self._encoder.prefix[:0]
        ends_document = alone and end == len(ids) and not document.truncated
        suffix = self._encoder.suffix if ends_document else self._encoder.suffix[:0]
        return Window(
            row=np.concatenate([prefix, ids[start:end], suffix]),
            counted=len(prefix) + positions - start,
            next_ids=following[positions + 1],
            positions=positions,
            document_hash=document_hash,
            domain_id=domain_id,
        )

    def _batch(self, windows: Sequence[Window]) -> Batch:
        batch = lay_out(windows, self._encoder.padding_id)
        self._fed += _size(windows)
        self._padded += batch.input_ids_BS.numel()
        self._alone += batch.input_ids_BS.numel() > self._batch_tokens
        return batch

    def _finish(self, problems: Problems) -> None:
        messages = problems.messages()
        counted = int(self.num_tokens_D.sum())
        if counted == 0:
            raise CorpusError(
                f"corpus {self._corpus.name} holds no text: {'; '.join(messages) or 'no document was found'}",
                expected="documents of two tokens or more",
                remedy="check the files, --text-field and --domain-field",
            )
        short = [
            f"{shown(name)} {tokens:,} of {budget:,} ({documents:,} documents)"
            for name, tokens, budget, documents in zip(
                self._corpus.domains, self.num_tokens_D, self.budget_D, self.num_documents_D, strict=True
            )
            if tokens < budget
        ]
        if short:
            messages.append(
                f"fewer tokens than asked, {counted:,} of {self.num_tokens:,}: {len(short)} of {len(self.budget_D)} "
                f"domains ran out, with at most {self.window:,} tokens taken of each document: {listed(short)}"
            )
        messages += self._effect_of_sequence_length()
        if self._alone:
            messages.append(
                f"{self._alone:,} rows were longer than batch_tokens ({self._batch_tokens:,}) and ran alone; "
                "sequence_length makes them shorter"
            )
        self.warnings = messages
        for message in messages:
            warn(message, stacklevel=3)

    def _effect_of_sequence_length(self) -> Iterator[str]:
        """What an explicit length did to the sample, where it did not do as asked or cost documents."""
        if self._sequence_length is None:
            return
        if self._longest < self._sequence_length:
            yield (
                f"sequence_length is {self._sequence_length:,} and the model takes {self._longest:,} tokens: "
                f"at most {self.window:,} tokens of each document are used"
            )
        usual = int(np.sum(-(-self.num_tokens_D // self._default_window)))
        if self.num_documents_D.sum() < usual:
            domain = int(np.argmin(self.num_documents_D))
            yield (
                f"with up to {self.window:,} tokens of each document, as sequence_length asks, the tokens come from "
                f"{int(self.num_documents_D.sum()):,} documents (fewest: {self.num_documents_D[domain]:,} of "
                f"{shown(self._corpus.domains[domain])}); without it they would come from {usual:,} or more, with "
                f"at most {self._default_window:,} tokens of each: confidence intervals are over documents"
            )


def _size(windows: Sequence[Window]) -> int:
    return sum(len(window.row) for window in windows)
