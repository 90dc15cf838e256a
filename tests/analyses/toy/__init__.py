"""A question as small as can be: how many tokens each layer saw. `tests/analyses/test_toy.py` registers it."""
