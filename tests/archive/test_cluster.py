"""Archives made on a Ray cluster of two nodes, simulated on this machine."""

import hashlib
import os
import signal
import threading
import time

import pytest

pytest.importorskip("rasterio")
ray = pytest.importorskip("ray")
pytest.importorskip("ray.data")
psutil = pytest.importorskip("psutil")
import scenes  # noqa: E402
import torch  # noqa: E402

from geobind import plugins  # noqa: E402
from geobind.archive import embed_raster  # noqa: E402
from geobind.archive.cluster import RayRunner, _BlockActor, _pack  # noqa: E402
from geobind.archive.job import plan_job  # noqa: E402
from geobind.archive.sources import RasterTiles, build_reading  # noqa: E402
from geobind.binder import Binder  # noqa: E402
from geobind.errors import DataError, PluginError  # noqa: E402

SIZES = {"size_m": 320, "stride_m": 16}  # 101 x 161 tiles: 24 blocks


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A scene and a bundle of an installed modality."""
    folder = tmp_path_factory.mktemp("world")
    options = {"timm": {"model": "test_vit", "pretrained": False}, "size": 32}
    kind = plugins.registry().plugins["ground_image"].cls
    Binder({"ground_image": kind.model_validate(options)}, 16, seed=0).save(folder / "bundle")
    scenes.write_scene(folder / "scene.tif")
    return folder


def plan(world, out):
    source = RasterTiles(world / "scene.tif", build_reading(size_m=SIZES["size_m"]), SIZES["stride_m"])
    return plan_job(Binder.load(world / "bundle"), "ground_image", source, out)


def test_an_actor_writes_parts_and_says_so(world, tmp_path):
    job = plan(world, tmp_path / "a.parquet")
    job.parts.folder.mkdir()
    actor = _BlockActor(_pack(str(world / "bundle"), job, 0, "cpu"))
    assert actor({"block": [3]}) == {"block": [3], "kind": [""], "message": [""]}
    assert 3 not in job.parts.list_missing() and len(job.parts.list_missing()) == job.parts.blocks - 1


def test_an_actor_with_another_raster_says_so_with_each_block(world, tmp_path):
    job = plan(world, tmp_path / "a.parquet")
    spec = _pack(str(world / "bundle"), job, 0, "cpu")
    content = (world / "scene.tif").read_bytes()
    try:
        (world / "scene.tif").write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        result = _BlockActor(spec)({"block": [3]})
    finally:
        (world / "scene.tif").write_bytes(content)
    assert result["kind"] == ["DataError"]
    assert (
        "a node of the cluster has another model, or another scene.tif, than the process"
        in result["message"][0]
    )


def test_a_model_that_nodes_cannot_load_is_refused(world, tmp_path):
    job = plan(world, tmp_path / "a.parquet")
    with pytest.raises(DataError, match="Ray's workers load the model themselves: give the bundle's folder"):
        embed_raster(
            scenes.build_binder(), "mean", world / "scene.tif", tmp_path / "b.parquet", ray="auto", size_m=320
        )
    job = plan_job(scenes.build_binder(), "mean", job.source, tmp_path / "c.parquet")
    with pytest.raises(
        PluginError, match="'mean' is no modality of an installed plugin, and Ray's workers load no"
    ):
        next(RayRunner(str(world / "bundle"), "auto").run(job, [0]))


@pytest.fixture
def cluster(monkeypatch):
    """Two nodes of two processors, to which this process is connected."""
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("PYTHONPATH", os.path.dirname(scenes.__file__), prepend=os.pathsep)
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
    made.add_node(num_cpus=2)
    ray.init(address=made.address, log_to_driver=False)
    yield made
    ray.shutdown()
    made.shutdown()


def list_actors():
    """The processes of the actors that embed, and nobody else's: those that are children of this cluster."""
    inside = psutil.Process().children(recursive=True)
    return [
        child for child in inside if "MapWorker" in " ".join(child.cmdline()) or "MapWorker" in child.name()
    ]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_cluster_that_loses_a_worker_makes_the_file_of_one_process(world, tmp_path, cluster):
    torch.set_num_threads(1)
    expected = tmp_path / "here.parquet"
    embed_raster(Binder.load(world / "bundle"), "ground_image", world / "scene.tif", expected, **SIZES)
    out = tmp_path / "a.parquet"
    killed = []

    def kill_one():
        while len(list(out.with_suffix(".parts").glob("*.parquet"))) < 2:
            time.sleep(0.05)
        actors = list_actors()
        os.kill(actors[0].pid, signal.SIGKILL)
        killed.append(actors[0].pid)

    thread = threading.Thread(target=kill_one, daemon=True)
    thread.start()
    embed_raster(
        str(world / "bundle"), "ground_image", world / "scene.tif", out, ray=cluster.address, **SIZES
    )
    assert killed and digest(out) == digest(expected)
    # Stopped and gone on with: shares of one process, the rest by the cluster.
    out = tmp_path / "b.parquet"
    embed_raster(
        Binder.load(world / "bundle"), "ground_image", world / "scene.tif", out, shard=(0, 2), **SIZES
    )
    embed_raster(
        str(world / "bundle"), "ground_image", world / "scene.tif", out, ray=cluster.address, **SIZES
    )
    assert digest(out) == digest(expected)
