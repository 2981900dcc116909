"""Measure generated tiles: by embedding them again, and by the facts that linear probes read from them.

    python measure_generator.py BUNDLE [--seeds 3] [--decoders DIR] [--picture tiles.png] [--out figures.json]

For each seed a decoder is trained on the training tiles. On held-out rows it is driven by the embedding of
every modality, and of a sum. What was drawn is embedded again, and compared

- with what drove it: cosine, and R@10 of the right drawing among all when the driving embedding is the query;
- with the real tile of the place, which the decoder has not seen: cosine, and R@10 of the real tile when the
  drawing is the query;
- where the dataset has facts (toy and real Earth): the share of facts, above or below their median, that a
  linear probe reads rightly from the drawing. One probe sees the bundle's own embedding, which the decoder
  was trained to please; the independent one sees features of an encoder with random weights.

Beside them: the mean training tile in place of every drawing, another place's real tile (chance), and the
real tile itself. Intervals resample places (bootstrap, 95 %); figures are means over seeds.
"""

# N places, F facts, D width

from __future__ import annotations

import argparse
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from decoder import Generator, train_generator
from generate import open_data, read_inputs
from numpy.typing import NDArray

from geobind import Binder
from geobind.data import DataOptions, Table
from geobind.errors import DataError
from geobind.evaluation import Ridge, build_random_trunk, rank_counts, ridge, unit

K = 10
HIDDEN = {
    "sea",
    "spring",
    "daylight",
    "morning",
    "wind",
    "rain",
}  # facts of toy Earth: of the moment, or said twice
MEASURES = ("driving cosine", "driving R@10", "real cosine", "real R@10", "own probe", "independent probe")
Floats = NDArray[np.float64]


class Probe(NamedTuple):
    """A linear probe of facts on features of pictures."""

    features: Any  # a binder, of embeddings or of features
    fitted: Ridge

    def read(self, modality: str, pictures: Sequence[Any]) -> NDArray[np.bool_]:
        """Return which facts of pictures are above their median (N, F)."""
        features_ND = self.features.embed(modality, pictures, progress=False, numpy=True)
        return self.fitted.predict(features_ND) > 0.5


class Places(NamedTuple):
    """Rows of a split: embeddings by modality, pictures, and facts if there are any."""

    embedded: dict[str, torch.Tensor]
    pictures: list[Any]
    facts_NF: Floats | None


def read_places(
    binder: Binder, table: Table, modality: str, limit: int | None, facts: Sequence[str], *, all_of: bool
) -> Places:
    """Read and embed rows; of training rows the pictures alone."""
    names = [name for name in binder.modalities if name in table.columns] if all_of else [modality]
    inputs = {name: read_inputs(table, name, limit) for name in names}
    embedded = {name: binder.embed(name, raw, progress=False) for name, raw in inputs.items()}
    facts_NF = None
    if facts:
        shown = [number for number, name in enumerate(facts) if name not in HIDDEN]
        facts_NF = np.stack(read_inputs(table, "facts", limit)).astype(np.float64)[:, shown]
    return Places(embedded, inputs[modality], facts_NF)


def find_facts(binder: Binder) -> list[str]:
    """Return the names of the facts of the dataset that a bundle was trained on; none of a manifest."""
    data = binder.card.recipe.get("data") if binder.card else None
    dataset = DataOptions.model_validate(data).dataset if data else None
    return [*dataset.vector_names().get("facts", ())] if dataset else []


def fit_probes(binder: Binder, modality: str, train: Places, seed: int) -> dict[str, Probe]:
    """Fit a probe on embeddings of training pictures, and one on features of a random encoder."""
    if train.facts_NF is None:
        return {}
    above_NF = (train.facts_NF > np.median(train.facts_NF, axis=0)).astype(np.float64)
    seen = {"own probe": binder, "independent probe": build_random_trunk(binder, modality, 100 + seed)}
    probes: dict[str, Probe] = {}
    for name, features in seen.items():
        seen_ND = features.embed(modality, train.pictures, progress=False, numpy=True)
        probes[name] = Probe(features, ridge(seen_ND.astype(np.float64), above_NF))
    return probes


def compare(
    binder: Binder,
    modality: str,
    pictures: Sequence[Any],
    driving_ND: torch.Tensor | None,
    test: Places,
    probes: dict[str, Probe],
    middle_F: Floats | None,
) -> dict[str, Floats]:
    """Compare pictures with what drove them and with the real ones: one number for each place and measure."""
    again_ND = binder.embed(modality, pictures, progress=False)
    real_ND = test.embedded[modality]
    scores: dict[str, Floats] = {}
    if driving_ND is not None:
        scores["driving cosine"] = (again_ND * driving_ND).sum(dim=1).double().numpy()
        scores["driving R@10"] = rank_counts(driving_ND, again_ND).hit_Q(K)
    scores["real cosine"] = (again_ND * real_ND).sum(dim=1).double().numpy()
    scores["real R@10"] = rank_counts(again_ND, real_ND).hit_Q(K)
    for name, probe in probes.items():
        assert test.facts_NF is not None and middle_F is not None  # a probe was fitted to such
        right_NF = probe.read(modality, pictures) == (test.facts_NF > middle_F)
        scores[name] = right_NF.mean(axis=1)
    return scores


def list_drivers(binder: Binder, modality: str, test: Places) -> dict[str, torch.Tensor]:
    """Return what drives the decoder: embeddings of each modality, and the sum of all but its own."""
    others = [name for name in test.embedded if name != modality]
    drivers = {name: test.embedded[name] for name in (modality, *others)}
    if len(others) > 1:
        drivers["sum of all others"] = unit(torch.stack([test.embedded[name] for name in others]).mean(dim=0))
    return drivers


def measure_seed(
    binder: Binder, generator: Generator, modality: str, train: Places, test: Places, seed: int
) -> dict[str, dict[str, Floats]]:
    """Measure a decoder driven by everything, and what stands beside it."""
    probes = fit_probes(binder, modality, train, seed)
    middle_F = None if train.facts_NF is None else np.median(train.facts_NF, axis=0)
    shared = (test, probes, middle_F)
    rows: dict[str, dict[str, Floats]] = {}
    for name, driving_ND in list_drivers(binder, modality, test).items():
        rows[f"{name}, real tile"] = compare(binder, modality, test.pictures, driving_ND, *shared)
        for via in ("bank", "nothing"):
            if name == modality and via == "bank":
                continue  # it lies among the bank's rows already
            drawn_NSSC = generator.draw(driving_ND, via, seed=seed)
            words = f"{name}, {'moved by the bank' if via == 'bank' else 'as it is'}"
            rows[words] = compare(binder, modality, list(drawn_NSSC), driving_ND, *shared)
    mean_SSC = np.stack([np.asarray(one) for one in train.pictures]).mean(axis=0).round().astype(np.uint8)
    rows["the mean tile"] = compare(binder, modality, [mean_SSC] * len(test.pictures), None, *shared)
    other = test.pictures[1:] + test.pictures[:1]
    rows["another place's tile"] = compare(binder, modality, other, None, *shared)
    return rows


def summarize(parts: Sequence[dict[str, dict[str, Floats]]]) -> list[dict[str, Any]]:
    """Return a record for each row of the table: each measure with its interval, and of each seed."""
    places = len(next(iter(parts[0]["the mean tile"].values())))
    drawn = np.random.default_rng(0).integers(places, size=(500, places))
    records: list[dict[str, Any]] = []
    for name in parts[0]:
        record: dict[str, Any] = {"driven by": name}
        for measure in parts[0][name]:
            score_SN = np.stack([part[name][measure] for part in parts])
            mean_N = score_SN.mean(axis=0)
            record[measure] = {
                "value": float(mean_N.mean()),
                "interval": np.quantile(mean_N[drawn].mean(axis=1), (0.025, 0.975)).tolist(),
                "seeds": score_SN.mean(axis=1).tolist(),
            }
        records.append(record)
    return records


def print_table(records: Sequence[dict[str, Any]], places: int) -> None:
    """Print a line for each driver: each measure with its interval."""
    print(f"{places} held-out places; chance of R@10 {K / places:.3f}")
    print(f"{'driven by':38}" + "".join(f"{name:>22}" for name in MEASURES))
    for record in records:
        cells = ""
        for name in MEASURES:
            cell = ""
            if name in record:
                low, high = record[name]["interval"]
                cell = f"{record[name]['value']:.3f} [{low:.3f}, {high:.3f}]"
            cells += f"{cell:>22}"
        print(f"{record['driven by']:38}{cells}")


def draw_picture(generator: Generator, test: Places, modality: str, out: Path, columns: int = 8) -> None:
    """Draw a column for each place: the real tile, and what each modality alone draws of it."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from PIL import Image

    rows = {"real tile": test.pictures[:columns]}
    for name, embedded_ND in test.embedded.items():
        via = "nothing" if name == modality else "bank"
        rows[f"from {name}"] = list(generator.draw(embedded_ND[:columns], via))
    figure = Figure(figsize=(columns + 1.1, len(rows) * 1.02), dpi=60, layout="constrained")
    axes = figure.subplots(len(rows), columns)
    for line, (name, pictures) in zip(axes, rows.items(), strict=True):
        line[0].set_ylabel(name, fontsize=9, rotation=0, ha="right", va="center")
        for axis, picture in zip(line, pictures, strict=True):
            axis.imshow(picture)
            axis.set(xticks=[], yticks=[])
    drawn = io.BytesIO()
    FigureCanvasAgg(figure).print_png(drawn)
    # 64 colours: textures of three bytes a pixel do not compress.
    Image.open(drawn).convert("RGB").quantize(64).save(out, optimize=True)


def main(words: Sequence[str] | None = None) -> None:
    """Train or read the decoders, measure them, print the table."""
    parser = argparse.ArgumentParser(description="Measure generated tiles.")
    parser.add_argument("bundle", help="the folder of a bundle or run, or its id on the hub")
    parser.add_argument("--seeds", type=int, default=3, help="of decoders")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--limit", type=int, help="training tiles")
    parser.add_argument("--size", type=int, default=64, help="side of what is drawn")
    parser.add_argument("--places", type=int, default=300, help="held-out places")
    parser.add_argument("--again", type=float, default=0.3, help="weight of embeddings in the loss")
    parser.add_argument("--decoders", type=Path, default=Path("decoders"), help="keeps trained decoders")
    parser.add_argument("--picture", type=Path, help="a PNG of tiles")
    parser.add_argument("--out", type=Path, help="a JSON file of all figures")
    given = parser.parse_args(words)
    if given.seeds < 1:
        raise DataError("give one seed or more")
    binder = Binder.from_pretrained(given.bundle)
    modality = binder.anchor
    facts = find_facts(binder)
    table = open_data(binder, **({"facts": "facts"} if facts else {}))
    train = read_places(binder, table.split("train"), modality, given.limit, facts, all_of=False)
    test = read_places(binder, table.split("test"), modality, given.places, facts, all_of=True)
    given.decoders.mkdir(parents=True, exist_ok=True)
    parts: list[dict[str, dict[str, Floats]]] = []
    for seed in range(given.seeds):
        path = given.decoders / f"decoder_{seed}.safetensors"
        if not path.exists():
            trained = train_generator(
                binder,
                train.pictures,
                size=given.size,
                epochs=given.epochs,
                again=given.again,
                seed=seed,
                show=print,
            )
            trained.save(path)
        generator = Generator.load(path, binder)
        if seed == 0 and given.picture:
            draw_picture(generator, test, modality, given.picture)
        parts.append(measure_seed(binder, generator, modality, train, test, seed))
    records = summarize(parts)
    print_table(records, len(test.pictures))
    if given.out:
        given.out.write_text(json.dumps(records, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
