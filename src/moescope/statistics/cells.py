"""Counts by token type and expert in bounded memory: single cells as long as they fit, the rest pooled by expert.

Which types are counted singly depends on all that was counted and on nothing else, not on its order or division: of the
types seen, the longest run of the smallest ids whose cells fit. In nearly all vocabularies ids follow the frequency of
tokens in the text that the tokenizer was made of, so that what is pooled is rare.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping

import torch
from torch import Tensor

KEYS, COUNTS = "cell_keys_LC", "cell_counts_LC"
NUM_CELLS, NUM_POOLED_IDS, POOLED = "num_cells_L", "num_pooled_ids_L", "pooled_counts_LE"

State = MutableMapping[str, Tensor]


def declared(num_layers: int, num_cells: int, vocab_size: int, num_experts: int) -> dict[str, tuple]:
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


def num_cells(num_layers: int, num_bytes: int, vocab_size: int, num_experts: int) -> int:
    """Cells of each layer that so many bytes hold."""
    size = 8 if vocab_size * num_experts < 2**31 else 12
    return max(1, num_bytes // (max(num_layers, 1) * size))


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
        state[NUM_POOLED_IDS][position] = pooled
        keys, counts = (other[name][position, :size].to(state[name].device).long() for name in (KEYS, COUNTS))
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
    """Adds to cells; `keys_U` ascend and differ. The limit only ever falls, so that a pooled type stays pooled."""
    num_experts, capacity = state[POOLED].shape[1], state[KEYS].shape[1]
    size = int(state[NUM_CELLS][position])
    limit = vocab_size - int(state[NUM_POOLED_IDS][position])
    old_keys, old_counts = state[KEYS][position, :size].long(), state[COUNTS][position, :size].long()
    at_U = torch.searchsorted(old_keys, keys_U)
    known_U = torch.zeros_like(keys_U, dtype=torch.bool)
    inside_U = at_U < size
    known_U[inside_U] = old_keys[at_U[inside_U]] == keys_U[inside_U]
    # An old cell moves up by the number of new ones before it, a new one by the number of old ones.
    new_keys = keys_U[~known_U]
    old_at = torch.arange(size, device=old_keys.device) + torch.searchsorted(new_keys, old_keys)
    new_at = at_U[~known_U] + torch.arange(new_keys.shape[0], device=new_keys.device)
    keys = old_keys.new_empty(size + new_keys.shape[0])
    counts = torch.empty_like(keys)
    keys[old_at], keys[new_at] = old_keys, new_keys
    counts[old_at], counts[new_at] = old_counts, counts_U[~known_U]
    counts[old_at[at_U[known_U]]] += counts_U[known_U]
    if int(torch.searchsorted(keys, limit * num_experts)) > capacity:
        limit = int(keys[capacity]) // num_experts
    kept = int(torch.searchsorted(keys, limit * num_experts))
    state[POOLED][position].index_add_(0, keys[kept:] % num_experts, counts[kept:].to(state[POOLED]))
    for name, values in ((KEYS, keys), (COUNTS, counts)):
        row = state[name][position]
        row[:kept] = values[:kept].to(row)
        row[kept:size] = 0
    state[NUM_CELLS][position] = kept
    state[NUM_POOLED_IDS][position] = vocab_size - limit
