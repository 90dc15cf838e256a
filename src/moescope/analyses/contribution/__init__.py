"""Contribution of each expert to its layer's output, and the tokens that its mean output promotes."""
