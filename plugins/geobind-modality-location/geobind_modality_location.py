"""Coordinates as a modality: spherical harmonics, Fourier features, or GeoCLIP's trained encoder."""

# B places of a batch, F features, L degree of the harmonics

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, distribution
from itertools import pairwise
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import Field

import geobind
from geobind.errors import CheckpointError, DataError

if TYPE_CHECKING:
    from torch import Tensor, nn

EARTH_KM = 6371.0088
GEOCLIP_WIDTH = 512
_GEOCLIP_FILE = "geoclip/model/weights/location_encoder_weights.pth"
# Alone: its requirements exclude a current huggingface_hub, and none of them is needed to read its weights.
_INSTALL = "pip install --no-deps 'geoclip>=1.3,<2'"


class Location(geobind.Modality):
    """Latitude and longitude of a place."""

    name: ClassVar[str] = "location"
    role: ClassVar[Literal["trainable"]] = "trainable"
    accepts: ClassVar[str] = "a Place, (latitude, longitude) in degrees, or the text '48.1, 11.6'"
    widget: ClassVar[Literal["place"]] = "place"

    features: Literal["harmonics", "fourier", "geoclip"] = Field(
        default="harmonics",
        description="spherical harmonics into a SIREN (SatCLIP), random Fourier features into an MLP, or "
        "GeoCLIP's location encoder",
    )
    degree: int = Field(default=20, ge=1, le=80, description="harmonics: highest degree, exclusive")
    scales: tuple[Annotated[float, Field(gt=0, le=1000)], ...] = Field(
        default=(1.0, 4.0, 16.0),
        min_length=1,
        max_length=8,
        description="fourier: cycles over the Earth's radius",
    )
    hidden: int = Field(default=256, ge=8, le=4096, description="width of the hidden layers")
    layers: int = Field(default=2, ge=1, le=8, description="hidden layers")
    pretrained: bool = Field(
        default=True, description="geoclip: start from the weights of the package geoclip"
    )
    jitter_km: float = Field(
        default=0.0, ge=0, le=1000, description="random shift of places that are trained on"
    )

    def requires(self) -> Mapping[str, str]:
        """Return the package that holds GeoCLIP's weights, where they are asked for."""
        return {"geoclip": _INSTALL} if self.features == "geoclip" and self.pretrained else {}

    def encoder(self, width: int, *, pretrained: bool = True) -> nn.Module:
        """Build the network from degrees to embeddings.

        Raises:
            CheckpointError: GeoCLIP's weights are asked for and cannot be had.
        """
        if self.features == "geoclip":
            return _build_geoclip(width, pretrained=pretrained and self.pretrained)
        if self.features == "fourier":
            return _build_fourier(self.scales, self.hidden, self.layers, width)
        return _build_siren(self.degree, self.hidden, self.layers, width)

    def prepare(self, raw: Any, *, training: bool = False) -> Tensor:
        """Turn a place into its latitude and longitude, float32 degrees.

        Raises:
            DataError: It is none.
        """
        import torch

        lat, lon = read_degrees(raw, self.accepts)
        if training and self.jitter_km:
            north, east = (self.jitter_km * torch.randn(2, dtype=torch.float64)).tolist()
            lat = float(np.clip(lat + math.degrees(north / EARTH_KM), -90, 90))
            lon = lon + math.degrees(east / EARTH_KM / max(math.cos(math.radians(lat)), 0.01))
        return torch.tensor([lat, (lon + 180) % 360 - 180], dtype=torch.float32)

    def picture(self, raw: Any) -> str:
        """Write a place as people do."""
        lat, lon = read_degrees(raw, self.accepts)
        lon = (lon + 180) % 360 - 180
        return f"{abs(lat):.4f}° {'N' if lat >= 0 else 'S'}, {abs(lon):.4f}° {'E' if lon >= 0 else 'W'}"


def read_degrees(raw: Any, accepts: str) -> tuple[float, float]:
    """Return the latitude and longitude of what a user or a table gives.

    Raises:
        DataError: It is no pair of degrees; says so when latitude and longitude may be swapped.
    """
    words = raw
    if isinstance(raw, geobind.Place):
        words = (raw.lat, raw.lon)
    elif isinstance(raw, str):
        words = re.split(r"[,;\s]+", raw.strip())
    try:
        degrees = np.asarray(words, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise DataError(f"cannot read {raw!r:.80} as a place; give {accepts}") from error
    if degrees.shape != (2,) or not np.isfinite(degrees).all():
        raise DataError(f"{raw!r:.80} is not a place; give {accepts}")
    lat, lon = degrees.tolist()
    if not -180 <= lon <= 360 or not -90 <= lat <= 90:
        swapped = -90 <= lon <= 90 and -180 <= lat <= 360
        hint = "; latitude comes first: are they swapped?" if swapped else ""
        raise DataError(f"{raw!r:.80}: latitude {lat:g} or longitude {lon:g} is out of range{hint}")
    return lat, lon


def count_harmonics(degree: int) -> int:
    """Return the number of real spherical harmonics below a degree."""
    return degree**2


def spherical_harmonics(degrees_B2: Tensor, degree: int) -> Tensor:
    """Compute the real spherical harmonics below a degree, each of mean square 1 over the sphere.

    The normalised Legendre functions come by the stable recursion over degrees (Holmes and Featherstone 2002,
    eqs. 11 to 13), in float64; at the poles only the zonal ones are left, so a pole is one place.

    Args:
        degrees_B2: Latitude and longitude.
        degree: Highest degree, exclusive.

    Returns:
        (B, degree ** 2) float64, by degree, then the zonal one, then cosine and sine of each order.
    """
    import torch

    radians_B2 = torch.deg2rad(degrees_B2.double())
    sine_B, cosine_B = radians_B2[:, 0].sin(), radians_B2[:, 0].cos()
    by_order: list[list[Tensor]] = []
    first_B = torch.ones_like(sine_B)
    for order in range(degree):
        if order:
            first_B = first_B * cosine_B * math.sqrt((2 * order + 1) / (2 * order) * (2 if order == 1 else 1))
        values = [first_B]
        for level in range(order + 1, degree):
            last, before = values[-1], values[-2] if len(values) > 1 else None
            scale = (2 * level + 1) / ((level - order) * (level + order))
            value = math.sqrt((2 * level - 1) * scale) * sine_B * last
            if before is not None:
                less = (level + order - 1) * (level - order - 1) / (2 * level - 3)
                value = value - math.sqrt(less * scale) * before
            values.append(value)
        by_order.append(values)
    columns: list[Tensor] = []
    for level in range(degree):
        columns.append(by_order[0][level])
        for order in range(1, level + 1):
            value, turn = by_order[order][level - order], order * radians_B2[:, 1]
            columns += [value * turn.cos(), value * turn.sin()]
    return torch.stack(columns, dim=1)


def unit_vectors(degrees_B2: Tensor) -> Tensor:
    """Return places as points (B, 3) on the unit sphere, float64."""
    import torch

    lat_B, lon_B = torch.deg2rad(degrees_B2.double()).unbind(1)
    return torch.stack([lat_B.cos() * lon_B.cos(), lat_B.cos() * lon_B.sin(), lat_B.sin()], dim=1)


def equal_earth(degrees_B2: Tensor) -> Tensor:
    """Project places by Equal Earth (Savric, Patterson and Jenny 2018), in GeoCLIP's unit.

    GeoCLIP scales the plane by 66.50336 / 180; its weights are made for that. The plane has a seam at the
    antimeridian.
    """
    import torch

    a1, a2, a3, a4 = 1.340264, -0.081106, 0.000893, 0.003796
    lat_B, lon_B = torch.deg2rad(degrees_B2).unbind(1)
    theta_B = torch.asin(math.sqrt(3) / 2 * lat_B.sin())
    slope_B = 9 * a4 * theta_B**8 + 7 * a3 * theta_B**6 + 3 * a2 * theta_B**2 + a1
    east_B = 2 * math.sqrt(3) * lon_B * theta_B.cos() / (3 * slope_B)
    north_B = a4 * theta_B**9 + a3 * theta_B**7 + a2 * theta_B**3 + a1 * theta_B
    return torch.stack([east_B, north_B], dim=1) * (66.50336 / 180)


def _build_siren(degree: int, hidden: int, layers: int, width: int) -> nn.Module:
    """Build SatCLIP's location encoder: harmonics into a SIREN (arXiv:2311.17179; arXiv:2006.09661)."""
    import torch
    from torch import nn

    class Sine(nn.Module):
        def __init__(self, features: int, outputs: int, frequency: float, *, first: bool) -> None:
            super().__init__()
            self.linear, self.frequency = nn.Linear(features, outputs), frequency
            bound = 1 / features if first else math.sqrt(6 / features) / frequency
            nn.init.uniform_(self.linear.weight, -bound, bound)

        def forward(self, features_BF: Tensor) -> Tensor:
            return torch.sin(self.frequency * self.linear(features_BF))

    class Harmonics(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            sizes = [count_harmonics(degree), *[hidden] * layers]
            self.trunk = nn.Sequential(
                *(
                    Sine(near, far, 30.0 if number == 0 else 1.0, first=number == 0)
                    for number, (near, far) in enumerate(pairwise(sizes))
                )
            )
            self.head = nn.Linear(hidden, width)

        def forward(self, degrees_B2: Tensor) -> Tensor:
            harmonics_BF = spherical_harmonics(degrees_B2, degree) / degree
            return self.head(self.trunk(harmonics_BF.to(self.head.weight.dtype)))

    return Harmonics()


def _build_fourier(scales: tuple[float, ...], hidden: int, layers: int, width: int) -> nn.Module:
    """Build an MLP on random Fourier features of the unit vector, which has neither seam nor poles.

    Rahimi and Recht 2007; several scales as in GeoCLIP (arXiv:2309.16020).
    """
    import torch
    from torch import nn

    each = 64
    generator = torch.Generator().manual_seed(0)
    waves_3F = torch.cat([torch.randn(3, each, generator=generator) * scale for scale in scales], dim=1)

    class Fourier(nn.Module):
        waves_3F: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("waves_3F", waves_3F)
            sizes = [3 + 2 * each * len(scales), *[hidden] * layers]
            steps: list[nn.Module] = []
            for near, far in pairwise(sizes):
                steps += [nn.Linear(near, far), nn.GELU()]
            self.trunk = nn.Sequential(*steps)
            self.head = nn.Linear(hidden, width)

        def forward(self, degrees_B2: Tensor) -> Tensor:
            at_B3 = unit_vectors(degrees_B2)
            turn_BF = 2 * math.pi * at_B3 @ self.waves_3F.double()
            features_BF = torch.cat([at_B3, turn_BF.sin(), turn_BF.cos()], dim=1)
            return self.head(self.trunk(features_BF.to(self.head.weight.dtype)))

    return Fourier()


def _build_geoclip(width: int, *, pretrained: bool) -> nn.Module:
    """Build GeoCLIP's location encoder (arXiv:2309.16020): three scales of Fourier features, summed.

    Its own width is 512; another width gets a linear head.
    """
    import torch
    from torch import nn

    class Waves(nn.Module):
        b: Tensor

        def __init__(self, scale: float) -> None:
            super().__init__()
            self.register_buffer("b", torch.randn(256, 2, generator=torch.Generator().manual_seed(0)) * scale)

        def forward(self, plane_B2: Tensor) -> Tensor:
            turn_BF = 2 * math.pi * plane_B2 @ self.b.T
            return torch.cat([turn_BF.cos(), turn_BF.sin()], dim=1)

    class Capsule(nn.Module):
        def __init__(self, scale: float) -> None:
            super().__init__()
            steps: list[nn.Module] = [Waves(scale)]
            for features in (512, 1024, 1024):
                steps += [nn.Linear(features, 1024), nn.ReLU()]
            self.capsule = nn.Sequential(*steps)
            self.head = nn.Sequential(nn.Linear(1024, GEOCLIP_WIDTH))

        def forward(self, plane_B2: Tensor) -> Tensor:
            return self.head(self.capsule(plane_B2))

    class GeoCLIP(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.trunk = nn.ModuleDict({f"LocEnc{k}": Capsule(float(2 ** (4 * k))) for k in range(3)})
            self.head = nn.Identity() if width == GEOCLIP_WIDTH else nn.Linear(GEOCLIP_WIDTH, width)

        def forward(self, degrees_B2: Tensor) -> Tensor:
            plane_B2 = equal_earth(degrees_B2)
            return self.head(torch.stack([capsule(plane_B2) for capsule in self.trunk.values()]).sum(0))

    encoder = GeoCLIP()
    if pretrained:
        encoder.trunk.load_state_dict(_read_geoclip_weights())
    return encoder


def _read_geoclip_weights() -> dict[str, Tensor]:
    import torch

    try:
        path = distribution("geoclip").locate_file(_GEOCLIP_FILE)
        return torch.load(str(path), map_location="cpu", weights_only=True)
    except PackageNotFoundError as error:
        raise CheckpointError(f"GeoCLIP's weights lie in the package geoclip: {_INSTALL}") from error
    except (OSError, RuntimeError, ValueError) as error:
        raise CheckpointError(f"{_GEOCLIP_FILE} cannot be read ({error}): {_INSTALL}") from error


@geobind.hookimpl
def geobind_modalities() -> list[type[geobind.Modality]]:
    """Provide the modality of this package."""
    return [Location]
