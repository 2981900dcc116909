"""Questions in words: the area under the curve, its interval, and what cannot be asked."""

from types import SimpleNamespace

import numpy as np
import pytest
import small_world
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from geobind.data import DataOptions, open_table
from geobind.errors import DataError
from geobind.evaluation.embedded import EmbeddedRows
from geobind.evaluation.questions import Space, ask_questions, load_questions, measure_auc, read_truths
from geobind.evaluation.split_leakage import Clusters
from geobind.recipe.schema import Question

FAST = settings(max_examples=100, deadline=None, derandomize=True)
COLD = Question(prompts=("cold", "warm"), truth="temperature", above=5, below=0, through="words")


def count_pairs(score_Q, true_Q):
    true, untrue = score_Q[true_Q], score_Q[~true_Q]
    return float(((true[:, None] > untrue) + 0.5 * (true[:, None] == untrue)).mean())


@FAST
@given(st.lists(st.tuples(st.integers(-3, 3), st.booleans(), st.integers(0, 4)), min_size=2, max_size=40))
def test_the_area_is_the_share_of_ordered_pairs_and_lies_in_its_interval(rows):
    score_Q, true_Q, cluster_Q = map(np.array, zip(*rows, strict=True))
    if true_Q.all() or not true_Q.any():
        return
    for clusters in (None, [*cluster_Q.tolist()]):
        auc = measure_auc(score_Q.astype(float), true_Q, clusters)
        assert auc.value == pytest.approx(count_pairs(score_Q, true_Q))
        assert 0 <= auc.low <= auc.value <= auc.high <= 1
        assert auc.chance == 0.5


def test_scores_without_any_order_give_one_half():
    auc = measure_auc(np.zeros(20), np.arange(20) < 5)
    assert (auc.value, auc.p) == (0.5, 1.0)


def test_intervals_hold_the_area_of_the_population_as_often_as_they_say():
    random, inside, draws = np.random.default_rng(0), 0, 400
    truth = 0.7602  # Phi(1 / sqrt(2)), of normal scores one standard deviation apart
    for _ in range(draws):
        true_Q = np.arange(120) < 40
        auc = measure_auc(random.normal(size=120) + true_Q, true_Q)
        inside += auc.low <= truth <= auc.high
    assert 0.93 <= inside / draws <= 0.98


def test_rows_of_one_cluster_count_as_dependent():
    random = np.random.default_rng(0)
    cluster_Q = np.repeat(np.arange(20), 10)
    true_Q = cluster_Q % 2 == 0
    score_Q = random.normal(size=20)[cluster_Q] + 0.5 * true_Q
    alone, together = measure_auc(score_Q, true_Q), measure_auc(score_Q, true_Q, cluster_Q.tolist())
    assert together.high - together.low > 2 * (alone.high - alone.low)


@pytest.fixture
def places(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GEOBIND_CACHE", str(tmp_path / "cache"))
    lines = [f"test,word {n},{n - 10},{'' if n == 3 else n - 10}" for n in range(20)]
    (tmp_path / "places.csv").write_text("\n".join(["split,words,height,temperature", *lines]))
    return DataOptions(manifest="places.csv")


@pytest.fixture
def modalities():
    return {"words": small_world.Words(), "tile": small_world.Tile()}


def rows_of(data):
    return open_table(data, names=("words",)).split("test")


def test_places_between_the_numbers_and_without_one_have_no_answer(places, modalities):
    asked = COLD.model_copy(update={"modalities": ("words",), "through": "tile"})
    held_out = rows_of(places)
    words = {"tile": small_world.Words(), "words": small_world.Words()}
    first = places.model_copy(update={"first": ("words",)})  # a modality, and no column of numbers
    truth = read_truths(held_out, first, {"cold": asked}, words)["cold"]
    assert np.flatnonzero(truth.true_N).tolist() == [16, 17, 18, 19]  # above 5
    assert np.flatnonzero(~truth.known_N).tolist() == [3, 11, 12, 13, 14, 15]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"truth": "rain"}, "has no column for rain; its columns: split, words"),
        ({"truth": "words"}, r"column 'words' is 'word 0', not a number"),
        ({"above": 50.0, "below": None}, "none is true (temperature above 50)"),
        ({"above": -50.0, "below": None}, "all are true"),
        ({"modalities": ("sound",)}, "no modality 'sound'; there are words, tile, heard"),
        ({"through": "text"}, "no modality 'text'"),
        ({"modalities": ("words",)}, "'words' holds the words; ask other modalities"),
        ({"through": "tile"}, "'tile' does not read 'cold'"),
    ],
)
def test_what_cannot_be_asked_is_refused(places, modalities, changes, message):
    modalities = {**modalities, "heard": small_world.Words()}
    data = places.model_copy(update={"columns": {"heard": "words"}})
    held_out = open_table(data, names=("words", "heard")).split("test")
    asked = COLD.model_copy(update={"modalities": ("heard",), **changes})
    with pytest.raises(DataError) as caught:
        read_truths(held_out, data, {"cold": asked}, modalities)
    assert message in str(caught.value)


def test_places_nearer_to_the_first_prompt_are_taken_for_true(places):
    angle_N = np.linspace(0, np.pi / 2, 20)
    tile_ND = torch.tensor(np.stack([np.cos(angle_N), np.sin(angle_N)], axis=1), dtype=torch.float32)
    binder = SimpleNamespace(
        embed=lambda name, prompts, **_: torch.tensor([[0.0, 1.0], [1.0, 0.0]]), anchor=""
    )
    embedded = {"words": EmbeddedRows(np.arange(20), tile_ND), "tile": EmbeddedRows(np.arange(20), tile_ND)}
    truth = {"cold": SimpleNamespace(known_N=np.ones(20, dtype=bool), true_N=np.arange(20) > 12)}
    met = {frozenset(("words", "tile")): "emergent"}
    space = Space(binder, embedded)
    alone = Clusters(None, None, "each row counts alone")
    (result,) = ask_questions(space, {"cold": COLD}, truth, met, alone, untrained=space).questions
    (answer,) = result.answers  # the modality of the words is not asked
    assert (answer.modality, answer.mark, answer.rows, answer.true_rows) == ("tile", "emergent", 20, 7)
    assert answer.auc.value == 1.0 == answer.untrained.value
    assert result.truth == "temperature above 5, untrue up to 0"


def test_the_words_of_a_question_are_embedded_once_for_all_modalities():
    embedded = {
        name: EmbeddedRows(np.arange(4), torch.eye(4)) for name in ("words", "tile", "photo", "sound")
    }
    calls = []

    def embed(name, prompts, **_):
        calls.append((name, *prompts))
        return torch.eye(4)[:2]

    truth = {"cold": SimpleNamespace(known_N=np.ones(4, dtype=bool), true_N=np.arange(4) < 1)}
    alone = Clusters(None, None, "each row counts alone")
    (result,) = ask_questions(
        Space(SimpleNamespace(embed=embed, anchor=""), embedded), {"cold": COLD}, truth, {}, alone
    ).questions
    assert [answer.modality for answer in result.answers] == ["tile", "photo", "sound"]
    assert calls == [("words", "cold", "warm")]


def test_shipped_questions_ask_for_facts_of_toy_earth_in_words():
    from geobind_toyearth.planet import FACTS

    questions = load_questions("toyearth")
    assert len(questions) >= 5
    assert {question.truth for question in questions.values()} <= set(FACTS)


def test_questions_of_a_recipe_are_read_from_its_plain_values_and_a_strangers_are_checked():
    asked = {"evaluate": {"questions": {"cold": COLD.model_dump(mode="json")}}}
    assert load_questions("recipe", asked) == {"cold": COLD}
    for strange in ({"evaluate": 3}, {"evaluate": {"questions": {}}}, {}):
        with pytest.raises(DataError, match="asks no questions"):
            load_questions("recipe", strange)
    with pytest.raises(DataError, match="the bundle's recipe: "):
        load_questions("recipe", {"evaluate": {"questions": {"cold": {"prompts": 5}}}})
