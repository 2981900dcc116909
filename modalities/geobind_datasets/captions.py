"""RSICD, RSITMD, UCM-captions and Sydney-captions: aerial images, each with five captions.

All four come as one JSON file in the form that Karpathy gave COCO: a list of images, each with its file,
split and sentences.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, cast

from pydantic import Field

from geobind.errors import DataError
from geobind.importers.contract import Column, Importer, LeftOut, Row
from geobind.importers.reading import find_first, read_json, resolve_inside

_CLASS = re.compile(r"(?P<label>[A-Za-z]+(?:_[A-Za-z]+)*)_?\d+\.\w+")
# The classes of UC Merced Land Use, a hundred images each, in the order in which UCM-captions numbers them.
_UCM = (
    *("agricultural", "airplane", "baseballdiamond", "beach", "buildings", "chaparral", "denseresidential"),
    *("forest", "freeway", "golfcourse", "harbor", "intersection", "mediumresidential", "mobilehomepark"),
    *("overpass", "parkinglot", "river", "runway", "sparseresidential", "storagetanks", "tenniscourt"),
)


class Captions(Importer):
    """Images with captions, described by one JSON file of Karpathy's form; each dataset is a subclass."""

    columns: ClassVar[Mapping[str, Column]] = {
        "satellite": Column("file", "aerial image"),
        "text": Column("string", "its captions, usually five"),
    }
    described: ClassVar[tuple[str, ...]]  # what the JSON file may be called
    pictured: ClassVar[tuple[str, ...]]  # what the folder of images may be called

    annotations: str = Field(default="", description="The JSON file, if it is called something else.")
    images: str = Field(default="", description="The folder of images, if it is called something else.")

    def rows(self) -> Iterator[Row | LeftOut]:
        """Read the JSON file."""
        folder = self.folder()
        named = {"annotations": self.annotations, "images": self.images}
        given = {
            name: (str(resolve_inside(Path(), word, name)),) if word else () for name, word in named.items()
        }
        path = find_first(folder, given["annotations"] or self.described)
        pictures = find_first(folder, given["images"] or self.pictured)
        if path is None or not path.is_file():
            raise self.misplaced(f"no file {' or '.join(given['annotations'] or self.described)}")
        if pictures is None or not pictures.is_dir():
            raise self.misplaced(f"no folder {' or '.join(given['images'] or self.pictured)}")
        entries = read_json(path).get("images")
        if not isinstance(entries, list):
            raise DataError(f"{path}: has no list 'images'; is this a file of captions in Karpathy's form?")
        labels = self.labels(folder)
        for number, entry in enumerate(cast("list[Any]", entries)):
            yield self._row(entry, pictures, labels, f"{path}: images[{number}]")

    def labels(self, folder: Path) -> Mapping[str, str]:
        """Return the class of each image by its file's name, where the dataset tells."""
        return {}

    def label(self, name: str) -> str | None:
        """Return the class of an image that `labels` lacks: here, the beginning of its name."""
        found = _CLASS.fullmatch(name)
        return found["label"] if found else None

    def notes(self) -> list[str]:
        """Return a note on how captions are used."""
        return [
            "captions of different images are often the same, word for word, so finding the very image has a "
            "low ceiling; papers rank all captions of an image, geobind's evaluation takes the first"
        ]

    def _row(self, entry: Any, pictures: Path, labels: Mapping[str, str], where: str) -> Row | LeftOut:
        if not isinstance(entry, dict):
            raise DataError(f"{where}: is no object with filename, split and sentences")
        said = cast("dict[str, Any]", entry)
        name, split, sentences = said.get("filename"), said.get("split"), said.get("sentences")
        if not isinstance(name, str) or not isinstance(sentences, list):
            raise DataError(f"{where}: lacks a 'filename' or a list 'sentences'")
        if split is not None and not isinstance(split, str):
            raise DataError(f"{where}: 'split' must be a word, not {split!r}")
        file = resolve_inside(pictures, f"{said['filepath']}/{name}" if said.get("filepath") else name, where)
        texts = [_text(sentence, where) for sentence in cast("list[Any]", sentences)]
        captions = [text for text in texts if text]
        if not captions:
            return LeftOut("has no caption")
        return {
            "key": name,
            "split": split,
            "label": labels.get(name) or self.label(name),
            "satellite": file,
            "text": captions,
        }


class RSICD(Captions):
    """RSICD: 10,921 images of 30 classes."""

    name: ClassVar[str] = "rsicd"
    title: ClassVar[str] = "RSICD, 10,921 aerial images with captions"
    home: ClassVar[str] = "https://github.com/201528014227051/RSICD_optimal"
    licence: ClassVar[str] = "none stated; imagery of Google Earth, Baidu Map, MapABC and Tianditu"
    citation: ClassVar[str] = (
        "Lu et al., Exploring Models and Data for Remote Sensing Image Caption Generation, IEEE TGRS 2017"
    )
    layout: ClassVar[str] = """
        dataset_rsicd.json
        RSICD_images/airport_1.jpg, 00001.jpg
        txtclasses_rsicd/airport.txt           optional: the images of each class
    """
    described: ClassVar[tuple[str, ...]] = ("dataset_rsicd.json", "annotations_rsicd/dataset_rsicd.json")
    pictured: ClassVar[tuple[str, ...]] = ("RSICD_images", "images")

    def labels(self, folder: Path) -> Mapping[str, str]:
        """Return the classes of txtclasses_rsicd, one file of names each."""
        classes = folder / "txtclasses_rsicd"
        found: dict[str, str] = {}
        for path in sorted(classes.glob("*.txt")):
            lines = path.read_text(encoding="utf-8-sig", errors="replace").splitlines()
            found |= dict.fromkeys((line.strip() for line in lines), path.stem)
        return found

    def notes(self) -> list[str]:
        """Return notes, with the captions' origin."""
        repeated = "images with fewer than five captions of their own have some twice, to make it five"
        return [*super().notes(), repeated]


class RSITMD(Captions):
    """RSITMD: 4,743 images, classes in their names."""

    name: ClassVar[str] = "rsitmd"
    title: ClassVar[str] = "RSITMD, 4,743 aerial images with fine-grained captions"
    home: ClassVar[str] = "https://github.com/xiaoyuan1996/AMFMN"
    licence: ClassVar[str] = "none stated"
    citation: ClassVar[str] = (
        "Yuan et al., Exploring a Fine-Grained Multiscale Method for Cross-Modal Remote Sensing Image "
        "Retrieval, IEEE TGRS 2021"
    )
    layout: ClassVar[str] = """
        dataset_RSITMD.json
        images/airport_0.tif
    """
    described: ClassVar[tuple[str, ...]] = ("dataset_RSITMD.json", "dataset_rsitmd.json")
    pictured: ClassVar[tuple[str, ...]] = ("images", "RSITMD_images")

    def notes(self) -> list[str]:
        """Return notes on the splits."""
        return [
            *super().notes(),
            "there is no split val: papers take it from train, each its own way",
            "hundreds of images have captions of RSICD: to train on one and test on the other leaks",
        ]


class UCMCaptions(Captions):
    """UCM-captions: the 2,100 images of UC Merced Land Use."""

    name: ClassVar[str] = "ucm_captions"
    title: ClassVar[str] = "UCM-captions, the 2,100 aerial images of UC Merced Land Use with captions"
    home: ClassVar[str] = "https://github.com/201528014227051/RSICD_optimal"
    licence: ClassVar[str] = "captions: none stated; images: of the USGS, in the public domain"
    citation: ClassVar[str] = (
        "Qu et al., Deep semantic understanding of high resolution remote sensing image, CITS 2016; images: "
        "Yang and Newsam, ACM SIGSPATIAL 2010"
    )
    layout: ClassVar[str] = """
        dataset.json
        imgs/1.tif ... 2100.tif                a hundred of each class, in order
    """
    described: ClassVar[tuple[str, ...]] = ("dataset.json", "dataset_ucm.json", "dataset_ucmd.json")
    pictured: ClassVar[tuple[str, ...]] = ("imgs", "images", "UCM_imgs")

    def label(self, name: str) -> str | None:
        """Return the class that an image's number lies in."""
        stem = Path(name).stem
        number = int(stem) if stem.isascii() and stem.isdigit() else 0
        return _UCM[(number - 1) // 100] if 1 <= number <= 100 * len(_UCM) else super().label(name)


class SydneyCaptions(Captions):
    """Sydney-captions: 613 images."""

    name: ClassVar[str] = "sydney_captions"
    title: ClassVar[str] = "Sydney-captions, 613 aerial images of Sydney with captions"
    home: ClassVar[str] = "https://github.com/201528014227051/RSICD_optimal"
    licence: ClassVar[str] = "none stated; imagery of Google Earth"
    citation: ClassVar[str] = (
        "Qu et al., Deep semantic understanding of high resolution remote sensing image, CITS 2016"
    )
    layout: ClassVar[str] = """
        dataset.json
        imgs/1.tif ...
    """
    described: ClassVar[tuple[str, ...]] = ("dataset.json", "dataset_sydney.json")
    pictured: ClassVar[tuple[str, ...]] = ("imgs", "images")


def _text(sentence: Any, where: str) -> str:
    """Return a sentence's raw text, or its tokens where that is blank."""
    if not isinstance(sentence, dict):
        raise DataError(f"{where}: a sentence must be an object with 'raw', not {type(sentence).__name__}")
    said = cast("dict[str, Any]", sentence)
    raw, tokens = said.get("raw"), said.get("tokens")
    if isinstance(raw, str) and raw.strip():
        return " ".join(raw.split())
    if raw is not None and not isinstance(raw, str):
        raise DataError(f"{where}: 'raw' of a sentence must be a text, not {type(raw).__name__}")
    return " ".join(str(token) for token in cast("list[Any]", tokens)) if isinstance(tokens, list) else ""
