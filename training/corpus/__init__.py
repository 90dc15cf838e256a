"""The corpus of the embedded model: from pinned packages to training text, held-out text and tokenizer."""
