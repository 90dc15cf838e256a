"""Counts by token type and expert in bounded memory: single cells as long as they fit, the rest pooled by expert.

Which types are counted singly depends on all that was counted and on nothing else, not on its order or division: of the
types seen, the longest run of the smallest ids whose cells fit. In nearly all vocabularies ids follow the frequency of
tokens in the text that the tokenizer was made of, so that what is pooled is rare.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping

import numpy as np
import torch
from torch import Tensor

KEYS, COUNTS = "cell_keys_LC", "cell_counts_LC"
NUM_CELLS, NUM_POOLED_IDS, POOLED = "num_cells_L", "num_pooled_ids_L", "pooled_counts_LE"

State = MutableMapping[str, Tensor]


def declared(
    num_layers: int, num_cells: int, vocab_size: int, num_experts: int
) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    """Names, shapes and dtypes of the state.

    A cell's key is `type id x E + expert`; keys ascend, and what lies beyond `num_cells_L` of them is 0. Types with
    one of the vocabulary's last `num_pooled_ids_L` ids are pooled.
    """
    keys = torch.int32 if vocab_size * num_experts < 2**31 else torch.int64
    return {
        KEYS: ((num_layers, num_cells), keys),
        COUNTS: ((num_layers, num_cells), torch.int32),
        NUM_CELLS: ((num_layers,), torch.int64),
        NUM_POOLED_IDS: ((num_layers,), torch.int64),
        POOLED: ((num_layers, num_experts), torch.int64),
    }


def zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Zeros; in a CPU's memory those that are never written to take none, which torch's own do."""
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    return torch.from_numpy(np.zeros(shape, dtype=torch.empty(0, dtype=dtype).numpy().dtype))


def num_cells(num_layers: int, num_bytes: int, vocab_size: int, num_experts: int) -> int:
    """Cells of each layer that so many bytes hold."""
    size = 8 if vocab_size * num_experts < 2**31 else 12
    return max(1, num_bytes // (max(num_layers, 1) * size))


def resident_bytes(state: Mapping[str, Tensor], num_tokens: int, num_ranks: int) -> int:
    """Bytes that are written to: a token makes `num_ranks` cells of each layer at most."""
    num_layers, capacity = state[KEYS].shape
    unused = num_layers * max(0, capacity - num_tokens * num_ranks)
    return sum(tensor.nbytes - (name in (KEYS, COUNTS)) * unused * tensor.itemsize for name, tensor in state.items())


def add(state: State, position: int, keys_N: Tensor, counts_N: Tensor, vocab_size: int) -> None:
    """Adds counts to a layer's cells; keys may repeat."""
    some_N = counts_N > 0
    keys_U, where_N = torch.unique(keys_N[some_N], return_inverse=True)
    counts_U = torch.zeros_like(keys_U).index_add_(0, where_N, counts_N[some_N].to(keys_U))
    _insert(state, position, keys_U, counts_U, vocab_size)


def merge(state: State, other: Mapping[str, Tensor], vocab_size: int) -> None:
    """Adds the cells and the pooled counts of another part."""
    for position in range(state[NUM_CELLS].shape[0]):
        size = int(other[NUM_CELLS][position])
        state[POOLED][position] += other[POOLED][position].to(state[POOLED])
        pooled = max(int(state[NUM_POOLED_IDS][position]), int(other[NUM_POOLED_IDS][position]))
        _limit(state, position, vocab_size - pooled, vocab_size)
        keys, counts = (other[name][position, :size].to(state[name].device) for name in (KEYS, COUNTS))
        _insert(state, position, keys, counts, vocab_size)


def seen(state: Mapping[str, Tensor], position: int) -> tuple[Tensor, Tensor]:
    """Type ids counted singly in a layer, ascending, and their counts by expert (U, E), int32."""
    num_experts = state[POOLED].shape[1]
    size = int(state[NUM_CELLS][position])
    keys_C, counts_C = state[KEYS][position, :size].long(), state[COUNTS][position, :size]
    ids_U, rows_C = torch.unique_consecutive(keys_C // num_experts, return_inverse=True)
    counts_UE = counts_C.new_zeros((ids_U.shape[0], num_experts))
    counts_UE[rows_C, keys_C % num_experts] = counts_C
    return ids_U, counts_UE


def _insert(state: State, position: int, keys_U: Tensor, counts_U: Tensor, vocab_size: int) -> None:
    """Adds to cells; `keys_U` ascend and differ."""
    keys_C, counts_C = state[KEYS][position], state[COUNTS][position]
    num_experts, size = state[POOLED].shape[1], int(state[NUM_CELLS][position])
    keys_U, counts_U = keys_U.to(keys_C), counts_U.to(counts_C)
    single = int(torch.searchsorted(keys_U, (vocab_size - int(state[NUM_POOLED_IDS][position])) * num_experts))
    _pool(state, position, keys_U[single:], counts_U[single:])
    keys_U, counts_U = keys_U[:single], counts_U[:single]
    at_U = torch.searchsorted(keys_C[:size], keys_U)
    known_U = torch.zeros_like(at_U, dtype=torch.bool)
    inside_U = at_U < size
    known_U[inside_U] = keys_C[at_U[inside_U]] == keys_U[inside_U]
    counts_C.index_add_(0, at_U[known_U], counts_U[known_U])
    new_U = ~known_U
    # A new cell lies as far up as there are old ones before it, and new ones; the old ones fill the gaps in order.
    new_at = at_U[new_U] + torch.arange(int(new_U.sum()), device=at_U.device)
    is_old = torch.ones(size + new_at.shape[0], dtype=torch.bool, device=at_U.device)
    is_old[new_at] = False
    room, total = keys_C.shape[0], is_old.shape[0]
    merged = []
    for row_C, values_U in ((keys_C, keys_U), (counts_C, counts_U)):
        merged.append(row_C.new_empty(total))
        merged[-1][new_at] = values_U[new_U]
        merged[-1][is_old] = row_C[:size]
        row_C[:total] = merged[-1][:room]
    state[NUM_CELLS][position] = min(total, room)
    if total > room:  # with the first cell that does not fit goes all of its type
        _pool(state, position, merged[0][room:], merged[1][room:])
        _limit(state, position, int(merged[0][room]) // num_experts, vocab_size)


def _limit(state: State, position: int, limit: int, vocab_size: int) -> None:
    """Pools the types from an id on; the limit only ever falls, so that a pooled type stays pooled."""
    keys_C, counts_C = state[KEYS][position], state[COUNTS][position]
    size = int(state[NUM_CELLS][position])
    kept = int(torch.searchsorted(keys_C[:size], limit * state[POOLED].shape[1]))
    _pool(state, position, keys_C[kept:size], counts_C[kept:size])
    keys_C[kept:size] = 0
    counts_C[kept:size] = 0
    state[NUM_CELLS][position] = kept
    state[NUM_POOLED_IDS][position] = vocab_size - limit


def _pool(state: State, position: int, keys_N: Tensor, counts_N: Tensor) -> None:
    state[POOLED][position].index_add_(0, (keys_N % state[POOLED].shape[1]).long(), counts_N.to(state[POOLED]))
