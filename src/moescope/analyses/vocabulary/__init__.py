"""Vocabulary specialization: how far single token types are routed to single experts."""
