"""How a stage's batches are computed: how many pairs, at once or in two passes, by what fits in memory."""

from __future__ import annotations

from typing import NamedTuple

from geobind.errors import RecipeError
from geobind.planning.found import StageFound
from geobind.utils.formatting import size

_TWICE = 4 / 3  # what a second forward pass makes of a step, where it was not measured


class Chosen(NamedTuple):
    """How a stage's batches are computed."""

    batch_size: int  # over all devices
    chunk: int | None  # rows of a device at a time, None where all are embedded at once
    bytes: int | None  # the most memory held at once; None where nothing tells
    why: str  # it is so, or would not fit
    fits: bool


def choose(
    found: StageFound,
    *,
    batch_size: int | None,
    chunk: int | str | None,
    ranks: int,
    usable: float | None,
) -> Chosen:
    """Choose what a recipe left open, and tell what that takes.

    Args:
        found: What was measured of the stage.
        batch_size: The recipe's; None where it leaves it open.
        chunk: The recipe's: a number, None, or "auto".
        ranks: Devices that share a batch.
        usable: Bytes that a step may take; None where nothing tells.

    Raises:
        RecipeError: Not even the smallest batch fits, or nothing tells what a batch takes.
    """
    why = ""
    if batch_size is None:
        batch_size, why = _largest(found, chunk if isinstance(chunk, int) else None, ranks, usable)
    local = max(1, batch_size // ranks)
    direct = needed(found, local, None)
    at_once = f"{_pairs(local)} at once take {of(direct, usable)}"
    fits = direct is None or usable is None or direct <= usable
    if isinstance(chunk, int) and chunk < local:
        taken = needed(found, local, chunk)
        fits = taken is None or usable is None or taken <= usable
        return Chosen(batch_size, chunk, taken, f"{_pairs(chunk)} at a time take {of(taken, usable)}", fits)
    if chunk != "auto" or fits:
        return Chosen(batch_size, None, direct, "; ".join(filter(None, (at_once, why))), fits)
    chunk = max(2, 2 ** ((local - 1).bit_length() - 1))
    while chunk > 2 and (needed(found, local, chunk) or 0) > (usable or 0):
        chunk //= 2
    taken = needed(found, local, chunk)
    fits = taken is None or usable is None or taken <= usable
    return Chosen(batch_size, chunk, taken, f"{_pairs(local)} at once would take {of(direct, usable)}", fits)


def needed(found: StageFound, local: int, chunk: int | None) -> int | None:
    """Return the memory that a step takes at most, with what comes before it; None where nothing tells.

    In two passes that is a chunk's, and something for every row of the batch: its input and embeddings.
    """
    line = found.bytes
    if line is None:
        return None
    filling = (found.filling.bytes if found.filling else None) or 0
    if chunk is None or chunk >= local:
        return round(max(line(local), filling))
    each = 0.0
    two = found.two_pass
    if two is not None and two.bytes is not None and two.chunk is not None:
        each = max(0.0, two.bytes - line(two.chunk)) / two.rows
        if two.chunk == chunk:
            return round(max(two.bytes + each * max(0, local - two.rows), filling))
    return round(max(line(chunk) + each * local, filling))


def step_seconds(found: StageFound, local: int, chunk: int | None) -> float:
    """Return the seconds of a step: of computing, or of loading where that is slower."""
    computing = found.seconds(local)
    if chunk is not None and chunk < local:
        two = found.two_pass
        computing *= _TWICE if two is None else max(1.0, two.seconds / found.seconds(two.rows))
    return max(computing, found.loading_a_row * local)


def of(taken: float | None, usable: float | None) -> str:
    """Say what something takes of the memory that it may take."""
    if taken is None:
        return "memory that this system does not tell of"
    return size(taken) if usable is None else f"{size(taken)} of {size(usable)}"


def _largest(found: StageFound, chunk: int | None, ranks: int, usable: float | None) -> tuple[int, str]:
    if found.bytes is None or usable is None:
        raise RecipeError(
            f"stage '{found.name}': `batch_size: auto` needs to know how much memory there is and how much a "
            f"step takes, and this system does not tell; write a number"
        )
    batch = found.most
    while batch >= 2 * ranks or batch == found.most:
        taken = needed(found, batch // ranks, chunk) or 0
        if taken <= usable:
            if batch == found.most:
                return batch, f"no more than {found.most_why}"
            more = needed(found, 2 * batch // ranks, chunk)
            return batch, f"{2 * batch:,} pairs would take {of(more, usable)}"
        batch //= 2
    least = 2 * ranks
    raise RecipeError(
        f"stage '{found.name}': `batch_size: auto`: even {least} pairs take "
        f"{of(needed(found, 2, chunk), usable)}; free memory, say how much there is with --memory, or take "
        f"smaller encoders"
    )


def _pairs(count: int) -> str:
    return f"{count:,} pairs"
