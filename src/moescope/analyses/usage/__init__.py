"""Usage and specialization: how often each expert is selected, and in which domains."""
