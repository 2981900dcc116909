"""Toy Earth's rows for validation: there when asked for, and no other row moves for them."""

import numpy as np

from geobind.data.options import DataOptions
from geobind.data.table import open_table
from geobind_toyearth import ToyEarth

SMALL = {"places": 6, "held_out": 4, "tile_size": 16, "photo_size": 16, "seconds": 0.25, "rate": 8000}


def opened(**more):
    return open_table(DataOptions(toyearth={**SMALL, **more}, columns={"seen": "tile"}), None, ["seen"])


def test_asking_for_validation_rows_moves_no_other_row():
    plain, more = opened(), opened(validation=3)
    assert more.splits == {"test": 4, "train": 6, "val": 3}
    assert plain.splits == {"test": 4, "train": 6}
    for split in ("train", "test"):
        one, other = plain.split(split), more.split(split)
        assert list(one.keys) == list(other.keys)
        assert all(
            np.array_equal(a, b) for a, b in zip(one.samples("seen"), other.samples("seen"), strict=True)
        )


def test_a_planet_without_validation_rows_is_rendered_into_the_cache_it_always_was():
    assert (
        opened().path
        == open_table(
            DataOptions(toyearth=ToyEarth(**SMALL, validation=0), columns={"seen": "tile"}),
            None,
            ["seen"],
        ).path
    )
