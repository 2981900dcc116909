"""Folders and recipes to begin with, written out from templates."""
