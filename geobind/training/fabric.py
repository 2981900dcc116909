"""Lightning Fabric, imported without a package that it looks at and geobind does not use."""

from __future__ import annotations

import sys

# Fabric imports torchmetrics for its version alone, and with it transformers: a third of a command's start.
_hidden = "torchmetrics" not in sys.modules
if _hidden:
    sys.modules["torchmetrics"] = None  # pyright: ignore[reportArgumentType]  # Python's mark of "not there"
try:
    from lightning_fabric import Fabric
    from lightning_fabric.strategies.ddp import DDPStrategy
    from lightning_fabric.strategies.model_parallel import ModelParallelStrategy
finally:
    if _hidden:
        del sys.modules["torchmetrics"]

__all__ = ["DDPStrategy", "Fabric", "ModelParallelStrategy"]
