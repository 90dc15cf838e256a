"""Expert paths: how far the expert at one MoE layer predicts the expert at the next."""
