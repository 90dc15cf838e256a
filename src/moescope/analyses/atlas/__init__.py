"""Causal atlas: how much the loss of each domain rises without each expert."""
