"""Routing recorded elsewhere or earlier: our Parquet form, and one reader for each format of others."""

from moescope.traces.reading import Trace

__all__ = ["Trace"]
