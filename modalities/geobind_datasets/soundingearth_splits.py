"""The splits published for SoundingEarth: read where they are distributed, else made as they were."""

# N recordings in the order of GeoCLAP's table

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Literal

from geobind.errors import DataError
from geobind.importers.contract import LeftOut
from geobind.importers.reading import first_there, read_csv

Split = Literal["published", "geoclap", "psm", "psm_degree", "none"]
_GEOCLAP = {"train": "train_df.csv", "val": "validate_df.csv", "test": "test_df.csv"}
_PSM = {split: f"aporee_{split}_fairsplit_10km.csv" for split in ("train", "val", "test")}
_LISTED = {"geoclap": _GEOCLAP, "psm": _PSM}
_COUNT = 50_792  # recordings of GeoCLAP's table
_LOWEST_RATE = 16_000  # Hz; GeoCLAP leaves out what is below


class Splits:
    """Which split each recording is in.

    Args:
        folder: The dataset.
        split: Which of the published splits.
    """

    def __init__(self, folder: Path, split: Split) -> None:
        self.folder, self.split = folder, split

    def of(self, row: Mapping[str, str]) -> str | LeftOut:
        """The split of a recording, or why it is in none.

        Raises:
            DataError: Its number is none.
        """
        if self.split == "none":
            return "train"
        if self.split == "published":
            return self._by_number(row)
        return self._by_key.get(row["long_key"]) or LeftOut(f"is not in the split {self.split}")

    def notes(self) -> list[str]:
        """What a user of the split should know."""
        leaks = {
            "published": "goes by the recordings' numbers: recordings of one street are on both sides",
            "geoclap": "is random: recordings of one street are on both sides",
        }
        notes = [f"the split {leaks[self.split]}"] if self.split in leaks else []
        if self.split == "published" or self._lists:
            return notes
        count = len(self._by_key)
        same = (
            "as published, if the table is the same"
            if count == _COUNT
            else "like the published, not the same"
        )
        return [
            *notes,
            f"the split was made here, out of {count:,} recordings (published: {_COUNT:,}): {same}",
        ]

    def _by_number(self, row: Mapping[str, str]) -> str:
        from geobind.evaluation.protocols import soundingearth_split

        try:
            return str(soundingearth_split(int(row["key"])))
        except ValueError as error:
            raise DataError(
                f"{self.folder}: '{row['key']}' of {row['long_key']} is no number to split by"
            ) from error

    @cached_property
    def _lists(self) -> dict[str, Path]:
        """The published lists, all three or none."""
        names = _LISTED.get(self.split, {})
        found = {
            split: path
            for split, name in names.items()
            if (path := first_there(self.folder, (name, f"metafiles/SoundingEarth/{name}")))
        }
        if found and len(found) < len(names):
            lacking = next(name for split, name in names.items() if split not in found)
            raise DataError(
                f"{self.folder}: has only some of the lists of split {self.split}: {lacking} is missing"
            )
        return found

    @cached_property
    def _by_key(self) -> dict[str, str]:
        if self._lists:
            return {
                row["long_key"]: split
                for split, path in self._lists.items()
                for row in read_csv(path, ("long_key",))
            }
        return self._made()

    def _made(self) -> dict[str, str]:
        """Repeat the steps of the published code on the table that is there."""
        import numpy as np

        from geobind.evaluation.protocols import SEED, geoclap_split, psm_split

        keys, places_NLL = self._table()
        if self.split == "geoclap":
            return dict(zip(keys, map(str, geoclap_split(len(keys))), strict=True))
        # PSM shuffles GeoCLAP's three lists, one after the other: its rows come in their order.
        order_N = np.random.RandomState(SEED).permutation(len(keys))
        cells = "degree" if self.split == "psm_degree" else "10km"
        lat_N, lon_N = np.array(places_NLL, dtype=np.float64).reshape(-1, 2)[order_N].T
        words = psm_split(lat_N, lon_N, cells=cells)
        return {keys[at]: str(word) for at, word in zip(order_N, words, strict=True)}

    def _table(self) -> tuple[list[str], list[tuple[float, float]]]:
        """GeoCLAP's table: what it publishes, or SoundingEarth's without what GeoCLAP leaves out."""
        cleaned = self.folder / "final_metadata_with_captions.csv"
        path = cleaned if cleaned.exists() else self.folder / "metadata.csv"
        corrupt = self.folder / "corrupt_ids_final.csv"
        refused = (
            {row["long_key"] for row in read_csv(corrupt, ("long_key",))} if corrupt.exists() else set[str]()
        )
        keys: list[str] = []
        places: list[tuple[float, float]] = []
        for row in read_csv(path, ("long_key", "latitude", "longitude", "mp3samplerate")):
            if row["long_key"] in refused:
                continue
            try:
                if float(row["mp3samplerate"] or 0) < _LOWEST_RATE:
                    continue
                place = float(row["latitude"]), float(row["longitude"])
            except ValueError as error:
                raise DataError(f"{path}: {row['long_key']}: {error}") from error
            keys.append(row["long_key"])
            places.append(place)
        return keys, places
