"""Overlap: how far experts share tokens, and token types."""
