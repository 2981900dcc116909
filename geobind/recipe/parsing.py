"""YAML with line numbers, `--set` overrides, and messages of validation errors."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel, ValidationError

from geobind.errors import RecipeError, did_you_mean

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails


KeyPath = tuple[str | int, ...]
_MAX_BYTES = 1_000_000
_MAX_NODES = 100_000  # a few aliases of aliases can stand for billions of values


class Problem(NamedTuple):
    """One mistake in a recipe: where it is, and what to do about it."""

    where: str  # "recipe.yaml:12:5" or "--set stages.0.lr"
    path: str  # "stages.0.epocs"
    message: str

    def __str__(self) -> str:
        return f"{self.where}: {self.path}: {self.message}" if self.path else f"{self.where}: {self.message}"


class ParsedYaml(NamedTuple):
    """The plain values of a YAML file, and the position of each."""

    values: dict[str, Any]
    marks: Mapping[KeyPath, str]  # path of a value -> "file:line:column" or "--set path"
    file: str

    def problem(self, path: KeyPath, message: str) -> Problem:
        """Return a problem at a key path, or at the nearest enclosing one that was written."""
        for length in range(len(path), -1, -1):
            if path[:length] in self.marks:
                return Problem(self.marks[path[:length]], ".".join(map(str, path)), message)
        return Problem(self.file, ".".join(map(str, path)), message)


class RecipeProblems(RecipeError):
    """A recipe with mistakes, all of them."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(sorted(problems, key=_position))
        super().__init__("\n".join(map(str, self.problems)))


def _position(problem: Problem) -> tuple[int, ...]:
    numbers = problem.where.rsplit(":", 2)[1:]
    return tuple(int(number) for number in numbers if number.isdecimal())


def read_recipe_file(file: Path, overrides: Iterable[str] = ()) -> ParsedYaml:
    """Read a recipe file and apply `a.b=c` overrides to it.

    Raises:
        RecipeError: The file is missing or no YAML mapping, or an override does not fit.
    """
    values, marks = parse_yaml(_text(file), str(file))
    config = _configured(values, str(file))
    for override in overrides:
        path = _override(config, override)
        marks[path] = f"--set {'.'.join(map(str, path))}"
    return ParsedYaml(_resolved(config, str(file)), marks, str(file))


def parse_yaml(text: str, file: str) -> tuple[dict[str, Any], dict[KeyPath, str]]:
    """Parse YAML into plain values and their positions; refuse repeated keys and alias bombs."""
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{file}:{mark.line + 1}:{mark.column + 1}" if mark else file
        raise RecipeProblems(
            [Problem(where, "", f"not valid YAML: {error.problem or error.context}")]
        ) from None
    except (yaml.YAMLError, RecursionError) as error:
        raise RecipeProblems([Problem(file, "", f"not valid YAML: {error}")]) from None
    if not isinstance(node, yaml.MappingNode):
        raise RecipeProblems(
            [Problem(f"{file}:1:1", "", "a recipe is a YAML mapping that starts with `name:`")]
        )
    marks: dict[KeyPath, str] = {}
    problems: list[Problem] = []
    _mark(node, (), file, marks, problems)
    if problems:
        raise RecipeProblems(problems)
    try:
        values = yaml.SafeLoader("").construct_document(node)  # type: ignore[no-untyped-call]
    except (yaml.YAMLError, ValueError, TypeError) as error:
        raise RecipeProblems([Problem(file, "", f"not valid YAML: {error}")]) from None
    return values, marks


def _mark(
    node: yaml.Node, path: KeyPath, file: str, marks: dict[KeyPath, str], problems: list[Problem]
) -> None:
    where = f"{file}:{node.start_mark.line + 1}:{node.start_mark.column + 1}"
    marks.setdefault(path, where)
    if len(marks) > _MAX_NODES or len(path) > 50:
        raise RecipeProblems(
            [Problem(where, "", f"more than {_MAX_NODES} values, or nested more than 50 deep")]
        )
    if isinstance(node, yaml.SequenceNode):
        for index, child in enumerate(node.value):
            _mark(child, (*path, index), file, marks, problems)
    elif isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key_node, child in node.value:
            key = str(key_node.value)
            place = f"{file}:{key_node.start_mark.line + 1}:{key_node.start_mark.column + 1}"
            if key == "<<":
                problems.append(
                    Problem(place, "", "merge keys (<<) are not read; write an alias (*name) instead")
                )
            if key in seen:
                problems.append(Problem(place, ".".join(map(str, (*path, key))), "written twice; keep one"))
            seen.add(key)
            marks[(*path, key)] = place  # a mapping's mistakes are shown at its key
            _mark(child, (*path, key), file, marks, problems)


def _text(file: Path) -> str:
    try:
        if file.stat().st_size > _MAX_BYTES:
            raise RecipeProblems([Problem(str(file), "", f"larger than {_MAX_BYTES} bytes: not a recipe")])
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise RecipeProblems([Problem(str(file), "", f"cannot be read: {reason}")]) from None


def _configured(values: dict[str, Any], file: str) -> Any:
    # OmegaConf's resolvers read environment variables, which would be saved with the recipe: keys alone.
    for path, text in iterate_strings(values, ()):
        if "${" in text and ":" in text.split("${", 1)[1].split("}", 1)[0]:
            raise RecipeProblems(
                [Problem(file, ".".join(map(str, path)), "${...} may name another key only")]
            )
    return OmegaConf.create(values)


def iterate_strings(value: object, path: KeyPath) -> Iterable[tuple[KeyPath, str]]:
    """Yield every string among plain values, with its key path."""
    if isinstance(value, str):
        yield path, value
    elif isinstance(value, dict):
        for key, child in value.items():
            yield from iterate_strings(child, (*path, str(key)))
    elif isinstance(value, list):
        for index, child in enumerate(value):
            yield from iterate_strings(child, (*path, index))


def _override(config: Any, override: str) -> KeyPath:
    dotted, equals, text = override.partition("=")
    if not equals or not dotted.strip():
        raise RecipeProblems([Problem(f"--set {override}", "", "write it as --set stages.0.batch_size=64")])
    if "${" in text:
        raise RecipeProblems(
            [Problem(f"--set {override}", "", "interpolation is not read here; write the value")]
        )
    try:
        # OmegaConf reads 1e-4 as a number; YAML 1.1 reads it as a string.
        value = OmegaConf.create(f"value: {text}").value if text.strip() else None
        path = tuple(_step(config, dotted.split(".")))
        OmegaConf.update(config, ".".join(map(str, path)), value, merge=False, force_add=True)
    except (
        OmegaConfBaseException,
        yaml.YAMLError,
        ValueError,
        TypeError,
        AssertionError,
        IndexError,
    ) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise RecipeProblems([Problem(f"--set {dotted}", "", f"does not fit the recipe: {reason}")]) from None
    return path


def _step(config: Any, words: list[str]) -> Iterable[str | int]:
    """Yield the steps of an override's key path; a stage is given by number or name."""
    node = OmegaConf.to_container(config)
    for word in words:
        if isinstance(node, list):
            names = [item.get("name") if isinstance(item, dict) else None for item in node]
            if not word.isdecimal() and word not in names:
                raise ValueError(f"no item {word!r} in a list of {len(node)}")
            index = int(word) if word.isdecimal() else names.index(word)
            if index >= len(node):
                raise ValueError(f"no item {index} in a list of {len(node)}")
            node = node[index]
            yield index
        else:
            node = node.get(word) if isinstance(node, dict) else None
            yield word


def _resolved(config: Any, file: str) -> dict[str, Any]:
    try:
        return OmegaConf.to_container(config, resolve=True)  # type: ignore[return-value]
    except OmegaConfBaseException as error:
        raise RecipeProblems(
            [Problem(file, "", f"interpolation failed: {str(error).splitlines()[0]}")]
        ) from None


def dump_yaml(values: dict[str, Any]) -> str:
    """Write plain values as YAML that `parse_yaml` reads back."""
    stream = io.StringIO()
    yaml.safe_dump(values, stream, sort_keys=False, allow_unicode=True)
    return stream.getvalue()


def explain_field_errors(
    written: ParsedYaml, error: ValidationError, prefix: KeyPath, model: type[BaseModel]
) -> Iterator[Problem]:
    """Yield a problem for each error of pydantic, at its position in the file."""
    for item in error.errors(include_url=False, include_context=True):
        path = to_key_path(written.values, (*prefix, *item["loc"]))
        message = item["msg"].removeprefix("Value error, ")
        if item["type"] == "extra_forbidden":
            near = did_you_mean(str(item["loc"][-1]), _fields(model, item["loc"][:-1]))
            message = "unknown key" + (f"; {near}" if near else "")
        elif item["type"] == "missing":
            message = "missing; it must be given"
        elif item["type"] == "union_tag_not_found":
            path = (*path, _tag_key(item))
            message = "missing; it must be given"
        elif item["type"] == "union_tag_invalid":
            path = (*path, _tag_key(item))
            message = _unknown_tag(item)
        elif item["type"] in ("model_type", "model_attributes_type"):
            message = f"must be a block of keys (got {item['input']!r})"
        elif isinstance(item["input"], str | int | float | bool | None):
            message += f" (got {item['input']!r})"
        yield written.problem(path, message)


def _tag_key(item: ErrorDetails) -> str:
    """Return the key that chooses one of several kinds of block."""
    return item.get("ctx", {})["discriminator"].strip("'")


# Losses of earlier versions: the variances of PCME++ were functions of the embeddings alone.
_REMOVED = {"pcme": "the loss 'pcme' was removed; choose infonce or siglip"}


def _unknown_tag(item: ErrorDetails) -> str:
    context = item.get("ctx", {})
    known, given = re.findall(r"'([^']*)'", context["expected_tags"]), context["tag"]
    near = _REMOVED.get(given) or did_you_mean(given, known)
    return f"Input should be one of {', '.join(known)} (got '{given}')" + (f"; {near}" if near else "")


def to_key_path(values: Any, loc: KeyPath) -> KeyPath:
    """Return pydantic's location without the names of union members.

    The last word stays even when it is absent, as it is the missing key.
    """
    path: list[str | int] = []
    node: Any = values
    for position, word in enumerate(loc):
        inside = (isinstance(node, dict) and word in node) or (
            isinstance(node, list) and isinstance(word, int) and word < len(node)
        )
        if inside:
            node = cast(Any, node)[word]
            path.append(word)
        elif (
            position == len(loc) - 1
            and isinstance(node, dict)
            and isinstance(word, str)
            and word.isidentifier()
        ):
            path.append(word)
    return tuple(path)


def _fields(model: Any, loc: KeyPath) -> list[str]:
    """Return the keys allowed in the block at a location, as far as the models define them."""
    schema = model.model_json_schema()
    definitions = schema.get("$defs", {})
    nodes = [schema]
    for word in loc:
        nodes = [child for node in nodes for child in _children(node, word, definitions)] or nodes
    return [key for node in nodes for key in _expanded_properties(node, definitions)]


def _expand(node: dict[str, Any], definitions: dict[str, Any]) -> list[dict[str, Any]]:
    if "$ref" in node:
        return _expand(definitions[node["$ref"].rsplit("/", 1)[-1]], definitions)
    members = [m for key in ("anyOf", "oneOf", "allOf") for m in node.get(key, [])]
    return [node, *(found for member in members for found in _expand(member, definitions))]


def _children(node: dict[str, Any], word: str | int, definitions: dict[str, Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for option in _expand(node, definitions):
        if isinstance(word, int):
            found += [option["items"]] if isinstance(option.get("items"), dict) else []
        else:
            child = option.get("properties", {}).get(word, option.get("additionalProperties"))
            found += [child] if isinstance(child, dict) else []
    return found


def _expanded_properties(node: dict[str, Any], definitions: dict[str, Any]) -> list[str]:
    return [key for option in _expand(node, definitions) for key in option.get("properties", {})]
