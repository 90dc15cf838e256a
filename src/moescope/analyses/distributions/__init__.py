"""Routing distributions: how logits, probabilities and weights are distributed."""
