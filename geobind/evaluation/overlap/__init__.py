"""What rows have in common that measures must know of: leaks between splits, clusters of queries."""
