"""Cache of embeddings of frozen encoders, on disk under a hash of everything they depend on."""
