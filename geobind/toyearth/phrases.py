"""The words of the toy planet's captions: each fact has grades, each grade several ways to say it."""

from __future__ import annotations

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
