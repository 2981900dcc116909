"""Places as vectors: environmental covariates with noise and gaps, and embeddings of another model."""

# N places, C covariates, G facts of the ground, D numbers of an embedding

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from geobind_toyearth.planet import (
    FACTS,
    Places,
    check_number,
    check_places,
    check_seed,
    draw,
    estimate_celsius,
    mix,
    place_keys,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Covariate: unit, and the standard deviation of its error.
COVARIATES: dict[str, tuple[str, float]] = {
    "temperature": ("degrees Celsius", 2.0),
    "rain": ("mm a day", 2.0),
    "wind": ("m/s", 2.0),
    "slope": ("degrees", 3.0),
    "snow": ("cm", 6.0),
    "trees": ("percent of the ground", 8.0),
    "water": ("percent of the ground", 5.0),
    "people": ("natural logarithm of people per square kilometre", 0.7),
}
_GAPS = 0.1  # share of covariates that are missing
# What an embedding of a year of imagery knows: the ground, not the hour or the weather.
_GROUND = ("water", "sea", "forest", "conifer", "crops", "bare", "buildings", "roads", "relief", "snow")


def measure_covariates(places: Places, seed: int) -> NDArray[np.float32]:
    """Measure the environment of each place: (N, C) in the order and units of COVARIATES, NaN where missing.

    Raises:
        DataError: A place or the seed is out of range.
    """
    places = check_places(places)
    check_seed(seed)
    key = place_keys(places[:4], seed, "covariates")
    fact = dict(zip(FACTS, places.facts.T, strict=True))
    truth = {
        "temperature": estimate_celsius(places),
        "rain": 40 * fact["rain"],
        "wind": 25 * fact["wind"],
        "slope": 35 * fact["relief"],
        "snow": 80 * fact["snow"],
        "trees": 100 * fact["forest"],
        "water": 100 * fact["water"],
        "people": 9 * fact["buildings"],
    }
    error_C = np.array([error for _, error in COVARIATES.values()], dtype=np.float32)
    measured_NC = np.stack([truth[name] for name in COVARIATES], axis=1) + error_C * _normal(
        key, "error", len(COVARIATES)
    )
    return np.where(draw(key, "gap", len(COVARIATES)) < _GAPS, np.float32(np.nan), measured_NC)


def embed_places(places: Places, seed: int, width: int = 64) -> NDArray[np.float32]:
    """Embed the ground of each place as a frozen model of imagery would: (N, width), of length 1.

    A network of one layer whose weights the seed draws sees the facts of the ground, and noise is added.

    Raises:
        DataError: A place, the seed or the width (2 to 4,096) is out of range.
    """
    places = check_places(places)
    check_seed(seed)
    check_number("width", width, 2, 4096, whole=True)
    ground_NG = places.facts[:, [FACTS.index(name) for name in _GROUND]]
    weight_key = mix(np.array([seed], dtype=np.uint64))
    weight_GD = _normal(weight_key, "embedding weights", len(_GROUND) * width).reshape(len(_GROUND), width)
    hidden_ND = np.tanh(3 * (ground_NG - np.float32(0.3)) @ weight_GD / np.float32(len(_GROUND) ** 0.5))
    noise_ND = _normal(place_keys(places[:4], seed, "embedding"), "noise", width)
    vector_ND = hidden_ND + np.float32(0.2) * noise_ND
    length_N1 = np.linalg.norm(vector_ND, axis=1, keepdims=True)
    return (vector_ND / np.maximum(length_N1, np.float32(1e-6))).astype(np.float32)


def _normal(key_N: NDArray[np.uint64], name: str, count: int) -> NDArray[np.float32]:
    """Draw about standard normal numbers for each key, as sums of twelve uniform ones: (N, count)."""
    return draw(key_N, name, 12 * count).reshape(len(key_N), count, 12).sum(axis=2) - np.float32(6)
