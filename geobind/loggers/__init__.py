"""Where figures go beside metrics.csv: the contract of loggers, and those that are installed."""

from __future__ import annotations

from geobind.loggers.contract import About, FabricWriter, Logger, Writer
from geobind.loggers.registry import make, registry

__all__ = ["About", "FabricWriter", "Logger", "Writer", "make", "registry"]
