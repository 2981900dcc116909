"""The model card of a bundle, its README, rendered from `binder.json`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from geobind.data.dataset import registry
from geobind.errors import CheckpointError
from geobind.licences import UNSTATED, EffectiveLicence, combine_licences, is_looser, parse_licence
from geobind.utils.formatting import shorten

_USE = """```python
from geobind import Binder

binder = Binder.from_pretrained("{name}")   # a folder, or owner/name on the hub
embeddings = binder.embed("{modality}", inputs)   # unit length, (N, {width})
```"""
_SHOWN = ("R@1", "R@5", "R@10", "median_rank", "label_mAP")
_HUB = ("cc0-1.0", "mit", "apache-2.0", "bsd-3-clause")  # identifiers that the hub knows, beside CC BY


def render_model_card(card: Mapping[str, Any]) -> str:
    """Return the model card, in Markdown, of a bundle whose `binder.json` holds `card`.

    Raises:
        CheckpointError: A fact of the card is missing or of another type than geobind writes.
    """
    try:
        return "\n".join(_lines(card)) + "\n"
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise CheckpointError(f"no model card can be made of this binder.json ({reason})") from error


def list_licence_parts(card: Mapping[str, Any]) -> dict[str, str]:
    """Return the licence of each part of the weights: rows trained on, weights started from."""
    parts: dict[str, str] = {}
    for used in card.get("data", []):
        if used["used_for"] == "training":
            where = f"{used['source']}, split {used['split']}"
            for licence, rows in (used["licences"] or {UNSTATED: used["rows"]}).items():
                parts[f"{where}: {licence} ({rows:,} rows)"] = licence
    stated = (card.get("author") or {}).get("weights", {})
    pretrained = find_pretrained(card)
    for name in dict.fromkeys((*pretrained, *stated)):
        started = f", {pretrained[name]}" if name in pretrained else ""
        parts[f"{name}'s pretrained weights{started}"] = stated.get(name, UNSTATED)
    return parts


def find_pretrained(card: Mapping[str, Any]) -> dict[str, str]:
    """Return the pretrained weights of each modality, as its options name them under `pretrained`."""
    by_name = {name: "; ".join(_started(options)) for name, options in card["modalities"].items()}
    return {name: started for name, started in by_name.items() if started}


def _started(options: Any) -> Iterator[str]:
    if not isinstance(options, Mapping):
        return
    for key, value in options.items():
        if key == "pretrained" and value:
            model = options.get("model")
            words = [part for part in (model, value) if isinstance(part, str)]
            yield " ".join(words) or "as its plugin says"
        else:
            yield from _started(value)


def _lines(card: Mapping[str, Any]) -> Iterator[str]:
    author = card.get("author") or {}
    yield from ("---", "library_name: geobind")
    yield "tags: [remote-sensing, multimodal, contrastive-learning]"
    yield from _front_licence(author.get("licence"))
    yield "---"
    yield from (f"# {_cell(card['name'])}", "")
    names = _join(card["modalities"])
    yield f"A geobind bundle: {names} in one space of {card['width']} dimensions."
    if card.get("over"):
        yield f"It holds only what it changes of the bundle `{_code(card['over']['name'])}`, which it needs."
    yield from ("", "## Use", "")
    yield _USE.format(
        name=_code(card["name"]), modality=_code(next(iter(card["modalities"]), "")), width=card["width"]
    )
    yield from _intended(card, author)
    yield from _modalities(card)
    yield from _training(card)
    yield from _data(card)
    yield from _licence(card, author)
    yield from _measured(card["metrics"])
    yield from _calibrated(card)
    made = card["versions"]
    yield from ("", "## Provenance", "")
    versions = f"geobind {_cell(made.get('geobind', '?'))}, torch {_cell(made.get('torch', '?'))}"
    yield f"Made {_cell(card['created'])} with {versions}."
    if card["recipe"]:
        yield "The recipe that made it is `recipe.yaml`."


def _front_licence(licence: str | None) -> Iterator[str]:
    """Yield the licence field that the hub reads; `other` for licences it does not know."""
    if licence:
        name = parse_licence(licence).name.lower()
        known = name in _HUB or re.fullmatch(r"cc-by[a-z0-9.-]*", name)
        yield f"license: {name if known else 'other'}"


def _intended(card: Mapping[str, Any], author: Mapping[str, Any]) -> Iterator[str]:
    yield from ("", "## Intended use", "")
    yield _cell(author.get("use") or "") or (
        f"To find and compare observations of places across {_join(card['modalities'])}: retrieval, "
        "zero-shot classification, features for other models."
    )
    yield from ("", "Out of scope:", "")
    if author.get("not_for"):
        yield f"- {_cell(author['not_for'])}"
    yield "- Decisions about people or their property without a person who checks them."
    yield "- To locate or watch individuals."
    yield "- Places, seasons and sensors unlike those it was trained on, unless it was measured there first."
    installed = registry().plugins
    for source in dict.fromkeys(used["source"] for used in card.get("data", [])):
        if source in installed and installed[source].cls.caution:
            yield f"- {installed[source].cls.caution}"


def _modalities(card: Mapping[str, Any]) -> Iterator[str]:
    yield from ("", "## Modalities", "")
    yield from ("| modality | plugin | started from | weights (SHA-256) |", "|---|---|---|---|")
    started = find_pretrained(card)
    for name in card["modalities"]:
        origin = card["plugins"].get(name, {})
        plugin = f"{_cell(origin.get('distribution', '?'))} {_cell(origin.get('version', ''))}"
        origin_of_weights = _cell(started.get(name, "random weights"))
        digest = _code(card["digests"].get(name, "")[:16])
        yield f"| {_cell(name)} | {plugin} | {origin_of_weights} | `{digest}` |"


def _training(card: Mapping[str, Any]) -> Iterator[str]:
    if not card["stages"]:
        return
    yield from ("", "## Training", "")
    yield from (
        "| stage | aligned | with | trained | pairs | steps | loss | temperature |",
        "|---|---|---|---|---|---|---|---|",
    )
    for stage in card["stages"]:
        aligned = _join([stage["align"]] if isinstance(stage["align"], str) else stage["align"])
        yield (
            f"| {_cell(stage['name'])} | {aligned} | {_cell(stage['anchor'])} | {_join(stage['train'])} "
            f"| {_cell(stage['pairs'])} | {_cell(stage['steps'])} | {stage['loss']:.3f} "
            f"| {_cell(_temperatures(stage))} |"
        )
    yield from ("", "Everything a stage did not train was checked to be bit-equal afterwards.")
    yield from (_watched(stage) for stage in card["stages"] if stage.get("watched"))
    yield from _proven(card.get("proof") or {})


def _watched(stage: Mapping[str, Any]) -> str:
    watched = stage["watched"]
    summary = (
        f"{_cell(stage['name'])} ended with its weights after {_cell(watched['kept_steps'])} "
        f"of {_cell(stage['steps'])} steps"
    )
    where = f"{_cell(watched['measure'])} on split {_cell(watched['split'])}"
    return f"{summary}; {where}: {watched['best']:.4g} at best."


def _proven(proof: Mapping[str, Any]) -> Iterator[str]:
    """Yield which embeddings each stage left bit-identical."""
    for stage in proof.get("stages", ()):
        same = [name for name, state in stage["after"].items() if state == stage["before"].get(name)]
        names = _join(f"{name} ({stage['after'][name]['count']} rows)" for name in same)
        left = f"Embeddings that {_cell(stage['stage'])} left bit-identical, every digit as before"
        yield f"{left}: {names or 'none'}."


def _temperatures(stage: Mapping[str, Any]) -> str:
    """Format the final temperature of a stage, or one for each of several pairs."""
    if stage["temperature"] is not None:
        return f"{stage['temperature']:.4f}"
    several = stage.get("losses", [])
    return ", ".join(f"{one['anchor']}-{one['other']} {one['temperature']:.4f}" for one in several)


def _data(card: Mapping[str, Any]) -> Iterator[str]:
    used = card.get("data", [])
    if not used:
        return
    yield from ("", "## Data", "", "| used for | source | split | rows | licences |", "|---|---|---|---|---|")
    for one in used:
        licences = (
            ", ".join(f"{_cell(name)} ({rows:,})" for name, rows in one["licences"].items()) or UNSTATED
        )
        use = _cell(f"{one['used_for']} {one['stage']}" if one.get("stage") else one["used_for"])
        yield f"| {use} | {_cell(one['source'])} | {_cell(one['split'])} | {one['rows']:,} | {licences} |"
    installed = registry().plugins
    for source in dict.fromkeys(one["source"] for one in used):
        credits = installed[source].cls.credits if source in installed else {}
        if credits:
            yield from ("", f"Sources of {_cell(installed[source].cls.title)}:", "")
            yield from (f"- {_cell(name)}: {_cell(terms)}" for name, terms in credits.items())


def _licence(card: Mapping[str, Any], author: Mapping[str, Any]) -> Iterator[str]:
    if not card["stages"]:
        return
    parts = list_licence_parts(card)
    whole = combine_licences(parts)
    stated = author.get("licence")
    yield from ("", "## Licence", "")
    yield f"Of these weights, as their author states: **{_cell(stated or UNSTATED)}**."
    yield f"Effective licence of all that they were made of: **{_cell(whole.name)}**.{_why(whole)}"
    yield ""
    yield from (f"- {demand.sentence} Asked by {_parts(demand.parts)}." for demand in whole.demands)
    if whole.conflict:
        yield f"- These terms cannot all be met: {_cell(whole.conflict)}."
    if stated and is_looser(stated, whole):
        yield f"- **{_cell(stated)} is looser than what the parts ask, or may ask.**"
    yield from (
        "",
        "Whether weights are a work derived from their data is not settled everywhere. This takes the",
    )
    yield "careful view, reads licences by their names alone, and is no legal advice."


def _why(whole: EffectiveLicence) -> str:
    if not whole.demands:
        return " No part asks for anything." if not whole.terms.unknown else ""
    return f" Forced by {_parts(whole.demands[0].parts)}."


def _parts(parts: tuple[str, ...]) -> str:
    shown = "; ".join(_cell(part) for part in parts[:4])
    return f"{shown}; and {len(parts) - 4} more" if len(parts) > 4 else shown


_MARKUP = re.compile(r"(^[#+=-]|[\\`*\[\]~]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9]))")


def _cell(text: object) -> str:
    """Escape a stranger's text: one line, cut if it is very long, without bars, HTML, links or markup."""
    plain = shorten(str(text), 2000).replace("|", "/").replace("&", "&amp;")
    return _MARKUP.sub(r"\\\1", plain.replace("<", "&lt;").replace(">", "&gt;"))


def _join(names: Iterable[object]) -> str:
    return ", ".join(map(_cell, names))


def _code(text: object) -> str:
    """Return a stranger's text for use inside of backticks or of a block of code."""
    return re.sub(r"[^\w./:@ -]", "_", shorten(str(text), 200))


def _measured(metrics: Mapping[str, Any]) -> Iterator[str]:
    rows = metrics.get("rows") or []
    if not rows:
        return
    shown = [name for name in _SHOWN if name in rows[0]["metrics"]]
    yield from ("", "## Retrieval on held-out rows", "")
    how = (metrics.get("conventions") or {}).get("interval", "bootstrap")
    yield f"With 95 % intervals ({_cell(how)}); chance in brackets."
    yield from (f"\n**Warning:** {_cell(line)}" for line in metrics.get("warnings", []))
    yield from ("", "| query | gallery | pair | rows | " + " | ".join(shown) + " |")
    yield "|---|---|---|---|" + "---|" * len(shown)
    for row in rows:
        cells = [_figure(row["metrics"].get(name)) for name in shown]
        facts = (*(_cell(row[key]) for key in ("query", "gallery", "mark", "gallery_size")), *cells)
        yield f"| {' | '.join(facts)} |"


def _figure(known: Mapping[str, float] | None) -> str:
    if known is None:
        return "-"
    return f"{known['value']:.3g} [{known['low']:.3g}, {known['high']:.3g}] ({known['chance']:.3g})"


def _calibrated(card: Mapping[str, Any]) -> Iterator[str]:
    """Yield the section on calibration: how reliable the fitted probabilities are."""
    calibration = (card.get("metrics") or {}).get("calibration")
    if not calibration:
        return
    yield from ("", "## Calibration", "")
    yield f"Temperatures fitted on {_cell(calibration['fitted_on'])}; expected calibration error on"
    yield f"{_cell(calibration['measured_on'])}, beside what perfect probabilities would show."
    yield from ("", "| query | gallery | temperature | error | perfect |", "|---|---|---|---|---|")
    for one in calibration["choices"]:
        error = one["fitted"]["equal_width"]
        figures = f"{error['value']:.3f} [{error['low']:.3f}, {error['high']:.3f}] | {error['perfect']:.3f}"
        yield f"| {_cell(one['query'])} | {_cell(one['gallery'])} | {one['temperature']:.4f} | {figures} |"
