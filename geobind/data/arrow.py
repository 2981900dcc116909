"""Arrow files, mapped into memory."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute

pc: Any = pyarrow.compute  # its functions are made at import, where no type checker sees them


@lru_cache(maxsize=32)
def mapped_table(path: Path) -> pa.Table:
    """Map an Arrow file into memory, once per process."""
    with pa.memory_map(str(path)) as source:
        return pa.ipc.open_file(source).read_all()
