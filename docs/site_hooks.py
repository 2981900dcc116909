"""Bring pages from outside docs/ into the site, and turn links that hold here into links of the site."""

from __future__ import annotations

import json
import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
# Read where they are by who has a clone; the site shows them under project/.
OUTSIDE = ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "plugins/*/README.md", "examples/*/README.md")
OUTSIDE += ("SECURITY.md", "CODE_OF_CONDUCT.md", "examples/notebooks/*.ipynb")
_LINK = re.compile(r"\[([^\[\]]*)\]\((?![a-z]+:|#|/)([^)\s#]+)(#[^)\s]*)?\)")


def _place_of(path: str) -> str:
    """Return where a file of the repository stands in the site."""
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    return "project/" + path.replace("README.md", "index.md").replace(".ipynb", ".md")


def _render_notebook(path: Path) -> str:
    """Return the cells of a notebook as a page."""
    parts: list[str] = []
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        text = "".join(cell["source"])
        parts.append(text if cell["cell_type"] == "markdown" else f"```python\n{text}\n```")
    return "\n\n".join(parts)


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that lie outside docs/."""
    for pattern in OUTSIDE:
        for path in sorted(ROOT.glob(pattern)):
            place = _place_of(path.relative_to(ROOT).as_posix())
            if path.suffix == ".ipynb":
                files.append(File.generated(config, place, content=_render_notebook(path)))
            else:
                files.append(File.generated(config, place, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Turn links that hold in the repository into links that hold in the site."""
    place = page.file.src_uri
    here = posixpath.dirname(place)
    beside = here.removeprefix("project").lstrip("/") if place.startswith("project/") else f"docs/{here}"

    def turn(match: re.Match[str]) -> str:
        text, target, anchor = match.groups()
        path = posixpath.normpath(posixpath.join(beside, target))
        if (ROOT / path / "README.md").is_file():
            path = f"{path}/README.md"
        place = _place_of(path)
        if files.get_file_from_path(place) is not None:
            return f"[{text}]({posixpath.relpath(place, here or '.')}{anchor or ''})"
        # A program or a recipe is no page; what is broken in the repository, too, makes the build fail.
        return text if (ROOT / path).exists() else match.group(0)

    return _LINK.sub(turn, markdown)
