"""The card says what the shipped weights do."""

import math
import re
from pathlib import Path

import pandas as pd
import pytest
import torch
from transformers import AutoTokenizer, OlmoeForCausalLM

PACKAGE = Path(__file__).parents[2] / "src" / "moescope"
NANO = PACKAGE / "models" / "nano"
pytestmark = pytest.mark.slow
DOMAINS = ("molecules", "novels", "python")
WINDOW, STRIDE = 1024, 512


@pytest.fixture(scope="module")
def nano():
    model = OlmoeForCausalLM.from_pretrained(NANO, dtype=torch.float32).eval()
    model.set_experts_implementation("grouped_mm")
    return model, AutoTokenizer.from_pretrained(NANO)


@torch.inference_mode()
def bits_of(model, ids: list[int]) -> float:
    """As the card defines it, one document and one token at a time; no code shared with the evaluation."""
    bits, done = math.log2(model.config.vocab_size), 1
    for start in range(0, len(ids), STRIDE):
        part = torch.tensor(ids[start : start + WINDOW])
        log_p = model(part[None], use_cache=False).logits[0].double().log_softmax(-1)
        while done < start + len(part):
            bits -= log_p[done - 1 - start, ids[done]].item() / math.log(2)
            done += 1
        if done == len(ids):
            return bits
    raise AssertionError


@pytest.mark.parametrize("domain", DOMAINS)
def test_bits_per_byte_are_those_of_the_card(nano, domain):
    model, tokenizer = nano
    table = pd.read_parquet(PACKAGE / "corpora" / "embedded" / "held_out.parquet")
    texts = table.loc[table["domain"] == domain, "text"]
    bits = sum(bits_of(model, tokenizer.encode(text, add_special_tokens=False)) for text in texts)
    found = bits / sum(len(text.encode()) for text in texts)

    card = (NANO / "README.md").read_text("utf-8")
    section = card[card.index("## Bits per byte") :]
    row = re.search(rf"^\| {domain} \| \d+ \| [\d,]+ \| ([\d.]+) \| ([\d.]+) \|", section, re.MULTILINE)
    assert row, f"the card has no row for {domain}"
    assert found == pytest.approx(float(row[1]), abs=0.01)
    assert found < float(row[2])
