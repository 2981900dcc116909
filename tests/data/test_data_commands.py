import csv
import io
import json
import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from geobind.cli import main
from geobind.data.inspect import find_near_duplicates, inspect_table
from geobind.data.options import DataOptions
from geobind.data.pack import pack_table
from geobind.data.split import SplitOptions, split_places, split_units
from geobind.data.table import open_table
from geobind.utils.geo import EARTH_KM, assign_cells, nearest_km

pytestmark = pytest.mark.slow

NAMES = ("sky", "ear", "words")


def picture(rng, size=64):
    coarse = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
    return coarse.resize((size, size), Image.Resampling.BICUBIC)


@pytest.fixture
def folder(tmp_path):
    """Twelve places with a picture, a sound and words; 8 to train on, near each other, and 4 to test on."""
    rng = np.random.default_rng(0)
    rows = []
    for i in range(12):
        picture(rng).save(tmp_path / f"{i}.png")
        soundfile.write(tmp_path / f"{i}.wav", rng.normal(0, 0.1, 4000), 8000)
        split, lon = ("train", 5 + i / 10) if i < 8 else ("test", 100 + i / 10)
        words = json.dumps([f"place {i}", "somewhere"]) if i % 2 else f"place {i}"
        label = "even" if i % 2 == 0 else "odd"
        rows.append([f"k{i}", split, 45.0, lon, label, f"{i}.png", f"{i}.wav", words])
    write(tmp_path / "m.csv", rows)
    return tmp_path


def write(path, rows, header=("key", "split", "lat", "lon", "label", *NAMES)):
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([header, *rows])


def read(path):
    with open(path, newline="") as file:
        return list(csv.reader(file))[1:]


def opened(folder, manifest="m.csv", names=NAMES, **options):
    return open_table(DataOptions(manifest=manifest, **options), folder, names)


def run(*arguments):
    return CliRunner().invoke(main, ["data", *map(str, arguments)])


def checked(folder, **options):
    return inspect_table(opened(folder, **options))


def test_a_good_table_is_told_of_by_split_kind_size_and_class(folder):
    report = checked(folder)
    assert report["broken"] == 0 and report["warnings"] == []
    assert report["rows"] == 12 and report["splits"] == {"test": 4, "train": 8}
    sky, ear, words = (report["modalities"][name] for name in NAMES)
    assert sky["kinds"] == {"image": 12} and sky["image_sizes"] == {"64 x 64": 12}
    assert ear["kinds"] == {"sound": 12} and ear["sound_rates"] == {"8000": 12}
    assert ear["sound_seconds"] == {"least": 0.5, "median": 0.5, "most": 0.5}
    assert words["kinds"] == {"words": 18} and words["by_split"] == {"test": 4, "train": 8}
    assert report["labels"]["classes"] == 2 and report["labels"]["largest"][1] == 6
    (apart,) = report["places"]["apart"]
    assert apart["of"] == "test" and apart["within_10_km"] == 0 and 6900 < apart["least_km"] < 7100


def test_files_that_are_missing_empty_or_damaged_are_broken(folder):
    (folder / "0.png").unlink()
    (folder / "1.png").write_bytes(b"")
    (folder / "2.png").write_bytes((folder / "2.png").read_bytes()[:100])
    (folder / "3.wav").write_bytes(b"RIFF" + bytes(40))
    (folder / "4.wav").write_bytes(bytes(range(128, 256)))
    report = checked(folder)
    assert report["broken"] == 5
    faults = [fault for name in NAMES for fault in report["modalities"][name]["faults"]]
    assert [fault["row"] for fault in faults] == ["k0", "k1", "k2", "k3", "k4"]
    for fault, word in zip(faults, ("no such file", "0 bytes", "2.png", "3.wav", "begins with"), strict=True):
        assert word in fault["reason"]


def test_copies_and_twins_across_splits_are_found_under_other_names(folder):
    (folder / "8.png").write_bytes((folder / "0.png").read_bytes())
    with Image.open(folder / "1.png") as image:
        image.resize((48, 48)).save(folder / "9.jpg", quality=60)
    rows = read(folder / "m.csv")
    rows[9][5] = "9.jpg"
    write(folder / "m.csv", rows)
    report = checked(folder)
    repeated, near = (report["modalities"]["sky"][key] for key in ("repeated", "near"))
    assert repeated["across_splits"] == 1 and repeated["examples"] == [["k0 (train)", "k8 (test)"]]
    assert near["pairs"] == 1 and near["examples"] == [["k1 (train)", "k9 (test)"]]
    assert len(report["warnings"]) == 2 and report["broken"] == 0


def test_what_can_be_used_but_should_be_known_is_a_warning(folder):
    soundfile.write(folder / "0.wav", np.zeros(4000), 8000)
    soundfile.write(folder / "1.wav", np.random.default_rng(1).normal(0, 0.1, 4000), 16_000)
    rows = read(folder / "m.csv")
    rows[9][3], rows[9][4] = "5.001", "strange"
    write(folder / "m.csv", rows)
    said = "\n".join(checked(folder)["warnings"])
    for word in ("1 sounds are silent", "2 sampling rates", "25.0% of 'test' lie within 1 km", "strange"):
        assert word in said


def test_images_without_a_feature_are_no_twins(folder):
    for i in range(12):
        Image.new("RGB", (64, 64), (i, 2 * i, 40)).save(folder / f"{i}.png")
    told = checked(folder)["modalities"]["sky"]
    assert told["flat"] == 12 and told["near"]["pairs"] == 0


def test_a_quick_look_decodes_nothing(folder):
    (folder / "2.png").write_bytes(b"no image at all")
    (folder / "3.png").unlink()
    report = inspect_table(opened(folder), quick=True)
    assert report["broken"] == 1
    assert report["modalities"]["sky"]["faults"][0]["reason"] == "3.png: no such file"
    assert report["modalities"]["words"]["rows"] == 12


def test_check_exits_with_2_if_something_is_broken(folder):
    good = run("check", folder / "m.csv")
    assert good.exit_code == 0, good.output
    assert "image (12); 12 distinct" in good.output
    (folder / "0.png").unlink()
    bad = run("check", folder / "m.csv", "--quick")
    assert bad.exit_code == 2 and "k0: 0.png: no such file" in bad.output
    told = run("check", folder / "m.csv", "--column", "sky=sky", "--json")
    assert told.exit_code == 2 and list(json.loads(told.output)["modalities"]) == ["sky"]
    assert run("check", folder / "none.csv").exit_code == 2
    wrong = run("check", folder / "m.csv", "--column", "sky")
    assert wrong.exit_code == 2 and "NAME=COLUMN" in wrong.output


def test_a_recipe_stands_for_its_data(folder):
    recipe = """
name: r
modalities:
  satellite: {timm: &t {model: test_vit, pretrained: false}, size: 32}
  ground_image: {timm: *t, size: 32, role: trainable}
data: {manifest: m.csv, columns: {satellite: sky, ground_image: sky}}
stages: [{name: s, align: ground_image, train: [satellite], batch_size: 2, steps: 1}]
"""
    (folder / "r.yaml").write_text(recipe)
    told = run("check", folder / "r.yaml", "--json")
    assert told.exit_code == 0, told.output
    assert set(json.loads(told.output)["modalities"]) == {"satellite", "ground_image"}
    refused = run("check", folder / "r.yaml", "--column", "sky=sky")
    assert refused.exit_code == 2 and "says itself" in refused.output
    sheet = folder / "s.png"
    drawn = run("show", folder / "r.yaml", "--stage", "s", "--rows", "2", "-o", sheet)
    assert drawn.exit_code == 0, drawn.output
    columns = 2 + 3 + 2  # raw, prepared and three draws of the trained side; the other is not augmented
    with Image.open(sheet) as image:
        assert image.width > 150 * columns
    words = ("--recipe", folder / "r.yaml", "--rows", "1", "-o", folder / "t.png", "--json")
    other = run("show", folder / "m.csv", *words)
    assert other.exit_code == 0, other.output
    assert json.loads(other.stdout) == {"file": str(folder / "t.png")}
    assert run("show", folder / "r.yaml", "--stage", "none", "-o", sheet).exit_code == 2


def brute_km(one, other):
    lat, lon = np.radians(one).T[:, :, None]
    lat2, lon2 = np.radians(other).T[:, None]
    root = np.sin((lat - lat2) / 2) ** 2 + np.cos(lat) * np.cos(lat2) * np.sin((lon - lon2) / 2) ** 2
    return (2 * EARTH_KM * np.arcsin(np.sqrt(np.clip(root, 0, 1)))).min(axis=1)


@given(seed=st.integers(0, 10**6), near=st.booleans(), n=st.integers(1, 60), m=st.integers(1, 60))
@settings(deadline=None, max_examples=40)
def test_the_nearest_place_is_the_nearest_of_all(seed, near, n, m):
    rng = np.random.default_rng(seed)
    span = np.array([0.01, 0.01] if near else [90, 180])
    one, other = (rng.uniform(-1, 1, (count, 2)) * span for count in (n, m))
    assert np.allclose(nearest_km(one, other), brute_km(one, other), atol=1e-3)


def test_nothing_is_near_no_place():
    assert nearest_km(np.array([[1.0, 2.0]]), np.zeros((0, 2))).tolist() == [np.inf]


def test_cells_have_nearly_equal_areas():
    rng = np.random.default_rng(0)
    lat, lon = np.degrees(np.arcsin(rng.uniform(-1, 1, 200_000))), rng.uniform(-180, 180, 200_000)
    _, counts = np.unique(assign_cells(np.stack([lat, lon], axis=1), 1000), return_counts=True)
    expected = 200_000 * 1000**2 / (4 * np.pi * EARTH_KM**2)
    assert np.quantile(counts, 0.05) > 0.6 * expected and np.quantile(counts, 0.95) < 1.4 * expected
    edges = assign_cells(np.array([[90, 0], [-90, 0], [0, 180], [0, -180]], dtype=float), 100)
    assert edges[2] == edges[3] and len(set(edges)) == 3


@given(seed=st.integers(0, 10**6), cell_km=st.sampled_from([50, 300]), count=st.integers(400, 800))
@settings(deadline=None, max_examples=15)
def test_every_cell_lies_in_one_split_and_the_shares_are_met(seed, cell_km, count):
    rng = np.random.default_rng(seed)
    places = np.stack([rng.uniform(30, 60, count), rng.uniform(-10, 40, count)], axis=1)
    options = SplitOptions(cell_km=cell_km, seed=seed)
    splits = np.array(split_places(places, options))
    cells = assign_cells(places, cell_km)
    assert all(len(set(splits[cells == cell])) == 1 for cell in np.unique(cells))
    largest = np.unique(cells, return_counts=True)[1].max()
    for name, share in zip(("train", "val", "test"), (0.8, 0.1, 0.1), strict=True):
        assert abs((splits == name).sum() - share * count) <= largest + 1
    order = rng.permutation(count)
    assert np.array_equal(np.array(split_places(places[order], options)), splits[order])


def test_another_seed_is_another_split_and_a_large_cell_does_not_overflow_a_small_share():
    units = ["city"] * 500 + [f"v{i}" for i in range(500)]
    splits = split_units(units, SplitOptions(by="random"))
    assert splits[0] == "train" and {name: splits.count(name) for name in set(splits)} == {
        "train": 800,
        "val": 100,
        "test": 100,
    }
    assert splits != split_units(units, SplitOptions(by="random", seed=1))
    assert splits == split_units(units, SplitOptions(by="random"))


def test_a_buffer_leaves_out_what_is_near_the_first_split():
    rng = np.random.default_rng(0)
    places = np.stack([rng.uniform(48, 49, 3000), rng.uniform(2, 4, 3000)], axis=1)
    options = SplitOptions(cell_km=20, buffer_km=5)
    splits = np.array(split_places(places, options), dtype=object)
    train, rest = splits == "train", np.isin(splits, ["val", "test"])
    assert (splits == None).any() and rest.any()  # noqa: E711
    assert nearest_km(places[rest], places[train]).min() >= 5


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "parquet"])
def test_split_keeps_all_else_of_a_manifest(folder, kind):
    rows = [dict(zip(("key", "split", "lat", "lon", "words"), row, strict=True)) for row in (
        (f"k{i}", "old", 45.0, 4.0 * i, f'say "{i}", é\nplease') for i in range(40)
    )]  # fmt: skip
    source, target = folder / f"in.{kind}", folder / f"out.{kind}"
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), source)
    elif kind == "jsonl":
        source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        text = io.StringIO()
        writer = csv.DictWriter(text, rows[0], delimiter="\t" if kind == "tsv" else ",")
        writer.writeheader()
        writer.writerows(rows)
        source.write_text(text.getvalue())
    done = run("split", source, "--shares", "0.75,0.25", "-o", target)
    assert done.exit_code == 0, done.output
    before, after = (
        open_table(DataOptions(manifest=path.name), folder, ["words"]) for path in (source, target)
    )
    assert after.splits == {"test": 10, "train": 30}
    assert list(before.samples("words")) == list(after.samples("words"))
    assert np.array_equal(before.places_LL, after.places_LL)
    assert list(after.keys) == [f"k{i}" for i in range(40)]
    again = target.read_bytes()
    run("split", source, "--shares", "0.75,0.25", "-o", target)
    assert target.read_bytes() == again


def test_split_by_group_or_at_random(folder):
    by_class = ["split", folder / "m.csv", "--by", "group", "--group", "label", "--shares", "0.5,0.5"]
    assert run(*by_class, "-o", folder / "g.csv").exit_code == 0
    rows = read(folder / "g.csv")
    assert len({(row[1], row[4]) for row in rows}) == 2
    at_random = ["split", folder / "m.csv", "--by", "random", "--shares", "0.5,0.25,0.25", "--names", "a,b,c"]
    assert run(*at_random, "-o", folder / "r.csv").exit_code == 0
    assert sorted(row[1] for row in read(folder / "r.csv")) == ["a"] * 6 + ["b"] * 3 + ["c"] * 3


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (["--shares", "0.8,0.1"], "add up to 1"),
        (["--shares", "a,b"], "write numbers"),
        (["--shares", "0.4,0.3,0.2,0.1"], "names of splits"),
        (["--cell-km", "0"], "1 to 20000 km"),
        (["--by", "group"], "--group COLUMN"),
        (["--by", "group", "--group", "site"], "no column 'site'"),
        (["--column", "lat=latitude"], "no column 'latitude'"),
        (["--cell-km", "20000"], "would be empty"),
    ],
)
def test_a_split_that_cannot_be_is_refused(folder, options, word):
    done = run("split", folder / "m.csv", *options, "-o", folder / "out.csv")
    assert done.exit_code == 2 and word in done.output
    assert not (folder / "out.csv").exists()


def test_a_row_without_a_place_is_named(folder):
    rows = read(folder / "m.csv")
    rows[3][2] = ""
    write(folder / "m.csv", rows)
    done = run("split", folder / "m.csv", "-o", folder / "out.csv")
    assert done.exit_code == 2 and "m.csv:5: has no 'lat'" in done.output
    assert run("split", folder / "m.csv", "-o", folder / "out.jsonl").exit_code == 2


def test_a_packed_table_opens_as_a_manifest_with_the_same_rows(folder):
    table = opened(folder)
    packed = pack_table(table, folder / "packed", shard_bytes=30_000)
    assert packed.shards > 2 and packed.faults == ()
    again = opened(folder, "packed")
    assert again.splits == table.splits and again.labels == table.labels
    assert list(again.keys) == list(table.keys) and np.array_equal(again.places_LL, table.places_LL)
    assert list(again.samples("words")) == list(table.samples("words"))
    for name in ("sky", "ear"):
        assert [raw.read_bytes() for raw in table.samples(name)] == list(again.samples(name))
    assert inspect_table(again)["broken"] == 0


def test_packing_compresses_text_alone_in_groups_of_a_hundred_rows(tmp_path):
    (tmp_path / "a.png").write_bytes(b"\x89PNG" + bytes(100))
    write(tmp_path / "m.csv", [["a.png", f"text {i}"] for i in range(250)], ("sky", "words"))
    pack_table(opened(tmp_path, names=("sky", "words")), tmp_path / "packed")
    (shard,) = (tmp_path / "packed").iterdir()
    parquet = pq.ParquetFile(shard)
    assert [parquet.metadata.row_group(i).num_rows for i in range(3)] == [100, 100, 50]
    columns = [parquet.metadata.row_group(0).column(i) for i in range(parquet.metadata.num_columns)]
    kinds = {column.path_in_schema: column.compression for column in columns}
    assert kinds["sky"] == "UNCOMPRESSED" and kinds["words"] == "ZSTD"


def test_packing_goes_on_where_it_stopped(folder):
    whole = pack_table(opened(folder), folder / "packed", shard_bytes=30_000)
    shards = sorted((folder / "packed").iterdir())
    contents = [shard.read_bytes() for shard in shards]
    shards[1].unlink()
    with pytest.raises(Exception, match="shards of 'm'; download or pack the others"):
        opened(folder, "packed")
    again = pack_table(opened(folder), folder / "packed", shard_bytes=30_000)
    assert again.kept == whole.shards - 1
    assert [shard.read_bytes() for shard in shards] == contents


def test_packing_refuses_a_folder_of_another_table(folder, refused):
    pack_table(opened(folder), folder / "packed")
    refused(lambda: pack_table(opened(folder).split("train"), folder / "packed"), "not of this packing")
    (folder / "0.png").unlink()
    refused(lambda: pack_table(opened(folder), folder / "more"), "k0", "0.png", "no such file")
    assert not (folder / "more").exists()


def test_windows_and_vectors_are_packed_too(folder):
    rasterio = pytest.importorskip("rasterio")
    for name, kind in (("a", "uint8"), ("b", "uint16")):
        values = np.random.default_rng(0).integers(1, 200, (3, 50, 50)).astype(kind)
        profile = {"driver": "GTiff", "count": 3, "height": 50, "width": 50, "dtype": kind}
        with rasterio.open(
            folder / f"{name}.tif", "w", crs="EPSG:32631", nodata=0,
            transform=rasterio.Affine(10, 0, 5e5, 0, -10, 5e6), **profile
        ) as file:  # fmt: skip
            file.write(values)
    box = {"x": 3, "y": 4, "width": 16, "height": 12}
    rows = [
        {"sky": {"raster": "a.tif", **box}, "deep": {"raster": "b.tif", **box}, "vector": [0.5, 2.0]},
        {"sky": {"raster": "a.tif", **box, "x": 400}, "deep": None, "vector": None},
    ]
    (folder / "w.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    names = ("sky", "deep", "vector")
    table = opened(folder, "w.jsonl", names)
    packed = pack_table(table, folder / "packed")
    assert len(packed.faults) == 1 and "w.jsonl:2: sky" in packed.faults[0]
    again = opened(folder, "packed", names)
    with Image.open(io.BytesIO(again.samples("sky")[0])) as image:
        assert np.array_equal(np.asarray(image), table.samples("sky")[0])
    assert np.array_equal(again.samples("deep")[0], table.samples("deep")[0])
    assert again.samples("deep")[0].dtype == np.float32
    assert again.samples("vector")[0].tolist() == [0.5, 2.0]
    assert again.samples("sky")[1] is None
    assert inspect_table(table)["broken"] == 1


def test_pack_says_what_it_made(folder):
    done = run("pack", folder / "m.csv", "-o", folder / "packed")
    assert done.exit_code == 0 and "12 rows, 1 shards" in done.output, done.output
    assert "(1 were there)" in run("pack", folder / "m.csv", "-o", folder / "packed").output
    assert run("check", folder / "packed").exit_code == 0


def test_a_folder_of_parquet_files_is_a_manifest(tmp_path, refused):
    (tmp_path / "many").mkdir()
    refused(lambda: opened(tmp_path, "many", ("words",)), "without Parquet files")
    for i in range(3):
        table = pa.table({"words": [f"{i} {j}" for j in range(4)]})
        pq.write_table(table, tmp_path / "many" / f"{i}.parquet")
    table = opened(tmp_path, "many", ("words",))
    assert len(table) == 12 and len(set(table.keys)) == 12
    assert table.samples("words")[5] == "1 1"
    assert len(opened(tmp_path, "many", ("words",), limit=6)) == 6
    pq.write_table(pa.table({"words": [[1.0, 2.0]]}), tmp_path / "many" / "9.parquet")
    refused(lambda: opened(tmp_path, "many", ("words",)), "9.parquet", "of other types")


def test_a_sheet_shows_rows_of_every_kind_and_what_is_wrong(folder):
    (folder / "0.png").write_bytes(b"nothing")
    soundfile.write(folder / "1.wav", np.zeros(100), 8000)
    os.remove(folder / "2.wav")
    first, second = folder / "1st.png", folder / "2nd.png"
    done = run("show", folder / "m.csv", "--rows", "12", "-o", first)
    assert done.exit_code == 0, done.output
    run("show", folder / "m.csv", "--rows", "12", "-o", second)
    assert first.read_bytes() == second.read_bytes()
    with Image.open(first) as image:
        assert image.width > 400 and image.height > 1500


def test_twins_are_found_within_three_and_thirty_two_bits():
    marks = [(0, 0), (0b111, (1 << 32) - 1), (0b1111, 0), (0, (1 << 33) - 1), None]
    splits = ["a", "b", "b", "b", "b"]
    assert list(find_near_duplicates(marks, splits)) == [(0, 1)]
    assert list(find_near_duplicates(marks[:2], ["a", "a"])) == []
    assert list(find_near_duplicates(marks[:2], ["a", None])) == []


def save_manifest(folder, ending):
    """Write the table of a folder in another format; return the file."""
    names = ["key", "split", "lat", "lon", "label", *NAMES]
    rows = [dict(zip(names, row, strict=True)) for row in read(folder / "m.csv")]
    file = folder / f"all{ending}"
    if ending == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), file)
    elif ending == ".csv":
        file.write_bytes((folder / "m.csv").read_bytes())
    elif ending == ".json":
        file.write_text(json.dumps(rows))
    else:
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.mark.parametrize("ending", [".csv", ".jsonl", ".json", ".parquet"])
def test_the_rows_of_which_nothing_is_broken_are_written_as_a_manifest(folder, ending):
    (folder / "2.png").unlink()
    (folder / "5.wav").write_bytes(b"")
    manifest, good = save_manifest(folder, ending), folder / f"good{ending}"
    columns = ["--column", "sky=sky", "--column", "ear=ear"]
    told = run("check", manifest, *columns, "--files", "sky", "--files", "ear", "--good", good)
    assert told.exit_code == 0, told.output
    assert "10 of 12 rows" in told.output
    left = opened(folder, manifest=good.name, names=("sky", "ear"), files=("sky", "ear"))
    assert [key for key in left.keys] == [f"k{i}" for i in range(12) if i not in (2, 5)]
    assert inspect_table(left)["broken"] == 0
    assert left.splits == {"test": 4, "train": 6}


def test_good_rows_are_not_written_of_a_part_nor_as_another_kind_nor_where_none_is_left(folder):
    (folder / "0.png").unlink()
    good = folder / "good.csv"
    for words, said in (
        (["--limit", 5], "has 12 rows, of which 5 were read"),
        (["--good", folder / "good.parquet"], "must end in .csv"),
    ):
        told = run("check", folder / "m.csv", "--good", good, *words)
        assert told.exit_code == 2
        assert said in told.output
    for i in range(12):
        (folder / f"{i}.png").unlink(missing_ok=True)
    told = run("check", folder / "m.csv", "--good", good)
    assert told.exit_code == 2 and "no row of m.csv is left" in told.output
    assert not good.exists()


def test_the_good_rows_of_a_recipe_are_those_of_its_manifest(folder):
    (folder / "1.png").write_bytes(b"no image")
    (folder / "r.yaml").write_text(
        "name: r\nwidth: 8\nmodalities:\n"
        "  satellite: {timm: {model: test_resnet, pretrained: false}}\n"
        "  ground_image: {timm: {model: test_resnet, pretrained: false}, role: trainable}\n"
        "data: {manifest: m.csv, columns: {satellite: sky, ground_image: sky}}\n"
        "stages: [{name: s, align: ground_image, train: [satellite], batch_size: 2, steps: 1}]\n"
    )
    told = run("check", folder / "r.yaml", "--good", folder / "good.csv")
    assert told.exit_code == 0, told.output
    assert [row[0] for row in read(folder / "good.csv")] == [f"k{i}" for i in range(12) if i != 1]


def test_split_and_pack_tell_programs_what_they_wrote(folder):
    told = json.loads(
        run("split", folder / "m.csv", "--by", "random", "-o", folder / "s.csv", "--json").stdout
    )
    assert told["file"] == str(folder / "s.csv") and sum(told["splits"].values()) == 12
    columns = ["--column", "words=words", "--inline", "words"]
    told = json.loads(run("pack", folder / "m.csv", *columns, "-o", folder / "packed", "--json").stdout)
    assert told["rows"] == 12 and told["shards"] == 1
