"""What intervals and tables share."""

COVERAGE = 0.95
"""Share of samples in which an interval is to hold the true value."""
MIN_DOCUMENTS = 10
"""Fewest documents that an interval over documents is made of."""
NUM_BOOTSTRAP = 400
"""Bootstrap replicates."""
ALL = "all"
"""The domain of rows that pool the tokens of all domains."""
