"""YAML with line numbers, `--set` overrides, `${key}` interpolation, and messages of validation errors."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn, cast

import yaml
from pydantic import BaseModel, ValidationError
from yaml.composer import ComposerError

from geobind.errors import RecipeError, did_you_mean
from geobind.utils.formatting import shorten

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails


KeyPath = tuple[str | int, ...]
# Limits of one file, far above any real recipe's: a few letters of YAML can stand for billions of values.
_MAX_BYTES = 1_000_000  # also of the texts that interpolation makes
_MAX_VALUES = 10_000
_MAX_DEPTH = 50
_MAX_INTERPOLATIONS = 1000
_MAX_DIGITS = 100


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
                return Problem(self.marks[path[:length]], _dotted(path), message)
        return Problem(self.file, _dotted(path), message)


_SHOWN = 100  # problems, in a message


class RecipeProblems(RecipeError):
    """A recipe with mistakes, all of them."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(sorted(problems, key=_position))
        more = [f"and {len(self.problems) - _SHOWN} more"] if len(self.problems) > _SHOWN else []
        super().__init__("\n".join([*map(str, self.problems[:_SHOWN]), *more]))


def _position(problem: Problem) -> tuple[int, ...]:
    numbers = problem.where.rsplit(":", 2)[1:]
    return tuple(int(number) for number in numbers if number.isdecimal())


def _dotted(path: KeyPath) -> str:
    return ".".join(map(str, path))


def read_recipe_file(file: Path, overrides: Iterable[str] = ()) -> ParsedYaml:
    """Read a recipe file, apply `a.b=c` overrides to it, then interpolate.

    Raises:
        RecipeProblems: The file is missing or no YAML mapping, or an override does not fit.
    """
    return read_recipe_text(read_yaml_text(file), str(file), overrides)


def read_recipe_text(text: str, source: str, overrides: Iterable[str] = ()) -> ParsedYaml:
    """Parse the text of a recipe, apply `a.b=c` overrides to it, then interpolate.

    Raises:
        RecipeProblems: It is no YAML mapping, or an override does not fit.
    """
    values, marks = parse_yaml(text, source)
    written = ParsedYaml(values, marks, source)
    _check_references(written)
    for override in overrides:
        path = _override(values, override)
        marks[path] = f"--set {_dotted(path)}"
    return written._replace(values=_Interpolation(written).resolve())


def read_yaml_text(file: Path) -> str:
    """Read the text of a recipe or of a file like it.

    Raises:
        RecipeProblems: It cannot be read, is no UTF-8, or is too large.
    """
    try:
        with file.open("rb") as stream:  # one byte more than is read of a good file: sizes can lie
            content = stream.read(_MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise RecipeProblems([Problem(str(file), "", f"cannot be read: {reason}")]) from None
    if len(content) > _MAX_BYTES:
        raise RecipeProblems([Problem(str(file), "", f"larger than {_MAX_BYTES} bytes: not a recipe")])
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        message = f"cannot be read: byte 0x{content[error.start]:02x} is not UTF-8 text; save it as UTF-8"
        raise RecipeProblems([Problem(f"{file}:{line}", "", message)]) from None


class _Composer(yaml.SafeLoader):
    """Composes the nodes of a document, up to a number and a depth that no recipe reaches."""

    composed = depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Compose one node."""
        self.composed, self.depth = self.composed + 1, self.depth + 1
        if self.composed > _MAX_VALUES or self.depth > _MAX_DEPTH:
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise ComposerError(None, None, _TOO_MANY, mark)
        try:
            return super().compose_node(parent, index)
        finally:
            self.depth -= 1


_TOO_MANY = f"more than {_MAX_VALUES} values, or nested more than {_MAX_DEPTH} deep"


class _OverrideComposer(_Composer):
    """Reads 1e-4 as a number, and a date as text, as people write them after `--set`."""


_TIMESTAMP, _FLOAT = "tag:yaml.org,2002:timestamp", "tag:yaml.org,2002:float"
_OverrideComposer.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != _TIMESTAMP]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_OverrideComposer.add_implicit_resolver(
    _FLOAT,
    re.compile(r"[-+]?(?:[0-9][0-9_]*(?:\.[0-9_]*)?|\.[0-9][0-9_]*)[eE][-+]?[0-9]+$"),
    list("-+0123456789."),
)


def parse_yaml(
    text: str, file: str, composer: type[_Composer] = _Composer
) -> tuple[dict[str, Any], dict[KeyPath, str]]:
    """Parse YAML into plain values and their positions.

    Plain values are texts, numbers, booleans, null, lists, and mappings whose keys are texts or integers.

    Raises:
        RecipeProblems: It is anything else: YAML with other types, repeated keys, merge keys, alias bombs.
    """
    loader: Any = None
    try:
        loader = composer(text)
        node = loader.get_single_node()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{file}:{mark.line + 1}:{mark.column + 1}" if mark else file
        _refuse(where, "", f"not valid YAML: {error.problem or error.context}")
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        _refuse(
            f"{file}:{line}",
            "",
            f"not valid YAML: character {error.character!r} is not allowed: {error.reason}",
        )
    except (yaml.YAMLError, ValueError, OverflowError, RecursionError) as error:  # a \U beyond Unicode
        _refuse(f"{file}:{loader.line + 1}" if loader else file, "", f"not valid YAML: {_first_line(error)}")
    if not isinstance(node, yaml.MappingNode):
        _refuse(f"{file}:1:1", "", "a recipe is a YAML mapping that starts with `name:`")
    builder = _Builder(file)
    values = builder.build(node, ())
    if builder.problems:
        raise RecipeProblems(builder.problems)
    return values, builder.marks


def _refuse(where: str, path: str, message: str) -> NoReturn:
    raise RecipeProblems([Problem(where, path, message)]) from None


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


_NAMES = {"bool": "yes or no", "null": "nothing", "float": "a number", "timestamp": "a date"}


class _Builder:
    """Builds plain values from nodes, aliases as copies, with the position of each."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.marks: dict[KeyPath, str] = {}
        self.problems: list[Problem] = []
        self.scalars = yaml.constructor.SafeConstructor()

    def build(self, node: yaml.Node, path: KeyPath) -> Any:
        """Return the value of a node."""
        where, kind = self.place(node), _kind(node)
        self.marks.setdefault(path, where)
        if len(self.marks) > _MAX_VALUES or len(path) > _MAX_DEPTH:
            _refuse(where, "", _TOO_MANY)
        if isinstance(node, yaml.SequenceNode) and kind == "seq":
            return [self.build(child, (*path, index)) for index, child in enumerate(node.value)]
        if isinstance(node, yaml.MappingNode) and kind == "map":
            return self.build_mapping(node, path)
        if isinstance(node, yaml.ScalarNode):
            return self.build_scalar(node, path)
        self.complain(
            node,
            path,
            f"not valid YAML here: the type {node.tag[:100]} is not read; write a plain list or mapping",
        )
        return None

    def build_mapping(self, node: yaml.MappingNode, path: KeyPath) -> dict[str | int, Any]:
        """Return the mapping of a node, without the keys that are none."""
        values: dict[str | int, Any] = {}
        seen: set[str] = set()
        for key_node, child in node.value:
            kind = _kind(key_node)
            if kind == "merge":
                self.complain(key_node, (), "merge keys (<<) are not read; write an alias (*name) instead")
                continue
            if not isinstance(key_node, yaml.ScalarNode) or kind not in ("str", "int"):
                what = _NAMES.get(kind, "no plain text")
                self.complain(key_node, path, f"the key `{_shown(key_node)}` is {what} in YAML; quote it")
                continue
            key = self.build_scalar(key_node, path)
            if str(key) in seen:
                self.complain(key_node, (*path, key), "written twice; keep one")
            elif key is not None:
                self.marks[(*path, key)] = self.place(key_node)  # a mapping's mistakes are shown at its key
                values[key] = self.build(child, (*path, key))
            seen.add(str(key))
        return values

    def build_scalar(self, node: yaml.ScalarNode, path: KeyPath) -> Any:
        """Return the value of a scalar, None of a faulty one."""
        kind = _kind(node)
        if kind == "timestamp":
            self.complain(node, path, f"{_shown(node)} is a date in YAML; quote it: '{_shown(node)}'")
        elif kind not in ("str", "int", "float", "bool", "null"):
            self.complain(
                node,
                path,
                f"not valid YAML here: the type {node.tag[:100]} is not read; write plain text or a number",
            )
        elif kind in ("int", "float") and len(node.value) > _MAX_DIGITS:
            self.complain(node, path, f"a number of more than {_MAX_DIGITS} digits")
        else:
            try:
                value = self.scalars.construct_object(node)  # type: ignore[no-untyped-call]
                _check_scalar(value)
            except (ValueError, OverflowError, LookupError, yaml.YAMLError) as error:
                self.complain(node, path, f"`{_shown(node)}` is not read as {kind}: {_first_line(error)}")
            else:
                return value
        return None

    def place(self, node: yaml.Node) -> str:
        """Return the position of a node."""
        return f"{self.file}:{node.start_mark.line + 1}:{node.start_mark.column + 1}"

    def complain(self, node: yaml.Node, path: KeyPath, message: str) -> None:
        """Remember a problem at a node."""
        self.problems.append(Problem(self.place(node), _dotted(path), message))


def _kind(node: yaml.Node) -> str:
    return str(node.tag).removeprefix("tag:yaml.org,2002:")


def _shown(node: yaml.Node) -> str:
    value = node.value if isinstance(node, yaml.ScalarNode) else "[...]"
    return ascii(value)[1:-1][:40]


def _check_scalar(value: object) -> None:
    """Refuse what is no value anywhere: numbers of more than 64 bits, letters that no file holds."""
    if isinstance(value, int) and not -(2**63) <= value < 2**64:
        raise ValueError("more than 64 bits")
    if isinstance(value, str) and any(letter == "\0" or "\ud800" <= letter <= "\udfff" for letter in value):
        raise ValueError("a NUL or half a surrogate pair is no letter")


def iterate_strings(value: object, path: KeyPath) -> Iterable[tuple[KeyPath, str]]:
    """Yield every string among plain values, with its key path."""
    if isinstance(value, str):
        yield path, value
    elif isinstance(value, dict):
        for key, child in value.items():
            yield from iterate_strings(child, (*path, key))
    elif isinstance(value, list):
        for index, child in enumerate(value):
            yield from iterate_strings(child, (*path, index))


_REFERENCE = re.compile(r"\$\{([\w-]+(?:\.[\w-]+)*)\}")
_ONLY_KEYS = "${...} may name another key only, such as ${width}"


def _check_references(written: ParsedYaml) -> None:
    """Refuse every `${` that is more than the name of a key: nested, escaped, a call, the environment."""
    found = iterate_strings(written.values, ())
    faulty = [path for path, text in found if "${" in _REFERENCE.sub("", text) or "\\${" in text]
    if faulty:
        raise RecipeProblems(written.problem(path, _ONLY_KEYS) for path in faulty)


class _Interpolation:
    """Replaces each `${a.b}` by the value of that key, within limits of the number and of the result.

    No interpolating library is used, because a recipe is a stranger's input: nothing but its own keys may be
    read. Every replacement is counted, so that lists that repeat each other end at once.
    """

    def __init__(self, written: ParsedYaml) -> None:
        self.written = written
        self.replaced = self.values = self.letters = 0
        self.at: KeyPath = ()  # the value that is being resolved

    def resolve(self) -> dict[str, Any]:
        """Return the values, every one a copy."""
        return self.copy(self.written.values, (), ())

    def copy(self, value: Any, path: KeyPath | None, chain: tuple[str, ...]) -> Any:
        """Copy a value; `path` is None inside of a replaced one, and `chain` names what is being replaced."""
        if path is not None:
            self.at = path
        self.spend(values=1, letters=len(value) if isinstance(value, str) else 0)
        if isinstance(value, dict):
            return {k: self.copy(v, None if path is None else (*path, k), chain) for k, v in value.items()}
        if isinstance(value, list):
            inner = enumerate(cast("list[Any]", value))
            return [self.copy(v, None if path is None else (*path, n), chain) for n, v in inner]
        if not isinstance(value, str) or "${" not in value:
            return value
        if whole := _REFERENCE.fullmatch(value):
            return self.replacement(whole[1], chain)
        text = _REFERENCE.sub(lambda match: self.text(match[1], chain), value)
        if "${" in text:  # made of several pieces
            self.fail(_ONLY_KEYS)
        return text

    def replacement(self, name: str, chain: tuple[str, ...]) -> Any:
        """Return a copy of the value of a key."""
        return self.copy(self.find(name, chain), None, (*chain, name))

    def text(self, name: str, chain: tuple[str, ...]) -> str:
        """Return the value of a key as a part of a text."""
        value = self.replacement(name, chain)
        if not isinstance(value, str | int | float):
            self.fail(f"${{{name}}} is no text or number, so it cannot be a part of a text")
        return str(value)

    def find(self, name: str, chain: tuple[str, ...]) -> Any:
        """Return the value of a key as it was written."""
        self.replaced += 1
        if name in chain or len(chain) >= _MAX_DEPTH:
            self.fail(f"${{{name}}} leads back to itself, or through more than {_MAX_DEPTH} keys")
        if self.replaced > _MAX_INTERPOLATIONS:
            self.fail(f"interpolates more than {_MAX_INTERPOLATIONS} times")
        node: Any = self.written.values
        for word in name.split("."):
            if isinstance(node, str) and (whole := _REFERENCE.fullmatch(node)):
                node = self.find(whole[1], (*chain, name))
            try:
                node = cast(Any, node)[_find_step(node, word)]
            except (ValueError, LookupError, TypeError):
                self.fail(f"interpolation failed: there is no key '{name}'")
        return node

    def spend(self, *, values: int, letters: int) -> None:
        """Count what has been made, and stop at the limit."""
        self.values, self.letters = self.values + values, self.letters + letters
        if self.values > _MAX_VALUES or self.letters > _MAX_BYTES:
            self.fail(f"interpolates to more than {_MAX_VALUES} values or {_MAX_BYTES} letters")

    def fail(self, message: str) -> NoReturn:
        """Raise a problem at the value that is being resolved."""
        raise RecipeProblems([self.written.problem(self.at, message)])


def _override(values: dict[str, Any], override: str) -> KeyPath:
    """Change plain values in place as `a.b=c` says and return the key path that was changed."""
    dotted, equals, text = override.partition("=")
    if not equals or not dotted.strip():
        _refuse(f"--set {override}", "", "write it as --set stages.0.batch_size=64")
    if "${" in text:
        _refuse(f"--set {override}", "", "interpolation is not read here; write the value")
    try:
        value = parse_yaml(f"value: {text}", "", _OverrideComposer)[0]["value"]
        return tuple(_assign(values, dotted.replace("[", ".").replace("]", "").split("."), value))
    except RecipeProblems as error:
        reason = error.problems[0].message
    except ValueError as error:
        reason = str(error)
    _refuse(f"--set {dotted}", "", f"does not fit the recipe: {reason}")


def _assign(values: dict[str, Any], words: list[str], value: Any) -> Iterator[str | int]:
    """Set a value at the end of some steps, with new mappings where there are none, and yield the steps."""
    node: Any = values
    if "" in words or len(words) > _MAX_DEPTH:
        raise ValueError("a key is named by words with dots between them")
    for number, word in enumerate(words):
        step = _find_step(node, word)
        if number == len(words) - 1:
            node[step] = value
        elif isinstance(node, list) or isinstance(node.get(step), dict | list):
            node = cast(Any, node)[step]
        else:
            node[step] = node = {}
        yield step


def _find_step(node: Any, word: str) -> str | int:
    """Return the index or key that a word of a dotted path names; an item of a list goes by number or name.

    Raises:
        ValueError: The list has no such item.
    """
    if not isinstance(node, list):
        return word
    items = cast("list[Any]", node)
    names = [item.get("name") if isinstance(item, dict) else None for item in items]
    if word.isdecimal() and int(word) < len(items):
        return int(word)
    if word.isdecimal() or word not in names:
        hint = did_you_mean(word, [name for name in names if isinstance(name, str)])
        which = word if word.isdecimal() else repr(word)
        raise ValueError(f"no item {which} in a list of {len(items)}{f'; {hint}' if hint else ''}")
    return names.index(word)


def dump_yaml(values: dict[str, Any]) -> str:
    """Write plain values as YAML that `parse_yaml` reads back."""
    stream = io.StringIO()
    yaml.safe_dump(values, stream, sort_keys=False, allow_unicode=True)
    return stream.getvalue()


def explain_field_errors(
    written: ParsedYaml, error: ValidationError, prefix: KeyPath, model: type[BaseModel]
) -> Iterator[Problem]:
    """Yield a problem for each error of pydantic, at its position in the file."""
    schema: dict[str, Any] = {}  # made once, and only if it is needed: that takes a while
    for item in error.errors(include_url=False, include_context=True):
        path = to_key_path(written.values, (*prefix, *item["loc"]))
        message = item["msg"].removeprefix("Value error, ")
        if item["type"] == "extra_forbidden":
            schema = schema or model.model_json_schema()
            near = did_you_mean(str(item["loc"][-1]), _fields(schema, item["loc"][:-1]))
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
            message = f"must be a block of keys (got {shorten(repr(item['input']), 80)})"
        elif isinstance(item["input"], str | int | float | bool | None):
            message += f" (got {shorten(repr(item['input']), 80)})"
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
    return f"Input should be one of {', '.join(known)} (got '{shorten(given, 80)}')" + (
        f"; {near}" if near else ""
    )


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


def _fields(schema: dict[str, Any], loc: KeyPath) -> list[str]:
    """Return the keys allowed in the block at a location, as far as the schema of a model defines them."""
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
