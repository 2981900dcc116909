"""Rasters, tables and folders embedded into archives: the functions of Python's users."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from geobind.archive.archive import Archive
from geobind.archive.cluster import RayRunner
from geobind.archive.job import Here, Runner, plan_job, run_job
from geobind.archive.sources import RasterTiles, build_reading, open_source, parse_time
from geobind.archive.table import StoredType
from geobind.errors import DataError

if TYPE_CHECKING:
    from geobind.binder import Binder
    from geobind.data.options import ColumnChoice, DataOptions
    from geobind.inference import Workers


def embed_raster(
    binder: Binder | str | Path,
    modality: str,
    raster: str | Path,
    out: str | Path,
    *,
    size_m: float,
    stride_m: float | None = None,
    grid: str = "raster",
    time: str | None = None,
    nodata: float | None = None,
    dtype: StoredType = "float16",
    batch_size: int = 64,
    workers: Workers = "auto",
    shard: tuple[int, int] | None = None,
    ray: str | None = None,
    fresh: bool = False,
    progress: bool | None = None,
    **reading: Any,
) -> Archive | None:
    """Embed the tiles of a raster into an archive; what a stopped call has done is not done again.

    Args:
        binder: The model, or the bundle's folder or hub id (which workers of Ray need). Its `precision`
            is that of the whole archive.
        modality: What tiles are, such as the anchor.
        raster: A GeoTIFF or JPEG 2000 file.
        out: The archive, NAME.parquet; parts lie in NAME.parts until all are there.
        size_m: Side of a tile in metres.
        stride_m: Metres from one tile to the next; default: `size_m`.
        grid: `raster`, a grid over all of it, or `majortom:10km`, one tile in the middle of each such cell.
        time: When the raster was taken, ISO 8601, UTC.
        nodata: A stored value that means missing, beside what the raster states.
        dtype: How embeddings are stored.
        batch_size: Tiles read and embedded together.
        workers: Threads that prepare tiles; auto: one for each processor.
        shard: Do only share i of n, counted from 0.
        ray: Let a Ray cluster do it: its address, or `auto`.
        fresh: Throw away what is there of another job.
        progress: Show a progress bar; default: when a person is watching.
        reading: How the raster is read: `gsd`, `bands`, `stretch`, `fill`, `min_valid`, `nearest`, `scaled`
            of `geobind.data.RasterOptions`.

    Returns:
        The archive; None of a share.

    Raises:
        DataError: The raster cannot be read or used, or another archive has this name.
        CheckpointError: The archive of this name is of another model.
        StorageError: The disk is full.
    """
    options = build_reading(size_m=size_m, **reading)
    source = RasterTiles(Path(raster), options, stride_m or size_m, grid, parse_time(time), nodata)
    loaded, bundle = _load(binder)
    job = plan_job(loaded, modality, source, out, dtype=dtype, batch_size=batch_size)
    runner = choose_runner(loaded, bundle, workers, ray)
    return run_job(job, runner, shard=shard, fresh=fresh, progress=progress)


def embed_table(
    binder: Binder | str | Path,
    modality: str,
    data: str | Path | DataOptions,
    out: str | Path,
    *,
    split: str | None = None,
    pattern: str = "*",
    skip_broken: bool = False,
    dtype: StoredType = "float16",
    batch_size: int = 64,
    workers: Workers = "auto",
    shard: tuple[int, int] | None = None,
    ray: str | None = None,
    fresh: bool = False,
    progress: bool | None = None,
    **columns: ColumnChoice,
) -> Archive | None:
    """Embed the rows of a manifest, or the files of a folder, into an archive with their keys and places.

    Args:
        binder: The model, or the bundle's folder or hub id.
        modality: What is embedded.
        data: A manifest (CSV, JSON lines, Parquet), a folder of files, or a recipe's `data` block.
        out: The archive, NAME.parquet.
        split: Only rows of this split.
        pattern: Of a folder: names of files, such as `*.png`.
        skip_broken: Leave out what cannot be read, with a warning.
        dtype: How embeddings are stored.
        batch_size: Inputs embedded together.
        workers: Threads that prepare inputs.
        shard: As `embed_raster`.
        ray: As `embed_raster`.
        fresh: As `embed_raster`.
        progress: As `embed_raster`.
        columns: Of a manifest: the column of the modality, of key, lat, lon, time.

    Returns:
        The archive, its rows along a curve over the Earth if they have places; None of a share.

    Raises:
        DataError: As `embed_raster`; an input that cannot be read is named.
    """
    source = open_source(data, modality, dict(columns), split=split, pattern=pattern)
    loaded, bundle = _load(binder)
    job = plan_job(loaded, modality, source, out, dtype=dtype, batch_size=batch_size, skip_broken=skip_broken)
    runner = choose_runner(loaded, bundle, workers, ray)
    return run_job(job, runner, shard=shard, fresh=fresh, progress=progress)


def _load(binder: Binder | str | Path) -> tuple[Binder, str | None]:
    """Return a model, and the name of its bundle if that was given."""
    from geobind.binder import Binder

    if isinstance(binder, str | Path):
        return Binder.from_pretrained(binder), str(binder)
    return binder, None


def choose_runner(binder: Binder, bundle: str | None, workers: Workers, ray: str | None) -> Runner:
    """Return what does the work: this process, or a Ray cluster.

    Raises:
        DataError: Ray is asked for without the name of a bundle.
    """
    if ray is None:
        return Here(binder, workers)
    if bundle is None:
        raise DataError(
            "Ray's workers load the model themselves: give the bundle's folder or hub id, not a Binder"
        )
    return RayRunner(bundle, ray, 0 if workers == "auto" else workers)
