"""Jobs that embed a source into an archive block by block, go on where they were stopped, and share work."""

# B inputs of a batch, D width

from __future__ import annotations

import json
import re
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from geobind.archive.archive import Archive, model_digest
from geobind.archive.table import (
    ArchiveMetadata,
    ArchiveWriter,
    StoredType,
    build_stac_item,
    build_table,
    measure_box,
    measure_tables,
    read_metadata,
)
from geobind.data.parquet import report_damage
from geobind.errors import CheckpointError, DataError
from geobind.inference import choose_threads, collate, run_ahead
from geobind.precision import PrecisionChoice
from geobind.utils.files import FileLock, read_json, replace_atomic, write_json
from geobind.utils.formatting import format_first_fault
from geobind.utils.hashing import fingerprint
from geobind.utils.progress import track

if TYPE_CHECKING:
    import pyarrow as pa

    from geobind.archive.sources import InputSource
    from geobind.binder import Binder
    from geobind.inference import Workers
    from geobind.modality import Modality, Prepared

_PLAN, _SHARES, _LOCK = "plan.json", "shares.json", "lock"
_PART = re.compile(r"(\d{6,9})\.parquet")
_SHOWN = 3  # broken inputs named in a message


class Parts(BaseModel):
    """The parts of an archive that is being made, and what it will be: `NAME.parts/plan.json`."""

    model_config = ConfigDict(frozen=True)

    out: Path = Field(exclude=True)
    metadata: ArchiveMetadata
    blocks: int = Field(ge=1, le=2**31)
    facts: dict[str, Any] = Field(description="everything that decides the rows; its digest is the plan")

    @property
    def folder(self) -> Path:
        """The folder of the parts that are there already."""
        return parts_folder(self.out)

    def file(self, block: int) -> Path:
        """Return the file of a block."""
        return self.folder / f"{block:06d}.parquet"

    def list_missing(self) -> list[int]:
        """List the blocks whose part is not there."""
        names = (path.name for path in self.folder.glob("*.parquet"))
        there = {int(match[1]) for name in names if (match := _PART.fullmatch(name))}
        return [block for block in range(self.blocks) if block not in there]

    def is_done(self) -> bool:
        """Return whether the archive itself is there."""
        known = _read_finished(self.out)
        return known is not None and known.plan == self.metadata.plan


def parts_folder(out: Path) -> Path:
    """Return the folder that holds parts of an archive until all are there."""
    return out.with_suffix(".parts")


@dataclass(frozen=True)
class Job:
    """One source embedded into one archive: its parts, and how inputs are read."""

    parts: Parts
    source: InputSource
    batch_size: int
    skip_broken: bool

    @property
    def metadata(self) -> ArchiveMetadata:
        """Metadata that the archive's file will state."""
        return self.parts.metadata


def plan_job(
    binder: Binder,
    modality: str,
    source: InputSource,
    out: str | Path,
    *,
    dtype: StoredType = "float16",
    batch_size: int = 64,
    skip_broken: bool = False,
) -> Job:
    """Plan a job: its blocks, and the digest of everything that decides the archive's bytes.

    The binder's precision is among it. What `auto` chooses holds for the whole archive: a job that goes on
    computes in the type that it began with.

    Raises:
        DataError: The source cannot be used, or the archive's name does not end in .parquet.
        PluginError: The binder has no such modality.
    """
    out = Path(out)
    if out.suffix != ".parquet":
        raise DataError(f"{out}: an archive is a Parquet file: let its name end in .parquet")
    if batch_size < 1:
        raise DataError(f"batch_size must be at least 1, not {batch_size}")
    if not out.parent.is_dir():
        raise DataError(f"{out}: there is no folder {out.parent}; make it first")
    digest = model_digest(binder, modality)
    choice = _choose_precision(binder, modality, digest, source, out, batch_size)
    facts = {
        **source.describe(),
        "modality": modality,
        "model": digest,
        "dtype": dtype,
        "batch size": batch_size,  # of the last digits of an embedding
        "skip broken": skip_broken,
        **({} if choice.dtype == "float32" else {"precision": choice.dtype}),
        **({} if binder.runtime == "torch" else {"runtime": binder.runtime}),
    }
    metadata = ArchiveMetadata.model_validate(
        {
            "modality": modality,
            "width": binder.width,
            "dtype": dtype,
            "model": digest,
            "bundle": binder.card.name if binder.card else "",
            "source": source.name,
            "plan": fingerprint(facts),
            "computed": choice.dtype,
            "runtime": binder.runtime,
            "cosine": choice.cosine,
            **source.state(),
        }
    )
    plain = json.loads(json.dumps(facts))
    return Job(
        Parts(out=out, metadata=metadata, blocks=source.blocks, facts=plain), source, batch_size, skip_broken
    )


def _choose_precision(
    binder: Binder, modality: str, digest: str, source: InputSource, out: Path, batch_size: int
) -> PrecisionChoice:
    """Return the type that a job computes in: what it began with, else by the first inputs there are."""
    plain = PrecisionChoice("float32", "as asked")
    if binder.precision == "float32" and binder.runtime == "torch":
        return plain
    begun = _read_begun(out)
    if begun and (begun.modality, begun.model, begun.runtime) == (modality, digest, binder.runtime):
        if binder.precision in ("auto", begun.computed):
            return PrecisionChoice(begun.computed, "as it began", begun.cosine)
    prepare = _make_preparer(source, binder.modality(modality), skip_broken=True)
    strips = map(prepare, _list_strips(source, batch_size, range(source.blocks)))
    first = next((strip.inputs for strip in strips if strip.inputs is not None), None)
    if first is None:
        return plain
    for _ in binder.embed_prepared(modality, [(None, first)]):
        pass
    return binder.precisions[modality]


def _read_begun(out: Path) -> ArchiveMetadata | None:
    """Return what an archive or its parts state, None where there are none."""
    known = read_json(parts_folder(out) / _PLAN)
    return _parse_parts(out, known).metadata if known else _read_finished(out)


class Runner(Protocol):
    """Protocol of what does the work of a job: this process, or others."""

    def run(self, job: Job, blocks: Sequence[int]) -> Iterator[int]:
        """Write the parts of these blocks, and yield the number of each that is there."""
        ...


def run_job(
    job: Job,
    runner: Runner,
    *,
    shard: tuple[int, int] | None = None,
    fresh: bool = False,
    progress: bool | None = None,
) -> Archive | None:
    """Do what is missing of a job, and open its archive.

    Args:
        job: The job.
        runner: What does the work.
        shard: Do only share i of n, counted from 0; `finish` joins the parts once all are there.
        fresh: Throw away what is there of another job.
        progress: Show a progress bar.

    Returns:
        The archive; None where a share alone was asked for.

    Raises:
        DataError: An input cannot be read, or there is another archive under this name.
        CheckpointError: The archive of this name is of another model.
        StorageError: The disk is full.
    """
    if shard is not None and not 0 <= shard[0] < shard[1]:
        raise DataError(f"--shard {shard[0]}/{shard[1]}: shares of n are 0/n to {shard[1] - 1}/n")
    parts = job.parts
    if parts.is_done() and not fresh:
        return finish(parts)
    _claim(parts, fresh=fresh)
    with FileLock(parts.folder / _LOCK, shared=True):
        missing = parts.list_missing()
        if shard is not None:
            write_json(parts.folder / _SHARES, {"shares": shard[1]})
            missing = [block for block in missing if block % shard[1] == shard[0]]
        for _ in track(runner.run(job, missing), f"embedding {job.source.name}", len(missing), progress):
            pass
    return finish(parts) if shard is None else None


def _claim(parts: Parts, *, fresh: bool) -> None:
    """Make the folder of parts these parts', unless it is another's.

    Raises:
        DataError: Another job's archive or parts are there.
        CheckpointError: The archive there is of another model.
    """
    if fresh:
        shutil.rmtree(parts.folder, ignore_errors=True)
    elif parts.out.exists():
        found = None
        if parts.out.is_file():
            with report_damage(parts.out):
                found = read_metadata(pq.read_schema(parts.out).metadata, parts.out)
        if found is not None and found.model != parts.metadata.model:
            raise CheckpointError(
                f"{parts.out}: is an archive of another model ({found.bundle or found.model[:12]}), whose "
                "embeddings cannot be mixed with these; choose another name, or replace it with --fresh"
            )
        raise DataError(
            f"{parts.out}: is there already, made of other inputs or options; choose another name, or "
            "replace it with --fresh"
        )
    plan = parts.folder / _PLAN
    known = read_json(plan)
    if not known:
        write_json(plan, parts.model_dump(mode="json"))
    elif (before := _parse_parts(parts.out, known)).metadata.plan != parts.metadata.plan:
        names = {**before.facts, **parts.facts}
        others = [name for name in names if before.facts.get(name) != parts.facts.get(name)]
        raise DataError(
            f"{parts.folder}: holds parts of another job (different: {', '.join(others) or 'its plan'}); "
            "finish that one, or throw them away with --fresh"
        )


def read_parts(out: Path) -> Parts:
    """Read what the parts of an archive are of.

    Raises:
        DataError: There are none.
    """
    folder = parts_folder(out)
    known = read_json(folder / _PLAN)
    if not known:
        raise DataError(f"{folder}: has no parts of {out.name}; make them: geobind embed ... --shard 0/2")
    return _parse_parts(out, known)


def _parse_parts(out: Path, known: Mapping[str, Any]) -> Parts:
    try:
        return Parts.model_validate({**known, "out": out})
    except ValidationError as error:
        raise DataError(
            f"{parts_folder(out) / _PLAN}: damaged: {format_first_fault(error)}; throw the parts away "
            "with --fresh"
        ) from None


def _read_finished(path: Path) -> ArchiveMetadata | None:
    try:
        return read_metadata(pq.read_schema(path).metadata, path)
    except (DataError, OSError, ValueError):
        return None


def finish(parts: Parts) -> Archive:
    """Join parts, and open the archive.

    Raises:
        DataError: Parts are missing or damaged, another process still writes some, or there is no row.
        StorageError: The disk is full.
    """
    if not (parts.list_missing() and parts.is_done()):  # with --fresh it is there beside all of its parts
        _require_all(parts)
        with FileLock(parts.folder / _LOCK, wait=False) as lock:
            if not lock:
                raise DataError(
                    f"{parts.folder}: another process still writes parts; join them when it has ended"
                )
            _join(parts)
    archive = Archive.open(parts.out)
    _write_item(parts, archive.metadata)
    shutil.rmtree(parts.folder, ignore_errors=True)
    return archive


def _require_all(parts: Parts) -> None:
    missing = parts.list_missing()
    if not missing:
        return
    count = parts.blocks
    shares = read_json(parts.folder / _SHARES).get("shares")
    hint = "run the command again"
    if isinstance(shares, int) and shares > 0:
        open_shares = sorted({block % shares for block in missing})
        named = [f"{share}/{shares}" for share in open_shares[:_SHOWN]]
        hint = f"run shard {', '.join(named)}" + (" and others" if len(open_shares) > _SHOWN else "")
    raise DataError(f"{parts.folder}: has {count - len(missing)} of {count} parts; {hint}")


def _join(parts: Parts) -> None:
    """Write the archive of all parts, with memory for one row group."""
    boxes: list[Any] = []
    kinds: set[str] = set()
    rows = 0
    for block in range(parts.blocks):
        path = parts.file(block)
        with report_damage(path):
            footer = pq.read_metadata(path)
        facts = json.loads((footer.metadata or {}).get(b"part", b"{}"))
        if facts.get("plan") != parts.metadata.plan:
            raise DataError(f"{path}: is no part of this job; remove it and run the command again")
        boxes += [facts["box"]] if facts["box"] else []
        kinds |= set(facts["kinds"])
        rows += footer.num_rows
    if not rows:
        reason = (
            ": no tile has enough pixels that are there; lower --min-valid" if parts.metadata.reading else ""
        )
        raise DataError(f"{parts.metadata.source}: nothing to embed{reason}")
    box = measure_box(np.array(boxes, dtype=np.float64).reshape(-1, 4))
    with ArchiveWriter(parts.out, parts.metadata, box, sorted(kinds)) as writer:
        for block in range(parts.blocks):
            path = parts.file(block)
            with report_damage(path):
                table = pq.read_table(path, page_checksum_verification=True, use_threads=False)
            writer.write(table.replace_schema_metadata())


def _write_item(parts: Parts, metadata: ArchiveMetadata) -> None:
    item = parts.out.with_suffix(".json")
    if not item.is_file() or read_json(item).get("id") != f"{parts.out.stem}-{parts.metadata.plan[:12]}":
        write_json(item, build_stac_item(metadata, parts.out))


class _Strip(NamedTuple):
    """Neighbouring rows of a block that are read and embedded together."""

    block: int
    start: int
    end: int


class PreparedStrip(NamedTuple):
    """The prepared inputs of a strip, and the columns of its rows."""

    block: int
    inputs: Prepared | None  # None where nothing is there
    names: list[str]
    columns: Mapping[str, Any]
    broken: list[tuple[str, str]]


def _make_preparer(
    source: InputSource, modality: Modality, *, skip_broken: bool
) -> Callable[[_Strip], PreparedStrip]:
    """Return a function that reads and prepares a strip, and that several threads may call at once.

    It raises DataError where an input cannot be read and is not skipped, or where they make no batch.
    """
    reading = threading.Lock()  # readers keep files open, and where they are in them

    def prepare(strip: _Strip) -> PreparedStrip:
        with reading:
            raws, names, columns = source.read(*strip)
        samples: list[Prepared] = []
        kept: list[int] = []
        broken: list[tuple[str, str]] = []
        for number, raw in enumerate(raws):
            try:
                if isinstance(raw, DataError):
                    raise raw
                samples.append(modality.prepare(raw))
                kept.append(number)
            except DataError as error:
                broken.append((names[number], str(error)))
        if broken and not skip_broken:
            name, reason = broken[0]
            also = f" (and {len(broken) - 1} more near it)" if len(broken) > 1 else ""
            raise DataError(f"{name}: {reason}{also}; {source.mend}")
        try:
            inputs = collate(samples) if samples else None
        except DataError as error:
            raise DataError(f"{names[kept[0]]} and what lies near it: {error}") from error
        chosen = {name: values[kept] for name, values in columns.items()}
        return PreparedStrip(strip.block, inputs, [names[n] for n in kept], chosen, broken)

    return prepare


def embed_blocks(
    job: Job, binder: Binder, blocks: Sequence[int], workers: Workers = 0
) -> Iterator[tuple[int, pa.Table, list[tuple[str, str]]]]:
    """Yield the rows of each block, and what of it cannot be read: names and reasons.

    Raises:
        DataError: An input cannot be read, or its embedding is NaN or zero.
    """
    modality = binder.modality(job.metadata.modality)
    threads = choose_threads(workers)
    prepare = _make_preparer(job.source, modality, skip_broken=job.skip_broken)
    listed = _list_strips(job.source, job.batch_size, blocks)
    strips = run_ahead(prepare, listed, threads, max(threads, _STRIPS_AHEAD))
    tagged = ((strip, strip.inputs) for strip in strips)
    embedded = binder.embed_prepared(modality.name, tagged, job.metadata.computed, job.metadata.runtime)
    for block, group in groupby(embedded, key=lambda pair: pair[0].block):
        parts: list[tuple[Mapping[str, Any], Any]] = []
        broken: list[tuple[str, str]] = []
        for strip, vectors_BD in group:
            broken += strip.broken
            if vectors_BD is not None:
                parts.append((strip.columns, _check_lengths(strip, vectors_BD.numpy())))
            elif not parts:
                parts.append((strip.columns, np.empty((0, binder.width), np.float32)))
        columns = {name: np.concatenate([part[name] for part, _ in parts]) for name in parts[0][0]}
        yield block, build_table(job.metadata, columns, np.concatenate([v for _, v in parts])), broken


_STRIPS_AHEAD = 2


def _list_strips(source: InputSource, batch_size: int, blocks: Iterable[int]) -> Iterator[_Strip]:
    for block in blocks:
        count = source.count(block)
        for start in range(0, count, batch_size):
            yield _Strip(block, start, min(start + batch_size, count))


def _check_lengths(strip: PreparedStrip, vectors_BD: Any) -> Any:
    """Return embeddings whose length is 1.

    Raises:
        DataError: One is NaN or zero.
    """
    length_B = np.linalg.norm(vectors_BD, axis=1)
    if len(wrong := np.flatnonzero(~(np.abs(length_B - 1) < 1e-2))):
        raise DataError(
            f"{strip.names[wrong[0]]}: its embedding is NaN, infinite or zero; look at the input, or at the "
            "weights"
        )
    return vectors_BD


def write_part(job: Job, block: int, table: pa.Table) -> None:
    """Write the part of a block.

    Raises:
        StorageError: The disk is full.
    """
    box, kinds = measure_tables([table])
    facts = json.dumps({"plan": job.metadata.plan, "box": box, "kinds": kinds})
    with replace_atomic(job.parts.file(block)) as temporary:
        pq.write_table(
            table.replace_schema_metadata({b"part": facts.encode()}),
            temporary,
            compression="none",  # it is read once, and the archive compressed
            use_dictionary=False,
            write_statistics=False,
            write_page_checksum=True,
        )


@dataclass(frozen=True)
class Here:
    """Runs a job in this process.

    Args:
        binder: The model.
        workers: Threads that prepare inputs; auto: one for each processor.
    """

    binder: Binder
    workers: Workers = "auto"

    def run(self, job: Job, blocks: Sequence[int]) -> Iterator[int]:
        """Write the parts of these blocks, and yield the number of each that is there."""
        for block, table, broken in embed_blocks(job, self.binder, blocks, self.workers):
            report_broken(broken)
            write_part(job, block, table)
            yield block


def report_broken(broken: Sequence[tuple[str, str]]) -> None:
    """Log the first few inputs that were left out because they cannot be read."""
    import logging

    for name, reason in broken[:_SHOWN]:
        logging.getLogger(__name__).warning("left out: %s: %s", name, reason)
    if len(broken) > _SHOWN:
        logging.getLogger(__name__).warning("left out: %d more near them", len(broken) - _SHOWN)
