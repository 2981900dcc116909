"""Licences as people write them, and what several of them leave."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from geobind.licences import GENERATED, combine_licences, is_looser, parse_licence


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("CC0", "CC0-1.0"),
        ("http://creativecommons.org/publicdomain/zero/1.0/", "CC0-1.0"),
        ("CC BY 4.0", "CC-BY-4.0"),
        ("cc-by-sa-3.0", "CC-BY-SA-3.0"),
        ("https://creativecommons.org/licenses/by-nc-sa/4.0/", "CC-BY-NC-SA-4.0"),
        ("Creative Commons Attribution-NonCommercial-NoDerivatives 4.0", "CC-BY-NC-ND-4.0"),
        ("CC-BY-ND", "CC-BY-ND"),
        ("Apache License 2.0", "Apache-2.0"),
        ("MIT", "MIT"),
        ("ODbL 1.0, attribution", "ODbL-1.0"),
        ("© a company, all rights reserved", "© a company, all rights reserved"),
        (None, "not stated"),
        ("", "not stated"),
    ],
)
def test_a_licence_is_known_however_it_is_written(written, name):
    assert parse_licence(written).name == name


def test_what_is_not_known_is_not_taken_for_free():
    for written in ("permitted", "mine", None, "free for research", "emit"):
        assert parse_licence(written).unknown


@pytest.mark.parametrize(
    ("parts", "name", "forced"),
    [
        ({"a": "CC0", "b": GENERATED}, "CC0-1.0", ()),
        ({"a": "CC BY 4.0", "b": "CC0"}, "CC-BY-4.0", ("a",)),
        ({"a": "MIT", "b": "CC BY-SA 4.0"}, "CC-BY-SA-4.0", ("b",)),
        ({"a": "CC BY-NC 4.0", "b": "CC BY-NC-SA 4.0", "c": "MIT"}, "CC-BY-NC-SA-4.0", ("a", "b")),
        ({"a": "CC BY-ND 4.0", "b": "CC BY-NC 4.0"}, "CC-BY-ND-4.0", ("a",)),
        ({"a": "Apache-2.0", "b": None}, "unknown", ("b",)),
        ({}, "unknown", ()),
    ],
)
def test_the_strictest_part_decides_and_is_named(parts, name, forced):
    whole = combine_licences(parts)
    assert whole.name == name
    assert (whole.demands[0].parts if whole.demands else ()) == forced


def test_all_demands_are_told_and_not_only_the_strictest():
    whole = combine_licences({"a": None, "b": "CC BY-NC 4.0"})
    assert [demand.sentence for demand in whole.demands] == [
        "No licence is known: ask the owners before you use or share it.",
        "Not for commercial use.",
        "Name the source.",
    ]


def test_terms_that_no_licence_can_meet_are_told():
    assert combine_licences({"a": "CC BY-SA 4.0", "b": "CC BY-NC 4.0"}).conflict == (
        "CC-BY-SA-4.0 is to be passed on without further limits, which CC-BY-NC-4.0 sets"
    )
    assert (
        "under different licences: CC-BY-SA-4.0, ODbL-1.0"
        in combine_licences({"a": "CC BY-SA 4.0", "b": "ODbL"}).conflict
    )
    assert combine_licences({"a": "CC BY-SA 4.0", "b": "CC BY 4.0"}).conflict == ""


def test_a_stated_licence_that_leaves_out_a_limit_is_looser():
    whole = combine_licences({"a": "CC BY-NC 4.0"})
    assert is_looser("MIT", whole)
    assert not is_looser("CC BY-NC-SA 4.0", whole)
    assert is_looser("CC BY-NC 4.0", combine_licences({"a": None}))


@given(st.dictionaries(st.text(max_size=4), st.none() | st.text(max_size=30), max_size=5))
def test_more_parts_never_ask_less(parts):
    terms, more = (
        combine_licences(parts).terms,
        combine_licences({**parts, "another part": "CC BY-NC 4.0"}).terms,
    )
    assert all(a <= b for a, b in zip(terms[2:], more[2:], strict=True))
