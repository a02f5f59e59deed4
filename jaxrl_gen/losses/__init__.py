"""The mathematics: arrays in, one number per sample out. Weights, masks and reductions belong to the caller."""
