"""Probes of `geobind doctor`, each of which imports and tries one part, in a process that may crash.

`geobind.doctor.examination` starts the process, which writes a line when a probe begins and when it ends.
"""

from __future__ import annotations

import ctypes
import io
import json
import math
import os
import tempfile
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

MARK = "geobind-doctor "  # what the lines of this process begin with; libraries may print others
Facts = dict[str, Any]  # of these `told` is for people
Probe = Callable[[], Facts]
_SHOWN = 300  # letters of an error
_SIDE = 32  # pixels of the images that are written and read


def main(names: Sequence[str]) -> NoReturn:
    """Run probes in turn, write the outcome of each to standard output, and end the process."""
    out = os.dup(1)  # a library may close or replace sys.stdout

    def tell(**values: Any) -> None:
        os.write(out, f"\n{MARK}{json.dumps(values)}\n".encode())

    failed: set[str] = set()
    for name in names:
        if failed.intersection(NEEDS.get(name, ())):
            continue
        tell(begin=name)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                facts = PROBES[name]()
            tell(end=name, facts=facts)
        except (Exception, SystemExit) as error:
            failed.add(name)
            tell(end=name, error=" ".join(f"{type(error).__name__}: {error}".split())[:_SHOWN])
    os._exit(0)  # what libraries do at exit takes time, and is not looked at


def _torch() -> Facts:
    import torch

    hip: str | None = getattr(torch.version, "hip", None)
    built = f"CUDA {torch.version.cuda}" if torch.version.cuda else f"ROCm {hip}" if hip else "CPU only"
    torch.ones(2, 2).matmul(torch.ones(2, 2))
    return {"told": f"built for {built}" if built != "CPU only" else "built for CPUs alone"}


def _torchvision() -> Facts:
    import torch
    from torchvision.ops import nms

    box = torch.tensor([0.0, 0.0, 1.0, 1.0])
    kept = nms(torch.stack([box, box]), torch.tensor([0.5, 1.0]), 0.5)
    _expect(kept.tolist() == [1], "torchvision.ops.nms gives a wrong result")
    return {}


def _torchaudio() -> Facts:
    import torch

    from geobind.towers.mel import hide_broken_torchaudio

    if error := hide_broken_torchaudio():
        raise error
    from torchaudio.transforms import MelSpectrogram

    MelSpectrogram(16_000)(torch.zeros(1600))
    return {}


def _transformers() -> Facts:
    from geobind.towers.mel import hide_broken_torchaudio

    hide_broken_torchaudio()  # as geobind does; it may have been hidden in a process that has died since
    from transformers import ClapAudioModelWithProjection

    return {"model": ClapAudioModelWithProjection.__name__}


def _peft() -> Facts:
    from geobind.towers.mel import hide_broken_torchaudio

    hide_broken_torchaudio()  # peft imports transformers
    from peft import LoraConfig

    return {"config": LoraConfig.__name__}


def _rasterio() -> Facts:
    import rasterio
    from rasterio.crs import CRS

    CRS.from_epsg(32631)  # from PROJ's database, which another GDAL's environment variables may hide
    gdal = str(rasterio.__gdal_version__)
    return {"gdal": gdal, "told": f"GDAL {gdal}"}


def _soundfile() -> Facts:
    import soundfile

    version = str(soundfile.__libsndfile_version__)
    return {"libsndfile": version, "told": f"libsndfile {version}"}


def _soxr() -> Facts:
    import numpy as np
    import soxr

    _expect(len(soxr.resample(np.zeros(4800, np.float32), 48_000, 16_000)) == 1600, "soxr resamples wrongly")
    return {}


def _pyarrow() -> Facts:
    import pyarrow as pa
    from pyarrow import parquet

    stream = io.BytesIO()
    parquet.write_table(pa.table({"key": ["a"]}), stream)
    _expect(parquet.read_table(io.BytesIO(stream.getvalue())).num_rows == 1, "pyarrow reads Parquet wrongly")
    return {}


def _huggingface_hub() -> Facts:
    from huggingface_hub import constants

    return {"cache": constants.HF_HUB_CACHE, "endpoint": constants.ENDPOINT}


def _loads(module: str, attribute: str = "") -> Probe:
    def probe() -> Facts:
        loaded = import_module(module)
        if attribute:
            getattr(loaded, attribute)
        return {}

    return probe


def _processor() -> Facts:
    return {"bf16": _bf16_fault("cpu")}


def _accelerators() -> Facts:
    """Return the accelerators that torch can use, and the facts that explain why there are none."""
    import torch

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    devices: list[Facts] = []
    for number in range(count):
        device: Facts = {"device": f"cuda:{number}", "name": torch.cuda.get_device_name(number)}
        try:
            device["free_bytes"], device["bytes"] = torch.cuda.mem_get_info(number)
            device["bf16"] = _bf16_fault(device["device"])
        except RuntimeError as error:
            device["bf16"] = _first_line(error)
        devices.append(device)
    if torch.backends.mps.is_available():
        devices.append({"device": "mps", "name": "Apple", "bf16": _bf16_fault("mps")})
    said = [_first_line(warning.message) for warning in caught]
    built = torch.version.cuda
    return {"devices": devices, "built": built, "driver": cuda_of_driver(), "said": said[:1]}


def cuda_of_driver() -> str | None:
    """Return the newest CUDA version of the NVIDIA driver, None without a driver."""
    for library in ("libcuda.so.1", "nvcuda.dll"):
        with suppress(OSError, AttributeError):
            version = ctypes.c_int()
            if ctypes.CDLL(library).cuDriverGetVersion(ctypes.byref(version)) == 0 and version.value:
                return f"{version.value // 1000}.{version.value % 1000 // 10}"
    return None


def _bf16_fault(device: str) -> str | None:
    """Multiply matrices in bf16; return the error, or None."""
    import torch

    try:
        product = torch.ones(16, 16, dtype=torch.bfloat16, device=device) @ torch.ones(
            16, 16, dtype=torch.bfloat16, device=device
        )
        return None if bool((product == 16).all()) else "a product is wrong"
    except (RuntimeError, TypeError, NotImplementedError) as error:
        return _first_line(error)


def _plugins() -> Facts:
    """Return what each plugin provides, and the broken ones."""
    from geobind import loggers, plugins
    from geobind.data import dataset as datasets
    from geobind.importers import registry as importers

    installed: list[Facts] = []
    broken: dict[tuple[str, str], Facts] = {}  # one that does not import is broken in all registries
    for registry in (plugins.registry(), importers.registry(), datasets.registry(), loggers.registry()):
        for name, plugin in registry.plugins.items():
            source = plugin.source
            home = f"{source.distribution} {source.version}"
            installed.append({"kind": registry.kind, "name": name, "distribution": home})
        for one in registry.broken:
            facts = {"plugin": str(one.source), "distribution": one.source.distribution, "reason": one.reason}
            broken[facts["plugin"], one.reason] = facts
    return {"installed": installed, "broken": [*broken.values()]}


def _sound(kind: str, subtype: str | None = None) -> Probe:
    def probe() -> Facts:
        import numpy as np
        import soundfile

        from geobind.data.readers.audio import read_audio

        samples_T = 0.5 * np.sin(2 * math.pi * 440 * np.arange(24_000) / 48_000)
        stream = io.BytesIO()
        soundfile.write(stream, samples_T, 48_000, format=kind, subtype=subtype)
        heard_T = read_audio(stream.getvalue(), 16_000)
        level = float(heard_T.square().mean().sqrt())
        _expect(abs(len(heard_T) - 8000) < 1000 and 0.2 < level < 0.5, "what is read is not what was written")
        return {}

    return probe


def _image(kind: str) -> Probe:
    def probe() -> Facts:
        import numpy as np
        from PIL import Image

        from geobind.data.readers.images import read_image

        array_HWC = np.linspace(0, 255, _SIDE * _SIDE * 3).reshape(_SIDE, _SIDE, 3).astype(np.uint8)
        stream = io.BytesIO()
        Image.fromarray(array_HWC).save(stream, format=kind)
        seen_CHW = read_image(stream.getvalue()).numpy().astype(float)
        off = abs(seen_CHW - array_HWC.transpose(2, 0, 1)).mean()
        _expect(off < 8, "what is read is not what was written")
        return {}

    return probe


def _raster(driver: str) -> Probe:
    def probe() -> Facts:
        import numpy as np
        import rasterio
        import rasterio.shutil
        from rasterio.transform import from_origin

        from geobind.data.options import RasterOptions
        from geobind.data.rasters.window import read_window

        array_HW = np.arange(_SIDE * _SIDE, dtype=np.uint16).reshape(_SIDE, _SIDE)
        grid: Facts = {"crs": "EPSG:32631", "transform": from_origin(499_840, 160, 10, 10)}  # around 0 N, 3 E
        shape: Facts = {"width": _SIDE, "height": _SIDE, "count": 1, "dtype": "uint16"}
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "plain.tif"
            with rasterio.open(path, "w", driver="GTiff", **grid, **shape) as file:
                file.write(array_HW, 1)
            if driver != "GTiff":
                plain, path = path, path.with_name("other.tif")
                rasterio.shutil.copy(plain, path, driver=driver)
            seen_HWB = read_window(path, 0.0, 3.0, RasterOptions(size_m=160))
        _expect((seen_HWB[..., 0] == array_HW[8:24, 8:24]).all(), "what is read is not what was written")
        return {}

    return probe


def _expect(good: bool, otherwise: str) -> None:
    if not good:
        raise RuntimeError(otherwise)


def _first_line(error: object) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:_SHOWN]


SOUNDS = {"WAV": _sound("WAV"), "FLAC": _sound("FLAC"), "OGG": _sound("OGG", "VORBIS"),
          "Opus": _sound("OGG", "OPUS"), "MP3": _sound("MP3")}  # fmt: skip
IMAGES = {kind: _image(kind.upper()) for kind in ("JPEG", "PNG", "WebP", "TIFF")}
RASTERS = {"GeoTIFF": _raster("GTiff"), "COG": _raster("COG")}
WITH_TORCH: dict[str, Probe] = {
    "torch": _torch,
    "torchvision": _torchvision,
    "torchaudio": _torchaudio,
    "open_clip_torch": _loads("open_clip"),
    "timm": _loads("timm"),
    "lightning-fabric": _loads("lightning_fabric", "Fabric"),
    "torchmetrics": _loads("torchmetrics"),
    "transformers": _transformers,
    "peft": _peft,
    "tensorboard": _loads("torch.utils.tensorboard.writer", "SummaryWriter"),
    "processor": _processor,
    "accelerators": _accelerators,
    **SOUNDS,
    **IMAGES,
    **RASTERS,
}
WITHOUT_TORCH: dict[str, Probe] = {
    "numpy": _loads("numpy"),
    "pyarrow": _pyarrow,
    "pillow": _loads("PIL.Image"),
    "soundfile": _soundfile,
    "soxr": _soxr,
    "matplotlib": _loads("matplotlib.figure"),
    "safetensors": _loads("safetensors"),
    "huggingface_hub": _huggingface_hub,
    "pydantic": _loads("pydantic"),
    "pluggy": _loads("pluggy"),
    "PyYAML": _loads("yaml"),
    "click": _loads("click"),
    "rich": _loads("rich.table"),
    "jinja2": _loads("jinja2"),
    "scipy": _loads("scipy.io", "loadmat"),
    "rasterio": _rasterio,
    "numkong": _loads("numkong"),
    "faiss-cpu": _loads("faiss"),
    "lancedb": _loads("lancedb"),
    "ray": _loads("ray"),
    "onnx": _loads("onnx"),
    "onnxscript": _loads("onnxscript"),
    "onnxruntime": _loads("onnxruntime"),
    "openvino": _loads("openvino", "Core"),
    "fastapi": _loads("fastapi"),
    "uvicorn": _loads("uvicorn"),
    "plugins": _plugins,
}
PROBES = WITH_TORCH | WITHOUT_TORCH
_IMPORT_TORCHVISION = (
    "open_clip_torch",
    "timm",
    "lightning-fabric",
    "torchmetrics",
    "transformers",
    "peft",
)
# What cannot be tried where another part does not load.
NEEDS: dict[str, tuple[str, ...]] = {
    **{name: ("torch",) for name in WITH_TORCH if name != "torch"},
    **dict.fromkeys(_IMPORT_TORCHVISION, ("torch", "torchvision")),
    **dict.fromkeys(SOUNDS, ("torch", "soundfile", "soxr")),
    **dict.fromkeys(IMAGES, ("torch", "torchvision", "pillow")),
    **dict.fromkeys(RASTERS, ("torch", "rasterio")),
    "plugins": ("numpy", "pyarrow", "pydantic", "pluggy"),
}
