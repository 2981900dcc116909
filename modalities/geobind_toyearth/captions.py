"""Captions and their phrases."""

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
    place_keys,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Pick = Callable[[tuple[str, ...]], str]


# Each grade: the fact's upper bound, and what one may say up to there.
Grades = tuple[tuple[float, tuple[str, ...]], ...]

SEA: Grades = (
    (0.03, ()),
    (0.12, ("a strip of sea", "a glimpse of the sea", "a narrow beach by the sea")),
    (0.30, ("a sandy bay", "a coast with a small bay", "a seashore")),
    (0.55, ("a wide bay of the sea", "a broad coast", "the sea along half the view")),
    (1.01, ("open sea", "the vast sea", "sea as far as one can see")),
)
RIVER: Grades = (
    (0.02, ()),
    (0.08, ("a narrow brook", "a small stream", "a trickling creek")),
    (0.20, ("a river", "a winding river", "a bending river")),
    (0.40, ("a wide river", "a broad river", "a great river")),
    (1.01, ("a lake", "a large lake", "the water of a great lake")),
)
TREES: Grades = (
    (0.06, ()),
    (0.16, ("a few {kind} trees", "a handful of {kind} trees", "some lone {kind} trees")),
    (0.32, ("small {kind} groves", "scattered {kind} copses", "patches of {kind} trees")),
    (0.55, ("{kind} woods", "large {kind} woods", "much {kind} woodland")),
    (1.01, ("dense {kind} forest", "deep {kind} forest", "endless {kind} forest")),
)
KINDS: Grades = (
    (0.30, ("broadleaved", "leafy", "oak and beech")),
    (0.65, ("mixed", "leafy and pine", "half-pine")),
    (1.01, ("pine", "spruce", "fir")),
)
CROPS: Grades = (
    (0.05, ()),
    (0.14, ("a small field", "one or two fields", "a little cropland")),
    (0.30, ("several {crop} fields", "some {crop} fields", "a few {crop} fields")),
    (0.52, ("wide {crop} fields", "many {crop} fields", "broad {crop} farmland")),
    (1.01, ("endless {crop} fields", "{crop} fields all around", "vast {crop} farmland")),
)
BARE: Grades = (
    (0.06, ()),
    (0.16, ("a little bare {ground}", "spots of {ground}", "a bit of {ground}")),
    (0.32, ("patches of {ground}", "stretches of {ground}", "some bare {ground}")),
    (0.55, ("much bare {ground}", "wide bare {ground}", "large tracts of {ground}")),
    (1.01, ("a desert of {ground}", "a waste of {ground}", "nothing but {ground}")),
)
GRASS: Grades = (
    (0.10, ()),
    (0.25, ("a little grass", "strips of grass", "small meadows")),
    (0.45, ("meadows", "grassland", "pastures")),
    (1.01, ("wide meadows", "open grassland", "broad pastures")),
)
HOUSES: Grades = (
    (0.06, ("no houses", "not a house in sight", "no buildings")),
    (0.18, ("a lone farmhouse", "one or two cottages", "a remote farm")),
    (0.34, ("scattered houses", "a hamlet", "a handful of houses")),
    (0.54, ("a village", "a large village", "rows of village houses")),
    (1.01, ("a town", "a crowded town", "city blocks")),
)
ROADS: Grades = (
    (0.08, ("no road", "no road at all", "not even a track")),
    (0.25, ("a dirt track", "a lonely lane", "a narrow track")),
    (0.50, ("a quiet road", "a country road", "a paved road")),
    (0.75, ("a busy road", "several roads", "a main road with cars")),
    (1.01, ("highways", "heavy traffic on wide roads", "a web of highways")),
)
RELIEF: Grades = (
    (0.15, ("a flat plain", "level country", "flat land")),
    (0.38, ("gently rolling land", "low rises", "rolling country")),
    (0.62, ("hills", "hilly country", "rounded hills")),
    (0.84, ("mountains", "high slopes", "a mountain valley")),
    (1.01, ("towering peaks", "steep high mountains", "soaring cliffs and peaks")),
)
SNOW: Grades = (
    (0.08, ()),
    (0.40, ("a dusting of snow", "thin snow", "a little snow")),
    (0.80, ("snow on the ground", "snow cover", "a blanket of snow")),
    (1.01, ("deep snow", "heavy snow cover", "snow deep over everything")),
)
WIND: Grades = (
    (0.15, ("still air", "no wind", "dead calm")),
    (0.38, ("a light breeze", "a gentle breeze", "little wind")),
    (0.62, ("a fresh breeze", "a steady breeze", "some wind")),
    (0.84, ("a strong wind", "a blustery wind", "hard wind")),
    (1.01, ("a gale", "a howling storm", "storm winds")),
)
RAIN: Grades = (
    (0.05, ("a clear sky", "dry weather", "a cloudless sky")),
    (0.25, ("a few clouds", "a hint of {fall}", "light clouds")),
    (0.50, ("passing {fall}", "light {fall}", "some {fall}")),
    (0.75, ("steady {fall}", "grey clouds and {fall}", "{fall} all day")),
    (1.01, ("pouring {fall}", "heavy {fall}", "thick clouds and driving {fall}")),
)
SEASONS: dict[str, tuple[str, ...]] = {
    "summer": ("summer", "midsummer", "high-summer"),
    "winter": ("winter", "midwinter", "deep-winter"),
    "spring": ("spring", "springtime", "fresh spring"),
    "autumn": ("autumn", "fall", "late-autumn"),
    "tropic": ("seasonless", "tropical", "ever-mild"),
}
HOURS: dict[str, tuple[str, ...]] = {
    "night": ("night", "dark night"),
    "evening night": ("late evening", "night after dusk"),
    "morning night": ("hour before dawn", "early dark morning"),
    "dawn": ("dawn", "sunrise", "daybreak"),
    "dusk": ("dusk", "sunset", "sundown"),
    "morning": ("morning", "forenoon"),
    "afternoon": ("afternoon", "late afternoon"),
    "noon": ("midday", "noon", "bright midday"),
}
CROP_LOOKS: dict[str, tuple[str, ...]] = {
    "summer": ("golden", "ripe"),
    "winter": ("brown", "bare"),
    "spring": ("green", "sprouting"),
    "autumn": ("stubble", "harvested"),
    "tropic": ("lush", "yellow-green"),
}


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

    season, hour = pick(SEASONS[name_season(fact)]), pick(HOURS[name_hour(fact)])
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


def name_season(fact: dict[str, float]) -> str:
    """Name the season: one of the keys of `SEASONS`."""
    warm, fresh = 2 * fact["summer"] - 1, 2 * fact["spring"] - 1
    if max(abs(warm), abs(fresh)) < 0.35:
        return "tropic"
    if abs(warm) >= abs(fresh):
        return "summer" if warm > 0 else "winter"
    return "spring" if fresh > 0 else "autumn"


def name_hour(fact: dict[str, float]) -> str:
    """Name the time of day: one of the keys of `HOURS`."""
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


def name_cover(fact: dict[str, float]) -> str:
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
    season, cover = name_season(fact), name_cover(fact)
    river = fact["water"] - fact["sea"]
    grass = 1 - fact["water"] - fact["forest"] - fact["crops"] - fact["bare"]
    kind = pick(_grade(KINDS, fact["conifer"] / max(fact["forest"], 1e-6)))
    crop = pick(CROP_LOOKS[season])
    ground = "rock" if fact["relief"] > 0.5 else "sand"
    sentences = [
        ("sea", SEA, fact["sea"], 0.85),
        ("river", RIVER, river, 0.8),
        ("forest", TREES, fact["forest"], 0.5 + fact["forest"]),
        ("crops", CROPS, fact["crops"], 0.5 + fact["crops"]),
        ("bare", BARE, fact["bare"], 0.5 + fact["bare"]),
        ("grass", GRASS, grass, 0.3 + 0.5 * grass),
        ("buildings", HOUSES, fact["buildings"], 0.65 + 0.3 * fact["buildings"]),
        ("roads", ROADS, fact["roads"], 0.55 + 0.3 * fact["roads"]),
        ("relief", RELIEF, fact["relief"], 0.7 + 0.3 * abs(2 * fact["relief"] - 1)),
        ("snow", SNOW, fact["snow"], 0.85),
    ]
    out: list[tuple[float, str]] = []
    for name, grades, amount, weight in sentences:
        words = _grade(grades, amount)
        if name == cover and not words:  # even a thin cover is named where no other is thicker
            words = next(ways for _, ways in grades if ways)
        if words:
            text = pick(words).format(kind=kind, crop=crop, ground=ground)
            out.append((1.0 if name == cover else weight, text))
    return out


def _weather(fact: dict[str, float], pick: Pick) -> list[tuple[float, str]]:
    """List the weather in words, each with the chance that a caption names it."""
    fall = "snowfall" if fact["snow"] > 0.5 else "rain"
    rain = pick(_grade(RAIN, fact["rain"])).format(fall=fall)
    return [
        (0.65 + 0.3 * fact["rain"], rain),
        (0.45 + 0.5 * abs(2 * fact["wind"] - 1), pick(_grade(WIND, fact["wind"]))),
    ]


def _grade(grades: Grades, amount: float) -> tuple[str, ...]:
    return next((words for bound, words in grades if amount < bound), grades[-1][1])


def _join(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1] if parts else ""


def _article(words: str) -> str:
    return ("an " if words[0] in "aeiou" else "a ") + words
