"""A results folder -> words, key numbers, and a page. Reads the folder and nothing else."""
