"""Classes and facts of places recognised from embeddings: zero-shot, from a few examples, by linear maps."""
