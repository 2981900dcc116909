import subprocess
import sys

import pytest
from pydantic import ValidationError

from geobind.data.dataset import RESERVED
from geobind.data.options import DataOptions, MixedData
from geobind_toyearth import ToyEarth


def test_a_table_has_exactly_one_source():
    for options in ({}, {"manifest": "a.csv", "toyearth": {}}):
        with pytest.raises(ValidationError, match="exactly one of `manifest`, `earth` and `toyearth`"):
            DataOptions(**options)
    assert DataOptions(toyearth={}).dataset == ToyEarth()


def test_options_that_contradict_each_other_are_refused():
    with pytest.raises(ValidationError, match="toy Earth has no files"):
        DataOptions(toyearth={}, root="a")
    with pytest.raises(ValidationError, match="'a' is in both"):
        DataOptions(manifest="a.csv", files=["a"], inline=["a"])
    with pytest.raises(ValidationError, match="manifst"):
        DataOptions(manifst="a.csv")


def test_no_dataset_may_have_the_name_of_another_key():
    assert set(MixedData.model_fields) == RESERVED


def test_mistakes_of_a_dataset_are_told_with_those_beside_it():
    with pytest.raises(ValidationError) as failure:
        DataOptions(toyearth={"places": 0, "hills": 3}, limit=0)
    places = [[word for word in error["loc"] if word != "(dataset)"] for error in failure.value.errors()]
    assert sorted(places) == [["limit"], ["toyearth", "hills"], ["toyearth", "places"]]


def test_a_dump_is_read_back_and_keeps_the_keys_that_fingerprints_are_made_of():
    options = DataOptions(toyearth={"places": 3}, columns={"a": "tile"})
    dumped = options.model_dump(mode="json")
    assert list(dumped)[:3] == ["manifest", "toyearth", "columns"]
    assert (dumped["toyearth"]["places"], dumped["toyearth"]["held_out"]) == (3, 500)
    assert DataOptions(**dumped) == options == options.model_copy()
    assert DataOptions(toyearth={"places": 3}).model_dump(exclude_unset=True) == {"toyearth": {"places": 3}}
    manifest = DataOptions(manifest="rows.csv")
    assert manifest.model_dump()["toyearth"] is None
    assert DataOptions(**manifest.model_dump()) == manifest


def test_the_field_of_datasets_is_no_key():
    with pytest.raises(ValidationError, match="dataset"):
        DataOptions(dataset=ToyEarth())


def test_options_import_without_torch_or_numpy():
    code = (
        "import sys, geobind.data.options as o; assert not {'torch', 'numpy', 'pyarrow'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
