"""Tables made from tables: cut into splits, packed into a few files."""
