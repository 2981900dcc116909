"""Contact sheets: what is drawn in a cell, and what a stage's sheet holds."""

import io
import json
import re

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from geobind.data import contact_sheet
from geobind.data.contact_sheet import (
    SheetModality,
    compute_limits,
    draw_prepared,
    draw_raw,
    draw_stage_sheet,
)
from geobind.data.table import Row
from geobind.errors import DataError
from geobind_audio import Audio
from geobind_satellite import Satellite
from geobind_text import Text

RESNET = {"model": "test_resnet", "pretrained": False}
TILE = np.random.default_rng(0).integers(0, 256, (3, 40, 40), dtype=np.uint8)


def cell(draw, *arguments, **named):
    axis = Figure().subplots()
    draw(axis, *arguments, **named)
    return axis


def picture(axis):
    return np.asarray(axis.images[0].get_array())


def said(axis):
    return " ".join(axis.texts[0].get_text().split())


def text_of(model=None):
    return Text(clip={"model": {"embed_dim": 8, "text_cfg": {"context_length": 16}}, "pretrained": False})


def bands(count, level=1000.0):
    return (np.random.default_rng(1).random((count, 40, 40)) * 100 + level).astype(np.float32)


def test_a_tile_is_shown_as_the_tower_gets_it():
    prepared = Satellite(timm=RESNET, size=32).prepare(TILE)
    assert np.array_equal(picture(cell(draw_prepared, prepared, TILE)), prepared.permute(1, 2, 0).numpy())


@pytest.mark.parametrize("count", [1, 2, 4, 12])
def test_any_number_of_bands_is_shown_within_the_limits_of_the_plain_tile(count):
    modality = Satellite(timm=RESNET, size=32, channels=count, mean=[1000], std=[100])
    plain = modality.prepare(bands(count))
    limits = compute_limits(plain)
    once = picture(cell(draw_prepared, plain, bands(count), limits=limits))
    assert once.shape == ((32, 32, 3) if count > 2 else (32, 32))
    assert 0 <= once.min() < 0.1 < 0.9 < once.max() <= 1
    brighter = picture(cell(draw_prepared, plain + 20, bands(count), limits=limits))
    assert brighter.mean() > once.mean() + 0.1  # alone, it would be stretched to the same picture


def test_eight_bits_of_one_band_are_not_stretched():
    grey = torch.full((1, 8, 8), 100, dtype=torch.uint8)
    axis = cell(draw_prepared, grey, grey.numpy())
    assert axis.images[0].get_clim() == (0, 255)


@pytest.mark.parametrize(
    ("options", "rows"),
    [
        ({"timm": RESNET, "seconds": 1}, 64),
        ({"timm": RESNET, "seconds": 1, "crops": 3}, 3 * 64 + 2 * 4),
        ({"htsat": {"pretrained": False, "fused": True}}, 4 * 64 + 3 * 4),
    ],
)
def test_sounds_are_spectrograms_one_below_the_other(options, rows):
    raw = (np.random.default_rng(0).normal(0, 0.1, 16_000 * 12).astype(np.float32), 16_000)
    prepared = Audio(**options).prepare(raw)
    mel_KMF = prepared["mel"] if isinstance(prepared, dict) else prepared
    shown = picture(cell(draw_prepared, prepared, raw))
    assert shown.shape == (rows, mel_KMF.shape[-1])
    first = mel_KMF.reshape(-1, *mel_KMF.shape[-2:])[0]
    assert np.allclose(shown[-64:], first, equal_nan=True)  # drawn from the bottom up: the first is on top


def test_a_caption_is_printed_with_the_number_of_tokens_that_is_left_of_it():
    text = "a long caption of far more words than sixteen tokens of a small tower can ever hold at once, dear"
    shown = said(cell(draw_prepared, text_of().prepare(text), text))
    assert re.match(r"\[16 tokens: 49406 \d+ \d+ \.\.\.\] a long caption of far more words", shown)


@pytest.mark.parametrize("padding", [0, -1])
def test_padding_is_not_counted_as_tokens(padding):
    tokens = np.array([7, 0, 9, padding, padding])
    assert said(cell(draw_prepared, tokens, "deep snow")) == "[3 tokens: 7 0 9] deep snow"


def test_what_is_missing_or_broken_says_so(tmp_path):
    assert said(cell(draw_raw, None)) == "missing"
    assert "no such file" in said(cell(draw_raw, tmp_path / "gone.jpg"))
    assert said(cell(draw_prepared, DataError("it is no tile"), TILE)) == "it is no tile"


class Cells(list):
    """Draw calls instead of drawings."""

    def __init__(self, patch):
        patch.setattr(
            contact_sheet, "draw_raw", lambda axis, raw: self.append(("raw", axis.get_title(), raw))
        )
        patch.setattr(
            contact_sheet,
            "draw_prepared",
            lambda axis, prepared, raw, limits: self.append((axis.get_title(), prepared, raw)),
        )


@pytest.mark.slow
def test_a_stages_sheet_holds_input_embedding_view_and_draws(monkeypatch):
    cells = Cells(monkeypatch)
    rows = [
        Row({"satellite": TILE, "text": ["one river", "two lakes", "three seas"]}, "here"),
        Row({"satellite": TILE[:, ::-1].copy(), "text": None}, "there"),
    ]
    tiles = Satellite(timm=RESNET, size=32, augment={"rotations": True, "jitter": 0.5})
    sides = {"satellite": SheetModality(tiles, trained=True), "text": SheetModality(text_of(), trained=False)}
    sheet = draw_stage_sheet(rows, sides, rows=2, draws=4)
    with Image.open(io.BytesIO(sheet)) as image:
        assert image.width > 150 * (2 + 4 + 2 + 4)
    titles = [cell[0] if cell[0] != "raw" else cell[1] for cell in cells]
    draws = [f"training {number + 1}" for number in range(4)]
    assert titles == [
        *("satellite: here", "prepared", *draws, "text", "prepared", *draws),
        *("satellite: there", "prepared", *draws, "text"),
    ]
    made = [cell[1] for cell in cells[1:6]]
    assert len({tensor.numpy().tobytes() for tensor in made}) > 2  # augmented
    chosen = {cell[2] for cell in cells[8:12]}  # a frozen side is not augmented, but its captions are drawn
    assert len(chosen) > 1 and chosen <= {"one river", "two lakes", "three seas"}
    again = Cells(monkeypatch)
    draw_stage_sheet(rows, sides, rows=2, draws=4)
    assert all(torch.equal(a[1], b[1]) for a, b in zip(cells[1:6], again[1:6], strict=True))


def test_the_draws_are_what_training_would_prepare(monkeypatch):
    """The same seeds, in the same order, as the loader's."""
    from geobind.data.seeds import seeded_rng

    cells = Cells(monkeypatch)
    tiles = Satellite(timm=RESNET, size=32, augment={"random_resized_crop": [0.3, 0.6]})
    draw_stage_sheet(
        [Row({"satellite": TILE})], {"satellite": SheetModality(tiles, True)}, rows=1, seed=5, draws=2
    )
    for draw in range(2):
        with seeded_rng(5, 0, draw):
            assert torch.equal(cells[2 + draw][1], tiles.prepare(TILE, training=True))


def test_a_row_that_cannot_be_prepared_is_no_reason_to_show_nothing():
    tiles = Satellite(timm=RESNET, size=32)
    rows = [Row({"satellite": np.zeros((5, 9, 9), dtype=np.uint8)}), Row({"satellite": TILE})]
    assert draw_stage_sheet(rows, {"satellite": SheetModality(tiles, True)}, rows=2)[:4] == b"\x89PNG"


@pytest.mark.parametrize(("asked", "word"), [({"rows": 31}, "1 to 30 rows"), ({"draws": 9}, "0 to 8 draws")])
def test_a_sheet_has_room_for_so_much(asked, word):
    with pytest.raises(DataError, match=word):
        draw_stage_sheet([], {}, **asked)


def captioned(folder, **options):
    from geobind.data.options import DataOptions
    from geobind.data.table import open_table

    lines = [
        {"key": f"row{row}", "words": [f"{row} {word}" for word in ("one", "two", "three")]}
        for row in range(3)
    ]
    (folder / "m.jsonl").write_text("\n".join(map(json.dumps, lines)))
    data = DataOptions(manifest="m.jsonl", columns={"text": "words"}, inline=("words",), **options)
    return open_table(data, folder, ("text", "satellite"))


def drawn(table, steps=12):
    from geobind.data.loader import BatchLoader
    from geobind.data.loader import ModalityInput as LoadedSide
    from geobind.data.sampler import MixedDataset, WeightedSource
    from geobind.data.sources import TableRows

    rows = MixedDataset((WeightedSource("m", TableRows(table, ("text",))),))
    by = Words()
    loader = BatchLoader(
        rows, {"text": LoadedSide(by)}, rows.sampler(3, 0), first_step=0, last_step=steps, workers=0
    )
    return [tuple(batch["text"].tolist()) for _, batch, _ in loader]


class Words:
    def prepare(self, raw, *, training=False):
        return torch.tensor(("one", "two", "three").index(raw.split()[1]))


def test_training_draws_a_caption_each_time_the_same_again_or_takes_the_first(tmp_path, monkeypatch):
    monkeypatch.setenv("GEOBIND_CACHE", str(tmp_path / "cache"))
    table = captioned(tmp_path)
    assert len({caption for batch in drawn(table) for caption in batch}) == 3
    assert len(set(drawn(table))) > 4  # another draw for each row and step
    assert drawn(table) == drawn(table)
    first = captioned(tmp_path, first=("text",))
    assert drawn(first) == [(0, 0, 0)] * 12
    assert list(first.samples("text")) == ["0 one", "1 one", "2 one"]
    with pytest.raises(DataError, match=r"first: no modality 'txt' here; did you mean 'text'\?"):
        captioned(tmp_path, first=("txt",))


def test_a_modality_opened_alone_is_read_whatever_first_says_of_others(tmp_path, monkeypatch):
    from geobind.archive.sources import ManifestRows
    from geobind.data.options import DataOptions
    from geobind.evaluation.probing import ProbeSource, read_targets

    monkeypatch.setenv("GEOBIND_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    lines = [
        {"split": "test", "label": "ab"[row % 2], "height": row, "sky": "clear", "words": ["one", "two"]}
        for row in range(4)
    ]
    (tmp_path / "m.jsonl").write_text("\n".join(map(json.dumps, lines)))
    options = DataOptions(manifest="m.jsonl", columns={"text": "words"}, first=("text",))
    assert list(ManifestRows(options, tmp_path, "sky").table.samples("sky")) == ["clear"] * 4
    assert list(ManifestRows(options, tmp_path, "text").table.samples("text")) == ["one"] * 4
    source = ProbeSource(options, None)
    assert len(source.labelled("test", "sky")) == 4
    assert list(read_targets(source, "test", "sky", ["height"])[1]["height"]) == [0, 1, 2, 3]
