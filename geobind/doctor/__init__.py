"""Examination of an installation, for `geobind doctor`."""
