"""Queries as commands write them: NAME=VALUE, weights, boxes and times."""

from datetime import datetime
from pathlib import Path

import mapped
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from geobind.errors import DataError
from geobind.modality import Content, Place
from geobind.search import Query, embed_query, parse_query
from geobind.search.query import as_query, describe_parts, parse_bbox, parse_time
from geobind_vector import Vector

BINDER = mapped.build_binder()
KNOWN = BINDER.modalities


def test_words_are_words_and_a_place_is_a_place():
    parts = parse_query(["words=church bells", "spot=46.95, 7.44"], [], KNOWN)
    assert [part.raw for part in parts] == ["church bells", Place(46.95, 7.44)]
    assert describe_parts(parts) == 'words "church bells" + spot 46.9500°N 7.4400°E'


def test_a_file_is_read_after_an_at_sign_alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("rain.wav").write_bytes(b"drops")
    part = parse_query(["recording=@rain.wav"], [], KNOWN)[0]
    assert part.raw == b"drops" and isinstance(part.raw, Content) and part.label == "rain.wav"
    words = parse_query(["words=rain.wav", "words=/etc/passwd"], [], KNOWN)
    assert [part.raw for part in words] == ["rain.wav", "/etc/passwd"]


def test_numbers_are_written_as_they_are_or_come_from_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.save("row.npy", [0.5, -12])
    known = {"vector": Vector(size=2)}
    given, read = parse_query(["vector=0.5, -12", "vector=@row.npy"], [], known)
    assert torch.equal(known["vector"].prepare(given.raw), known["vector"].prepare(read.raw))
    for wrong in ("vector=wet", "vector=1;2", "vector=1,nan"):
        with pytest.raises(DataError, match=r"write numbers with commas between, such as vector=0\.5,12"):
            parse_query([wrong], [], known)


def test_the_nth_weight_of_a_modality_is_that_of_its_nth_part():
    parts = parse_query(["words=a", "spot=1,2", "words=b=c"], ["words=2", "spot=0.5", "words=-1"], KNOWN)
    assert [(part.modality, part.weight) for part in parts] == [("words", 2), ("spot", 0.5), ("words", -1)]
    assert describe_parts(parts) == '2.0 x words "a" + 0.500 x spot 1.0000°N 2.0000°E - words "b=c"'


@pytest.mark.parametrize(
    ("queries", "weights", "reason"),
    [
        ([], [], 'no query: give at least one, such as --query text="church bells"'),
        (["words"], [], '--query words: write NAME=VALUE, such as text="church bells"'),
        (["=bells"], [], "--query =bells: write NAME=VALUE"),
        (["words= "], [], "--query words=: write NAME=VALUE"),
        (["word=bells"], [], "this bundle has no modality 'word'; did you mean 'words'?"),
        (["xyz=1"], [], "this bundle has no modality 'xyz'; it has recording, spot, tile, words"),
        (["recording=rain.wav"], [], "recording is read from a file; write recording=@rain.wav"),
        (["recording=@no.wav"], [], "--query recording=@no.wav: no.wav cannot be read: no such file"),
        (["recording=@."], [], ". cannot be read: no such file"),
        (["spot=Bern"], [], "a place is LATITUDE,LONGITUDE in degrees, such as 46.95,7.44"),
        (["spot=120,7"], [], "a place is LATITUDE,LONGITUDE"),
        (["words=a"], ["words"], "--weight words: write NAME=NUMBER, such as audio=-0.5"),
        (["words=a"], ["words=x"], "--weight words=x: not a number; write such as words=-0.5"),
        (["words=a"], ["words=nan"], "--weight words=nan: not a number"),
        (["words=a"], ["spot=1"], "--weight spot: there is no --query spot; a weight needs its part"),
        (["words=a"], ["sopt=1"], "this bundle has no modality 'sopt'; did you mean 'spot'?"),
        (["words=a", "words=b"], ["words=1"], "1 weight of words for 2 parts of it; give one for each"),
        (["words=a"] * 65, [], "65 parts of a query; give at most 64"),
    ],
)
def test_each_mistake_of_a_query_is_named(queries, weights, reason, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError) as error:
        parse_query(queries, weights, KNOWN)
    assert reason in str(error.value)


@settings(derandomize=True, deadline=None)
@given(st.lists(st.text(max_size=12), max_size=4), st.lists(st.text(max_size=8), max_size=3))
def test_any_text_is_a_query_or_an_error_of_the_user(queries, weights):
    try:
        parts = parse_query([f"words={text}" for text in queries if "@" not in text], weights, KNOWN)
    except DataError:
        return
    assert all(part.raw.strip() for part in parts)


def test_an_embedded_query_is_the_weighted_sum_that_the_binder_composes(tmp_path):
    raw = {"words": "bells", "recording": Content(b"rain", "rain.wav")}
    query = embed_query(BINDER, raw, recording=-0.5)
    composed = BINDER.compose(raw, {"recording": -0.5})[0]
    assert torch.allclose(torch.from_numpy(query.vector), composed, atol=1e-6)
    assert query.label == 'words "bells" - 0.500 x recording rain.wav' and query.modality is None
    assert embed_query(BINDER, {"words": "bells"}).modality == "words"


def test_parts_that_cancel_out_and_weights_without_parts_are_refused():
    with pytest.raises(DataError, match="cancel out"):
        embed_query(BINDER, parse_query(["words=a", "words=a"], ["words=1", "words=-1"], KNOWN))
    with pytest.raises(DataError, match="a weight for spot, but no input of it"):
        embed_query(BINDER, {"words": "a"}, spot=1.0)


def test_an_embedding_is_a_query_and_several_are_not():
    rows = BINDER.embed("words", ["a", "b"])
    assert np.allclose(as_query(rows[:1]).vector, rows[0]) and np.allclose(as_query(rows[1]).vector, rows[1])
    query = Query(rows[0].numpy(), "a", "words")
    assert as_query(query) is query
    for wrong in (rows, "bells", {"words": "a"}):
        with pytest.raises(DataError, match="a query is one embedding"):
            as_query(wrong)


def test_a_box_may_cross_the_antimeridian():
    assert parse_bbox("170,-20,-170,-10") == (170, -20, -170, -10)
    assert parse_bbox(" 7.3, 46.9, 7.5, 47 ") == (7.3, 46.9, 7.5, 47)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("7,46,8", "--bbox 7,46,8: write W,S,E,N in degrees"),
        ("7,46,8,x", "write W,S,E,N in degrees"),
        ("7,46,8,nan", "write W,S,E,N in degrees"),
        ("7,48,8,46", "south first"),
        ("46,107,47,108", "these begin with a latitude"),
        ("-200,46,8,47", "longitudes within 180"),
    ],
)
def test_a_box_that_is_none_is_refused(text, reason):
    with pytest.raises(DataError) as error:
        parse_bbox(text)
    assert reason in str(error.value)


def test_times_include_their_last_day_and_may_be_open():
    assert parse_time("2024-06-01/2024-08-31") == (
        datetime(2024, 6, 1),
        datetime(2024, 8, 31, 23, 59, 59, 999999),
    )
    assert parse_time("2024-06-01T12:00/..") == (datetime(2024, 6, 1, 12), None)
    assert parse_time("/2024-06-01")[0] is None
    assert parse_time("2024-06-01") == (datetime(2024, 6, 1), datetime(2024, 6, 1, 23, 59, 59, 999999))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("June", "--time June: write A/B in ISO 8601, such as 2024-06-01/2024-08-31"),
        ("2024-08-31/2024-06-01", "begins after it ends"),
        ("2024-06-01Z/2024-06-02", "write A/B in ISO 8601"),
        ("2024-06-01T00:00Z/2024-06-02", "one of the two has a time zone"),
        ("../..", "leaves both sides open"),
    ],
)
def test_times_that_are_none_are_refused(text, reason):
    with pytest.raises(DataError) as error:
        parse_time(text)
    assert reason in str(error.value)
