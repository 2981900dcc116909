"""Arrow files, mapped into memory."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute

pc: Any = pyarrow.compute  # its functions are made at import, where no type checker sees them


def wrap_in_lists(values: pa.Array) -> pa.Array:
    """Make each value a list of it alone, so that one and several are stored alike."""
    present = values.is_valid().to_numpy(zero_copy_only=False)
    offsets = np.concatenate([[0], np.cumsum(present)]).astype(np.int32)
    if present.all():
        return pa.ListArray.from_arrays(pa.array(offsets), values)
    return pa.ListArray.from_arrays(pa.array(offsets), values.drop_null(), mask=pa.array(~present))


@lru_cache(maxsize=32)
def map_arrow_table(path: Path) -> pa.Table:
    """Map an Arrow file into memory, once per process."""
    with pa.memory_map(str(path)) as source:
        return pa.ipc.open_file(source).read_all()
