"""Reachability of the Hugging Face hub, checked once before a download instead of a minute of retries."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager

from geobind.errors import CheckpointError

_PATIENCE = 8.0  # seconds a hub has to answer
_REMEMBERED = 60.0  # seconds for which a hub that did not answer is not asked again
_log = logging.getLogger(__name__)
_states: dict[str, tuple[float, str | None]] = {}  # by address: when it was asked, why it cannot be reached


def check_reachability(patience: float = _PATIENCE) -> str | None:
    """Return why the hub is unreachable, or None. A success is remembered, a failure for a minute.

    Args:
        patience: Seconds to wait for an answer.
    """
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    asked, reason = _states.get(constants.ENDPOINT, (-math.inf, "not asked yet"))
    if reason is not None and time.monotonic() - asked > _REMEMBERED:
        reason = _ask(constants.ENDPOINT, patience)
        _states[constants.ENDPOINT] = (time.monotonic(), reason)
        _log.debug("%s: %s", constants.ENDPOINT, reason or "reachable")
    return reason


@contextmanager
def hub_or_cache() -> Generator[None]:
    """Run the block with the hub, or with its cache alone where the hub is unreachable.

    Without this, huggingface_hub retries six times for every file missing in its cache.
    """
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = check_reachability() is not None
    try:
        with _unconfigured_logging():
            yield
    finally:
        constants.HF_HUB_OFFLINE = before


@contextmanager
def without_hub() -> Generator[None]:
    """Run the block without the hub: whatever it asks for is taken from the hub's cache or fails at once."""
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def missing_weights_error(what: str, error: Exception) -> CheckpointError:
    """Build the error for weights that cannot be loaded: which, why, and the fix.

    Args:
        what: The weights, such as `the weights 'openai' of ViT-B-32`.
        error: The exception.
    """
    instead = "name a local .safetensors file, or its folder, under pretrained"
    if _lacking(error) and check_reachability() is not None:
        copy = "fetch them on a machine with a network and name a copy of its cache with HF_HOME"
        instead = f"{copy}, or {instead}"
    return CheckpointError(f"{what} cannot be had: {explain_failure(error)}; {instead}")


def explain_failure(error: Exception) -> str:
    """Return in one line why a download failed: the hub is unreachable, or the exception's message."""
    from huggingface_hub import constants

    reason = check_reachability() if _lacking(error) else None
    if reason is None:
        return _first_line(error)
    asked = "the hub is not asked" if constants.HF_HUB_OFFLINE else f"{constants.ENDPOINT} cannot be reached"
    return f"{asked} ({reason}), and the cache {constants.HF_HUB_CACHE} has no such files"


def _ask(endpoint: str, patience: float) -> str | None:
    """Send the hub one request; return why it failed, or None."""
    from huggingface_hub.utils import get_session

    answers: list[str | None] = []

    def ask() -> None:
        try:
            status = get_session().head(endpoint, timeout=patience).status_code
            answers.append(f"it answers with status {status}" if status >= 500 else None)
        except Exception as error:  # the hub's versions use requests or httpx, which share no base class
            answers.append(_first_line(error))

    # In a thread, because no timeout ends a look-up of names.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(patience)
    return answers[0] if answers else f"no answer within {patience:g} s"


def _lacking(error: BaseException | None) -> bool:
    """Return whether an error comes from a file missing in the cache."""
    from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled

    while error is not None:
        if isinstance(error, LocalEntryNotFoundError | OfflineModeIsEnabled):
            return True
        error = error.__cause__ or error.__context__
    return False


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")


@contextmanager
def _unconfigured_logging() -> Generator[None]:
    """Prevent libraries from configuring Python's logging by their first message to the root logger.

    open_clip does so, and huggingface_hub's messages are then printed twice.
    """
    root, handler = logging.getLogger(), logging.NullHandler()
    if root.handlers:
        yield
        return
    root.addHandler(handler)
    try:
        yield
    finally:
        root.removeHandler(handler)
