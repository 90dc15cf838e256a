"""One file per statistic (or few): each calls `register` from `tests.contracts.statistics_cases`."""
