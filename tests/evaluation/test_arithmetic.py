"""Sums of embeddings: syntax, retrieval, and composed truths rendered by toy Earth."""

import json

import numpy as np
import pytest
import torch
from torch import nn

from geobind.binder import Binder
from geobind.data.options import DataOptions
from geobind.data.table import open_table
from geobind.errors import DataError
from geobind.evaluation.arithmetic import (
    evaluate_sum_of_composed_places,
    evaluate_sum_of_rows,
    evaluate_sum_of_two_places,
)
from geobind.evaluation.embedded import EmbeddedRows, embed_rows
from geobind.modality import Modality
from geobind.recipe.embedding_sum import parse_sum
from geobind_toyearth import FACTS
from geobind_toyearth.table import MOMENT, combine_places, list_places, render_column

NAMES = ("tile", "sound", "photo")
OPTIONS = DataOptions(
    toyearth={"places": 4, "held_out": 24, "tile_size": 16, "photo_size": 16, "seconds": 0.25, "rate": 8000},
    columns={name: "facts" for name in NAMES},
)


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("GEOBIND_CACHE", str(tmp_path_factory.mktemp("cache")))


class Some(Modality):
    """Some of the facts of a place, the others hidden."""

    role = "frozen"
    facts: tuple[str, ...] = FACTS

    def encoder(self, width: int, *, pretrained: bool = True) -> nn.Module:
        return nn.Identity()

    def prepare(self, raw, *, training: bool = False) -> torch.Tensor:
        kept = np.isin(FACTS, self.facts)
        return torch.tensor(np.where(kept, raw - 0.5, 0.0), dtype=torch.float32)


class Tile(Some):
    """The ground."""

    name = "tile"


class Sound(Some):
    """The moment."""

    name = "sound"


class Photo(Some):
    """Everything."""

    name = "photo"


def knowing(**facts):
    classes = {"tile": Tile, "sound": Sound, "photo": Photo}
    return Binder({name: classes[name](facts=facts.get(name, FACTS)) for name in NAMES}, len(FACTS))


def measured(binder, text="tile+sound:photo"):
    table = open_table(OPTIONS, None, NAMES).split("test")
    return evaluate_sum_of_composed_places(
        binder, table, OPTIONS, embed_rows(binder, table), parse_sum(text, NAMES)
    )


def test_encoders_that_see_only_their_part_find_the_composed_truth_and_no_part_alone_does():
    ground = tuple(fact for fact in FACTS if fact not in MOMENT)
    both, land, moment = measured(knowing(tile=ground, sound=MOMENT)).queries
    assert both.gallery_size == 24 * 5
    assert both.metrics["R@1"].value == 1
    assert [metric.value for metric in both.preferred.values()] == [1] * 5
    assert max(land.metrics["R@1"].high, moment.metrics["R@1"].high) < 0.9
    # What a part does not say, it cannot tell apart: the ground is the same there.
    assert land.preferred["the two swapped"].value == 1
    assert moment.preferred["the second place as it was"].value < 0.9


def test_a_sum_of_parts_that_say_the_same_prefers_the_place_as_it_was():
    both, land, _ = measured(knowing()).queries
    assert land.preferred["the first place as it was"].value == 0
    assert both.preferred["the first place as it was"].value < 1


def test_composed_places_have_the_land_of_one_and_the_moment_of_the_other():
    rows = np.array([0, 5]), np.array([7, 3])
    places, all_places = combine_places(OPTIONS.dataset, *rows), list_places(OPTIONS.dataset)
    for number, fact in enumerate(FACTS):
        source = rows[1] if fact in MOMENT else rows[0]
        assert (places.facts[:, number] == all_places.facts[source, number]).all()
    assert (places.lat == all_places.lat[rows[0]]).all()
    assert (places.hour == all_places.hour[rows[1]]).all()


def test_a_rendered_column_is_what_the_table_holds():
    options = OPTIONS.model_copy(update={"columns": {"a": "tile", "b": "sound", "c": "captions"}})
    table = open_table(options, None, "abc")
    places = list_places(options.dataset).take([6])
    assert (render_column("tile", places, options.dataset)[0] == table.samples("a")[6]).all()
    samples, rate = render_column("sound", places, options.dataset)[0]
    assert (samples == table.samples("b")[6][0]).all() and rate == 8000
    assert render_column("captions", places, options.dataset)[0] == table.samples("c")[6]
    with pytest.raises(DataError, match="toyearth: has no column 'smell'; its columns: tile"):
        render_column("smell", places, options.dataset)


def noisy(rows=60, seed=0):
    random = np.random.default_rng(seed)
    hidden = random.normal(size=(rows, 8))
    x = {n: torch.tensor(hidden + 1.5 * random.normal(size=hidden.shape)).float() for n in ("a", "b", "c")}
    return {n: EmbeddedRows(np.arange(rows), torch.nn.functional.normalize(v, dim=1)) for n, v in x.items()}


def test_two_noisy_observations_of_a_place_find_it_better_than_one():
    found = evaluate_sum_of_rows(noisy(), parse_sum("a+b:c", "abc"))
    rank = {query.name: query.metrics["mean_rank"].value for query in found.queries}
    assert list(rank) == ["a + b", "a", "b"]
    assert rank["a + b"] < min(rank["a"], rank["b"])
    assert found.truth == "row"
    assert json.loads(json.dumps(found.to_dict()))["parts"] == {"a": 1.0, "b": 1.0}


def test_labels_are_the_truth_where_they_are_given():
    found = evaluate_sum_of_rows(noisy(), parse_sum("a+b:c", "abc"), ["x", "y", None] * 20)
    assert (found.truth, found.queries[0].gallery_size) == ("label", 40)
    assert found.queries[0].metrics["R@1"].chance == pytest.approx(0.5, abs=0.02)


def test_weights_count():
    right, other = torch.tensor([[1.0, 0.0]] * 2), torch.tensor([[0.0, 1.0]] * 2)
    parts, rivals = {"a": right, "b": other}, {"rival": other}
    light, heavy = (
        evaluate_sum_of_two_places(parse_sum(text, "abc"), parts, right, other, rivals, "x")
        .queries[0]
        .preferred["rival"]
        for text in ("2*a+b:c", "a+2*b:c")
    )
    assert (light.value, heavy.value) == (1.0, 0.0)
    tied = evaluate_sum_of_two_places(parse_sum("a+b:c", "abc"), parts, right, other, rivals, "x").queries[0]
    assert tied.preferred["rival"].value == 0.5


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tile:photo", "write ONE\\+TWO:GALLERY"),
        ("tile+sound", "write ONE\\+TWO:GALLERY"),
        ("tile+tile:photo", "different modalities"),
        ("tile+sound:tile", "different modalities"),
        ("tile+smell:photo", "no modality 'smell'; there are tile, sound, photo"),
        ("x*tile+sound:photo", "'x' is no weight"),
        ("0*tile+sound:photo", "'0' is no weight"),
    ],
)
def test_sums_written_wrongly_are_told(text, message):
    with pytest.raises(DataError, match=message):
        parse_sum(text, NAMES)


def test_a_sum_is_written_as_it_was_read():
    assert str(parse_sum(" tile + 2*sound : photo ", NAMES)) == "tile+2*sound:photo"


def test_what_toy_earth_cannot_do_is_told():
    binder = knowing()
    table = open_table(OPTIONS, None, NAMES)
    few = table.take(np.arange(5))
    with pytest.raises(DataError, match="5 rows; sums of two places need 10"):
        evaluate_sum_of_composed_places(
            binder, few, OPTIONS, embed_rows(binder, few), parse_sum("tile+sound:photo", NAMES)
        )
    manifest = DataOptions(manifest="rows.csv")
    with pytest.raises(DataError, match="toy Earth renders it"):
        evaluate_sum_of_composed_places(binder, table, manifest, {}, parse_sum("tile+sound:photo", NAMES))
    with pytest.raises(DataError, match="0 rows have a, b, c"):
        evaluate_sum_of_rows(
            {n: EmbeddedRows(np.array([i]), torch.eye(3)[[i]]) for i, n in enumerate("abc")},
            parse_sum("a+b:c", "abc"),
        )
