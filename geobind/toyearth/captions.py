"""Captions of the toy planet: sentences as people might write them, each naming the most striking facts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from geobind.toyearth import phrases
from geobind.toyearth.facts import FACTS, Places, check_number, check_places, check_seed
from geobind.toyearth.nuisance import draw, place_keys

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Pick = Callable[[tuple[str, ...]], str]

_DRAWS = 48  # random numbers one caption may use


def write_captions(places: Places, seed: int, count: int = 5) -> list[list[str]]:
    """Describe each place in `count` sentences of varied wording: a list of captions for each place.

    Every caption names the time and what covers most of the ground; of the other facts each caption names
    some, the stronger the likelier.

    Raises:
        DataError: A place, the seed or the count (1 to 100) is out of range.
    """
    places = check_places(places)
    check_seed(seed)
    check_number("count", count, 1, 100, whole=True)
    number = (
        draw(place_keys(places[:4], seed, "caption"), "words", count * _DRAWS).astype(np.float64).tolist()
    )
    rows = places.facts.astype(np.float64).tolist()
    return [
        [
            _write(dict(zip(FACTS, row, strict=True)), iter(own[i * _DRAWS : (i + 1) * _DRAWS]))
            for i in range(count)
        ]
        for row, own in zip(rows, number, strict=True)
    ]


def _write(fact: dict[str, float], number: Iterator[float]) -> str:
    """Write one caption: when, what is there, and the weather, in one of several orders."""

    def pick(words: tuple[str, ...]) -> str:
        return words[int(next(number) * len(words))]

    season, hour = pick(phrases.SEASONS[season_of(fact)]), pick(phrases.HOURS[hour_of(fact)])
    chosen = [words for weight, words in _ground(fact, pick) if next(number) < weight]
    turn = int(next(number) * len(chosen))
    things = _join(chosen[turn:] + chosen[:turn])
    weather = _join([words for weight, words in _weather(fact, pick) if next(number) < weight])
    when = f"{season} {hour}"
    patterns = (
        f"{_article(when)} over {things}; {weather}." if weather else f"{_article(when)} over {things}.",
        f"{things}, on {_article(when)}" + (f" with {weather}." if weather else "."),
        f"{_article(when)}: {things}" + (f", under {weather}." if weather else "."),
        f"{when}, {weather}, {things}." if weather else f"{when}, {things}.",
        f"View of {things}, {when}" + (f", {weather}." if weather else "."),
    )
    sentence = pick(patterns)
    return sentence[0].upper() + sentence[1:]


def season_of(fact: dict[str, float]) -> str:
    """Name the season: one of the keys of `phrases.SEASONS`."""
    warm, fresh = 2 * fact["summer"] - 1, 2 * fact["spring"] - 1
    if max(abs(warm), abs(fresh)) < 0.35:
        return "tropic"
    if abs(warm) >= abs(fresh):
        return "summer" if warm > 0 else "winter"
    return "spring" if fresh > 0 else "autumn"


def hour_of(fact: dict[str, float]) -> str:
    """Name the time of day: one of the keys of `phrases.HOURS`."""
    daylight, early = fact["daylight"], fact["morning"] - 0.5
    if daylight < 0.08:
        if abs(early) < 0.2:
            return "night"
        return "morning night" if early > 0 else "evening night"
    if daylight < 0.28:
        return "dawn" if early > 0 else "dusk"
    if abs(early) < 0.2:
        return "noon"
    return "morning" if early > 0 else "afternoon"


def cover_of(fact: dict[str, float]) -> str:
    """Name what covers most of the ground: sea, river (or lake), forest, crops, bare or grass."""
    shares = {
        "sea": fact["sea"],
        "river": fact["water"] - fact["sea"],
        "forest": fact["forest"],
        "crops": fact["crops"],
        "bare": fact["bare"],
    }
    shares["grass"] = 1 - fact["water"] - fact["forest"] - fact["crops"] - fact["bare"]
    return max(shares, key=lambda name: shares[name])


def _ground(fact: dict[str, float], pick: Pick) -> list[tuple[float, str]]:
    """List what is on the ground in words, each with the chance that a caption names it."""
    season, most = season_of(fact), cover_of(fact)
    river = fact["water"] - fact["sea"]
    grass = 1 - fact["water"] - fact["forest"] - fact["crops"] - fact["bare"]
    kind = pick(_grade(phrases.KINDS, fact["conifer"] / max(fact["forest"], 1e-6)))
    crop = pick(phrases.CROP_LOOKS[season])
    ground = "rock" if fact["relief"] > 0.5 else "sand"
    said = [
        ("sea", phrases.SEA, fact["sea"], 0.85),
        ("river", phrases.RIVER, river, 0.8),
        ("forest", phrases.TREES, fact["forest"], 0.5 + fact["forest"]),
        ("crops", phrases.CROPS, fact["crops"], 0.5 + fact["crops"]),
        ("bare", phrases.BARE, fact["bare"], 0.5 + fact["bare"]),
        ("grass", phrases.GRASS, grass, 0.3 + 0.5 * grass),
        ("buildings", phrases.HOUSES, fact["buildings"], 0.65 + 0.3 * fact["buildings"]),
        ("roads", phrases.ROADS, fact["roads"], 0.55 + 0.3 * fact["roads"]),
        ("relief", phrases.RELIEF, fact["relief"], 0.7 + 0.3 * abs(2 * fact["relief"] - 1)),
        ("snow", phrases.SNOW, fact["snow"], 0.85),
    ]
    out: list[tuple[float, str]] = []
    for name, grades, amount, weight in said:
        words = _grade(grades, amount)
        if name == most and not words:  # even a thin cover is named where no other is thicker
            words = next(ways for _, ways in grades if ways)
        if words:
            text = pick(words).format(kind=kind, crop=crop, ground=ground)
            out.append((1.0 if name == most else weight, text))
    return out


def _weather(fact: dict[str, float], pick: Pick) -> list[tuple[float, str]]:
    """List the weather in words, each with the chance that a caption names it."""
    fall = "snowfall" if fact["snow"] > 0.5 else "rain"
    rain = pick(_grade(phrases.RAIN, fact["rain"])).format(fall=fall)
    return [
        (0.65 + 0.3 * fact["rain"], rain),
        (0.45 + 0.5 * abs(2 * fact["wind"] - 1), pick(_grade(phrases.WIND, fact["wind"]))),
    ]


def _grade(grades: phrases.Grades, amount: float) -> tuple[str, ...]:
    return next((words for bound, words in grades if amount < bound), grades[-1][1])


def _join(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1] if parts else ""


def _article(words: str) -> str:
    return ("an " if words[0] in "aeiou" else "a ") + words
