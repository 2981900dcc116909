"""Look at what a table holds: check it, draw it, find what is there twice."""
