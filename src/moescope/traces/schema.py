"""The columns of a trace's Parquet files; docs/traces.md describes them."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import pyarrow as pa

from moescope.traces.blocks import MEASURES

OPTIONAL_IDS = ("token_id", "next_token_id", "predicted_token_id")
"""Columns of one id per token, in order; -1 where there is none."""

DOCUMENT_COLUMNS = ("document_id", "document_hash")
HALF_PRECISION = ("router_entropy", "top1_probability", "topk_mass")
"""Stored with 11 bits of precision, three digits: none of them comes near the smallest float16 of that precision."""

TEXT_COLUMNS = ("document_id", "domain", "phase")

DOCUMENTS_SCHEMA = pa.schema(
    [
        ("document_id", pa.string()),
        ("document_hash", pa.int64()),
        ("domain", pa.string()),
        ("num_tokens", pa.int64()),
        ("source", pa.string()),
        ("text", pa.string()),
    ]
)
TEXTS_SCHEMA = pa.schema([("token_id", pa.int32()), ("text", pa.string())])
COUNTS_SCHEMA = pa.schema(
    [("layer", pa.int32()), ("domain", pa.string()), ("expert", pa.int32()), ("num_selected", pa.int64())]
)


def id_type(num_experts: int) -> pa.DataType:
    """What expert ids are stored as."""
    return pa.uint8() if num_experts <= 256 else pa.uint16()


def token_schema(
    layers: Sequence[int],
    num_experts_per_token: int,
    columns: Collection[str],
    *,
    id_type: pa.DataType,
    weight_type: pa.DataType,
) -> pa.Schema:
    """Columns of the files that have a row per token.

    Args:
        layers: MoE layers recorded.
        num_experts_per_token: K.
        columns: What is known beside the experts, positions and domains.
        id_type: Of expert ids.
        weight_type: Of applied weights.
    """
    fields = [("document_id", pa.string()), ("document_hash", pa.int64())] if "document_id" in columns else []
    fields += [("domain", pa.string()), ("position", pa.int32()), ("phase", pa.string())]
    fields += [(name, pa.int32()) for name in OPTIONAL_IDS if name in columns]
    for layer in layers:
        fields.append((f"expert_ids_{layer}", pa.list_(id_type, num_experts_per_token)))
        if "weights" in columns:
            fields.append((f"weights_{layer}", pa.list_(weight_type, num_experts_per_token)))
        fields += [
            (f"{name}_{layer}", pa.float16() if name in HALF_PRECISION else pa.float32())
            for name in MEASURES
            if name in columns
        ]
    return pa.schema(fields)


def dictionary_columns(schema: pa.Schema) -> list[str]:
    """Columns with few different values, as Parquet's writer names them."""
    lists = [f"{name}.list.element" for name in schema.names if name.startswith("expert_ids_")]
    return [name for name in (*TEXT_COLUMNS, "document_hash") if name in schema.names] + lists
