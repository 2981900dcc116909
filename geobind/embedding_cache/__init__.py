"""Embeddings of what a stage does not train: made once, kept on disk under the hash of all they depend on."""
