"""Similarity of experts' weights, and the number of directions that each uses."""
