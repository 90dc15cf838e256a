"""Benchmarks: ratios measured in one run, alternating, medians. Each script prints a JSON line a case."""
