"""Similarity of experts' outputs on the same tokens, beside a random-weight baseline."""
