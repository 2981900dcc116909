"""The shared space itself: probabilities, the gap between modalities, sums of embeddings."""
