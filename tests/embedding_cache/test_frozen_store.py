"""The embedding cache by itself: rows are found by content, and made again whenever anything changed."""

import json
import multiprocessing
import os
import signal
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
import world
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from geobind.cli import main
from geobind.embedding_cache import build, store
from geobind.embedding_cache import keys as contents
from geobind.embedding_cache.keys import FileHashes, Uncacheable
from geobind.embedding_cache.store import Damaged, find_entries, open_shard, prune, verify, write_shard
from geobind.errors import DataError, TrainingError
from geobind.modality import Modality
from geobind.scoring import unit
from geobind.utils import files as stamps

FORK = multiprocessing.get_context("fork")  # importing torch anew takes seconds


def rows(side, pairs=None):
    wanted = range(len(side.lookup.listed_N)) if pairs is None else pairs
    return side.read(np.array([side.lookup.pick(pair, lambda count: 0) for pair in wanted]))


def embedded(paths, encoder=None, modality=None):
    modality = modality or world.Note()
    with torch.no_grad():
        return unit((encoder or world.net())(torch.stack([modality.prepare(path) for path in paths])))


def test_what_is_read_is_what_the_encoder_gives_to_float16_rounding(tmp_path):
    paths = world.note_files(tmp_path, 20)
    side, _ = world.stored(paths)
    assert side.made == 20
    assert torch.allclose(rows(side), embedded(paths), atol=2**-12, rtol=2**-11)


def test_a_second_look_makes_nothing(tmp_path):
    paths = world.note_files(tmp_path, 20)
    first, _ = world.stored(paths)
    again, _ = world.stored(paths)
    assert (first.made, again.made) == (20, 0)
    assert torch.equal(rows(first), rows(again))


def test_more_inputs_make_only_the_new_ones(tmp_path):
    paths = world.note_files(tmp_path, 20)
    world.stored(paths[:15])
    side, _ = world.stored(paths)
    assert side.made == 5
    assert torch.allclose(rows(side), embedded(paths), atol=2**-12, rtol=2**-11)


def test_the_same_content_under_another_name_is_embedded_once(tmp_path):
    one, two = world.note_files(tmp_path, 2)
    two.write_bytes(one.read_bytes())
    side, _ = world.stored([one, two, "0 0 1 0"])
    assert side.made == 2  # the string is no file, though it says the same
    assert torch.equal(*rows(side, [0, 1]))


def changed_weight(encoder):
    with torch.no_grad():
        encoder.trunk[0].bias[3] += 1e-7
    return {"encoder": encoder}


CHANGES = {
    "a weight": lambda folder: changed_weight(world.net()),
    "an option": lambda folder: {"modality": world.Note(scale=1.5)},
    "an option of augmentation": lambda folder: {"modality": world.Note(noise=0.5)},
    "the plugin's version": lambda folder: {"source": world.SOURCE._replace(version="1.1")},
    "what is kept": lambda folder: {"part": "trunk"},
    "how it is prepared": lambda folder: {"augmented": True},
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_after_a_change_every_row_is_made_again(tmp_path, change):
    paths = world.note_files(tmp_path, 9)
    _, old = world.stored(paths)
    side, new = world.stored(paths, **change(tmp_path))
    assert side.made == 9
    assert old.folder != new.folder


def test_a_file_that_changes_is_embedded_again_though_size_and_time_are_as_before(tmp_path):
    paths = world.note_files(tmp_path, 5)
    for path in paths:
        os.utime(path, (1e9, 1e9))
    world.stored(paths)
    paths[3].write_text(paths[3].read_text().replace("3", "8"))
    os.utime(paths[3], (1e9, 1e9))
    side, _ = world.stored(paths)
    assert side.made == 1
    assert torch.allclose(rows(side), embedded(paths), atol=2**-12, rtol=2**-11)


def test_a_file_an_option_names_counts_with_its_content(tmp_path):
    paths = world.note_files(tmp_path / "notes", 3)
    table = tmp_path / "table.txt"
    table.write_text("one")
    modality = world.Note(table=str(table))
    world.stored(paths, modality=modality)
    assert world.stored(paths, modality=modality)[0].made == 0
    table.write_text("two")
    assert world.stored(paths, modality=modality)[0].made == 3


def test_a_zarr_folder_an_option_names_counts_with_its_files(tmp_path):
    paths = world.note_files(tmp_path / "notes", 3)
    store = tmp_path / "product.zarr"
    (store / "c").mkdir(parents=True)
    modality = world.Note(table=str(store))
    world.stored(paths, modality=modality)
    (store / "c" / "0").write_bytes(b"one")
    assert (
        world.stored(paths, modality=modality)[0].made == 0
    )  # any other folder: its files are not looked at
    (store / "zarr.json").write_text("{}")
    assert world.stored(paths, modality=modality)[0].made == 3
    assert world.stored(paths, modality=modality)[0].made == 0
    (store / "c" / "0").write_bytes(b"two")
    assert world.stored(paths, modality=modality)[0].made == 3


def test_the_source_code_of_a_plugin_counts(tmp_path, monkeypatch):
    from geobind.embedding_cache import keys as address

    paths = world.note_files(tmp_path, 3)
    world.stored(paths)
    monkeypatch.setattr(address, "_hash_source", lambda cls: "edited")
    assert world.stored(paths)[0].made == 3


def test_a_row_is_found_again_with_torchaudio_with_a_broken_one_and_without_it(monkeypatch, break_torchaudio):
    from importlib import metadata

    from geobind.embedding_cache import keys as address
    from geobind.plugins import Source
    from geobind.towers.mel import check_torchaudio
    from geobind_audio import Audio

    def key():
        address._library_versions.cache_clear()
        facts = address.cache_key_facts(
            Audio(timm={"model": "test_resnet", "pretrained": False}),
            Source("audio", "geobind", "1.0"),
            weights="w",
            part="whole",
            width=8,
            precision="32-true",
            augmented=False,
            files=lambda path: b"",
        )
        assert "torch" in facts["versions"]
        return address.cache_key(facts)

    installed = metadata.version

    def version(name):
        if name == "torchaudio":
            raise metadata.PackageNotFoundError(name)
        return installed(name)

    keys = [key()]
    break_torchaudio("raise OSError")
    assert not check_torchaudio()
    keys.append(key())
    monkeypatch.setattr(metadata, "version", version)
    keys.append(key())
    address._library_versions.cache_clear()
    assert len(set(keys)) == 1


def test_a_plugin_that_declares_torchaudio_itself_goes_by_its_version(monkeypatch):
    from geobind.embedding_cache import keys as address

    declared = {"geobind": ["torchaudio>=2.8", "torch"], "acme": ["torchaudio"]}
    monkeypatch.setattr(address.metadata, "requires", declared.__getitem__)
    monkeypatch.setattr(address.metadata, "version", lambda name: "2.0")
    assert "torchaudio" not in address._library_versions.__wrapped__("geobind")
    assert "torchaudio" in address._library_versions.__wrapped__("acme")


def test_each_of_several_observations_has_a_row_and_the_loaders_draw_decides(tmp_path):
    texts = [["1 2 3 4", "4 3 2 1", "0 0 0 1"], "5 5 5 5", ["9 8 7 6"], []]
    side, _ = world.stored(texts, max_broken=1)
    assert side.made == 5
    asked = []

    def last(count):
        asked.append(count)
        return count - 1

    found = side.read(np.array([side.lookup.pick(pair, last) for pair in range(3)]))
    assert torch.allclose(found, embedded(["0 0 0 1", "5 5 5 5", "9 8 7 6"]), atol=2**-12, rtol=2**-11)
    assert asked == [3, 1]  # one observation that is not in a list needs no draw
    assert side.lookup.fixed_N[1] >= 0 and (side.lookup.fixed_N[[0, 2, 3]] == -1).all()
    with pytest.raises(DataError, match="is missing"):
        side.lookup.pick(3, last)


def test_broken_inputs_are_left_out_and_named_and_too_many_are_an_error(tmp_path):
    paths = world.note_files(tmp_path, 10)
    paths[4].write_text("four")
    paths[7].unlink()
    side, _ = world.stored(paths, max_broken=0.2)
    assert side.made == 8
    for pair, reason in ((4, "4.txt: no numbers"), (7, "7.txt: no such file")):
        with pytest.raises(DataError, match=reason):
            side.lookup.pick(pair, lambda count: 0)
    with pytest.raises(DataError, match=r"note: 2 of 10 inputs cannot be used, more than max_broken \(0.1\)"):
        world.stored(paths, max_broken=0.1)


def test_a_preparation_that_draws_random_numbers_is_not_cached(tmp_path):
    paths = world.note_files(tmp_path, 3)
    with pytest.raises(Uncacheable, match=r"draws random numbers; `cache: \{views: K\}`"):
        world.stored(paths, modality=world.Note(noise=0.1), augmented=True)
    assert world.stored(paths, modality=world.Note(noise=0.1), augmented=False)[0].made == 3


def test_views_differ_from_each_other_and_are_the_same_every_time(tmp_path):
    paths = world.note_files(tmp_path, 4)
    noisy = world.Note(noise=0.5)
    four, _ = world.stored(paths, modality=noisy, augmented=True, views=4)
    views = [four.read(np.array([four.lookup.row_MK[item, view] for item in range(4)])) for view in range(4)]
    assert four.made == 16
    assert all(not torch.allclose(views[0], other, atol=1e-3) for other in views[1:])
    more, _ = world.stored(paths, modality=noisy, augmented=True, views=6)
    assert more.made == 8  # the first four are there


def test_the_features_of_a_trunk_are_what_its_head_is_given(tmp_path):
    paths = world.note_files(tmp_path, 6)
    encoder = world.net()
    side, _ = world.stored(paths, encoder=encoder, part="trunk")
    x = torch.stack([world.Note().prepare(path) for path in paths])
    with torch.no_grad():
        features = encoder.trunk(x)
        assert torch.allclose(rows(side), features, rtol=2**-11, atol=features.max() * 2**-12)


def test_an_encoder_that_goes_on_after_its_head_is_not_cached_by_its_trunk(tmp_path):
    class Longer(world.Net):
        def forward(self, x_BF):
            return super().forward(x_BF) + x_BF.mean()

    with pytest.raises(Uncacheable, match="has operations after its head"):
        world.stored(world.note_files(tmp_path, 3), encoder=Longer(world.WIDTH), part="trunk")


def grow(encoder, _):
    encoder.head.weight.data.mul_(1.01)


def test_weights_that_drift_leave_no_rows(tmp_path):
    encoder = world.net()
    encoder.register_forward_pre_hook(grow)
    with pytest.raises(TrainingError, match="frozen weights of note changed"):
        world.stored(world.note_files(tmp_path, 3), encoder=encoder)
    assert [held.bytes for held in find_entries()] and not list((tmp_path / "cache").rglob("*.safetensors"))


def test_inputs_whose_content_cannot_be_told_are_not_cached(tmp_path):
    with pytest.raises(Uncacheable, match=r"cannot be hashed \(object\)"):
        world.stored([object()])
    with pytest.raises(Uncacheable, match="its inputs are folders"):
        world.stored([tmp_path])


def test_rows_that_would_not_fit_are_not_made(tmp_path, monkeypatch):
    monkeypatch.setenv("GEOBIND_CACHE_GB", "0.0000001")
    with pytest.raises(Uncacheable, match="more than the 1e-07 GB that GEOBIND_CACHE_GB allows"):
        world.stored(world.note_files(tmp_path, 20))


def started(*arguments):
    process = FORK.Process(target=world.fill_folder, args=arguments)
    process.start()
    return process


def test_a_fill_that_is_killed_leaves_whole_shards_and_is_gone_on_with(tmp_path):
    paths = world.note_files(tmp_path / "notes", 40)
    killed = started(tmp_path / "notes", 2)
    killed.join()
    assert killed.exitcode == -signal.SIGKILL
    (checked,) = verify(repair=False)
    assert (checked.rows, checked.damaged) == (16, ())
    side, _ = world.stored(paths)
    assert side.made == 24
    assert torch.allclose(rows(side), embedded(paths), atol=2**-12, rtol=2**-11)


def test_processes_that_fill_at_the_same_time_harm_nothing(tmp_path):
    paths = world.note_files(tmp_path / "notes", 60)
    both = [started(tmp_path / "notes") for _ in range(2)]
    for process in both:
        process.join()
    assert [process.exitcode for process in both] == [0, 0]
    side, _ = world.stored(paths)
    assert side.made == 0
    assert torch.allclose(rows(side), embedded(paths), atol=2**-12, rtol=2**-11)
    assert all(not checked.damaged for checked in verify(repair=False))


@pytest.mark.parametrize("damage", ["cut", "header", "index"])
def test_a_damaged_shard_is_dropped_with_a_warning_and_made_again(tmp_path, logged, damage):
    paths = world.note_files(tmp_path, 12)
    _, held = world.stored(paths)
    (path,) = held.folder.glob("*.safetensors")
    content = bytearray(path.read_bytes())
    where = {"cut": None, "header": 20, "index": 8 + int.from_bytes(content[:8], "little") + 3}[damage]
    if where is None:
        content = content[:-5]
    else:
        content[where] ^= 255
    path.write_bytes(content)
    side, _ = world.stored(paths)
    assert side.made == 12
    assert f"warning: embedding cache: dropped {path}" in logged()
    assert torch.allclose(rows(side), embedded(paths), atol=2**-12, rtol=2**-11)


def test_verify_finds_a_flipped_bit_of_a_row_and_removes_its_shard(tmp_path):
    paths = world.note_files(tmp_path, 12)
    _, held = world.stored(paths)
    (path,) = held.folder.glob("*.safetensors")
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    fault = ((path.name, "its rows have changed since they were written"),)
    assert [checked.damaged for checked in verify(repair=False)] == [fault]
    assert path.exists()
    assert [checked.damaged for checked in verify(repair=True)] == [fault]
    assert [checked.damaged for checked in verify(repair=True)] == [()]
    assert world.stored(paths)[0].made == 12


def test_small_shards_are_merged_and_rows_kept_twice_are_dropped(tmp_path, monkeypatch):
    monkeypatch.setattr(build, "_SECONDS", 0.0)
    paths = world.note_files(tmp_path, 72)
    side, held = world.stored(paths)
    (path,) = held.folder.glob("*.safetensors")
    assert torch.allclose(rows(side), embedded(paths), atol=2**-12, rtol=2**-11)
    for _ in range(9):
        held.add(*_copied(path))
    held.merge()
    assert sum(checked.rows for checked in verify(repair=False)) == 72
    assert torch.equal(rows(world.stored(paths)[0]), rows(side))


def _copied(path):
    shard = open_shard(path)
    return shard.content_M2.copy(), shard.row_MF * shard.scale_M[:, None]


def test_pruning_takes_what_was_used_longest_ago_and_spares_what_is_open(tmp_path):
    paths = world.note_files(tmp_path, 30)
    held = [world.stored(paths, modality=world.Note(scale=scale))[1] for scale in (1.0, 2.0, 3.0)]
    for age, one in zip((300, 200, 100), held, strict=True):
        os.utime(one.folder / store.FACTS_FILE, (time.time() - age,) * 2)
    sizes = {one.key: one.bytes for one in find_entries()}
    world.stored(paths, modality=world.Note(scale=1.0))  # used again: now the last to go
    gone = prune(sum(sizes.values()) - 1)
    assert [one.folder for one in gone] == [held[1].folder]
    facts = json.loads((held[2].folder / store.FACTS_FILE).read_text())
    in_use = store.CacheEntry(facts)
    assert [one.folder for one in prune(0)] == [held[0].folder]
    in_use.close()
    assert [one.folder for one in prune(0)] == [held[2].folder]
    assert find_entries() == []


def test_rows_stay_readable_when_their_entry_is_pruned(tmp_path):
    side, _ = world.stored(world.note_files(tmp_path, 5))
    before = rows(side)
    assert prune(0)
    assert torch.equal(rows(side), before)


@settings(deadline=None, max_examples=40)
@given(st.data())
def test_a_row_keeps_eleven_bits_of_its_largest_number_whatever_its_scale(tmp_path_factory, data):
    numbers = st.floats(
        -(2.0**126), 2.0**126, width=32, allow_nan=False, allow_infinity=False, allow_subnormal=False
    )
    row = np.array(data.draw(st.lists(numbers, min_size=1, max_size=8)), dtype=np.float32)
    shard = open_shard(write_shard(tmp_path_factory.mktemp("s"), np.ones((1, 2), np.uint64), row[None]))
    read = shard.row_MF[0].astype(np.float32) * shard.scale_M[0]
    assert np.all(np.abs(read - row) <= np.abs(row).max() * 2.0**-11)


def test_numbers_that_are_not_finite_stay_so(tmp_path):
    row_MF = np.array([[np.nan, 1], [np.inf, 2], [0, 0]], dtype=np.float32)
    shard = open_shard(write_shard(tmp_path, np.arange(6, dtype=np.uint64).reshape(3, 2), row_MF))
    assert np.array_equal(shard.row_MF.astype(np.float32) * shard.scale_M[:, None], row_MF, equal_nan=True)


@pytest.mark.parametrize("content", [b"", b"abc", b"\xff" * 100, (100).to_bytes(8, "little") + b"[" * 200])
def test_a_file_that_is_no_shard_is_damaged(tmp_path, content):
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(Damaged):
        open_shard(path)


RAWS = [
    "ab", b"ab", ("a", "b"), ("ab",), 1, 1.0, True, {"a": 1}, {"b": 1}, "", b"",
    *(np.array([1, 2], kind) for kind in (np.int16, np.int32)), np.array([[1], [2]], np.int16),
    (np.zeros(3), 16_000), (np.zeros(3), 8_000),
]  # fmt: skip


def test_no_two_kinds_of_input_share_a_content(tmp_path):
    found = [one for (one,) in contents.content_hashes(RAWS, FileHashes(tmp_path / "f.sqlite"))]
    assert len(set(found)) == len(RAWS)


def test_files_are_read_again_only_when_they_changed(tmp_path, monkeypatch):
    monkeypatch.setattr(stamps, "_YOUNG", -(10**9))
    paths = [str(path) for path in world.note_files(tmp_path, 4)]
    read = []
    opened = contents.open_binary
    monkeypatch.setattr(contents, "open_binary", lambda path: read.append(str(path)) or opened(path))
    for _ in range(2):
        files = FileHashes(tmp_path / "memory" / "f.sqlite")
        files.prefetch(paths)
        hashes = [files(path) for path in paths]
    assert sorted(read) == sorted(paths)
    Path(paths[1]).write_text("new")
    files = FileHashes(tmp_path / "memory" / "f.sqlite")
    files.prefetch(paths)
    assert [files(path) == old for path, old in zip(paths, hashes, strict=True)] == [True, False, True, True]
    (tmp_path / "memory" / "f.sqlite").write_bytes(b"no database")
    files = FileHashes(tmp_path / "memory" / "f.sqlite")
    files.prefetch(paths)
    assert files(paths[0]) == hashes[0]


def test_a_file_changed_this_moment_is_not_remembered(tmp_path):
    path = world.note_files(tmp_path, 1)[0]
    files = FileHashes(tmp_path / "f.sqlite")
    files.prefetch([str(path)])
    assert not (tmp_path / "f.sqlite").exists()


def test_a_modality_that_fails_otherwise_than_by_its_data_ends_the_run_and_says_where(tmp_path):
    class Faulty(world.Note):
        def prepare(self, raw, *, training=False):
            raise ZeroDivisionError("oh")

    assert issubclass(Faulty, Modality)
    with pytest.raises(ZeroDivisionError) as caught:
        world.stored(world.note_files(tmp_path, 1), modality=Faulty())
    assert caught.value.__notes__ == ["while preparing input 0 of note"]


def test_the_commands_list_verify_and_prune(tmp_path):
    def called(*arguments):
        result = CliRunner().invoke(main, ["cache", *arguments])
        return result.exit_code, result.output

    paths = world.note_files(tmp_path, 12)
    _, held = world.stored(paths)
    code, listed = called("list")
    assert code == 0 and "12 rows" in listed and "note: embeddings (acme 1.0 [note])" in listed
    found = json.loads(called("list", "--json")[1])
    assert [one["key"] for one in found["entries"]] == [held.folder.name]
    assert found["bytes"] == sum(one["bytes"] for one in found["entries"]) and found["limit_bytes"] == 20e9
    assert called("verify")[1] == "12 rows in 1 entries are as written; 0 files are damaged\n"
    (path,) = held.folder.glob("*.safetensors")
    path.write_bytes(path.read_bytes()[:-1])
    assert called("verify", "--keep") == (
        1,
        f"{held.folder.name[:12]}/{path.name}: it is cut short\n"
        "0 rows in 1 entries are as written; 1 files are damaged\n",
    )
    assert json.loads(called("verify", "--json")[1])[0]["damaged"] == [[path.name, "it is cut short"]]
    assert json.loads(called("prune", "--json")[1]) == {"removed": [], "bytes": find_entries()[0].bytes}
    code, pruned = called("prune", "--max-gb", "0")
    assert code == 0 and f"removed {held.folder.name[:12]}" in pruned and "0 GB left" in pruned


def test_a_limit_that_is_no_number_is_told(monkeypatch):
    monkeypatch.setenv("GEOBIND_CACHE_GB", "much")
    result = CliRunner().invoke(main, ["cache", "list"])
    assert result.exit_code == 2
    assert "error: GEOBIND_CACHE_GB=much: must be the size limit" in result.output


def test_windows_of_rasters_are_told_apart_without_being_read(tmp_path):
    rasterio = pytest.importorskip("rasterio")
    from geobind.data.options import RasterOptions
    from geobind.data.rasters.column import WINDOW, RasterColumn
    from geobind.data.readers.files import FileResolver

    profile = {"driver": "GTiff", "count": 1, "width": 40, "height": 40, "dtype": "uint8", "crs": "EPSG:4326"}
    transform = rasterio.transform.from_origin(3, 45, 0.001, 0.001)

    def write(name, value):
        with rasterio.open(tmp_path / name, "w", transform=transform, **profile) as scene:
            scene.write(np.full((1, 40, 40), value, np.uint8))

    for name, value in (("a.tif", 1), ("b.tif", 1), ("c.tif", 2)):
        write(name, value)
    window = {"lat": 44.98, "lon": 3.02, "size_m": 300.0}
    cells = [
        [{"raster": "a.tif", **window}],
        [{"raster": "b.tif", **window}],
        [{"raster": "c.tif", **window}],
        [{"raster": "a.tif", **window, "lat": 44.981}],
        [{"raster": "a.tif", **window}, {"raster": "c.tif", **window}],
        None,
    ]
    table = pa.table({"cell": pa.array(cells, pa.list_(WINDOW))})
    with pa.ipc.new_file(str(tmp_path / "rows.arrow"), table.schema) as writer:
        writer.write_table(table)

    def contents_now(**options):
        chosen = RasterOptions(size_m=300.0, **options)
        column = RasterColumn(tmp_path / "rows.arrow", "cell", FileResolver(tmp_path), chosen)
        told = [column.describe_window(row) for row in range(len(cells))]
        return list(contents.content_hashes(told, FileHashes(tmp_path / "f.sqlite")))

    a, b, c, moved, both, nothing = contents_now()
    assert a == b and len({*a, *c, *moved}) == 3
    assert both == [*a, *c] and nothing == [contents.MISSING]
    assert contents_now(gsd=20.0)[0] != a
    write("a.tif", 3)
    again = contents_now()
    assert again[0] != a and again[1] == b


def test_a_modality_whose_source_code_is_not_known_is_not_cached():
    space = {"Note": world.Note}
    exec("class Typed(Note):\n    pass\nTyped.__module__ = 'nowhere'", space)
    with pytest.raises(Uncacheable, match="the source code of Typed is not available"):
        world.stored(["1 2 3 4"], modality=space["Typed"]())
