"""Real files of every format, small ones, to be damaged: made here, and taken from a folder of data."""

import io
import json
import tarfile

import fuzz_documents
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import soundfile
from PIL import Image

MOST = 400_000  # bytes of a file taken from a folder
FOUND = {
    "jpeg": ("*.jpg", "*.jpeg"),
    "png": ("*.png",),
    "geotiff": ("*.tif", "*.tiff"),
    "wav": ("*.wav",),
    "ogg": ("*.ogg",),
    "mp3": ("*.mp3",),
}


def seeds(data=None):
    """Return encoded files by format; those of `data`, a folder, are few of each format."""
    made = {**images(), **rasters(), **sounds(), **manifests(), **fuzz_documents.seeds()}
    for kind, patterns in FOUND.items() if data else ():
        names = sorted({name for pattern in patterns for name in data.rglob(pattern)})
        small = [name for name in names if name.stat().st_size <= MOST]
        made[kind] += [name.read_bytes() for name in small[:: max(1, len(small) // 6)][:6]]
    return made


def pixels(height=48, width=40, bands=3, dtype=np.uint8):
    rng = np.random.default_rng(height * width * bands)
    ramp = np.linspace(0, np.iinfo(dtype).max // 2, height * width).reshape(height, width, 1)
    noise = rng.integers(0, np.iinfo(dtype).max // 3, (height, width, bands))
    return (ramp + noise).astype(dtype)


def saved(image, kind, **options):
    target = io.BytesIO()
    image.save(target, kind, **options)
    return target.getvalue()


def images():
    rgb = Image.fromarray(pixels())
    grey, rgba = rgb.convert("L"), Image.fromarray(pixels(bands=4), "RGBA")
    deep = Image.fromarray(pixels(bands=1, dtype=np.uint16)[..., 0])
    turned = Image.Exif()
    turned[0x0112] = 6
    palette = rgb.quantize(16)
    tiff = [{}] + [{"compression": name} for name in ("tiff_lzw", "tiff_deflate", "jpeg", "packbits")]
    return {
        "jpeg": [
            saved(rgb, "JPEG"),
            saved(rgb, "JPEG", progressive=True, exif=turned),
            saved(grey, "JPEG"),
            saved(rgb.convert("CMYK"), "JPEG"),
            saved(rgb.resize((300, 200)), "JPEG", quality=30, restart_marker_rows=1),
        ],
        "png": [
            saved(rgb, "PNG", exif=turned),
            saved(rgba, "PNG"),
            saved(deep, "PNG"),
            saved(palette, "PNG", transparency=3),
            saved(grey.convert("1"), "PNG"),
        ],
        "webp": [
            saved(rgb, "WEBP"),
            saved(rgba, "WEBP", lossless=True),
            saved(rgb, "WEBP", save_all=True, append_images=[rgb.rotate(90)], exif=turned),
        ],
        "tiff": [saved(rgb, "TIFF", **options) for options in tiff]
        + [saved(deep, "TIFF"), saved(palette, "TIFF"), saved(grey.convert("F"), "TIFF")],
        "jpeg2000": [saved(rgb, "JPEG2000"), saved(grey, "JPEG2000", irreversible=True)],
        "gif": [saved(palette, "GIF", save_all=True, append_images=[palette.rotate(90)])],
        "bmp": [saved(rgb, "BMP"), saved(palette, "BMP")],
    }


def rasters():
    from rasterio.io import MemoryFile
    from rasterio.transform import from_origin

    where = {"crs": "EPSG:32633", "transform": from_origin(500_000, 5_000_000, 10, 10)}
    kinds = [
        {"dtype": "uint16", "count": 4, "nodata": 0, "compress": "deflate"},
        {"dtype": "uint8", "count": 3, "compress": "jpeg", "tiled": True, "blockxsize": 16, "blockysize": 16},
        {
            "dtype": "uint8",
            "count": 4,
            "photometric": "rgb",
            "alpha": "yes",
            "compress": "lzw",
            "predictor": 2,
        },
        {"dtype": "float32", "count": 1, "nodata": -9999.0, "compress": "zstd"},
        {"dtype": "uint16", "count": 2, "crs": "EPSG:4326", "transform": from_origin(14, 45.2, 1e-4, 1e-4)},
        {"dtype": "uint8", "count": 1, "driver": "COG"},
    ]
    made = []
    for kind in kinds:
        array = pixels(64, 64, kind["count"], np.uint16).astype(kind["dtype"]).transpose(2, 0, 1)
        with MemoryFile() as memory:
            profile = {"driver": "GTiff", **where, **kind, "width": 64, "height": 64}
            with memory.open(**profile) as raster:
                raster.write(array)
            made.append(bytes(memory.getbuffer()))
    return {"geotiff": made}


def sounds():
    times = np.arange(12_000) / 8000
    tone = 0.4 * np.sin(2 * np.pi * 440 * times) + 0.1 * np.random.default_rng(0).normal(0, 1, len(times))
    stereo = np.stack([tone, tone[::-1]], axis=1)

    def written(kind, subtype=None, rate=16_000, samples=tone):
        target = io.BytesIO()
        soundfile.write(target, samples, rate, format=kind, subtype=subtype)
        return target.getvalue()

    subtypes = ("PCM_U8", "PCM_16", "PCM_24", "FLOAT", "DOUBLE", "ULAW", "IMA_ADPCM", "MS_ADPCM")
    return {
        "wav": [written("WAV", subtype) for subtype in subtypes] + [written("WAV", "PCM_16", 44_100, stereo)],
        "flac": [written("FLAC"), written("FLAC", "PCM_24", 48_000, stereo)],
        "ogg": [written("OGG"), written("OGG", rate=44_100, samples=stereo)],
        "opus": [written("OGG", "OPUS", 48_000), written("OGG", "OPUS", 16_000, stereo)],
        "mp3": [written("MP3", rate=44_100), written("MP3", rate=22_050, samples=stereo)],
        "aiff": [written("AIFF")],
    }


ROWS = [
    {
        "key": f"place {number}",
        "split": "train" if number % 3 else "test",
        "lat": 45 + number / 10,
        "lon": -3.5 * number,
        "time": f"2024-06-0{1 + number % 9}T14:30:00Z",
        "label": "wood, dark" if number % 2 else "beach",
        "group": f"recording {number // 4}",
        "photo": f"photos/{number}.jpg",
        "caption": [f"a place numbered {number}", 'waves, "foam"\nand sand'] if number % 2 else "eine Düne",
        "window": {"raster": "scene.tif", "x": number, "y": 0, "width": 8, "height": 8},
        "numbers": [0.5, float(number), -1e9],
    }
    for number in range(20)
]


def as_csv(delimiter):
    import csv

    target = io.StringIO()
    writer = csv.DictWriter(target, list(ROWS[0]), delimiter=delimiter)
    writer.writeheader()
    for row in ROWS:
        told = {
            name: json.dumps(cell) if isinstance(cell, list | dict) else cell for name, cell in row.items()
        }
        writer.writerow(told)
    return target.getvalue().encode()


def as_parquet(**options):
    rows = [
        {**row, "caption": [row["caption"]] if isinstance(row["caption"], str) else row["caption"]}
        for row in ROWS
    ]
    table = pa.Table.from_pylist([{**row, "photo": b"\xff\xd8\xff" + bytes(20)} for row in rows])
    point = np.array([(1, 1, 3.5, 45.0)], [("o", "u1"), ("t", "<u4"), ("x", "<f8"), ("y", "<f8")]).tobytes()
    if options.pop("geo", False):
        column = {"encoding": "WKB", "geometry_types": ["Point"]}
        geo = {"version": "1.1.0", "primary_column": "geometry", "columns": {"geometry": column}}
        table = table.drop_columns(["lat", "lon"]).append_column("geometry", [[point] * len(rows)])
        table = table.replace_schema_metadata({"geo": json.dumps(geo)})
    target = io.BytesIO()
    pq.write_table(table, target, **options)
    return target.getvalue()


def as_tar(kind, long=False):
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w", format=kind) as archive:
        for name, content in (("a.jpg", b"\xff\xd8\xff"), ("b" * (150 if long else 5), b"abc" * 400)):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return target.getvalue()


def manifests():
    jsonl = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
    formats = (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)
    return {
        "csv": [as_csv(","), b"\xef\xbb\xbf" + as_csv(",")],
        "tsv": [as_csv("\t")],
        "jsonl": [jsonl],
        "parquet": [as_parquet(compression="none"), as_parquet(compression="zstd", row_group_size=7)],
        "geoparquet": [as_parquet(geo=True)],
        "tar": [as_tar(kind, kind != tarfile.USTAR_FORMAT) for kind in formats],
    }
