"""The README of a bundle, written from the same facts as the bundle itself."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

_USE = """```python
from geobind import Binder

binder = Binder.from_pretrained("{name}")   # a folder, or owner/name on the hub
embeddings = binder.embed("{modality}", inputs)   # unit length, (N, {width})
```"""


def model_card(card: Mapping[str, Any]) -> str:
    """Write the model card of a bundle whose `binder.json` holds `card`."""
    return "\n".join(_lines(card)) + "\n"


def _lines(card: Mapping[str, Any]) -> Iterator[str]:
    yield from (
        "---",
        "library_name: geobind",
        "tags: [remote-sensing, multimodal, contrastive-learning]",
        "---",
    )
    yield from (f"# {card['name']}", "")
    names = ", ".join(card["modalities"])
    yield f"A geobind bundle: {names} in one space of {card['width']} dimensions."
    yield from ("", "## Use", "")
    yield _USE.format(name=card["name"], modality=next(iter(card["modalities"]), ""), width=card["width"])
    yield from ("", "## Modalities", "", "| modality | plugin | weights (SHA-256) |", "|---|---|---|")
    for name in card["modalities"]:
        origin = card["plugins"].get(name, {})
        plugin = f"{origin.get('distribution', '?')} {origin.get('version', '')}"
        yield f"| {name} | {plugin} | `{card['digests'].get(name, '')[:16]}` |"
    if card["stages"]:
        yield from ("", "## Training", "")
        yield from (
            "| stage | aligned | with | trained | pairs | steps | loss | temperature |",
            "|---|---|---|---|---|---|---|---|",
        )
        for stage in card["stages"]:
            yield (
                f"| {stage['name']} | {stage['align']} | {stage['anchor']} | {', '.join(stage['train'])} "
                f"| {stage['pairs']} | {stage['steps']} | {stage['loss']:.3f} | {stage['temperature']:.4f} |"
            )
        yield from ("", "Everything a stage did not train was checked to be bit-equal afterwards.")
    yield from _measured(card["metrics"])
    made = card["versions"]
    yield from ("", "## Provenance", "")
    yield f"Made {card['created']} with geobind {made.get('geobind', '?')}, torch {made.get('torch', '?')}."
    if card["recipe"]:
        yield "The recipe that made it is `recipe.yaml`."


def _measured(metrics: Mapping[str, Any]) -> Iterator[str]:
    rows = metrics.get("rows") or []
    if not rows:
        return
    shown = [
        name for name in ("R@1", "R@5", "R@10", "median_rank", "label_mAP") if name in rows[0]["metrics"]
    ]
    yield from ("", "## Retrieval on held-out rows", "", "Chance in brackets.", "")
    yield "| query | gallery | pair | rows | " + " | ".join(shown) + " |"
    yield "|---|---|---|---|" + "---|" * len(shown)
    for row in rows:
        values = (row["metrics"].get(name, {}) for name in shown)
        cells = [f"{v.get('value', float('nan')):.3g} ({v.get('chance', float('nan')):.3g})" for v in values]
        facts = (row["query"], row["gallery"], row["mark"], str(row["gallery_size"]), *cells)
        yield f"| {' | '.join(facts)} |"
