"""Any folder of images, with classes and splits by the names of its folders."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from geobind.importers.contract import Column, Importer, LeftOut, Row
from geobind.importers.reading import IMAGES, walk_files

_SPLITS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}


class ImageFolder(Importer):
    """Images in a folder."""

    name: ClassVar[str] = "image_folder"
    title: ClassVar[str] = "Any folder of images, with a folder for each class, split, both or none"
    home: ClassVar[str] = "your disk"
    licence: ClassVar[str] = "that of the images"
    citation: ClassVar[str] = "that of the images"
    layout: ClassVar[str] = """
        [train/ val/ test/]            (optional)
            [CLASS/ [CLASS/ ...]]      (optional)
                *.jpg *.png *.tif ...
    """
    columns: ClassVar[Mapping[str, Column]] = {"satellite": Column("file", "another name with `column`")}

    column: str = Field(
        default="satellite", pattern="^[a-z][a-z0-9_]*$", description="what to call the column"
    )
    text: str | None = Field(
        default=None,
        description="fill a column text for images that have a class, such as 'a satellite image of {label}'",
    )
    gps: bool = Field(default=False, description="read place and time that cameras write into JPEG and TIFF")

    def contents(self) -> Mapping[str, Column]:
        """Return one column of images, and one of text if requested."""
        return {self.column: Column("file")} | ({"text": Column("string")} if self.text else {})

    def rows(self) -> Iterator[Row | LeftOut]:
        """Yield the images sorted by name."""
        folder = self.folder()
        found = False
        for path in walk_files(folder):
            if path.suffix.lower() not in IMAGES:
                yield LeftOut(f"is no image, by its name: *{path.suffix}")
                continue
            found = True
            yield self._row(path, path.relative_to(folder))
        if not found:
            raise self.misplaced("there is no image in it")

    def _row(self, path: Path, inside: Path) -> Row:
        *folders, _ = inside.parts
        split = _SPLITS.get(folders[0].lower()) if folders else None
        label = "/".join(folders[1:] if split else folders) or None
        row: Row = {"key": inside.as_posix(), "label": label, self.column: path}
        if split:
            row["split"] = split
        if self.text and label:
            row["text"] = self.text.replace("{label}", label.replace("_", " "))
        return row | (_exif(path) if self.gps else {})


def _exif(path: Path) -> Row:
    """Read where and when a photograph was taken, as far as its EXIF data tell."""
    from PIL import ExifTags, Image

    try:
        with Image.open(path, formats=("JPEG", "TIFF", "PNG", "WEBP")) as image:
            exif = image.getexif()
            gps = exif.get_ifd(ExifTags.IFD.GPSInfo)
            taken = exif.get_ifd(ExifTags.IFD.Exif).get(ExifTags.Base.DateTimeOriginal)
    except (
        Exception
    ):  # Pillow raises whatever its parsers meet; the image itself is looked at by `data check`
        return {}
    lat = _degrees(gps.get(ExifTags.GPS.GPSLatitude), gps.get(ExifTags.GPS.GPSLatitudeRef), "NS", 90)
    lon = _degrees(gps.get(ExifTags.GPS.GPSLongitude), gps.get(ExifTags.GPS.GPSLongitudeRef), "EW", 180)
    if lat is None or lon is None or lat == lon == 0:  # 0, 0 is what cameras write that know no place
        lat = lon = None
    date, _, clock = str(taken or "").strip().partition(" ")
    return {"lat": lat, "lon": lon, "time": _iso(date.replace(":", "-"), clock)}


def _degrees(parts: Any, side: Any, sides: str, limit: float) -> float | None:
    """Return degrees north or east, or None: of a number without its hemisphere it is not known which."""
    try:
        degrees, minutes, seconds = (float(part) for part in parts)
    except (TypeError, ValueError, ZeroDivisionError):
        return None
    value = degrees + minutes / 60 + seconds / 3600
    text = side.decode("latin-1") if isinstance(side, bytes) else str(side or "")
    letter = text.strip("\0 ").upper()[:1]
    if not letter or letter not in sides or not 0 <= value <= limit:  # or NaN
        return None
    return -value if letter == sides[1] else value


def _iso(date: str, clock: str) -> str | None:
    from geobind.importers.reading import parse_time

    time = parse_time(f"{date}T{clock}")
    return time.isoformat() if time else None
