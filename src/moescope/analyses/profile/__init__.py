"""Profiles of experts: all that a run knows of each, in one published form."""
