"""TensorRT-LLM's `routed_experts` of each output: (tokens - 1, MoE layers, K), logical ids, saved as JSON (Lines)."""

from __future__ import annotations

from moescope.traces.readers import vllm
from moescope.traces.readers.base import Recording, Request


def read(request: Request) -> Recording:
    """Reads outputs in the form of the LLM API: `prompt_token_ids`, `outputs[i].token_ids` and `.routed_experts`.

    Raises:
        UsageError: An output that can't be used; says which.
    """
    return vllm.read(request, engine="tensorrt-llm")
