"""Retrieval as published, quirks and all, and the splits that published figures rest on."""
