"""What intervals and tables share."""

COVERAGE = 0.95
"""Share of samples in which an interval is to hold the true value."""
MIN_DOCUMENTS = 10
"""Fewest documents that an interval over documents is made of."""
NUM_BOOTSTRAP = 400
"""Bootstrap replicates."""
MIN_EXPECTED = 20
"""Fewest tokens expected under independent routing for a pair or a path to be ranked by its lift: fewer give noise."""
ALL = "all"
"""The domain of rows that pool the tokens of all domains."""
