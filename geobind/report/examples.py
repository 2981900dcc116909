"""Held-out examples of a report: galleries, scatter plot of the shared space."""

# N rows, Q queries, G gallery items, D width

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from geobind.binder import Binder
from geobind.data.table import Table, first_observation, open_table
from geobind.evaluation import rank_counts
from geobind.evaluation.embedded import EmbeddedRows, embed_rows
from geobind.evaluation.held_out import take_first_rows
from geobind.modality import Modality, choose_picture
from geobind.recipe import Recipe, build_recipe
from geobind.recipe.marks import Mark, Marks
from geobind.report.media import Media, MediaBudget, build_media
from geobind.report.plots import MARKERS, MUTED, SERIES, SIGNS, Panel
from geobind.scoring import cosine
from geobind.utils.formatting import format_rank, shorten
from geobind.utils.hashing import derive_seed

MAX_ROWS = 500


@dataclass(frozen=True)
class EvaluationSample:
    """Embedded held-out rows of a report: all, or a sample of many."""

    table: Table
    spaces: Mapping[str, EmbeddedRows]
    modalities: Mapping[str, Modality]
    total: int  # rows before sampling
    by_label: bool

    def picture(self, name: str, row: int) -> Any:
        """Return what people are shown of the first observation of a row in a modality."""
        return choose_picture(self.modalities[name], first_observation(self.table.samples(name)[row]))


class RankedPair(NamedTuple):
    """Rank of the right answer to every query, with the similarities."""

    query: str
    gallery: str
    query_Q: NDArray[np.int64]  # rows of the table
    gallery_G: NDArray[np.int64]
    rank_Q: NDArray[np.float64]
    similarity_QG: NDArray[np.float32]
    right_QG: NDArray[np.bool_]


def open_held_out(folder: Path, base: Path) -> tuple[Binder, Table | None]:
    """Open the bundle and the held-out rows of a finished run.

    Args:
        folder: The run.
        base: Folder that the recipe's relative paths start from.

    Returns:
        The binder, and the rows its recipe is measured on: None when it is measured on nothing.

    Raises:
        GeobindError: The run is not finished, a plugin is missing, or the data are not where they were.
    """
    binder = Binder.load(folder / "bundle")
    written = binder.card.recipe if binder.card else {}
    recipe = build_recipe(written, base, source=str(folder / "bundle" / "recipe.yaml"))
    return binder, open_held_out_rows(recipe)


def open_held_out_rows(recipe: Recipe) -> Table | None:
    """Open the rows that a recipe is measured on, or None when it is measured on nothing.

    Raises:
        DataError: They are not there, or the table is malformed.
    """
    options = recipe.evaluate
    data = recipe.evaluation_data
    if options is None or data is None:
        return None
    table = open_table(data, recipe.base, tuple(recipe.modalities)).split(options.split)
    return take_first_rows(table, options.limit)


def embed_sample(
    binder: Binder,
    table: Table,
    *,
    by_label: bool,
    max_rows: int = MAX_ROWS,
    embedded: Mapping[str, EmbeddedRows] | None = None,
) -> EvaluationSample:
    """Embed held-out rows with every modality they have.

    Args:
        binder: The encoders.
        table: Held-out rows.
        by_label: Whether any row of a query's class is a right answer.
        max_rows: Largest number of rows used; more are sampled.
        embedded: Embeddings of all the rows, if already computed.

    Raises:
        DataError: An input cannot be read.
    """
    total = len(table)
    rows_N = np.arange(total)
    if total > max_rows:
        drawn = np.random.default_rng(derive_seed(0, "report")).choice(total, max_rows, replace=False)
        rows_N = np.sort(drawn)
        table = table.take(rows_N)
    if embedded is None:
        return EvaluationSample(table, embed_rows(binder, table), binder.modalities, total, by_label)
    spaces = {name: _select_rows(one, rows_N) for name, one in embedded.items()}
    filled = {name: one for name, one in spaces.items() if len(one.rows_Q)}
    return EvaluationSample(table, filled, binder.modalities, total, by_label)


def _select_rows(one: EmbeddedRows, rows_N: NDArray[np.int64]) -> EmbeddedRows:
    """Select the embeddings of the rows in `rows_N`, renumbered by their position there."""
    kept_Q = np.isin(one.rows_Q, rows_N)
    return EmbeddedRows(np.searchsorted(rows_N, one.rows_Q[kept_Q]), one.of(one.rows_Q[kept_Q]))


def rank_pair(held_out: EvaluationSample, query: str, gallery: str) -> RankedPair | None:
    """Rank the gallery for every query that has a right answer in it; None when fewer than two have."""
    query_Q, gallery_G = held_out.spaces[query].rows_Q, held_out.spaces[gallery].rows_Q
    if not held_out.by_label:  # as the measured tables do: both sides hold the rows that have both
        query_Q = gallery_G = np.intersect1d(query_Q, gallery_G)
    id_N = _answer_ids(held_out)
    query_Q = query_Q[np.isin(id_N[query_Q], id_N[gallery_G]) & (id_N[query_Q] >= 0)]
    if len(query_Q) < 2 or len(gallery_G) < 2:
        return None
    query_QD = held_out.spaces[query].of(query_Q)
    gallery_GD = held_out.spaces[gallery].of(gallery_G)
    counts = rank_counts(query_QD, gallery_GD, query_ids=id_N[query_Q], gallery_ids=id_N[gallery_G])
    return RankedPair(
        query,
        gallery,
        query_Q,
        gallery_G,
        counts.rank_Q,
        cosine(query_QD, gallery_GD).numpy(),
        id_N[query_Q, None] == id_N[gallery_G],
    )


def _answer_ids(held_out: EvaluationSample) -> NDArray[np.int64]:
    """Return an id for each row that its right answers share; -1 where it has none."""
    labels = held_out.table.labels if held_out.by_label else None
    if labels is None:
        return np.arange(len(held_out.table))
    known = {
        label: number for number, label in enumerate(sorted({word for word in labels if word is not None}))
    }
    return np.array([-1 if label is None else known[label] for label in labels])


MAX_GALLERIES = 6
EXAMPLES = 2  # of the best, of the median and of the worst
FOUND = 3  # gallery items shown for a query
PICTURE_BYTES = 2_000_000
SOUND_BYTES = 3_600_000


class Item(NamedTuple):
    """One observation on the page."""

    shown: Media
    key: str
    label: str
    similarity: float
    place: str  # "1st", or the rank of the right answer
    right: bool


class Example(NamedTuple):
    """A query, its first results, and its right answer where that is not among them."""

    query: Item
    found: list[Item]
    answer: Item | None
    rank: str


class Gallery(NamedTuple):
    """The examples of one pair."""

    query: str
    gallery: str
    mark: Mark
    size: int
    groups: list[tuple[str, list[Example]]]


def ordered_pairs(
    names: Collection[str], anchor: str | None, newest: tuple[str, str] | None = None
) -> list[tuple[str, str]]:
    """Return one direction of every pair: the newest first, those towards the anchor, then the others."""
    pairs = [(two, one) if one == anchor else (one, two) for one, two in combinations(names, 2)]
    if newest is not None:
        pairs = [newest if set(pair) == set(newest) else pair for pair in pairs]
    return sorted(pairs, key=lambda pair: (pair != newest, pair[1] != anchor))


def build_galleries(
    held_out: EvaluationSample, anchor: str | None, marks: Marks, newest: tuple[str, str] | None = None
) -> tuple[list[Gallery], list[str]]:
    """Build the galleries of a page.

    Args:
        held_out: The rows.
        anchor: The modality that most pairs have in common.
        marks: How each pair came to be.
        newest: The query and the gallery that come first.

    Returns:
        The galleries, and notes on what was left out.
    """
    pairs = ordered_pairs(held_out.spaces, anchor, newest)
    budget = MediaBudget(PICTURE_BYTES, SOUND_BYTES, min(len(pairs), MAX_GALLERIES))
    built: list[Gallery] = []
    for query, gallery in pairs[:MAX_GALLERIES]:
        budget.next_part()
        ranked = rank_pair(held_out, query, gallery)
        if ranked is not None:
            built.append(
                _build_gallery(
                    held_out, ranked, marks.get(frozenset((query, gallery)), "unconnected"), budget
                )
            )
    left_out = [f"{q} to {g}" for q, g in pairs[MAX_GALLERIES:]]
    notes = [f"Pairs left out to keep the page small: {', '.join(left_out)}."] if left_out else []
    if budget.left_out:
        notes.append(f"{budget.left_out} pictures or players were left out to keep the page small.")
    return built, notes


def _build_gallery(
    held_out: EvaluationSample, ranked: RankedPair, mark: Mark, budget: MediaBudget
) -> Gallery:
    groups = [
        (title, [_build_example(held_out, ranked, int(query), budget) for query in queries])
        for title, queries in _choose_queries(ranked)
    ]
    return Gallery(ranked.query, ranked.gallery, mark, len(ranked.gallery_G), groups)


def _choose_queries(ranked: RankedPair) -> Iterator[tuple[str, NDArray[np.int64]]]:
    """Yield queries from the top, the middle and the bottom of the ranks, none twice."""
    answer_Q = np.where(ranked.right_QG, ranked.similarity_QG, -np.inf).max(axis=1)
    rival_Q = np.where(ranked.right_QG, -np.inf, ranked.similarity_QG).max(axis=1)
    order_Q = np.lexsort((rival_Q - answer_Q, ranked.rank_Q))  # of one rank, the clearest first
    count = len(order_Q)
    many = min(EXAMPLES, max(1, count // 3))
    middle = min(max(count // 2 - many // 2, many), max(count - 2 * many, many))
    yield "Best", order_Q[:many]
    if count >= 2 * many + 1:
        yield "Median", order_Q[middle : min(middle + many, count - many)]
    if count > many:
        yield "Worst", order_Q[-many:]


def _build_example(
    held_out: EvaluationSample, ranked: RankedPair, query: int, budget: MediaBudget
) -> Example:
    similarity_G, right_G = ranked.similarity_QG[query], ranked.right_QG[query]
    first = np.argsort(-similarity_G, kind="stable")[:FOUND]
    ranked_as = format_rank(float(ranked.rank_Q[query]))

    def item(name: str, row: int, similarity: float, place: str, right: bool) -> Item:
        shown = budget.admit(build_media(held_out.picture(name, row)))
        label = (held_out.table.labels or [None] * len(held_out.table))[row]
        key = shorten(held_out.table.keys[row], 48)
        return Item(shown, key, shorten(label or "", 40), similarity, place, right)

    def hit(at: int, place: str) -> Item:
        row, similarity = int(ranked.gallery_G[at]), float(similarity_G[at])
        return item(ranked.gallery, row, similarity, place, bool(right_G[at]))

    query_item = item(ranked.query, int(ranked.query_Q[query]), 1.0, "", right=False)
    shown = [hit(int(at), format_rank(place)) for place, at in enumerate(first, start=1)]
    best = int(np.where(right_G, similarity_G, -np.inf).argmax())
    return Example(
        query_item, shown, None if any(i.right for i in shown) else hit(best, ranked_as), ranked_as
    )


# N embeddings of all modalities, D width


MAX_POINTS = 250  # of a modality
MAX_LINES = 12  # places whose observations are joined


def project_to_plane(embedding_ND: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Project onto the two directions of largest variance.

    Returns:
        The projections (N, 2), and the share of the variance along each direction (2,).
    """
    centred_ND = embedding_ND - embedding_ND.mean(axis=0)
    _, size_K, direction_KD = np.linalg.svd(centred_ND, full_matrices=False)
    # The sign of a direction is arbitrary; the largest component positive makes it the same everywhere.
    largest = np.abs(direction_KD[:2]).argmax(axis=1)
    sign_2 = np.sign(direction_KD[np.arange(2), largest])
    return (
        centred_ND @ (direction_KD[:2] * sign_2[:, None]).T,
        size_K[:2] ** 2 / max(float((size_K**2).sum()), 1e-30),
    )


class Scatter(NamedTuple):
    """The drawing, with its key and the facts of its caption."""

    panel: Panel
    key: list[tuple[str, int, str]]  # sign, number of the page's series colour, modality
    shares: NDArray[np.float64]  # of the variance, along the two directions
    places: int  # whose observations are joined


def build_scatter(held_out: EvaluationSample) -> Scatter | None:
    """Draw the embeddings of all modalities, and lines between those of the same place for a few places."""
    names = list(held_out.spaces)
    chosen = {name: _spread_evenly(len(space.rows_Q)) for name, space in held_out.spaces.items()}
    parts = [held_out.spaces[name].embedding_QD.numpy()[chosen[name]] for name in names]
    if sum(map(len, parts)) < 3:
        return None
    at_N2, share_2 = project_to_plane(np.concatenate(parts).astype(np.float64))
    where = dict(zip(names, np.split(at_N2, np.cumsum([len(part) for part in parts])[:-1]), strict=True))
    places = _lines_between_modalities(
        {name: held_out.spaces[name].rows_Q[chosen[name]] for name in names}, where
    )

    def draw(axes: Axes) -> None:
        for line in places:
            axes.plot(line[:, 0], line[:, 1], color=MUTED, lw=0.8, alpha=0.75, zorder=3)
        for place, name in enumerate(names):
            look = {"marker": MARKERS[place % len(MARKERS)], "c": SERIES[place % len(SERIES)]}
            axes.scatter(*where[name].T, s=13, alpha=0.75, linewidths=0, label=name, **look)
        axes.tick_params(labelbottom=False, labelleft=False)
        axes.grid(visible=False)
        axes.set_aspect("equal", adjustable="datalim")  # or distances would lie
        for spine in axes.spines.values():
            spine.set_visible(False)

    alt = (
        f"scatter of {sum(map(len, parts))} embeddings of {', '.join(names)} in the two directions of "
        f"largest variance, with lines between the observations of {len(places)} places"
    )
    key = [(SIGNS[n % len(SIGNS)], n % len(SERIES), name) for n, name in enumerate(names)]
    return Scatter(Panel("space", draw, 5.4, 4.0, alt, legend=True), key, share_2, len(places))


def _spread_evenly(count: int) -> NDArray[np.int64]:
    """Return at most `MAX_POINTS` row numbers, evenly spread."""
    return np.unique(np.linspace(0, count - 1, min(count, MAX_POINTS)).round().astype(np.int64))


def _lines_between_modalities(
    rows: dict[str, NDArray[np.int64]], where: dict[str, NDArray[np.float64]]
) -> list[NDArray[np.float64]]:
    """Return the points to join for a few rows with several modalities."""
    points_by_row: dict[int, list[NDArray[np.float64]]] = {}
    for name, row_N in rows.items():
        for place, row in enumerate(row_N):
            points_by_row.setdefault(int(row), []).append(where[name][place])
    several = [np.stack(points) for _, points in sorted(points_by_row.items()) if len(points) > 1]
    step = max(1, len(several) // MAX_LINES)
    return several[::step][:MAX_LINES]
