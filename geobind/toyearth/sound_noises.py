"""The noises of the toy planet's recordings: surf, stream, wind, leaves, rain, traffic, sand, steps."""
# N places, E envelope points, B noise bands; facts are (N, 1)

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from geobind.toyearth.nuisance import draw

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Wave = NDArray[np.floating]
    Facts = dict[str, Wave]

BAND_EDGES = (40, 110, 240, 480, 900, 1600, 2600, 4000, 5600, 7800)  # Hz
# How each noise spreads over the nine bands (amplitudes).
_COLOURS: dict[str, tuple[float, ...]] = {
    "surf": (0.5, 0.8, 1.0, 0.9, 0.6, 0.4, 0.25, 0.15, 0.08),
    "stream": (0.0, 0.03, 0.15, 0.6, 1.0, 0.8, 0.4, 0.2, 0.08),
    "wind": (1.0, 0.8, 0.45, 0.2, 0.08, 0.03, 0.02, 0.01, 0.0),
    "leaves": (0.0, 0.0, 0.02, 0.06, 0.15, 0.4, 0.8, 1.0, 0.8),
    "needles": (0.0, 0.05, 0.2, 0.6, 1.0, 0.7, 0.25, 0.1, 0.05),
    "rain": (0.03, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9, 1.2),
    "traffic": (0.8, 1.0, 0.85, 0.55, 0.3, 0.12, 0.05, 0.02, 0.0),
    "sand": (0.0, 0.0, 0.0, 0.0, 0.05, 0.1, 0.3, 0.8, 1.3),
    "steps": (0.0, 0.0, 0.1, 0.4, 0.9, 1.0, 0.5, 0.2, 0.1),
    "hiss": (0.3, 0.3, 0.3, 0.3, 0.3, 0.3, 0.3, 0.3, 0.3),
}


def noise_powers(fact: Facts, key: NDArray[np.uint64], points: int, rate: int) -> Wave:
    """Give each band's power over time, all noises together: (N, B, E), `rate` points a second."""
    time_E = np.arange(points, dtype=np.float32) / np.float32(rate)
    power_NBE = np.zeros((len(key), len(BAND_EDGES) - 1, points), dtype=np.float32)
    for name, level_NE in _levels(fact, key, time_E).items():
        square_NE = np.broadcast_to(level_NE * level_NE, (len(key), points))
        for band, share in enumerate(_COLOURS[name]):
            if share > 0:
                power_NBE[:, band] += np.float32(share**2) * square_NE
    # Snow swallows high notes; every microphone has a slope of its own.
    band_B = np.linspace(0, 1, power_NBE.shape[1], dtype=np.float32)
    slope_N1 = 0.6 * (draw(key, "microphone", 1) - 0.5) - 1.5 * fact["snow"]
    power_NBE *= np.exp(slope_N1 * band_B)[:, :, None]
    return power_NBE


def _levels(fact: Facts, key: NDArray[np.uint64], time_E: Wave) -> dict[str, Wave]:
    """Tell how loud each noise is over time: name to (N, E) or (N, 1)."""
    day = np.clip(fact["daylight"] / 0.35, 0, 1)
    gust = _gusts(key, "gust", time_E, 0.5, 1.6)
    flutter = 1 + 0.5 * np.sin(2 * np.pi * (8 + 3 * draw(key, "flutter", 1)) * time_E)
    broad = np.maximum(fact["forest"] - fact["conifer"], 0) * np.clip(0.35 + 0.9 * fact["summer"], 0, 1)
    blow = 0.25 + 0.75 * fact["wind"]
    babble = 1 + 0.35 * _gusts(key, "babble", time_E, 9, 17)
    swell = np.sin(2 * np.pi * ((0.55 + 0.25 * draw(key, "swell", 1)) * time_E + draw(key, "swell phase", 1)))
    step = np.maximum(
        np.sin(2 * np.pi * ((1.7 + 0.4 * draw(key, "pace", 1)) * time_E + draw(key, "foot", 1))), 0
    )
    grains = np.maximum(_gusts(key, "grains", time_E, 19, 31), 0)
    return {
        "surf": 1.5
        * fact["sea"] ** 0.7
        * (0.35 + 0.65 * (0.5 + 0.5 * swell) ** 2)
        * (0.6 + 0.4 * fact["wind"]),
        "stream": 0.9 * np.maximum(fact["water"] - fact["sea"], 0) ** 0.7 * babble * (1 - 0.5 * fact["snow"]),
        "wind": 1.3 * fact["wind"] ** 1.5 * (1 + 0.45 * gust),
        "leaves": 0.75 * broad**0.7 * blow * (1 + 0.3 * gust) * flutter,
        "needles": 0.75 * fact["conifer"] ** 0.7 * blow * (1 + 0.3 * gust),
        "rain": 0.9 * fact["rain"] ** 1.2 * (1 - 0.6 * fact["snow"]),
        "traffic": _traffic(fact["roads"] * (0.55 + 0.45 * day), key, time_E),
        "sand": 0.5 * fact["bare"] * (0.45 + 0.55 * fact["wind"]) * grains,
        "steps": 0.45 * fact["snow"] * step**6,
        "hiss": np.full_like(fact["wind"], 0.012),
    }


def _traffic(roads_N1: Wave, key: NDArray[np.uint64], time_E: Wave) -> Wave:
    """A bed of far traffic and up to four passing cars, one after the other as roads grow: (N, E)."""
    span = float(time_E[-1]) + 1e-6
    level_NE = 0.35 * roads_N1**1.2 + np.zeros_like(time_E)
    number = draw(key, "cars", 8)
    for i in range(4):
        loud = np.clip(roads_N1 * 4.5 - i - 0.2, 0, 1) * (0.5 + 0.4 * number[:, i : i + 1])
        away = (time_E - span * ((i * 0.25 + 0.9 * number[:, 4 + i : 5 + i]) % 1)) / 0.22
        level_NE = level_NE + loud / (1 + away**2)
    return level_NE


def _gusts(key: NDArray[np.uint64], name: str, time_E: Wave, low: float, high: float) -> Wave:
    """An irregular wave between two frequencies (Hz), about unit size: (N, E)."""
    number = draw(key, name, 6)[:, :, None]
    hertz = low + (high - low) * number[:, :3]
    return (np.sin(2 * np.pi * (hertz * time_E + number[:, 3:]))).sum(axis=1) / np.float32(1.5)
