"""Tokens as text that can be read; the functions are `moescope.models.token_text`'s."""

from moescope.models.token_text import token_texts, visible

__all__ = ["token_texts", "visible"]
