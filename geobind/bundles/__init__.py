"""A binder as a folder of files: weights, card, README, proof; small ones over a base; on the hub."""
