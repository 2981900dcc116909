"""Optional packages and the commands that install them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib.util import find_spec

# The command that installs each module; quoted for shells that read [geo] as a pattern.
INSTALL = {
    "transformers": "pip install 'geobind[audio]'",
    "rasterio": "pip install 'geobind[geo]'",
    "scipy": "pip install 'geobind[datasets]'",
    "peft": "pip install 'geobind[adapters]'",
    "fastapi": "pip install 'geobind[serve]'",
    "uvicorn": "pip install 'geobind[serve]'",
    "ray": "pip install 'geobind[ray]'",
    "tensorboard": "pip install 'geobind[tensorboard]'",
    "faiss": "pip install 'geobind[index]'",
    "lancedb": "pip install 'geobind[lance]'",
    "numkong": "pip install 'geobind[fast]'",
    "onnx": "pip install 'geobind[export]'",
    "onnxscript": "pip install 'geobind[export]'",
    "onnxruntime": "pip install 'geobind[export]'",
    "openvino": "pip install 'geobind[openvino]'",
}

# Modalities of this project that are distributions of their own.
MODALITIES = (
    "depth",
    "earth",
    "elevation",
    "environment",
    "imu",
    "location",
    "moment",
    "nightlights",
    "thermal",
    "video",
)


def explain_absent_modality(name: str) -> str | None:
    """Return how to install a modality that this project distributes on its own; None for any other."""
    if name not in MODALITIES:
        return None
    package = f"geobind-modality-{name}"
    return f"it is a package of its own, {package}; in a clone of geobind: pip install ./plugins/{package}"


def is_installed(module: str) -> bool:
    """Return whether a module can be found, without importing it."""
    try:
        return find_spec(module) is not None
    except (ImportError, ValueError):  # its package is missing, or it was put into sys.modules by hand
        return False


def find_missing(required: Mapping[str, str]) -> Iterator[str]:
    """Yield a message for each module that is not installed.

    Args:
        required: The command that installs it, by module.
    """
    for module, install in required.items():
        if not is_installed(module):
            yield f"needs {module}, which is not installed: {install or f'pip install {module}'}"
