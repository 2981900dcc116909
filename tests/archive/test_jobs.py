"""Jobs that make archives: stopped, gone on with, shared, refused; one file whatever happened."""

import csv
import hashlib
import json
import os
import random
import shutil
import signal
import time

import numpy as np
import pytest

rasterio = pytest.importorskip("rasterio")
import scenes  # noqa: E402
import torch  # noqa: E402
from PIL import Image  # noqa: E402

from geobind import precision  # noqa: E402
from geobind.archive import Archive, embed_raster, embed_table, join_archives  # noqa: E402
from geobind.archive.job import finish, read_parts  # noqa: E402
from geobind.binder import Binder  # noqa: E402
from geobind.errors import CheckpointError, DataError  # noqa: E402

SIZES = {"size_m": 160, "stride_m": 40}  # 66 x 46 tiles: six blocks


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    def hole(pixels):
        pixels[:, :150, :150] = 0  # the first block and more
        return pixels

    return scenes.write_scene(tmp_path_factory.mktemp("scene") / "a.tif", nodata=0, change=hole)


@pytest.fixture(scope="module")
def whole(scene, tmp_path_factory):
    """An archive that nothing happened to."""
    out = tmp_path_factory.mktemp("whole") / "a.parquet"
    embed_raster(scenes.build_binder(), "mean", scene, out, **SIZES)
    return out


def embed(scene, out, binder=None, **options):
    return embed_raster(binder or scenes.build_binder(), "mean", scene, out, **{**SIZES, **options})


def test_an_archive_holds_what_the_binder_embeds_and_nothing_is_left_beside_it(scene, whole):
    archive = Archive.open(whole, scenes.build_binder())
    assert sorted(path.name for path in whole.parent.iterdir()) == ["a.json", "a.parquet"]
    with rasterio.open(scene) as file:
        pixels = file.read().transpose(1, 2, 0)
    for number in (0, 700, len(archive) - 1):
        row, column = int(archive.row_N[number]), int(archive.column_N[number])
        tile = pixels[4 * row : 4 * row + 16, 4 * column : 4 * column + 16]
        expected = scenes.build_binder().embed("mean", tile, numpy=True)
        assert np.abs(archive.read_vectors([number]) - expected).max() < 1e-3
        assert archive.ids[number] == f"a/{row}/{column}"


def test_rows_along_the_curve_make_row_groups_local(scene, tmp_path):
    archive = embed(scene, tmp_path / "a.parquet", dtype="float32")
    near = np.hypot(np.diff(archive.lat_N), np.diff(archive.lon_N))
    assert np.median(near) < 1e-3 and archive.read_vectors().dtype == np.float32


def test_shares_joined_are_the_file_of_one_process_to_the_byte(scene, whole, tmp_path):
    out = tmp_path / "a.parquet"
    for share in (2, 0):
        assert embed(scene, out, shard=(share, 3)) is None
    with pytest.raises(DataError, match=r"a.parts: has 4 of 6 parts; run shard 1/3"):
        finish(read_parts(out))
    embed(scene, out, shard=(1, 3))
    finish(read_parts(out))
    assert digest(out) == digest(whole) and not out.with_suffix(".parts").exists()


def test_a_block_is_placed_once_however_many_batches_it_is_read_in(scene, whole, tmp_path, monkeypatch):
    from geobind.archive import sources

    placed, measure = [], sources.measure_frames
    monkeypatch.setattr(sources, "measure_frames", lambda *words: placed.append(1) or measure(*words))
    embed(scene, tmp_path / "a.parquet", workers=2)
    assert len(placed) == 6 and digest(tmp_path / "a.parquet") == digest(whole)


def test_what_is_there_is_not_done_again(scene, whole, tmp_path, monkeypatch):
    from geobind.archive import job

    out = tmp_path / "a.parquet"
    embed(scene, out, shard=(0, 2))
    done, write = [], job.write_part
    monkeypatch.setattr(
        job, "write_part", lambda job, block, table: done.append(block) or write(job, block, table)
    )
    embed(scene, out)
    assert done == [1, 3, 5] and digest(out) == digest(whole)
    embed(scene, out)
    assert done == [1, 3, 5]


def test_a_job_that_ended_between_the_archive_and_its_item_writes_the_item(scene, whole, tmp_path):
    out = tmp_path / "a.parquet"
    shutil.copy(whole, out)
    out.with_suffix(".parts").mkdir()
    embed(scene, out)
    assert out.with_suffix(".json").is_file() and not out.with_suffix(".parts").exists()


def test_tiles_that_a_model_cannot_take_are_mended_by_how_the_raster_is_read(scene, tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise DataError("values from 8765 to 32604")

    binder = scenes.build_binder()
    monkeypatch.setattr(type(binder.modalities["mean"]), "prepare", refuse)
    with pytest.raises(DataError, match=r"tile a/.*8765.*; give the range .*--stretch LOW,HIGH") as told:
        embed(scene, tmp_path / "a.parquet", binder)
    assert "--skip-broken" not in str(told.value)


def test_fresh_replaces_a_damaged_archive_of_the_same_job(scene, whole, tmp_path):
    out = tmp_path / "a.parquet"
    content = bytearray(whole.read_bytes())
    content[1000:2000] = bytes(1000)  # the footer, and so the plan, is as it was
    out.write_bytes(content)
    embed(scene, out, fresh=True)
    assert digest(out) == digest(whole)


def _killed(scene, out, seconds):
    """Embed in another process, killed after so many seconds; return whether it ended before."""
    child = os.fork()
    if not child:
        torch.set_num_threads(1)
        code = 1
        try:
            embed(scene, out, batch_size=7)
            code = 0
        finally:
            os._exit(code)
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.slow
def test_a_job_killed_at_any_moment_ends_with_the_same_file(scene, tmp_path):
    draw, began = random.Random(0), time.monotonic()
    embed(scene, tmp_path / "whole.parquet", batch_size=7)
    seconds, expected = time.monotonic() - began, digest(tmp_path / "whole.parquet")
    for number in range(6):
        out = tmp_path / f"{number}" / "whole.parquet"
        out.parent.mkdir()
        for _ in range(3):
            _killed(scene, out, draw.uniform(0, seconds))
        embed(scene, out, batch_size=7)
        assert digest(out) == expected
        assert sorted(path.name for path in out.parent.iterdir()) == ["whole.json", "whole.parquet"]


class Tolerant(scenes.Mean):
    """Its encoder takes its input in whatever type its weights have."""

    def encoder(self, width, *, pretrained=True):
        net = super().encoder(width)
        net.register_forward_pre_hook(lambda module, args: (args[0].to(module.weight.dtype),))
        return net


def build_tolerant(precision):
    binder = Binder({"mean": Tolerant()}, 16, seed=0)
    binder.precision = precision
    return binder


def let_bfloat16_take(share, monkeypatch):
    took = {torch.float32: 1.0, torch.bfloat16: share}
    monkeypatch.setattr(precision, "_time", lambda call, device: took[call.__defaults__[0].weight.dtype])


def test_an_archive_states_the_type_it_was_computed_in_and_its_cosine(scene, tmp_path, monkeypatch):
    let_bfloat16_take(0.5, monkeypatch)
    archive = embed(scene, tmp_path / "a.parquet", build_tolerant("auto"))
    assert archive.metadata.computed == "bfloat16" and 0.99 < archive.metadata.cosine < 1
    exact = embed(scene, tmp_path / "b.parquet", build_tolerant("float32"))
    assert exact.metadata.computed == "float32" and exact.metadata.cosine is None
    assert not np.array_equal(archive.read_vectors([700]), exact.read_vectors([700]))
    with pytest.raises(DataError, match=r"a.parquet is in bfloat16, .*b.parquet in float32: embed one again"):
        join_archives([tmp_path / "a.parquet", tmp_path / "b.parquet"], tmp_path / "c.parquet")


def test_a_job_goes_on_in_the_type_that_it_began_with(scene, tmp_path, monkeypatch):
    out = tmp_path / "a.parquet"
    let_bfloat16_take(0.5, monkeypatch)
    embed(scene, out, build_tolerant("auto"), shard=(0, 2))
    let_bfloat16_take(2, monkeypatch)
    archive = embed(scene, out, build_tolerant("auto"))
    assert archive.metadata.computed == "bfloat16" and archive.metadata.cosine < 1
    assert len(embed(scene, out, build_tolerant("auto"))) == len(archive)
    with pytest.raises(DataError, match="is there already, made of other inputs or options"):
        embed(scene, out, build_tolerant("float32"))


def test_auto_that_chooses_float32_makes_the_same_file(scene, tmp_path, monkeypatch):
    let_bfloat16_take(2, monkeypatch)
    for name in ("auto", "float32"):
        (tmp_path / name).mkdir()
        embed(scene, tmp_path / name / "a.parquet", build_tolerant(name))
    assert digest(tmp_path / "auto" / "a.parquet") == digest(tmp_path / "float32" / "a.parquet")


@pytest.mark.parametrize("workers", [0, 3])
def test_workers_prepare_the_same_file(scene, whole, tmp_path, workers):
    embed(scene, tmp_path / "a.parquet", workers=workers)
    assert digest(tmp_path / "a.parquet") == digest(whole)


def test_another_models_archive_is_neither_gone_on_with_nor_replaced(scene, whole, tmp_path):
    out = tmp_path / "a.parquet"
    shutil.copy(whole, out)
    with pytest.raises(
        CheckpointError,
        match=r"a.parquet: is an archive of another model \(\w{12}\), whose embeddings cannot be mixed with "
        "these; choose another name, or replace it with --fresh",
    ):
        embed(scene, out, scenes.build_binder(seed=1))
    assert digest(out) == digest(whole)
    archive = embed(scene, out, scenes.build_binder(seed=1), fresh=True)
    assert archive.model != Archive.open(whole).model


def test_a_file_of_another_kind_with_the_archives_name_is_kept(scene, tmp_path):
    out = tmp_path / "a.parquet"
    out.write_text("notes")
    with pytest.raises(DataError, match=r"a\.parquet: damaged: "):
        embed(scene, out)
    assert out.read_text() == "notes"


def test_an_archive_of_other_options_is_not_replaced(scene, whole, tmp_path):
    out = tmp_path / "a.parquet"
    shutil.copy(whole, out)
    with pytest.raises(
        DataError, match="is there already, made of other inputs or options; choose another name"
    ):
        embed(scene, out, min_valid=0.9)
    with pytest.raises(CheckpointError, match="embedded by another model"):
        Archive.open(whole, scenes.build_binder(seed=1))


def test_parts_of_another_job_are_refused_and_the_difference_named(scene, tmp_path):
    out = tmp_path / "a.parquet"
    embed(scene, out, shard=(0, 3))
    with pytest.raises(
        DataError,
        match=r"a.parts: holds parts of another job \(different: grid, reading, pixels\); finish that one, "
        "or throw them away with --fresh",
    ):
        embed(scene, out, size_m=200)
    with pytest.raises(DataError, match=r"another job \(different: model\)"):
        embed(scene, out, scenes.build_binder(seed=1))
    assert len(embed(scene, out, size_m=200, fresh=True))


def test_a_raster_that_changed_meanwhile_is_another_job(scene, tmp_path):
    copy = tmp_path / "a.tif"
    shutil.copy(scene, copy)
    embed(copy, tmp_path / "a.parquet", shard=(0, 3))
    with rasterio.open(copy, "r+") as file:
        file.write(np.full((3, 50, 50), 9, np.uint8), window=rasterio.windows.Window(200, 100, 50, 50))
    with pytest.raises(DataError, match=r"another job \(different: content\)"):
        embed(copy, tmp_path / "a.parquet")


def test_a_damaged_part_is_named(scene, tmp_path):
    out = tmp_path / "a.parquet"
    for share in range(2):
        embed(scene, out, shard=(share, 2))
    part = out.with_suffix(".parts") / "000004.parquet"
    content = bytearray(part.read_bytes())
    content[len(content) // 3] ^= 255
    part.write_bytes(content)
    with pytest.raises(DataError, match=r"000004.parquet: damaged"):
        embed(scene, out)
    part.unlink()
    assert len(embed(scene, out))


def test_a_plan_that_is_damaged_says_what_to_do(scene, tmp_path):
    out = tmp_path / "a.parquet"
    embed(scene, out, shard=(0, 3))
    plan = out.with_suffix(".parts") / "plan.json"
    plan.write_text(json.dumps({"metadata": {}}))
    with pytest.raises(
        DataError, match=r"plan.json: damaged: metadata.modality: .*; throw the parts away with --fresh"
    ):
        embed(scene, out)
    with pytest.raises(
        DataError, match=r"other.parts: has no parts of other.parquet; make them: geobind embed"
    ):
        read_parts(tmp_path / "other.parquet")


def test_parts_that_another_process_writes_are_not_joined(scene, tmp_path):
    from geobind.utils.files import FileLock

    out = tmp_path / "a.parquet"
    for share in range(2):
        embed(scene, out, shard=(share, 2))
    with FileLock(out.with_suffix(".parts") / "lock", shared=True):
        with pytest.raises(
            DataError, match="another process still writes parts; join them when it has ended"
        ):
            finish(read_parts(out))
    assert len(finish(read_parts(out)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shard": (3, 3)}, "--shard 3/3: shares of n are 0/n to 2/n"),
        ({"size_m": -1}, "size_m: Input should be greater than"),
        ({"stretch": (3, 1)}, "`stretch` must be two numbers, the lower one first"),
        ({"bands": (9,)}, "wants bands .9., but the raster has bands 1 to 3"),
        ({"time": "yesterday"}, "--time yesterday: give a moment such as 2024-07-01"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"grid": "h3"}, "--grid h3: there are"),
    ],
)
def test_options_that_make_no_sense_are_refused(scene, tmp_path, options, message):
    with pytest.raises(DataError, match=message):
        embed(scene, tmp_path / "a.parquet", **options)


def test_a_name_that_is_no_archives_or_a_folder_that_is_not_there_is_refused(scene, tmp_path):
    with pytest.raises(DataError, match=r"let its name end in \.parquet"):
        embed(scene, tmp_path / "a.npy")
    with pytest.raises(DataError, match="there is no folder"):
        embed(scene, tmp_path / "none" / "a.parquet")
    with pytest.raises(DataError, match="no such file"):
        embed(tmp_path / "none.tif", tmp_path / "a.parquet")


def test_the_time_of_a_raster_is_that_of_every_row_and_of_the_item(scene, tmp_path):
    archive = embed(scene, tmp_path / "a.parquet", time="2024-07-01T12:00:00+02:00")
    assert set(archive.time_N) == {np.datetime64("2024-07-01T10:00:00")}
    assert len(archive.find_rows(time=("2024-07-01", "2024-07-02"))) == len(archive)
    assert not len(archive.find_rows(time=(None, "2024-06-30")))
    item = json.loads((tmp_path / "a.json").read_text())
    assert item["properties"]["datetime"] == "2024-07-01T10:00:00+00:00"


def test_the_item_is_one_that_stac_knows(whole):
    pystac = pytest.importorskip("pystac")
    values = json.loads(whole.with_suffix(".json").read_text())
    item = pystac.Item.from_dict(values)
    assert item.properties["emb:type"] == "chip" and item.properties["emb:dimensions"] == 16
    assert item.properties["data_type"] == "float16"
    assert item.properties["emb:chip_layout"] == {
        "layout_type": "regular_grid", "chip_size": [16, 16], "stride": [4, 4],
    }  # fmt: skip
    assert {"emb:model", "emb:source-data"} <= {link.rel for link in item.links}
    assert item.assets["embeddings"].href == "./a.parquet" and len(item.bbox) == 4


# Tables and folders.


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A folder of pictures, and a manifest of some of them."""
    folder = tmp_path_factory.mktemp("photos") / "photos"
    draw = np.random.default_rng(0)
    rows = []
    for number in range(60):
        path = folder / f"{number % 3}" / f"{number:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw.integers(0, 255, (8, 8, 3), np.uint8)).save(path)
        lat, lon = draw.uniform(-80, 80), draw.uniform(-180, 180)
        rows.append(
            [f"row{number}", f"photos/{path.relative_to(folder)}", lat, lon, f"2024-07-{1 + number % 30:02d}"]
        )
    with (folder.parent / "places.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["key", "picture", "lat", "lon", "time"], *rows])
    return folder


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("GEOBIND_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(scope="module")
def seer():
    from small_world import Photo

    from geobind.binder import Binder

    return Binder({"photo": Photo()}, 8, seed=0)


def test_a_table_keeps_its_keys_places_and_times(photos, seer, tmp_path):
    table = photos.parent / "places.csv"
    archive = embed_table(seer, "photo", table, tmp_path / "a.parquet", photo="picture")
    with table.open() as file:
        rows = {row["key"]: row for row in csv.DictReader(file)}
    assert sorted(archive.ids) == sorted(rows) and archive.check() == 60
    for number in range(0, 60, 13):
        row = rows[archive.ids[number]]
        assert archive.lat_N[number] == float(row["lat"]) and archive.lon_N[number] == float(row["lon"])
        assert str(archive.time_N[number])[:10] == row["time"]
        expected = seer.embed("photo", table.parent / row["picture"], numpy=True)
        assert np.abs(archive.read_vectors([number]) - expected).max() < 1e-3
    steps = np.hypot(np.diff(archive.lat_N), np.diff(archive.lon_N))
    assert np.median(steps) < 40  # along the curve; at random it is about 130


def test_a_folder_gives_one_row_a_file_in_the_order_of_names(photos, seer, tmp_path):
    archive = embed_table(seer, "photo", photos, tmp_path / "a.parquet")
    assert archive.ids.tolist() == sorted(f"{n % 3}/{n:03d}.png" for n in range(60))
    assert np.isnan(archive.lat_N).all() and not archive.metadata.placed
    some = embed_table(seer, "photo", photos, tmp_path / "b.parquet", pattern="00*.png")
    assert len(some) == 10
    with pytest.raises(DataError, match=r"has no files that match '\*.jpg'"):
        embed_table(seer, "photo", photos, tmp_path / "c.parquet", pattern="*.jpg")


def test_files_that_are_rasters_have_their_place(seer, tmp_path):
    for number in range(3):
        where = rasterio.Affine(10, 0, 500_000 + 1e5 * number, 0, -10, 5_000_000)
        scenes.write_scene(tmp_path / f"{number}.tif", height=20, width=20, where=where)
    archive = embed_table(seer, "photo", tmp_path, tmp_path / "a.parquet", pattern="*.tif")
    assert np.all(np.diff(archive.lon_N) > 1) and np.abs(archive.lat_N - 45.1).max() < 0.1


def test_a_file_that_cannot_be_read_is_named_and_nothing_done_is_lost(photos, seer, tmp_path, logged):
    folder = shutil.copytree(photos, tmp_path / "photos")
    (folder / "1" / "031.png").write_bytes(b"no picture")
    with pytest.raises(
        DataError,
        match=r"1/031.png: .*; mend or remove it and run the command again, or leave out whatever cannot "
        "be read with --skip-broken",
    ):
        embed_table(seer, "photo", folder, tmp_path / "a.parquet")
    archive = embed_table(seer, "photo", folder, tmp_path / "b.parquet", skip_broken=True)
    assert len(archive) == 59 and "1/031.png" not in archive.ids
    assert "left out: 1/031.png" in logged()


def test_a_table_without_the_column_says_so(photos, seer, tmp_path):
    with pytest.raises(DataError, match="photo"):
        embed_table(seer, "photo", photos.parent / "places.csv", tmp_path / "a.parquet", photo="none")
    with pytest.raises(DataError, match="is a folder of files, which has no columns and no splits"):
        embed_table(seer, "photo", photos, tmp_path / "a.parquet", split="test")
    with pytest.raises(DataError, match="a pattern is for a folder"):
        embed_table(seer, "photo", photos.parent / "places.csv", tmp_path / "a.parquet", pattern="*.png")


@pytest.mark.slow
def test_memory_stays_flat_from_a_few_blocks_to_many(tmp_path):
    """Peak memory of a process of its own, after 12 blocks and after 100 (102,400 tiles)."""
    import subprocess
    import sys

    path = scenes.write_scene(tmp_path / "a.tif", height=1300, width=1300, tiled=True)
    code = f"""
import sys; sys.path.insert(0, {os.path.dirname(scenes.__file__)!r})
import scenes, torch, resource
from geobind.archive.job import Here, plan_job, write_part
from geobind.archive.sources import RasterTiles, build_reading
from pathlib import Path
torch.set_num_threads(1)
binder = scenes.build_binder()
source = RasterTiles(Path({str(path)!r}), build_reading(size_m=40), 40)
job = plan_job(binder, "mean", source, {str(tmp_path / "a.parquet")!r})
from geobind.archive.job import run_job
peaks = []
class Watched:
    def run(self, job, blocks):
        for number, block in enumerate(Here(binder).run(job, blocks)):
            if number in (12, 99):
                peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
            yield block
archive = run_job(job, Watched())
peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
print(len(archive), *peaks)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    rows, few, many, joined = map(int, run.stdout.split())
    assert rows == 325 * 325
    assert many - few < 40_000 and joined - few < 60_000  # KiB
