import subprocess
import sys

import pytest
from pydantic import ValidationError

from geobind.data.options import DataOptions, ToyEarthOptions


def test_a_table_has_exactly_one_source():
    for options in ({}, {"manifest": "a.csv", "toyearth": {}}):
        with pytest.raises(ValidationError, match="exactly one of `manifest` and `toyearth`"):
            DataOptions(**options)
    assert DataOptions(toyearth={}).toyearth == ToyEarthOptions()


def test_options_that_contradict_each_other_are_refused():
    with pytest.raises(ValidationError, match="toy Earth has no files"):
        DataOptions(toyearth={}, root="a")
    with pytest.raises(ValidationError, match="'a' is in both"):
        DataOptions(manifest="a.csv", files=["a"], inline=["a"])
    with pytest.raises(ValidationError, match="manifst"):
        DataOptions(manifst="a.csv")


def test_options_import_without_torch_or_numpy():
    code = (
        "import sys, geobind.data.options as o; assert not {'torch', 'numpy', 'pyarrow'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
