"""Routing of some tokens as arrays: what readers of recorded routing make, and what the trace's own form stores."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]

MEASURES = ("router_entropy", "top1_probability", "topk_mass", "margin", "boundary_margin")
"""What may be known of a router's probabilities: one value per token and layer each."""


@dataclass(frozen=True)
class Source:
    """Where a document of a block comes from.

    Attributes:
        document_id: Its id; empty where documents are not known.
        document_hash: A stable 64-bit hash of it.
        domain: Its domain.
        source: Where the text is from, as far as the corpus says.
        text: The text, where it is kept.
    """

    document_id: str
    document_hash: int
    domain: str
    source: str = ""
    text: str | None = None

    def is_same(self, other: Source) -> bool:
        """Whether both are of one document and domain."""
        return (self.document_hash, self.document_id, self.domain) == (
            other.document_hash,
            other.document_id,
            other.domain,
        )


@dataclass(frozen=True, eq=False)
class Block:
    """Routing of tokens, those of one document adjacent; T tokens, B documents, L layers, K experts per token.

    Attributes:
        documents: The documents, in order.
        rows_T: Index of each token's document, ascending.
        positions_T: Position of each token in its document.
        generated_T: Whether the model wrote the token; the others are of a prompt, or of text that was read.
        expert_ids_TLK: Selected experts; by rank, unless the trace has no ranks.
        token_ids_T: Input token ids; None where they are not known.
        next_token_ids_T: The true next token of the document, -1 where there is none; None where it is not known.
        predicted_token_ids_T: The model's most probable next token; None where it is not known.
        weights_TLK: The weights applied, in the order of the experts; None where they are not known.
        measures: Of `MEASURES` those known, each (T, L); NaN where a token has no boundary.
    """

    documents: Sequence[Source]
    rows_T: Ids
    positions_T: Ids
    generated_T: NDArray[np.bool_]
    expert_ids_TLK: NDArray[np.integer]
    token_ids_T: Ids | None = None
    next_token_ids_T: Ids | None = None
    predicted_token_ids_T: Ids | None = None
    weights_TLK: NDArray[np.floating] | None = None
    measures: Mapping[str, NDArray[np.floating]] = field(default_factory=dict)

    @property
    def num_tokens(self) -> int:
        """T."""
        return int(self.rows_T.shape[0])

    @property
    def columns(self) -> frozenset[str]:
        """Names of what is known beside the experts."""
        optional = {
            "token_id": self.token_ids_T,
            "next_token_id": self.next_token_ids_T,
            "predicted_token_id": self.predicted_token_ids_T,
            "weights": self.weights_TLK,
        }
        return frozenset({name for name, values in optional.items() if values is not None} | set(self.measures))

    def part(self, keep_t: NDArray[np.integer] | NDArray[np.bool_]) -> Block:
        """The block with some of its tokens, in the same order; documents that lose all of theirs are left out."""
        rows_t = self.rows_T[keep_t]
        present, rows_t = np.unique(rows_t, return_inverse=True)

        def cut(values: NDArray | None) -> NDArray | None:
            return None if values is None else values[keep_t]

        return Block(
            documents=[self.documents[row] for row in present],
            rows_T=rows_t.astype(np.int64).reshape(-1),
            positions_T=self.positions_T[keep_t],
            generated_T=self.generated_T[keep_t],
            expert_ids_TLK=self.expert_ids_TLK[keep_t],
            token_ids_T=cut(self.token_ids_T),
            next_token_ids_T=cut(self.next_token_ids_T),
            predicted_token_ids_T=cut(self.predicted_token_ids_T),
            weights_TLK=cut(self.weights_TLK),
            measures={name: values[keep_t] for name, values in self.measures.items()},
        )


def joined(blocks: Sequence[Block]) -> Block:
    """Several blocks, all with the same columns, as one; a document that goes on in the next block stays one."""
    if len(blocks) == 1:
        return blocks[0]
    first = blocks[0]
    documents: list[Source] = []
    starts = []
    for block in blocks:
        last, begun = documents[-1] if documents else None, block.documents[0]
        goes_on = last is not None and bool(last.document_id) and last.is_same(begun)
        starts.append(len(documents) - goes_on)
        documents.extend(block.documents[1:] if goes_on else block.documents)

    def together(name: str) -> NDArray | None:
        return None if getattr(first, name) is None else np.concatenate([getattr(block, name) for block in blocks])

    return Block(
        documents=documents,
        rows_T=np.concatenate([block.rows_T + start for block, start in zip(blocks, starts, strict=True)]),
        positions_T=np.concatenate([block.positions_T for block in blocks]),
        generated_T=np.concatenate([block.generated_T for block in blocks]),
        expert_ids_TLK=np.concatenate([block.expert_ids_TLK for block in blocks]),
        token_ids_T=together("token_ids_T"),
        next_token_ids_T=together("next_token_ids_T"),
        predicted_token_ids_T=together("predicted_token_ids_T"),
        weights_TLK=together("weights_TLK"),
        measures={name: np.concatenate([block.measures[name] for block in blocks]) for name in first.measures},
    )


def split(block: Block) -> tuple[Block | None, Block]:
    """What comes before the last document, None where there is nothing, and the last document."""
    start = int(np.searchsorted(block.rows_T, block.rows_T[-1]))
    before = block.part(np.arange(start)) if start else None
    return before, block.part(np.arange(start, block.num_tokens)) if start else block


def hash_of(*parts: object) -> int:
    """A signed 64-bit hash of a document's name, the same on every machine."""
    data = "\0".join(str(part) for part in parts).encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little", signed=True)
