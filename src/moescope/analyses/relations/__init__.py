"""Rank correlations between the measures of experts, and of pairs of experts, in the tables of a run."""
