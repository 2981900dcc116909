"""Writing of new packages and recipes: names are checked, nothing that is there is touched."""

from __future__ import annotations

import keyword
import os
import re
from pathlib import Path
from string import Template
from typing import Literal

import geobind
from geobind import plugins
from geobind.data import dataset
from geobind.errors import DataError, did_you_mean
from geobind.utils import files

Kind = Literal["modality", "dataset"]

_TEMPLATES = Path(__file__).parent / "templates"
_SUFFIX = ".tmpl"  # so that no tool takes a template for Python or a package of its own
_NAME = re.compile(r"[a-z][a-z0-9_]*")
_MAX_NAME = 40


def write_package(kind: Kind, name: str, into: Path, *, numbers: bool = False) -> Path:
    """Write a package that provides a modality or a dataset: a folder that installs, is tested and runs.

    Args:
        kind: What it provides.
        name: Its word in recipes. The distribution is called `geobind-KIND-NAME`.
        into: The folder to write it in.
        numbers: Of a modality: rows of numbers, such as columns of a table, in place of grids.

    Returns:
        The new folder.

    Raises:
        DataError: The name cannot be one or is taken, the folder is there already, or cannot be written.
    """
    _check_name(kind, name)
    target = into / f"geobind-{kind}-{name.replace('_', '-')}"
    values = {
        "kind": kind,
        "library": {"modality": "torch", "dataset": "pyarrow"}[kind],
        "name": name,
        "distribution": target.name,
        "module": f"geobind_{kind}_{name}",
        "cls": "".join(word.capitalize() for word in name.split("_")),
        "words": name.replace("_", " "),
        "version": geobind.__version__,
    }
    templates = {  # what every package has, and what those of its kind have
        template.relative_to(folder).as_posix().removesuffix(_SUFFIX): template
        for folder in (_TEMPLATES / "package", _TEMPLATES / ("numbers" if numbers else kind))
        for template in folder.rglob(f"*{_SUFFIX}")
    }
    _refuse_existing(target)
    try:
        with files.create_folder(target) as temporary:
            for relative, template in templates.items():
                file = temporary / Template(relative.replace("MODULE", "$module")).substitute(values)
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(Template(template.read_text("utf-8")).substitute(values), "utf-8")
    except OSError as error:
        raise DataError(f"{target}: cannot be written: {error.strerror or error}") from error
    return target


def list_recipe_templates() -> dict[str, str]:
    """Return the templates of recipes by name, each with its first line."""
    files = sorted((_TEMPLATES / "recipes").glob(f"*.yaml{_SUFFIX}"))
    return {
        file.name.removesuffix(f".yaml{_SUFFIX}"): file.read_text("utf-8").splitlines()[0].lstrip("# ")
        for file in files
    }


def write_recipe(template: str, file: Path) -> None:
    """Write a recipe from a template.

    Raises:
        DataError: There is no such template, the file is there already, or cannot be written.
    """
    known = list_recipe_templates()
    if template not in known:
        hint = did_you_mean(template, known, f"there are {', '.join(known)}")
        raise DataError(f"no template '{template}' of a recipe; {hint}")
    if file.suffix not in (".yaml", ".yml"):
        raise DataError(f"{file}: must end in .yaml")
    text = (_TEMPLATES / "recipes" / f"{template}.yaml{_SUFFIX}").read_text("utf-8")
    _refuse_existing(file)
    try:
        with file.open("x", encoding="utf-8") as stream:
            stream.write(text.replace("FILE.yaml", file.name))
    except OSError as error:
        raise DataError(f"{file}: cannot be written: {error.strerror or error}") from error


def _refuse_existing(path: Path) -> None:
    if os.path.lexists(path):
        raise DataError(f"{path}: is there already and is left as it is; choose another name or place")


def _check_name(kind: Kind, name: str) -> None:
    """Check the word of a new modality or dataset.

    Raises:
        DataError: It cannot be such a word, or something has it already.
    """
    if not _NAME.fullmatch(name) or keyword.iskeyword(name) or len(name) > _MAX_NAME:
        raise DataError(
            f"'{name}' cannot be the name of a {kind}: lower-case letters, digits and underscores, a letter "
            f"first, at most {_MAX_NAME}, such as soil_moisture"
        )
    registry = plugins.registry() if kind == "modality" else dataset.registry()
    reserved = plugins.RESERVED if kind == "modality" else dataset.RESERVED
    if name in reserved:
        raise DataError(f"'{name}' is taken: it is a word of tables and recipes; choose another, my_{name}")
    if name in registry.plugins:
        source = registry.plugins[name].source
        raise DataError(f"'{name}' is taken: {source} provides it; choose another, such as my_{name}")
