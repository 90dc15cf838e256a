"""Co-activation: which experts are selected for the same tokens, more or less often than chance."""
