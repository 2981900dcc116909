"""Miniatures of datasets as they are distributed: files of the right kinds, names and columns."""

import csv
import io
import json
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import soundfile
from PIL import Image

from geobind.importers import write_manifest


def jpeg(seed=0, size=24):
    target = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 255, (size, size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(target, "JPEG")
    return target.getvalue()


def sound(seed=0, kind="MP3"):
    target = io.BytesIO()
    soundfile.write(target, np.random.default_rng(seed).normal(0, 0.1, 8000), 16_000, format=kind)
    return target.getvalue()


def put(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def table(path, rows, index=True):
    """Write rows as pandas does, with its index in a column without a name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([*([""] if index else []), *rows[0]])
        writer.writerows([*([number] if index else []), *row.values()] for number, row in enumerate(rows))
    return path


def shard(path, members):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            content = json.dumps(content).encode() if isinstance(content, dict) else content
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def parquet(path, rows):
    """Write rows as a hub does: images and sounds as structs of bytes and path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    packed = [
        {k: {"bytes": v, "path": f"{k}.bin"} if isinstance(v, bytes) else v for k, v in row.items()}
        for row in rows
    ]
    pq.write_table(pa.Table.from_pylist(packed), path)
    return path


def imported(importer, out, **options):
    """An import's output: its summary, and the rows without missing cells."""
    summary = write_manifest(importer, out, **options)
    rows = pq.read_table(out).to_pylist()
    return summary, [{k: v for k, v in row.items() if v is not None} for row in rows]


SOUNDINGEARTH = (
    "long_key,key,longitude,latitude,altitude,description,date_recorded,date_uploaded,creator,licenseurl,"
    "title,mp3name,mp3mb,mp3seconds,mp3channels,mp3bitrate,mp3samplerate,mp3file"
).split(",")


def recording(number, lat=51.0, lon=13.5, **said):
    """A row of SoundingEarth's table."""
    told = {
        "long_key": f"aporee_{number}_{number + 7}",
        "key": number,
        "longitude": lon,
        "latitude": lat,
        "description": "birds<br />and a tram",
        "date_recorded": "1/29/09 10:28",
        "licenseurl": "http://creativecommons.org/licenses/by-nc/3.0/",
        "title": "Elbe",
        "mp3name": f"elbe{number}.mp3",
        "mp3samplerate": 44100,
    }
    return {column: {**told, **said}.get(column, "") for column in SOUNDINGEARTH}


def write_soundingearth(folder, recordings, images="images", suffix=".jpg"):
    """SoundingEarth's Zenodo edition, with the recordings fetched."""
    table(folder / "metadata.csv", recordings, index=False)
    for row in recordings:
        put(folder / images / f"{row['key']}{suffix}", jpeg(row["key"]))
        put(folder / "raw_audio" / row["long_key"] / row["mp3name"], sound(row["key"]))
    return folder
