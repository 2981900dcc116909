"""Processes that train together: how they start, agree, and share weights."""
