"""Errors for users, each with what is wrong, where, and the fix."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class GeobindError(Exception):
    """An error that a user can fix; the command line prints its message and exits with `exit_code`."""

    exit_code = 2  # 2: the user's input is at fault; 1: the run failed for another reason


class PluginError(GeobindError):
    """A plugin is missing, broken or breaks the contract."""


class RecipeError(GeobindError):
    """A recipe cannot be run; the message lists every mistake with its line."""


class DataError(GeobindError):
    """An input, a file or a table cannot be used; the message names it and the reason."""


class CheckpointError(GeobindError):
    """A bundle or checkpoint cannot be loaded, or does not fit what it is loaded into."""


class ExportError(GeobindError):
    """An encoder cannot be exported, or embeds differently once exported."""


class TrainingError(GeobindError):
    """Training cannot continue (loss not finite, frozen weights changed); finished work is kept."""

    exit_code = 1


class StorageError(GeobindError):
    """A result cannot be written: the disk is full, or the folder is not writable."""

    exit_code = 1


def did_you_mean(word: str, known: Iterable[str], otherwise: str = "") -> str:
    """Return the hint for an unknown word: the closest known one, else `otherwise`."""
    near = difflib.get_close_matches(word, list(known), n=1)
    return f"did you mean '{near[0]}'?" if near else otherwise
