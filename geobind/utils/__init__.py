"""General helpers: files, hashing, geometry, formatting, progress."""
