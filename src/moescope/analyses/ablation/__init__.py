"""Ablation: the loss of each domain with and without some experts of a layer."""
