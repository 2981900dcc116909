"""Recordings of an inertial sensor as a modality: how somebody or something moved at a place."""

# B batch, K crops, T samples, D shared width

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

import geobind
from geobind.errors import DataError
from geobind.modality import Role, Widget

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor, nn

GRAVITY = 9.80665  # m/s²
_SPIN = 2.0  # rad/s: of a phone in the pocket of somebody who walks
_WEAKEST, _STRONGEST = 0.3, 3.0  # times gravity: the mean force on a sensor that rests or is carried
_MOST_SAMPLES = 20_000_000
_FASTEST = 100_000.0  # Hz


class ImuAugment(BaseModel):
    """Random changes to a recording that is trained on."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    turn: bool = Field(
        default=False, description="turn the sensor about the vertical, as if carried another way"
    )
    noise: float = Field(
        default=0.0,
        ge=0,
        le=10,
        description="standard deviation of noise, in units of gravity and of 2 rad/s",
    )


class Imu(geobind.Modality):
    """A recording of an accelerometer and a gyroscope, of three axes each."""

    name: ClassVar[str] = "imu"
    role: ClassVar[Role] = "trainable"
    accepts: ClassVar[str] = "(array, rate in Hz), or an array or .npy file of the stated rate, shaped (6, T)"
    widget: ClassVar[Widget] = "file"

    rate: float = Field(default=50.0, gt=0, le=_FASTEST, description="samples a second that the encoder sees")
    recorded: float | None = Field(
        default=None,
        gt=0,
        le=_FASTEST,
        description="samples a second of recordings that come without their rate; they are refused where it "
        "is not given",
    )
    seconds: float = Field(
        default=5.0, gt=0, le=600, description="length of the window that the encoder sees"
    )
    crops: int = Field(
        default=1,
        ge=1,
        le=32,
        description="windows of a recording in evaluation, evenly spaced; their mean counts",
    )
    acceleration: Literal["m/s2", "g"] = Field(default="m/s2", description="unit of the accelerometer")
    rotation: Literal["rad/s", "deg/s"] = Field(default="rad/s", description="unit of the gyroscope")
    gravity: bool = Field(default=True, description="whether the accelerometer feels gravity, as sensors do")
    hidden: int = Field(
        default=64, ge=8, le=1024, multiple_of=4, description="channels of the first layer; others have twice"
    )
    augment: ImuAugment = Field(default=ImuAugment(), description="random changes in training")

    @property
    def samples(self) -> int:
        """Return the number T of samples of a window."""
        return max(2, round(self.rate * self.seconds))

    def encoder(self, width: int, *, pretrained: bool = True) -> nn.Module:
        """Build convolutions over time, with a head of this width; several crops give their mean."""
        from torch import nn

        from geobind.towers import Tower

        class CropsTower(Tower):
            def forward(self, x: Tensor) -> Tensor:
                """Encode (B, 6, T), or (B, K, 6, T), to (B, D)."""
                if x.ndim == 3:
                    return super().forward(x)
                embedding_BKD = super().forward(x.flatten(0, 1)).unflatten(0, x.shape[:2])
                return nn.functional.normalize(embedding_BKD, dim=-1).mean(dim=1)

        layers: list[nn.Module] = []
        given, made = 6, self.hidden
        for kernel in (7, 5, 5, 3):
            layers += [
                nn.Conv1d(given, made, kernel, stride=2, padding=kernel // 2),
                nn.GroupNorm(4, made),
                nn.GELU(),
            ]
            given, made = made, 2 * self.hidden
        return CropsTower(
            nn.Sequential(*layers, nn.AdaptiveAvgPool1d(1), nn.Flatten()), nn.Linear(given, width)
        )

    def prepare(self, raw: Any, *, training: bool = False) -> Tensor:
        """Turn a recording into windows in units of gravity and of 2 rad/s: (6, T).

        In training the window is a random part, else the middle, or (crops, 6, T). A shorter recording
        holds its last sample until the end.

        Raises:
            DataError: It cannot be read, has no known rate, NaN or infinity, or other units than stated.
        """
        import torch

        motion_6T = self.read_motion(raw)
        motion_6T = np.pad(motion_6T, ((0, 0), (0, max(0, self.samples - motion_6T.shape[1]))), mode="edge")
        spare = motion_6T.shape[1] - self.samples
        if training:
            starts = [int(torch.randint(spare + 1, ()))]
        elif self.crops == 1:
            starts = [spare // 2]
        else:
            starts = [spare * crop // (self.crops - 1) for crop in range(self.crops)]
        windows = [motion_6T[:, start : start + self.samples] for start in starts]
        if training:
            windows = [self._change(windows[0])]
        windows_K6T = torch.from_numpy(np.stack(windows).astype(np.float32))
        return windows_K6T if len(starts) > 1 else windows_K6T[0]

    def read_motion(self, raw: Any) -> NDArray[np.float64]:
        """Read a recording at `rate`: (6, T), acceleration in units of gravity, rotation in units of 2 rad/s.

        Raises:
            DataError: As `prepare`.
        """
        given, recorded = raw, self.recorded
        if isinstance(raw, tuple) and len(cast("tuple[Any, ...]", raw)) == 2:
            given, stated = cast("tuple[Any, Any]", raw)
            recorded = _read_rate(stated)
        if recorded is None:
            raise DataError(
                "a recording comes without its rate: give (array, rate), or set `recorded` to the samples a "
                "second that all of them have"
            )
        stored_6T = _read_axes(given, self.accepts)
        _check_length(stored_6T.shape[1], recorded, self.rate)
        stored_6T[:3] /= GRAVITY if self.acceleration == "m/s2" else 1.0
        stored_6T[3:] *= (1.0 if self.rotation == "rad/s" else math.pi / 180) / _SPIN
        self._check_gravity(stored_6T)
        return resample(stored_6T, recorded, self.rate)

    def _check_gravity(self, motion_6T: NDArray[np.float64]) -> None:
        force = float(np.linalg.norm(motion_6T[:3].mean(axis=1)))
        typical = float(np.median(np.linalg.norm(motion_6T[:3], axis=0)))
        if self.gravity and not _WEAKEST <= typical <= _STRONGEST:
            other = "g" if self.acceleration == "m/s2" else "m/s2"
            factor = GRAVITY if other == "g" else 1 / GRAVITY
            right = _WEAKEST <= typical * factor <= _STRONGEST
            fix = f"set `acceleration: {other}`" if right else "set `gravity: false` if gravity was taken off"
            raise DataError(
                f"the accelerometer feels {typical:.2g} times gravity in {self.acceleration} (its mean "
                f"{force:.2g}), not about once: {fix}, and put its axes first, the gyroscope's last"
            )

    def _change(self, motion_6T: NDArray[np.float64]) -> NDArray[np.float64]:
        import torch

        if self.augment.turn:
            # The mean force of a window points up; without gravity the third axis does, as of a flat phone.
            up_3 = motion_6T[:3].mean(axis=1) if self.gravity else np.array([0.0, 0.0, 1.0])
            turn_33 = rotate_about(up_3, 2 * math.pi * float(torch.rand(())))
            motion_6T = np.concatenate([turn_33 @ motion_6T[:3], turn_33 @ motion_6T[3:]])
        if self.augment.noise:
            motion_6T = motion_6T + self.augment.noise * torch.randn(motion_6T.shape).numpy()
        return motion_6T

    def picture(self, raw: Any) -> NDArray[np.uint8]:
        """Draw a recording as six strips, one for each axis: grey at rest, bright and dark in motion."""
        motion_6T = self.read_motion(raw)[:, : 4 * self.samples]
        grey_6T = 128 + 100 * np.clip(motion_6T - motion_6T.mean(axis=1, keepdims=True), -1.2, 1.2)
        return np.repeat(grey_6T.astype(np.uint8), 8, axis=0)


def resample(motion_CT: NDArray[np.float64], source: float, rate: float) -> NDArray[np.float64]:
    """Bring samples of every channel from one rate to another.

    A lower rate gets the mean of what it spans, so that fast shaking does not turn into slow swaying; a
    higher one is interpolated. A constant, such as gravity, stays itself to the very ends.
    """
    count = motion_CT.shape[1]
    if source == rate:
        return motion_CT
    made = max(1, math.floor(count * rate / source + 1e-9))
    if rate < source:
        edges = np.arange(count + 1) / source
        wanted = np.minimum(np.arange(made + 1) / rate, edges[-1])
        span = np.diff(wanted)
        whole = [np.concatenate([[0.0], np.cumsum(channel_T)]) / source for channel_T in motion_CT]
        return np.stack([np.diff(np.interp(wanted, edges, sum_T)) / span for sum_T in whole])
    times, middles = (np.arange(made) + 0.5) / rate, (np.arange(count) + 0.5) / source
    return np.stack([np.interp(times, middles, channel_T) for channel_T in motion_CT])


def rotate_about(axis_3: NDArray[np.float64], angle: float) -> NDArray[np.float64]:
    """Return the matrix (3, 3) of a rotation about an axis by an angle in radians (Rodrigues' formula)."""
    x, y, z = axis_3 / max(float(np.linalg.norm(axis_3)), 1e-9)
    cross_33 = np.array([[0.0, -z, y], [z, 0.0, -x], [-y, x, 0.0]])
    return np.eye(3) + math.sin(angle) * cross_33 + (1 - math.cos(angle)) * (cross_33 @ cross_33)


def _read_rate(stated: Any) -> float:
    try:
        rate = float(stated)
    except (TypeError, ValueError) as error:
        raise DataError(f"the rate of a recording must be a number in Hz, not {stated!r:.60}") from error
    if not 0 < rate <= _FASTEST:
        raise DataError(f"a recording states {rate:g} samples a second; at most {_FASTEST:g}, and above 0")
    return rate


def _read_axes(given: Any, accepts: str) -> NDArray[np.float64]:
    """Read an array as (6, T): the accelerometer's axes, then the gyroscope's."""
    from geobind.data import read_numbers

    try:
        stored = read_numbers(given)
    except DataError as error:
        raise DataError(f"{error}; give {accepts}") from error
    if stored.ndim != 2 or 6 not in stored.shape or stored.size < 12:
        raise DataError(f"a recording has six axes and two samples or more, not the shape {stored.shape}")
    stored_6T = stored if stored.shape[0] == 6 else stored.T.copy()
    if not np.isfinite(stored_6T).all():
        axis, sample = (int(at) for at in np.argwhere(~np.isfinite(stored_6T))[0])
        raise DataError(
            f"a recording is NaN or infinite at axis {axis}, sample {sample}; fill gaps, or cut them off"
        )
    return stored_6T


def _check_length(count: int, source: float, rate: float) -> None:
    if max(count, count * rate / source) > _MOST_SAMPLES:
        raise DataError(
            f"a recording of {count} samples at {source:g} Hz is too long at {rate:g} Hz: at most "
            f"{_MOST_SAMPLES:,}; cut it into parts"
        )


@geobind.hookimpl
def geobind_modalities() -> list[type[geobind.Modality]]:
    """Provide the modality of this package."""
    return [Imu]
