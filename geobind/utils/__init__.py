"""Helpers without a subject of geobind's own: files, hashing, geometry, formatting, progress."""
