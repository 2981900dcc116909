"""Archives as files: written, opened, searched by place and time, and read by other programs."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from geobind.archive import Archive, TileGrid, join_archives, model_digest, write_archive
from geobind.archive.archive import check_box, check_span, within_box
from geobind.archive.table import _measure_along_curve, order_by_place
from geobind.errors import CheckpointError, DataError

N, D = 20_000, 16
NAMES = {"modality": "tile", "model": "abc"}


def unit_rows(count, width=D, seed=0):
    rows = np.random.default_rng(seed).normal(size=(count, width)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


class World:
    """Rows all over the Earth, two of them over the antimeridian and one without a place."""

    vectors = unit_rows(N)
    lat = np.random.default_rng(1).uniform(-89, 89, N)
    lon = np.random.default_rng(2).uniform(-180, 180, N)
    time = np.datetime64("2024-01-01", "us") + np.arange(N).astype("timedelta64[m]")
    lat[7], lon[7], lat[8], lon[8], lat[5] = 10, 179.9999, -10, -179.9999, np.nan


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    file = tmp_path_factory.mktemp("archive") / "world.parquet"
    return write_archive(file, World.vectors, World.lat, World.lon, time=World.time, size_m=640, **NAMES)


@pytest.fixture(scope="module")
def archive(path):
    return Archive.open(path)


def test_a_hilbert_curve_passes_every_cell_and_steps_to_a_neighbour():
    y, x = (axis.ravel() for axis in np.mgrid[:32, :32])
    far = _measure_along_curve(x, y, 5)
    order = np.argsort(far)
    assert sorted(far) == [*range(1024)]
    assert set(np.abs(np.diff(x[order])) + np.abs(np.diff(y[order]))) == {1}


def test_rows_come_back_as_written_whatever_rows_are_asked_for(archive):
    names = archive.ids.astype(int)
    assert sorted(names) == [*range(N)]
    assert np.abs(archive.read_vectors() - World.vectors[names]).max() < 1e-3
    rows = np.random.default_rng(3).integers(0, N, 200)
    assert np.array_equal(archive.read_vectors(rows), archive.read_vectors()[rows])
    assert np.array_equal(archive.read_ids(rows), archive.ids[rows])
    assert np.array_equal(archive.read_vectors(slice(9000, 7000, -3)), archive.read_vectors()[9000:7000:-3])
    assert archive.read_vectors([]).shape == (0, D)
    assert archive.read_vectors([0], dtype=None).dtype == np.float16
    assert np.array_equal(archive.lat_N, World.lat[names], equal_nan=True)
    assert np.array_equal(archive.time_N, World.time[names])


def test_blocks_are_row_groups_and_cover_all_rows(archive):
    blocks = list(archive.iter_blocks())
    assert [start for start, _ in blocks] == [0, 8192, 16384]
    assert np.array_equal(np.concatenate([vectors for _, vectors in blocks]), archive.read_vectors())


@settings(deadline=None)
@given(
    st.floats(-180, 180), st.floats(-180, 180), st.floats(-90, 90), st.floats(-90, 90), st.integers(0, 20_000)
)
def test_rows_of_a_box_and_a_span_are_those_that_a_scan_finds(archive, west, east, south, north, minutes):
    south, north = sorted((south, north))
    first = World.time[0] + np.timedelta64(minutes, "m")
    names = archive.ids.astype(int)
    lat, lon = World.lat[names], World.lon[names]
    across = (lon >= west) & (lon <= east) if west <= east else (lon >= west) | (lon <= east)
    expected = np.flatnonzero(across & (lat >= south) & (lat <= north) & (World.time[names] >= first))
    assert np.array_equal(archive.find_rows((west, south, east, north), (first, None)), expected)


def test_a_box_reads_only_the_row_groups_that_hold_some_of_it(archive, monkeypatch):
    read, read_group = [], Archive._read_group
    monkeypatch.setattr(
        Archive,
        "_read_group",
        lambda self, group, names: read.append(group) or read_group(self, group, names),
    )
    assert len(archive.find_rows((-100, 30, -95, 33)))
    assert len(read) == 1


def test_a_tile_over_the_antimeridian_has_bounds_whose_west_is_larger(archive):
    west, south, east, north = archive.footprint(np.flatnonzero(archive.ids == "7"))[0]
    assert 179.99 < west < 180 and -180 < east < -179.99 and 9.99 < south < 10 < north < 10.01
    size = (east + 360 - west) * 111_320 * np.cos(np.radians(10))
    assert size == pytest.approx(640, rel=0.01)
    assert np.isnan(archive.footprint(np.flatnonzero(archive.ids == "5"))).all()


def test_other_programs_read_it(path):
    geopandas, duckdb = pytest.importorskip("geopandas"), pytest.importorskip("duckdb")
    frame = geopandas.read_parquet(path)
    known = frame.geometry[frame.geometry.notna()]
    assert len(known) == N - 1 and known.is_valid.all() and str(frame.crs) == "OGC:CRS84"
    assert (known.geom_type == "MultiPolygon").sum() == 3  # one by chance, near a pole
    assert all(polygon.exterior.is_ccw for polygon in known[known.geom_type == "Polygon"][:50])
    inside = geopandas.read_parquet(path, bbox=(0, 0, 20, 20))
    assert set(inside.id) >= set(
        frame.id[(frame.lat > 0) & (frame.lat < 20) & (frame.lon > 0) & (frame.lon < 20)]
    )
    assert len(inside) < 300
    query = (
        f"select id from '{path}' where bbox.xmin > 0 and bbox.xmax < 20 "
        f"order by array_cosine_similarity(embedding::float[{D}], ?::float[{D}]) desc limit 1"
    )
    wanted = inside[(inside.lon > 1) & (inside.lon < 19)].iloc[0]
    best = duckdb.connect().execute(query, [World.vectors[int(wanted.id)].tolist()]).fetchall()
    assert best == [(wanted.id,)]
    file = pq.ParquetFile(path)
    assert file.schema_arrow.field("embedding").type == pa.list_(pa.float16(), D)
    geo = json.loads(file.schema_arrow.metadata[b"geo"])
    assert geo["version"] == "1.1.0"
    assert geo["columns"]["geometry"]["geometry_types"] == ["MultiPolygon", "Polygon"]


def test_an_archive_without_places_times_or_sizes_is_one_too(tmp_path):
    nowhere = np.full(3, np.nan)
    file = write_archive(tmp_path / "a.parquet", unit_rows(3), nowhere, nowhere, ids=["a", "b", "c"], **NAMES)
    archive = Archive.open(file)
    assert archive.ids.tolist() == ["a", "b", "c"] and archive.time_N is None and archive.grid is None
    assert len(archive.find_rows((-180, -90, 180, 90))) == 0 and archive.check() == 3
    with pytest.raises(DataError, match="its rows have no times"):
        archive.find_rows(time=("2024-01-01", None))


def test_a_grid_is_kept_with_each_tiles_row_and_column(tmp_path):
    grid = TileGrid(
        crs="EPSG:32631", transform=(640, 0, 5e5, 0, -640, 5e6), rows=2, columns=3, size_m=640, stride_m=640
    )
    lat, lon = np.linspace(45, 45.1, 6), np.linspace(3, 3.1, 6)
    row, column = np.divmod(np.arange(6), 3)
    file = write_archive(
        tmp_path / "a.parquet",
        unit_rows(6),
        lat,
        lon,
        row=row,
        column=column,
        grid=grid,
        dtype="float32",
        **NAMES,
    )
    archive = Archive.open(file)
    names = archive.ids.astype(int)
    assert archive.grid == grid and np.array_equal(archive.row_N, row[names])
    assert np.array_equal(archive.column_N, column[names])
    assert np.array_equal(archive.read_vectors(), unit_rows(6)[names])


@pytest.mark.parametrize(
    ("box", "message"),
    [
        ((1, 2, 3), "a box is four numbers: west,south,east,north"),
        ("abcd", "a box is four numbers"),
        ((34.5, -76.7, 34.8, -96.4), "these begin with a latitude"),
        ((0, 10, 20, 5), "south first"),
        ((0, float("nan"), 20, 5), "is none"),
        ((0, 0, 200, 5), "longitudes within 180"),
    ],
)
def test_what_is_no_box_is_refused(box, message):
    with pytest.raises(DataError, match=message):
        check_box(box)


def test_a_box_whose_west_is_larger_crosses_the_antimeridian():
    lon = np.array([-179.0, 0.0, 179.0])
    assert within_box(np.zeros(3), lon, check_box((178, -1, -178, 1))).tolist() == [True, False, True]


def test_a_span_of_time_is_in_utc_and_may_be_open():
    first, last = check_span(("2024-07-01T02:00:00+02:00", None))
    assert first == np.datetime64("2024-07-01T00:00:00") and last > np.datetime64("9999-01-01")
    with pytest.raises(DataError, match="ends before it begins"):
        check_span(("2024-07-02", "2024-07-01"))
    with pytest.raises(DataError, match="a span of time is two moments"):
        check_span(("soon", None))


def test_rows_that_are_not_there_are_refused(archive):
    with pytest.raises(DataError, match="has rows 0 to 19999"):
        archive.read_vectors([N])
    with pytest.raises(DataError, match="rows must be a list of numbers"):
        archive.read_vectors([0.5])
    with pytest.raises(DataError, match="a mask must have 20000 rows"):
        archive.read_vectors([True])


def test_vectors_that_are_not_finite_are_not_written(tmp_path):
    vectors = unit_rows(3)
    vectors[1, 0] = np.nan
    with pytest.raises(DataError, match="row 1 of the embeddings is not finite as float16"):
        write_archive(tmp_path / "a.parquet", vectors, [0, 0, 0], [0, 0, 0], **NAMES)
    with pytest.raises(DataError, match="'lat' of an archive has 2 rows, the embeddings 3"):
        write_archive(tmp_path / "a.parquet", unit_rows(3), [0, 0], [0, 0, 0], **NAMES)
    assert not (tmp_path / "a.parquet").exists()


# What strangers send.


def rewrite(path, target, change=lambda table: table, **facts):
    """Write an archive again with other rows or metadata."""
    table = pq.read_table(path)
    metadata = json.loads(table.schema.metadata[b"geobind"]) | facts
    changed = change(table)
    keys = {**table.schema.metadata, b"geobind": json.dumps(metadata).encode()}
    pq.write_table(changed.replace_schema_metadata(keys), target)
    return target


@pytest.fixture
def small(tmp_path):
    return write_archive(tmp_path / "small.parquet", unit_rows(4), [0, 1, 2, 3], [0, 1, 2, 3], **NAMES)


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"format": 9}, "archive format 9; this geobind reads format 1"),
        ({"width": 10**9}, "damaged: metadata: width"),
        ({"width": 17}, r"column 'embedding' is fixed_size_list.*\[16\], not"),
        ({"dtype": "float64"}, "damaged: metadata: dtype"),
        ({"dtype": "float32"}, "damaged: column 'embedding' is"),
        ({"modality": ""}, "damaged: metadata: modality"),
        ({"timed": True}, "has no column 'time'"),
        ({"grid": {"crs": "x"}}, "damaged: metadata: grid.transform"),
        ({"bundle": "x" * 20_000}, "damaged: metadata: bundle"),
        ({"reading": {"x": "y" * 2_000_000}}, "its metadata are larger than 1,000,000 bytes"),
    ],
)
def test_metadata_of_a_stranger_are_checked(small, tmp_path, facts, message):
    with pytest.raises(DataError, match=message):
        Archive.open(rewrite(small, tmp_path / "strange.parquet", **facts))


def test_a_file_that_is_no_archive_says_how_to_make_one(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        Archive.open(tmp_path / "none.parquet")
    pq.write_table(pa.table({"a": [1]}), tmp_path / "other.parquet")
    with pytest.raises(DataError, match="is no archive of geobind; write one: geobind embed"):
        Archive.open(tmp_path / "other.parquet")
    (tmp_path / "text.parquet").write_text("hello")
    with pytest.raises(DataError, match="not a Parquet file that can be read"):
        Archive.open(tmp_path / "text.parquet")


@pytest.mark.slow
def test_rows_that_cannot_fit_into_the_file_are_refused_before_they_are_read(tmp_path):
    schema = pq.read_schema(write_archive(tmp_path / "a.parquet", unit_rows(2, 512), [0, 0], [0, 0], **NAMES))
    bomb = pq.read_table(tmp_path / "a.parquet").take(np.zeros(280_000, int))
    pq.write_table(bomb, tmp_path / "bomb.parquet", compression="zstd", row_group_size=50_000)
    assert pq.read_schema(tmp_path / "bomb.parquet").metadata == schema.metadata
    with pytest.raises(DataError, match=r"claims 280,000 rows, more than its [\d,]+ bytes can hold"):
        Archive.open(tmp_path / "bomb.parquet")


def test_check_reads_every_row_and_names_the_first_bad_one(small, tmp_path):
    assert Archive.open(small).check() == 4

    def with_vector(value):
        def change(table):
            vectors = table.column("embedding").combine_chunks().flatten().to_numpy().reshape(-1, D).copy()
            vectors[2] = value
            lists = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), D)
            return table.set_column(table.schema.get_field_index("embedding"), "embedding", lists)

        return change

    for value, message in ((np.nan, "is not finite"), (3.0, "is not of unit length")):
        archive = Archive.open(rewrite(small, tmp_path / "bad.parquet", with_vector(value)))
        with pytest.raises(DataError, match=f"row 2: its embedding {message}; embed it again"):
            archive.check()

    def with_column(name, values):
        return lambda table: table.set_column(table.schema.get_field_index(name), name, pa.array(values))

    archive = Archive.open(rewrite(small, tmp_path / "bad.parquet", with_column("id", ["a", "b", "c", "a"])))
    with pytest.raises(DataError, match="row 3: 'a' names another row too"):
        archive.check()
    far = with_column("lat", [0.0, 1.0, 200.0, 3.0])
    with pytest.raises(DataError, match="row 2: its place is none on Earth"):
        Archive.open(rewrite(small, tmp_path / "bad.parquet", far)).check()


def test_a_changed_byte_is_found(path, tmp_path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "bad.parquet").write_bytes(content)
    with pytest.raises(DataError, match="damaged"):
        Archive.open(tmp_path / "bad.parquet").check()


def test_a_damaged_file_never_raises_anything_but_a_data_error(small, tmp_path):
    content, draw = small.read_bytes(), np.random.default_rng(0)
    for _ in range(150):
        changed = bytearray(content)
        for place in draw.integers(0, len(content), 3):
            changed[place] = int(draw.integers(0, 256))
        (tmp_path / "bad.parquet").write_bytes(
            changed[: int(draw.integers(len(content) // 2, len(content) + 1))]
        )
        try:
            archive = Archive.open(tmp_path / "bad.parquet")
            archive.check(), archive.find_rows((0, 0, 2, 2)), archive.read_vectors()
        except DataError:
            continue


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        (b"%\x02\x18\x02id", b"%\x00\x18\x02id", "damaged: Definition level histogram"),  # as if never null
        (b"\x16\x08", b"\x16\x07", "damaged: its footer contradicts itself"),  # 4 rows become -4
    ],
)
def test_a_footer_that_contradicts_itself_is_damage_and_does_not_end_the_process(
    small, tmp_path, before, after, message
):
    start, found, end = small.read_bytes().rpartition(before)
    assert found
    (tmp_path / "bad.parquet").write_bytes(start + after + end)
    with pytest.raises(DataError, match=message):
        Archive.open(tmp_path / "bad.parquet")


def test_a_column_that_the_footer_calls_by_another_name_is_read_by_its_place(small, tmp_path):
    start, found, end = small.read_bytes().rpartition(b"\x19\x18\x02id")  # of the column's chunk
    assert found
    (tmp_path / "other.parquet").write_bytes(start + b"\x19\x18\x02\xffd" + end)
    assert Archive.open(tmp_path / "other.parquet").check() == 4


def test_a_range_of_times_that_no_calendar_has_is_damage(tmp_path):
    times = np.array(["2024-01-01"] * 3 + ["30000-01-01"], "datetime64[us]")
    path = write_archive(
        tmp_path / "a.parquet", unit_rows(4), [0, 1, 2, 3], [0, 1, 2, 3], time=times, **NAMES
    )
    with pytest.raises(DataError, match=r"a\.parquet: damaged: 'time' of row group 0: "):
        Archive.open(path).find_rows(time=("2024-01-01", None))


class TestModels:
    """An archive is compared only with embeddings of the model that it was made with."""

    @pytest.fixture
    def binder(self):
        from small_world import Photo, Tile

        from geobind.binder import Binder

        return Binder({"tile": Tile(), "photo": Photo()}, D, seed=0)

    def write(self, tmp_path, binder):
        names = {"modality": "tile", "model": model_digest(binder, "tile"), "bundle": "first"}
        return write_archive(tmp_path / "a.parquet", unit_rows(2), [0, 0], [0, 0], **names)

    def test_the_same_model_is_accepted_and_another_one_refused(self, tmp_path, binder):
        import torch

        path = self.write(tmp_path, binder)
        assert Archive.open(path, binder).width == D
        with torch.no_grad():
            binder.encoders["photo"][1].bias += 1  # another tower: the archive's own is as it was
        assert Archive.open(path, binder).width == D
        with torch.no_grad():
            binder.encoders["tile"][1].bias += 1
        with pytest.raises(
            CheckpointError, match=r"embedded by another model \(first\): its 'tile' is \w{12}, that of"
        ):
            Archive.open(path, binder)

    def test_a_modality_that_the_bundle_lacks_is_named(self, tmp_path, binder):
        path = write_archive(
            tmp_path / "a.parquet", unit_rows(2), [0, 0], [0, 0], modality="sound", model="x"
        )
        with pytest.raises(
            CheckpointError,
            match="holds embeddings of 'sound', which this bundle does not have; it has photo, tile",
        ):
            Archive.open(path, binder)


class TestJoining:
    """Archives of one model become one, with rows of all along one curve."""

    def parts(self, tmp_path, **changes):
        half = N // 20
        for number, rows in enumerate((slice(0, half), slice(half, 2 * half))):
            change = {name: values[number] for name, values in changes.items()}
            write_archive(
                tmp_path / f"{number}.parquet",
                World.vectors[rows],
                World.lat[rows],
                World.lon[rows],
                **{
                    "ids": [f"r{n}" for n in range(N)[rows]],
                    "time": World.time[rows],
                    "size_m": 640,
                    **NAMES,
                    **change,
                },
            )
        return [tmp_path / "0.parquet", tmp_path / "1.parquet"]

    def test_joined_archives_hold_the_rows_of_all(self, tmp_path):
        joined = join_archives(self.parts(tmp_path), tmp_path / "all.parquet")
        assert joined.check() == len(joined) == N // 10
        names = np.array([int(name[1:]) for name in joined.ids])
        assert sorted(names) == [*range(N // 10)]
        assert np.abs(joined.read_vectors() - World.vectors[names]).max() < 1e-3
        assert np.array_equal(joined.time_N, World.time[names])
        assert np.array_equal(joined.lat_N, World.lat[names], equal_nan=True)
        assert joined.geometry_types == ["Polygon", "MultiPolygon"] and joined.bounds[0] == -180
        one = write_archive(
            tmp_path / "one.parquet",
            World.vectors[: N // 10],
            World.lat[: N // 10],
            World.lon[: N // 10],
            **NAMES,
        )
        assert np.array_equal(Archive.open(one).lat_N, joined.lat_N, equal_nan=True)  # the same curve
        assert json.loads((tmp_path / "all.json").read_text())["properties"]["emb:dimensions"] == D

    def test_an_archive_without_times_has_none_in_the_joined_one(self, tmp_path):
        joined = join_archives(
            self.parts(tmp_path, time=[None, World.time[1000:2000]]), tmp_path / "all.parquet"
        )
        assert np.isnat(joined.time_N).sum() == 1000 and joined.check() == 2000

    def test_archives_that_do_not_fit_are_refused(self, tmp_path):
        with pytest.raises(
            CheckpointError, match=r"embeddings of another model \(abc and other\) cannot be mixed"
        ):
            join_archives(self.parts(tmp_path, model=["abc", "other"]), tmp_path / "all.parquet")
        with pytest.raises(DataError, match=r"is in float16, .* in float32: embed one again"):
            join_archives(self.parts(tmp_path, dtype=["float16", "float32"]), tmp_path / "all.parquet")
        twice = [["r5", *map(str, range(999))], ["r5", *map(str, range(1000, 1999))]]
        with pytest.raises(DataError, match="'r5' is the name of several rows"):
            join_archives(self.parts(tmp_path, ids=twice), tmp_path / "all.parquet")
        parts = self.parts(tmp_path)
        with pytest.raises(DataError, match="name at least two"):
            join_archives(parts[:1], tmp_path / "all.parquet")
        with pytest.raises(DataError, match="give the joined archive a name of its own"):
            join_archives(parts, parts[0])


def test_rows_without_a_place_come_last():
    lat, lon = np.array([np.nan, 10, 0.0]), np.array([0.0, 10, np.nan])
    assert order_by_place(lat, lon)[0] == 1
