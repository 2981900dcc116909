"""YAML of strangers: what it may hold, what it may name, and what reading it may cost."""

import pytest

from geobind.recipe import RecipeProblems
from geobind.recipe.parsing import parse_yaml, read_recipe_file


@pytest.fixture
def read(tmp_path):
    def read(text, *overrides):
        path = tmp_path / "recipe.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        try:
            return read_recipe_file(path, overrides).values
        except RecipeProblems as error:
            return [str(problem).replace(f"{path}:", "") for problem in error.problems]

    return read


ONLY_KEYS = "${...} may name another key only"


@pytest.mark.parametrize(
    "text",
    [
        "${oc.env:HF_TOKEN}",
        "${name} ${oc.env:HF_TOKEN}",
        "${name}${oc.decode:${oc.env:HF_TOKEN}}",
        "${oc.${name}:HF_TOKEN}",
        "${name.${name}}",
        "\\${name} ${oc.env:HF_TOKEN}",
        "\\\\${name}",
        "$${name}{oc.env:HF_TOKEN}",
        "${name",
        "${ name }",
        "${.name}",
        "${}",
        "${HF_TOKEN:-x}",
    ],
)
def test_interpolation_names_a_key_and_nothing_else_wherever_it_stands(read, text, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "secret")
    quoted = text.replace("\\", "\\\\")
    for line in (f'use: "{quoted}"', f'card: {{use: "{quoted}"}}', f'stages: [{{a: ["{quoted}"]}}]'):
        (problem,) = read(f"name: tiny\n{line}\n")
        assert problem.startswith("2:"), problem
        assert ONLY_KEYS in problem
        assert "secret" not in problem


def test_pieces_of_texts_do_not_make_an_interpolation(read):
    assert ONLY_KEYS in read("a: $\nb: '${a}{oc.env:HOME}'\n")[0]


def test_interpolation_takes_values_of_any_type_after_overrides_and_copies_them(read):
    text = "width: 16\nb: {c: '${width}', d: [1]}\ne: ${b}\nf: ${e.c} and ${stages.one.lr}\n"
    text += "stages: [{name: one, lr: 2}]\n"
    values = read(text, "width=8", "b.d=[3]")
    assert values["e"] == {"c": 8, "d": [3]}
    assert values["e"]["d"] is not values["b"]["d"]
    assert values["f"] == "8 and 2"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: ${b}\nb: ${a}\n", "1:1: a: ${b} leads back to itself"),
        ("a: {b: '${a}'}\n", "1:5: a.b: ${a} leads back to itself"),
        ("a: ${a.x}\n", "leads back to itself"),
        ("a: ${b.c}\nb: [1]\n", "1:1: a: interpolation failed: there is no key 'b.c'"),
        ("a: x${b}\nb: [1]\n", "${b} is no text or number"),
    ],
)
def test_an_interpolation_that_cannot_be_is_refused_where_it_stands(read, text, message):
    assert message in read(text)[0]


@pytest.mark.parametrize("quote", ["['{}']", "'{}'"])
def test_interpolations_of_interpolations_end_at_once(read, quote):
    comma = "', '" if "[" in quote else ""
    lines = ["a0: [x, x, x]" if "[" in quote else "a0: xxxxxxxxxxxxxxxxxxxxx"]
    lines += [f"a{n}: {quote.format(comma.join([f'${{a{n - 1}}}'] * 10))}" for n in range(1, 12)]
    (problem,) = read("\n".join(lines))
    assert "interpolates more than 1000 times" in problem


def test_few_interpolations_of_a_long_text_are_bounded_too(read):
    (problem,) = read(f"a: {'x' * 100_000}\nb: '{'${a}' * 20}'\n")
    assert problem.startswith("2:1: b: interpolates to more than")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("card: {use: 2024-01-01}", "1:13: card.use: 2024-01-01 is a date in YAML; quote it: '2024-01-01'"),
        ("a: 2001-12-14t21:59:43.10-05:00", "1:4: a: 2001-12-14t21:59:43.10-05:00 is a date in YAML"),
        ("a: 2024-13-45", "is a date in YAML"),
        ("2024-01-01: 1", "1:1: the key `2024-01-01` is a date in YAML; quote it"),
        ("a:\n  ~: 1", "2:3: a: the key `~` is nothing in YAML; quote it"),
        ("on: 1", "1:1: the key `on` is yes or no in YAML; quote it"),
        ("1.5: 1", "the key `1.5` is a number in YAML"),
        ("? [a]\n: 1", "the key `[...]` is no plain text in YAML"),
        (
            "a: !!binary aGVsbG8=",
            "1:4: a: not valid YAML here: the type tag:yaml.org,2002:binary is not read",
        ),
        ("a: !!set {b, c}", "1:4: a: not valid YAML here"),
        ("a: !!omap [b: 1]", "1:4: a: not valid YAML here"),
        ("a: !mine {b: 1}", "the type !mine is not read"),
        ("a: !!python/name:os.system x", "is not read"),
        ("a: !!int x", "1:4: a: `x` is not read as int"),
        ("a: !!int ''", "is not read as int"),
        ("a: !!bool x", "is not read as bool"),
        ("a: 99999999999999999999", "is not read as int: more than 64 bits"),
        (f"a: {'9' * 5000}", "1:4: a: a number of more than 100 digits"),
        (f"a: {'1:' * 5000}1", "1:4: a: a number of more than 100 digits"),
        ('a: "\\ud800"', "half a surrogate pair"),
        ('a: "\\0"', "a NUL"),
        ('a: 1\nb: "\\U99999999"', "2: not valid YAML"),
        ("a: 1\nb: \x00", "2: not valid YAML: character 0 is not allowed"),
        (b"a: 1\nb: caf\xe9", "2: cannot be read: byte 0xe9 is not UTF-8 text; save it as UTF-8"),
        (b"\xff\xfea\x00:\x00", "1: cannot be read: byte 0xff is not UTF-8"),
        ("a: *b", "1:4: not valid YAML: found undefined alias"),
        ("a: 1\n--- 2", "2:1: not valid YAML"),
        ("1: a\n'1': b", "2:1: 1: written twice; keep one"),
        (f"a: {'[' * 3000}", "nested more than 50 deep"),
        (f"a: [{'1,' * 100_000}]", "more than 10000 values"),
        ("#" * 1_000_001, "larger than 1000000 bytes"),
    ],
)
def test_what_plain_values_are_not_is_refused_with_its_line(read, text, message):
    problems = read(text)
    assert any(message in problem for problem in problems), problems


def test_what_a_file_may_hold_beside_plain_text_is_read(read):
    assert read(b"\xef\xbb\xbfa: 1\n2: {b: 0x10}") == {"a": 1, 2: {"b": 16}}
    assert read("a: &x [1]\nb: *x") == {"a": [1], "b": [1]}
    assert read('a: "2024-01-01"', "b=2024-01-02") == {"a": "2024-01-01", "b": "2024-01-02"}


def test_an_override_of_an_alias_changes_no_other_place(read):
    assert read("a: &x {y: 1}\nb: *x", "b.y=2") == {"a": {"y": 1}, "b": {"y": 2}}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("1.5E+3", 1500.0),
        (".5e1", 5.0),
        ("1e-4x", "1e-4x"),
        ("", None),
        ("null", None),
        ("off", False),
        ("[1, a, {b: 1e2}]", [1, "a", {"b": 100.0}]),
        ("a # comment", "a"),
        ("'1'", "1"),
        ("12:30", 750),
    ],
)
def test_an_override_reads_its_value_as_yaml_and_powers_of_ten_as_numbers(read, text, value):
    assert read("a: 1", f"a={text}") == {"a": value}


def test_an_override_makes_the_blocks_on_its_way_and_counts_items_in_brackets_too(read):
    text = "a: [{b: 1}]\nc: 3\n"
    assert read(text, "a[0].b=2", "c.d.e=4", "f.g=5") == {
        "a": [{"b": 2}],
        "c": {"d": {"e": 4}},
        "f": {"g": 5},
    }


@pytest.mark.parametrize(
    "override", ["a..b=1", ".a=1", "a.=1", "a={b: 1, b: 2}", "a=1: 2", "a=!!binary eA==", "a=[1"]
)
def test_an_override_that_is_no_yaml_or_names_no_key_is_refused(read, override):
    (problem,) = read("a: 1", override)
    assert problem.startswith("--set a") or problem.startswith("--set .a")
    assert "does not fit the recipe" in problem


def test_thousands_of_mistakes_are_shown_in_part():
    with pytest.raises(RecipeProblems, match=r"and 900 more$") as caught:
        parse_yaml("".join(f"{number}.5: 1\n" for number in range(1000)), "r")
    assert len(caught.value.problems) == 1000


@pytest.mark.parametrize(
    "clip",
    [
        "{model: {embed_dim: 8, vision_cfg: {timm_model_name: 'hf-hub:evil/x'}}, pretrained: false}",
        "{model: {embed_dim: 8, vision_cfg: {timm_model_name: 'local-dir:/etc'}}, pretrained: false}",
        "{model: {embed_dim: 99999999999, vision_cfg: {}}, pretrained: false}",
        "{model: {embed_dim: 16, vision_cfg: {width: -1}}, pretrained: false}",
    ],
)
def test_an_architecture_that_names_a_hub_or_a_folder_or_absurd_sizes_is_refused_by_check(tmp_path, clip):
    from geobind.recipe import load_recipe

    (tmp_path / "r.yaml").write_text(f"name: r\nmodalities:\n  satellite: {{clip: {clip}}}\nstages: []\n")
    with pytest.raises(RecipeProblems, match=r"r\.yaml:3:\d+: modalities\.satellite\.clip"):
        load_recipe(tmp_path / "r.yaml")
