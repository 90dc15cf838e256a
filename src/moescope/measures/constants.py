"""What intervals and tables share."""

COVERAGE = 0.95
"""Share of samples in which an interval is to hold the true value."""
MIN_DOCUMENTS = 8
"""Fewest documents that an interval over documents is made of."""
MIN_EFFECTIVE_DOCUMENTS = 5
"""Smallest effective number of documents, by tokens `(Σ t)² / Σ t²`, that an interval over documents is made of."""
NUM_BOOTSTRAP = 400
"""Bootstrap replicates."""
NUM_PERMUTATIONS = 999
"""Permutations of a null."""
MIN_EXPECTED = 20
"""Fewest tokens expected under independent routing for a pair or a path to be ranked by its lift: fewer give noise."""
ALL = "all"
"""The domain of rows that pool the tokens of all domains."""
