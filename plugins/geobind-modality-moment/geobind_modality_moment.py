"""The moment of an observation as a modality: season, hour and the height of the sun."""

# B moments of a batch

from __future__ import annotations

import math
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

import geobind
from geobind.errors import DataError

if TYPE_CHECKING:
    from torch import Tensor, nn

YEAR_DAYS = 365.2425
_FEATURES = 8


class Moment(geobind.Modality):
    """When an observation was made: the season and the hour there, and how high the sun stood."""

    name: ClassVar[str] = "moment"
    role: ClassVar[Literal["trainable"]] = "trainable"
    accepts: ClassVar[str] = "a Place with a time"
    widget: ClassVar[Literal["place"]] = "place"

    hidden: int = Field(default=64, ge=8, le=4096, description="width of the hidden layer")
    season: bool = Field(default=True, description="whether the encoder sees the day of the year")
    hour: bool = Field(default=True, description="whether the encoder sees the local solar hour and the sun")

    def encoder(self, width: int, *, pretrained: bool = True) -> nn.Module:
        """Build a perceptron on the features of the moment."""
        from torch import nn

        from geobind.towers import Tower

        trunk = nn.Sequential(nn.Linear(_FEATURES, self.hidden), nn.GELU(), nn.LayerNorm(self.hidden))
        return Tower(trunk, nn.Linear(self.hidden, width))

    def prepare(self, raw: Any, *, training: bool = False) -> Tensor:
        """Turn a place with its time into eight features.

        Raises:
            DataError: It is no place, or has no time.
        """
        import torch

        place = _read_moment(raw, self.accepts)
        return torch.tensor(_describe_moment(place, season=self.season, hour=self.hour), dtype=torch.float32)

    def picture(self, raw: Any) -> str:
        """Write a moment as people do."""
        place = _read_moment(raw, self.accepts)
        height = math.degrees(sun_height(place))
        return (
            f"{_as_utc(place):%d %B, %H:%M} UTC at {place.lat:.1f}°, {place.lon:.1f}°: sun {height:.0f}° high"
        )


def sun_height(place: geobind.Place) -> float:
    """Compute the height of the sun above the horizon in radians, to about half a degree.

    Declination and equation of time by Spencer's series (1971), without refraction.

    Raises:
        DataError: The place has no time.
    """
    time = _as_utc(place)
    angle = _year_angle(time)
    declination = (
        0.006918
        - 0.399912 * math.cos(angle)
        + 0.070257 * math.sin(angle)
        - 0.006758 * math.cos(2 * angle)
        + 0.000907 * math.sin(2 * angle)
        - 0.002697 * math.cos(3 * angle)
        + 0.00148 * math.sin(3 * angle)
    )
    hour_angle = math.radians(15 * (_solar_hour(place, time) - 12))
    lat = math.radians(place.lat)
    sine = math.sin(lat) * math.sin(declination) + math.cos(lat) * math.cos(declination) * math.cos(
        hour_angle
    )
    return math.asin(max(-1.0, min(1.0, sine)))


def _year_angle(time: datetime) -> float:
    day = time.timetuple().tm_yday - 1 + (time.hour + time.minute / 60) / 24
    return 2 * math.pi * day / YEAR_DAYS


def _solar_hour(place: geobind.Place, time: datetime) -> float:
    angle = _year_angle(time)
    minutes = 229.18 * (
        0.000075
        + 0.001868 * math.cos(angle)
        - 0.032077 * math.sin(angle)
        - 0.014615 * math.cos(2 * angle)
        - 0.040849 * math.sin(2 * angle)
    )
    return (time.hour + time.minute / 60 + time.second / 3600 + place.lon / 15 + minutes / 60) % 24


def _as_utc(place: geobind.Place) -> datetime:
    if place.time is None:
        raise DataError(f"the place {place.lat:g}, {place.lon:g} has no time; fill the table's column `time`")
    return place.time.replace(tzinfo=UTC) if place.time.tzinfo is None else place.time.astimezone(UTC)


def _read_moment(raw: Any, accepts: str) -> geobind.Place:
    if not isinstance(raw, geobind.Place):
        raise DataError(f"{raw!r:.80} is no moment; give {accepts}")
    _as_utc(raw)
    if not (math.isfinite(raw.lat) and math.isfinite(raw.lon) and abs(raw.lat) <= 90):
        raise DataError(f"{raw!r:.80} is no place on the Earth; give {accepts}")
    return raw


def _describe_moment(place: geobind.Place, *, season: bool, hour: bool) -> list[float]:
    """List the features: the year as a circle, the local season, the solar day as a circle, the sun."""
    time = _as_utc(place)
    angle = _year_angle(time)
    turn = math.radians(15 * _solar_hour(place, time))
    # Summer is where the sun is high: the same day is summer in the north and winter in the south.
    summer = -math.cos(angle + 2 * math.pi * 10 / YEAR_DAYS) * math.copysign(1, place.lat)
    height = math.sin(sun_height(place))
    year = [math.cos(angle), math.sin(angle), summer] if season else [0.0] * 3
    day = [math.cos(turn), math.sin(turn), height, float(height > 0)] if hour else [0.0] * 4
    return [*year, *day, math.sin(math.radians(place.lat))]


@geobind.hookimpl
def geobind_modalities() -> list[type[geobind.Modality]]:
    """Provide the modality of this package."""
    return [Moment]
