"""Fetch folders from the Hugging Face hub, and publish them there."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from geobind.errors import CheckpointError, GeobindError
from geobind.hub import hub_or_cache, reason_of, unreachable


def fetched(name: str, files: Iterable[str], revision: str | None = None) -> Path:
    """Find a folder of this name, or fetch it from the hub.

    Args:
        name: A folder, or `owner/name` of the hub.
        files: What is fetched of it.
        revision: A branch, tag or commit.

    Raises:
        CheckpointError: There is neither.
    """
    if os.path.isdir(name):
        return Path(name)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        with hub_or_cache():
            return Path(snapshot_download(name, revision=revision, allow_patterns=[*files]))
    except (HfHubHTTPError, HFValidationError, OSError, ValueError) as error:
        raise CheckpointError(
            f"no folder '{name}', and the hub gives no such bundle: {reason_of(error)}"
        ) from error


def publish(folder: Path, name: str, *, private: bool = False) -> str:
    """Publish a folder as `owner/name`; returns its address.

    Raises:
        GeobindError: The hub refuses it or cannot be reached.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        with hub_or_cache():
            hub = HfApi()
            hub.create_repo(name, private=private, exist_ok=True)
            return str(hub.upload_folder(repo_id=name, folder_path=folder, commit_message="geobind bundle"))
    except (HfHubHTTPError, HFValidationError, OSError, ValueError) as error:
        reason = unreachable() or str(error).splitlines()[0]
        raise GeobindError(f"cannot publish '{name}': {reason}") from error
