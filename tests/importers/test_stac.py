"""STAC-GeoParquet: items whose assets are files here, as windows with the places and times of the items."""

import struct
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from geobind.data.options import DataOptions
from geobind.data.table import open_table
from geobind.errors import DataError
from geobind.importers import LeftOut, write_manifest
from geobind_datasets.common import compute_middle, parse_wkb_box
from geobind_datasets.stac import Stac

TIFF = "image/tiff; application=geotiff; profile=cloud-optimized"
BBOX = {"xmin": 3.0, "ymin": 45.0, "xmax": 3.02, "ymax": 45.02}


def scene(path, crs="EPSG:4326", size=128):
    rasterio = pytest.importorskip("rasterio")
    from rasterio.transform import from_bounds

    path.parent.mkdir(parents=True, exist_ok=True)
    where = from_bounds(3.0, 45.0, 3.02, 45.02, size, size)
    profile = {"driver": "GTiff", "width": size, "height": size, "count": 4, "dtype": "uint8"}
    with rasterio.open(path, "w", crs=crs, transform=where, **profile) as raster:
        raster.write(np.stack([np.full((size, size), 10 * band, np.uint8) for band in (1, 2, 3, 4)]))
    return path


def item(name="a", href="scenes/a.tif", **more):
    """An item as a row: assets with nulls for what an item lacks, properties beside them."""
    assets = {
        "visual": {"href": href, "type": TIFF},
        "thumbnail": {"href": f"{name}.png", "type": "image/png"},
    }
    row = {"id": name, "assets": assets, "bbox": BBOX, "datetime": datetime(2024, 6, 1, 10, tzinfo=UTC)}
    return row | {"collection": "alps"} | more


def table(path, *items):
    path.parent.mkdir(parents=True, exist_ok=True)
    names = dict.fromkeys(name for row in items for name in row)
    pq.write_table(pa.Table.from_pylist([{name: row.get(name) for name in names} for row in items]), path)
    return path


def polygon(*points, order="<", axes=2, extra=b""):
    kind = 3 if axes == 2 else 1003
    ring = b"".join(struct.pack(f"{order}{axes}d", *point) for point in points)
    return struct.pack(f"{order}bIII", 1 if order == "<" else 0, kind, 1, len(points)) + ring + extra


def test_items_are_windows_of_their_raster_with_place_and_time(tmp_path):
    scene(tmp_path / "scenes/a.tif")
    source = Stac(sources=(table(tmp_path / "items.parquet", item()),), size_m=200, gsd=10, bands=(3, 2, 1))
    out = tmp_path / "out.parquet"
    summary = write_manifest(source, out)
    assert (summary.rows, summary.missing) == (1, {})
    opened = open_table(DataOptions(manifest=out.name), tmp_path, ["satellite"])
    tile = opened.samples("satellite")[0]
    assert tile.shape == (20, 20, 3)
    assert tile[0, 0].tolist() == [30, 20, 10]
    assert np.allclose(opened.places_LL, [[45.01, 3.01]])
    assert str(opened.time[0]).startswith("2024-06-01T10:00")
    assert opened.check_files() == 1


def test_without_a_size_a_window_is_the_whole_raster(tmp_path):
    scene(tmp_path / "scenes/a.tif")
    source = table(tmp_path / "items.parquet", item())
    (row,) = Stac(sources=(source,)).rows()
    window = {"raster": tmp_path / "scenes/a.tif", "x": 0, "y": 0, "width": 128, "height": 128}
    assert row["satellite"] == window
    shaped = table(tmp_path / "shaped.parquet", item(**{"proj:shape": [64, 32]}))
    (row,) = Stac(sources=(shaped,)).rows()
    assert (row["satellite"]["width"], row["satellite"]["height"]) == (32, 64)
    large = table(tmp_path / "large.parquet", item(**{"proj:shape": [10980, 10980]}))
    assert list(Stac(sources=(large,)).rows()) == [
        LeftOut("has more than 16 million pixels: give option size_m")
    ]


def test_assets_that_are_no_rasters_are_files(tmp_path):
    source = Stac(sources=(table(tmp_path / "items.parquet", item()),), assets={"satellite": "thumbnail"})
    assert source.contents()["satellite"].kind == "file"
    assert [row["satellite"] for row in source.rows()] == [tmp_path / "a.png"]


@pytest.mark.parametrize(
    ("href", "reason"),
    [
        ("https://example.org/a.tif", "asset 'visual' is an address (https:...), not a file here"),
        ("s3://bucket/a.tif", "asset 'visual' is an address (s3:...), not a file here"),
        ("/vsicurl/https://example.org/a.tif", "asset 'visual' is an address (/vsi...), not a file here"),
        ("file://elsewhere/a.tif", "asset 'visual' lies on another machine"),
        ("../a.tif", "asset 'visual' lies outside of the folder of assets (see option root)"),
        ("/etc/a.tif", "asset 'visual' lies outside of the folder of assets (see option root)"),
        ("file:///etc/a.tif", "asset 'visual' lies outside of the folder of assets (see option root)"),
        (
            "scenes/../../a.tif",
            "asset 'visual' lies outside of the folder of assets (see option root)",
        ),
        ("", "has no asset 'visual'"),
        (None, "has no asset 'visual'"),
    ],
)
def test_assets_that_are_no_files_here_are_left_out_with_the_reason(tmp_path, href, reason):
    source = table(tmp_path / "items.parquet", item("good"), item("bad", href))
    rows = list(Stac(sources=(source,), size_m=200).rows())
    assert rows[0]["key"] == "good"
    assert rows[1] == LeftOut(reason)


def test_absolute_names_and_file_addresses_inside_the_folder_are_fine(tmp_path):
    inside = tmp_path / "with space" / "a.tif"
    hrefs = (str(inside), f"file://{str(inside).replace(' ', '%20')}", "./with space/../with space/a.tif")
    source = table(tmp_path / "items.parquet", *(item(str(n), href) for n, href in enumerate(hrefs)))
    assert {row["satellite"]["raster"] for row in Stac(sources=(source,), size_m=200).rows()} == {inside}


def test_root_is_where_assets_lie_if_not_beside_the_table(tmp_path):
    scene(tmp_path / "archive/scenes/a.tif")
    source = table(tmp_path / "tables/items.parquet", item())
    importer = Stac(sources=(source,), root=tmp_path / "archive")
    assert importer.folders() == [tmp_path / "archive"]
    out = tmp_path / "tables/out.parquet"
    summary = write_manifest(importer, out)
    assert summary.root == tmp_path / "archive"
    options = DataOptions(manifest=str(out), root=str(summary.root))
    assert open_table(options, tmp_path, ["satellite"]).samples("satellite")[0].shape[:2] == (128, 128)


def test_one_of_several_assets_may_be_missing(tmp_path):
    assets = {"satellite": "visual", "ground_image": "thumbnail"}
    first, second = item("a"), item("b", "https://example.org/b.tif")
    third = item("c", None)
    third["assets"]["thumbnail"] = None
    source = table(tmp_path / "items.parquet", first, second, third)
    rows = list(Stac(sources=(source,), assets=assets, size_m=100).rows())
    assert set(rows[0]) >= {"satellite", "ground_image"}
    assert "satellite" not in rows[1]
    assert rows[2] == LeftOut("none of its assets is a local file that can be used")


def test_which_asset_must_be_said_if_several_are_rasters(tmp_path):
    row = item()
    row["assets"]["B04"] = {"href": "B04.tif", "type": TIFF}
    source = table(tmp_path / "items.parquet", row)
    with pytest.raises(
        DataError, match=r"2 of an item's assets .* say which, with an option such as assets="
    ):
        Stac(sources=(source,)).contents()
    assert Stac(sources=(source,), assets={"satellite": "B04"}).contents()["satellite"].note == "asset 'B04'"
    with pytest.raises(DataError, match="items have no asset 'B8A' for column 'satellite'; they have"):
        Stac(sources=(source,), assets={"satellite": "B8A"}).contents()


def test_clouds_labels_splits_and_licences_come_from_columns(tmp_path):
    clear = item("a", **{"eo:cloud_cover": 5.0, "license": "CC-BY-4.0", "subset": "test"})
    source = table(tmp_path / "items.parquet", clear, clear | {"id": "b", "eo:cloud_cover": 60.0})
    options = {"size_m": 100, "max_cloud": 20, "label": "collection", "split": "subset"}
    first, second = Stac(sources=(source,), **options).rows()
    assert (first["label"], first["split"], first["licence"]) == ("alps", "test", "CC-BY-4.0")
    assert second == LeftOut("has more than 20 % of clouds")
    with pytest.raises(DataError, match="has no column 'region'; its columns: id, assets"):
        list(Stac(sources=(source,), size_m=100, label="region").rows())


def test_a_partitioned_table_is_read_whole_and_in_order(tmp_path):
    for part in (1, 0):
        table(tmp_path / f"items/year=202{part}/part.parquet", item(str(part)))
    rows = list(Stac(sources=(tmp_path / "items",), size_m=100).rows())
    assert [row["key"] for row in rows] == ["0", "1"]
    assert rows[0]["satellite"]["raster"] == tmp_path / "items/scenes/a.tif"


@pytest.mark.parametrize(
    ("told", "place"),
    [
        ({"bbox": [3.0, 45.0, 3.02, 45.02]}, (45.01, 3.01)),
        ({"bbox": [3.0, 45.0, 100.0, 3.02, 45.02, 900.0]}, (45.01, 3.01)),
        ({"bbox": {"xmin": 179.0, "ymin": -1.0, "xmax": -179.0, "ymax": 1.0}}, (0.0, -180.0)),
        ({"bbox": None, "geometry": polygon((3, 45), (3.02, 45), (3.02, 45.02), (3, 45))}, (45.01, 3.01)),
        ({"bbox": [-180.0, -1.0, 180.0, 1.0], "geometry": polygon((178, -1), (182, 1))}, (0.0, -180.0)),
        (
            {
                "bbox": [-180.0, 0.0, 180.0, 1.0],
                "proj:epsg": 32631,
                "proj:bbox": [499_000.0, 0, 501_000.0, 0],
            },
            (0.0, 3.0),
        ),
        ({"bbox": None, "proj:epsg": 32631, "proj:bbox": [499_000.0, 0.0, 501_000.0, 0.0]}, (0.0, 3.0)),
        ({"bbox": None, "proj:code": "EPSG:4326", "proj:bbox": [3.0, 45.0, 3.02, 45.02]}, (45.01, 3.01)),
    ],
)
def test_the_place_is_the_middle_of_the_bbox_the_geometry_or_the_projected_box(tmp_path, told, place):
    pytest.importorskip("rasterio")
    (row,) = Stac(sources=(table(tmp_path / "items.parquet", item(**told)),), size_m=100).rows()
    assert (row["lat"], row["lon"]) == pytest.approx(place, abs=1e-6)


def test_an_item_without_a_place_has_no_window_around_it_and_may_have_the_start_of_a_range(tmp_path):
    scene(tmp_path / "scenes/a.tif")
    start = datetime(2023, 1, 1, tzinfo=UTC)
    rows = item(bbox=None, datetime=None, start_datetime=start), item("b")
    source = table(tmp_path / "items.parquet", *rows)
    assert next(Stac(sources=(source,), size_m=100).rows()) == LeftOut("has no place to cut a window around")
    assert next(Stac(sources=(source,)).rows())["time"] == start


def test_a_raster_that_is_missing_or_broken_is_left_out(tmp_path):
    source = table(tmp_path / "items.parquet", item())
    assert list(Stac(sources=(source,)).rows()) == [LeftOut("its raster is missing or cannot be opened")]


def test_what_is_no_table_of_items_is_told(tmp_path):
    (tmp_path / "a.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(DataError, match=r"a\.parquet: not a Parquet file that can be read"):
        Stac(sources=(tmp_path / "a.parquet",)).contents()
    pq.write_table(pa.table({"id": ["a"]}), tmp_path / "b.parquet")
    with pytest.raises(DataError, match=r"b\.parquet has no column assets"):
        Stac(sources=(tmp_path / "b.parquet",)).contents()
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="there is no Parquet file"):
        Stac(sources=(tmp_path / "empty",)).contents()


EMPTY = struct.pack("<bII", 1, 6, 0)  # a multipolygon of nothing


def test_an_item_with_an_empty_or_damaged_geometry_does_not_end_the_import(tmp_path):
    scene(tmp_path / "scenes/a.tif")
    rows = [item("a", bbox=None, geometry=EMPTY), item("b", bbox=None, geometry=b"\1\3\0\0\0"), item("c")]
    whole = list(Stac(sources=(table(tmp_path / "items.parquet", *rows),)).rows())
    assert [row.get("key") if isinstance(row, dict) else row for row in whole] == [
        "a",
        LeftOut("has no place that can be read: its geometry is cut short"),
        "c",
    ]
    assert whole[0]["lat"] is None


def test_geometries_of_every_kind_have_their_box():
    square = ((0.0, 1.0), (2.0, 1.0), (2.0, 5.0), (0.0, 1.0))
    assert parse_wkb_box(polygon(*square)) == (0, 1, 2, 5)
    assert parse_wkb_box(polygon(*square, order=">")) == (0, 1, 2, 5)
    assert parse_wkb_box(polygon(*((*point, 900.0) for point in square), axes=3)) == (0, 1, 2, 5)
    both = struct.pack("<bII", 1, 6, 2) + polygon(*square) + polygon((-1.0, 0.0), (0.0, 9.0))
    assert parse_wkb_box(both) == (-1, 0, 2, 9)
    point = struct.pack("<bII2d", 1, 0x20000001, 4326, 3.0, 4.0)  # EWKB with its reference system
    assert parse_wkb_box(point) == (3, 4, 3, 4)
    assert parse_wkb_box(struct.pack("<bI2d", 1, 1, np.nan, np.nan)) is None
    assert parse_wkb_box(EMPTY) is None


@settings(deadline=None, max_examples=200)
@given(st.binary(max_size=80) | st.binary(max_size=60).map(lambda rest: struct.pack("<bII", 1, 7, 2) + rest))
def test_whatever_bytes_a_geometry_has_it_is_read_or_refused(content):
    try:
        box = parse_wkb_box(content)
        assert box is None or len(box) == 4
        assert box is None or compute_middle(box) is None or abs(compute_middle(box)[1]) <= 180
    except DataError:
        pass


def test_the_middle_of_a_box_is_within_it():
    assert compute_middle((170.0, -10.0, -170.0, 10.0)) == (0.0, -180.0)
    assert compute_middle((-10.0, 0.0, 30.0, 20.0)) == (10.0, 10.0)
    assert compute_middle((0.0, 20.0, 10.0, 0.0)) is None
    assert compute_middle((0.0, 0.0, float("nan"), 1.0)) is None
    assert compute_middle((-180.0, -10.0, 180.0, 10.0)) is None  # around the Earth
    assert compute_middle((-100.0, -10.0, 100.0, 10.0)) is None  # or from 100 to -100: nobody knows
    assert compute_middle((-1e308, 0.0, 1e308, 1.0)) is None


def wrapped(lon):
    return (lon + 180) % 360 - 180


@settings(deadline=None, max_examples=200, derandomize=True)
@given(
    middle=st.floats(-180, 180) | st.sampled_from([180.0, -180.0, 179.9, -179.95, 0.0]),
    width=st.floats(0.01, 50),
    told=st.sampled_from(["crossing", "cut", "beyond", "uncut", "smallest and largest"]),
)
def test_a_scene_at_any_longitude_has_its_middle_however_it_is_told(middle, width, told):
    west, east = wrapped(middle - width / 2), wrapped(middle + width / 2)
    if told == "crossing":
        box = (west, 0.0, east, 1.0)
    elif told == "smallest and largest":
        box = (min(west, east), 0.0, max(west, east), 1.0)
    elif told == "beyond":
        box = parse_wkb_box(polygon((middle - width / 2, 0.0), (middle + width / 2, 1.0)))
    elif told == "uncut" or west < east:
        box = parse_wkb_box(polygon((west, 0.0), (east, 0.0), (east, 1.0), (west, 0.0)))
    else:
        halves = polygon((west, 0.0), (180.0, 1.0)) + polygon((-180.0, 0.0), (east, 1.0))
        box = parse_wkb_box(struct.pack("<bII", 1, 6, 2) + halves)
    lat, lon = compute_middle(box)
    assert lat == 0.5
    assert abs(wrapped(lon - middle)) < 1e-6
