"""Jobs on a Ray cluster: actors that load the model once and write the parts of blocks themselves."""

from __future__ import annotations

import base64
import logging
import os
import pickle
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from geobind.archive.job import Job, embed_blocks, plan_job, report_broken, write_part
from geobind.errors import DataError, GeobindError, PluginError, StorageError
from geobind.extras import INSTALL

if TYPE_CHECKING:
    from types import ModuleType

    from numpy.typing import NDArray

    from geobind.archive.sources import InputSource

_RETRIES = 3  # of a block whose actor died


@dataclass(frozen=True)
class RayRunner:
    """Runs a job on a Ray cluster.

    Ray is handed the list of blocks, which lies in this process: there are no tasks that read and that actors
    on all processors would starve. An actor writes a part under a temporary name and renames it, so a block
    that is done twice, after a death, is there once.

    Args:
        bundle: The folder or hub id of the model, the same on every node.
        address: Of the cluster, or `auto`.
        workers: Threads that prepare inputs for each actor.
    """

    bundle: str
    address: str
    workers: int = 0

    def run(self, job: Job, blocks: Sequence[int]) -> Iterator[int]:
        """Write the parts of these blocks, and yield the number of each that is there.

        Raises:
            DataError: There is no such cluster, an input cannot be read, or the nodes share no disk.
            PluginError: The modality is of a file, which the nodes do not have.
        """
        if not blocks:
            return
        _require_published(job.metadata.modality)
        ray = _connect(self.address)
        gpus = int(ray.cluster_resources().get("GPU", 0)) if job.metadata.runtime == "torch" else 0
        most = gpus or int(ray.cluster_resources().get("CPU", 1))
        bundle = os.path.abspath(self.bundle) if os.path.isdir(self.bundle) else self.bundle
        spec = _pack(bundle, job, self.workers, "cuda" if gpus else "cpu")
        results = ray.data.from_items([{"block": block} for block in blocks], override_num_blocks=len(blocks))
        results = results.map_batches(
            _BlockActor,
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(min_size=1, max_size=max(1, min(most, len(blocks)))),
            fn_constructor_args=(spec,),
            num_gpus=1 if gpus else None,
            max_restarts=-1,
            max_task_retries=_RETRIES,
        )
        try:
            for row in results.iter_rows():
                _raise_failure(str(row["kind"]), str(row["message"]))
                yield int(row["block"])
        except ray.exceptions.RayError as error:
            reason = str(error).strip().splitlines()[-1]
            raise DataError(
                f"Ray stopped ({reason}); what is done is kept: look at `ray status`, and run the command "
                "again"
            ) from error
        missing = set(blocks) & set(job.parts.list_missing())
        if missing:
            raise DataError(
                f"{job.parts.folder}: {len(missing)} parts that Ray's workers wrote are not there: the "
                "folder of the archive must lie on a disk that all nodes share"
            )


def _require_published(modality: str) -> None:
    from geobind import plugins

    plugin = plugins.registry().plugins.get(modality)
    if plugin is None or not plugin.source.published:
        raise PluginError(
            f"'{modality}' is no modality of an installed plugin, and Ray's workers load no others; make a "
            f"package: geobind new modality {modality}"
        )


def _connect(address: str) -> ModuleType:
    """Connect to a Ray cluster, unless this process is connected, and return the package.

    Raises:
        DataError: Ray is not installed, or there is no cluster.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it reports home otherwise
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise DataError(f"--ray needs Ray Data ({error}): {INSTALL['ray']}") from error
    if not ray.is_initialized():
        try:
            ray.init(address=address, log_to_driver=False, logging_level=logging.WARNING)
        except (ConnectionError, ValueError, RuntimeError) as error:
            reason = str(error).strip().splitlines()[0]
            raise DataError(
                f"--ray {address}: no Ray cluster there ({reason}); start one: ray start --head"
            ) from error
    ray.data.DataContext.get_current().enable_progress_bars = False
    return ray


def _pack(bundle: str, job: Job, workers: int, device: str) -> str:
    """Return what an actor must know, as a short string: absolute paths, nothing that was opened."""
    values: tuple[Any, ...] = bundle, job.metadata.modality, job.source.resolve(), job.parts.out.resolve()
    plan = job.metadata.dtype, job.batch_size, job.skip_broken, job.metadata.plan
    how = workers, device, job.metadata.computed, job.metadata.runtime
    return base64.b64encode(pickle.dumps((*values, *plan, *how))).decode()


class _BlockActor:
    """Embeds blocks and writes their parts; the model is loaded once."""

    def __init__(self, spec: str) -> None:
        from geobind.binder import Binder

        bundle, modality, source, out, dtype, size, skip, plan, *how = pickle.loads(base64.b64decode(spec))
        workers, device, computed, runtime = how
        self.failure: tuple[str, str] | None = None
        self.workers: int = workers
        try:
            self.binder = Binder.from_pretrained(bundle, precision=computed, runtime=runtime)
            self.job = plan_job(
                self.binder, modality, source, out, dtype=dtype, batch_size=size, skip_broken=skip
            )
            if self.job.metadata.plan != plan:
                raise DataError(_explain_difference(self.job, source))
            self.binder.to(device)
        except GeobindError as error:
            # Reported with the first block: an actor that cannot start is started for ever.
            self.failure = type(error).__name__, str(error)

    def __call__(self, batch: dict[str, NDArray[Any]]) -> dict[str, list[Any]]:
        """Embed the one block of a batch, and return its number and its failure, if any."""
        kind, message = self.failure or ("", "")
        blocks = [int(block) for block in batch["block"]]
        if not kind:
            try:
                for block, table, broken in embed_blocks(self.job, self.binder, blocks, self.workers):
                    report_broken(broken)
                    write_part(self.job, block, table)
            except GeobindError as error:
                kind, message = type(error).__name__, str(error)
        return {"block": blocks, "kind": [kind] * len(blocks), "message": [message] * len(blocks)}


def _explain_difference(job: Job, source: InputSource) -> str:
    return (
        f"a node of the cluster has another model, or another {source.name}, than the process that asked "
        f"(its model is {job.metadata.model[:12]}); give all nodes the same files and the same geobind"
    )


def _raise_failure(kind: str, message: str) -> None:
    """Raise what an actor could not do, as it would be raised here."""
    if kind:
        raise StorageError(message) if kind == "StorageError" else DataError(message)
