"""The recipe of the paper: what it says, and a whole run at a thousandth of its length on miniature data."""

import csv
import io
import json
import tarfile

import numpy as np
import pytest
import soundfile
import torch
from click.testing import CliRunner
from PIL import Image
from safetensors.torch import load_file
from tiny_towers import htsat_config

from geobind import Binder
from geobind.cli import main
from geobind.recipe import RecipeProblems, find_recipe, load_recipe
from geobind.training.run import run

pytestmark = pytest.mark.slow

pytest.importorskip("transformers")
CLIP = {
    "embed_dim": 24,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "patch_size": 8, "head_width": 16},
    "text_cfg": {"context_length": 16, "width": 16, "heads": 2, "layers": 1},
}
HTSAT = htsat_config(24)
# Random weights in small towers of the same kinds, and a thousandth of every length.
SMALL = [
    "width=24",
    "workers=0",
    "fabric={accelerator: cpu, precision: 32-true}",
    *(
        f"modalities.{name}.clip.{word}"
        for name in ("satellite", "ground_image", "text")
        for word in (f"model={json.dumps(CLIP)}", "pretrained=false")
    ),
    f"modalities.audio.htsat={json.dumps({'pretrained': False, 'fused': True, 'config': HTSAT})}",
    "stages.0.batch_size=6",
    "stages.0.loss.queue=9",
    "stages.0.epochs=null",
    "stages.0.steps=183",
    "stages.0.schedule.period=3",
    "stages.1.batch_size=6",
    "stages.1.epochs=null",
    "stages.1.steps=8",
    "stages.1.schedule.period=2",
    "evaluate.limit=10",
]


def picture(hue, size, noise):
    pixels = np.full((*size, 3), 90) + noise.normal(0, 25, (*size, 3))
    pixels[..., hue % 3] += 30 + hue % 80
    target = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(target, "JPEG")
    return target.getvalue()


def sat2cap(folder, noise):
    """Sat2Cap's shards, tiles of 80 px for 800: two of training pairs, and one of those held out."""
    names = ["0a1b.tar", "2c3d.tar", "9f248448-1d13-43cb-a336-a7d92bc5359e.tar"]
    for shard, name in enumerate(names):
        with tarfile.open(folder / name, "w") as archive:
            for pair in range(30 if shard < 2 else 12):
                told = {
                    "latitude": 40 + pair / 10,
                    "longitude": -90 + shard,
                    "date_taken": "2012-07-21 18:03:15.0",
                }
                members = {
                    "groundlevel.jpg": picture(pair, (60, 90), noise),
                    "overhead.jpg": picture(pair, (80, 80), noise),
                    "metadata.json": json.dumps(told).encode(),
                }
                for kind, content in members.items():
                    info = tarfile.TarInfo(f"{shard}{pair:05d}.{kind}")
                    info.size = len(content)
                    archive.addfile(info, io.BytesIO(content))
    return folder


def soundingearth(folder, noise):
    """A thousandth of SoundingEarth: fifty recordings, half a second and twelve long, with their images."""
    (folder / "images").mkdir(parents=True)
    rows = []
    for number in range(50):
        key, long_key = f"{number + 1:05d}", f"aporee_{number}_{number + 1}"
        home = folder / "raw_audio" / long_key
        home.mkdir(parents=True)
        length = 0.5 if number % 10 else 12
        time = np.arange(int(16_000 * length)) / 16_000
        tone = np.sin(2 * np.pi * (200 + 40 * number) * time) * 0.2 + noise.normal(0, 0.01, len(time))
        soundfile.write(home / "sound.mp3", tone, 16_000, format="MP3")
        (folder / "images" / f"{key}.jpg").write_bytes(picture(number, (102, 102), noise))
        rows.append(
            {
                "": number,
                "long_key": long_key,
                "key": key,
                "longitude": -number,
                "latitude": number / 2,
                "mp3name": "sound.mp3",
                "title": f"Recording {number}",
                "description": "birds by the river" if number % 2 else "a busy street",
            }
        )
    with open(folder / "metadata.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return folder


def call(*words):
    done = CliRunner().invoke(main, [str(word) for word in words], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The commands of docs/paper.md, in miniature."""
    home, noise = tmp_path_factory.mktemp("paper"), np.random.default_rng(0)
    (home / "data" / "sat2cap").mkdir(parents=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        patch.setenv("GEOBIND_CACHE", str(home / "cache"))
        for name, make in (("sat2cap", sat2cap), ("soundingearth", soundingearth)):
            make(home / "data" / name, noise)
            call("import", name, f"data/{name}", "--out", f"data/{name}.parquet")
        yield run(load_recipe("geobind_paper", SMALL), home / "runs" / "geobind_paper")


def test_the_recipe_says_what_the_paper_says():
    recipe = load_recipe("geobind_paper", files=False)
    ground, audio = recipe.stages
    satellite = recipe.built["satellite"]
    clips = [recipe.built[name].clip for name in ("satellite", "ground_image", "text")]
    assert [(clip.model, clip.pretrained) for clip in clips] == [("ViT-B-32-quickgelu", "openai")] * 3
    assert satellite.augment.randaugment == 3
    assert recipe.built["audio"].htsat.fused
    assert recipe.built["audio"].htsat.pretrained == "laion/clap-htsat-fused"
    assert [(stage.align, stage.parts) for stage in recipe.stages] == [
        ("ground_image", {"satellite": "full"}),
        ("audio", {"audio": "full"}),
    ]
    assert [recipe.anchor_of(stage) for stage in recipe.stages] == ["satellite"] * 2
    assert [stage.loss.direction for stage in recipe.stages] == ["anchor_to_other", "both"]
    for stage in recipe.stages:
        assert stage.loss.name == "infonce"
        assert (stage.loss.temperature.init, stage.loss.temperature.learn) == (0.07, True)
        assert (stage.optimizer.lr, stage.optimizer.betas) == (5e-5, (0.99, 0.98))
        assert stage.schedule.name == "warm_restarts"
    assert recipe.evaluate.limit == 10_000
    # Ours, of the code of the works it builds on.
    assert (ground.batch_size, ground.loss.queue, ground.schedule.period) == (100, 9000, 3000)
    assert (audio.batch_size, audio.loss.queue, audio.epochs, audio.schedule.period) == (128, None, 30, 2000)


def test_every_number_is_marked_as_the_papers_or_as_ours():
    written = find_recipe("geobind_paper").read_text(encoding="utf-8").split("\nname:", 1)[1].splitlines()[1:]
    numbered = [line for line in written if any(letter.isdigit() for letter in line.partition("#")[0])]
    assert len(numbered) > 15
    assert [line for line in numbered if "[paper" not in line and "[ours" not in line] == []


def test_it_is_good_without_its_data_and_says_what_to_bring(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    told = call("check", "geobind_paper")
    assert "geobind_paper: good; 4 modalities, 2 stages" in told
    assert "not here yet: data/sat2cap.parquet (--set modalities.ground_image.data.manifest=FILE" in told
    with pytest.raises(
        RecipeProblems, match=r"no such file: data/sat2cap\.parquet \(relative to the current fo"
    ):
        load_recipe("geobind_paper")
    (tmp_path / "data").mkdir()
    for name in ("sat2cap", "soundingearth"):
        (tmp_path / "data" / f"{name}.parquet").touch()
    assert load_recipe("geobind_paper").base.resolve() == tmp_path
    assert "not here yet" not in call("check", "geobind_paper")


def test_a_run_of_it_leaves_both_stages_a_bundle_and_the_tables_pair(finished):
    stages = [json.loads(file.read_text()) for file in sorted(finished.folder.glob("stages/*/stage.json"))]
    assert [(stage["name"], stage["steps"], stage["pairs"]) for stage in stages] == [
        ("satellite_to_ground", 183, 60),
        ("audio_to_satellite", 8, stages[1]["pairs"]),
    ]
    assert all(0.01 <= stage["temperature"] <= 1 and np.isfinite(stage["loss"]) for stage in stages)
    assert not any(stage["broken"] for stage in stages)
    told = json.loads((finished.folder / "retrieval.json").read_text())
    assert told
    assert finished.table is not None


def test_each_stage_moves_what_the_paper_trains_and_nothing_else(finished):
    recipe = load_recipe(finished.folder / "recipe.yaml", files=False)
    fresh = Binder(recipe.built, recipe.width, seed=recipe.seed).encoders.state_dict()
    last = load_file(finished.folder / "bundle" / "model.safetensors")
    moved = {key.split(".")[0] for key in fresh if not torch.equal(fresh[key], last[key])}
    assert moved == {"satellite", "audio"}
    first = load_file(finished.folder / "stages" / "01_satellite_to_ground" / "trained.safetensors")
    assert all(torch.equal(last[key], value) for key, value in first.items())  # frozen in stage 2


def test_the_warm_restarts_are_in_the_record(finished):
    with (finished.folder / "metrics.csv").open() as file:
        rates = [float(row["lr"]) for row in csv.DictReader(file) if row["stage"] == "satellite_to_ground"]
    assert rates[0] == rates[3] == rates[180] == pytest.approx(5e-5)
    assert rates[0] > rates[1] > rates[2]


def test_its_bundle_embeds_tiles_photos_sounds_and_words_in_one_space(finished):
    binder = Binder.load(finished.bundle)
    tile = np.full((80, 80, 3), 120, dtype=np.uint8)
    sound = (np.sin(np.arange(48_000) / 20).astype(np.float32), 48_000)
    raws = {"satellite": tile, "ground_image": tile[:50], "text": "a river", "audio": sound}
    embedded = {name: binder.embed(name, [raw]) for name, raw in raws.items()}
    assert {tuple(vector.shape) for vector in embedded.values()} == {(1, 24)}
    assert float(binder.similarity(embedded["text"], embedded["audio"]).abs()) <= 1.0001


@pytest.mark.parametrize(("stage", "cells"), [(None, 2 + 2 + 2), ("audio_to_satellite", 2 + 2 + 2)])
def test_a_contact_sheet_shows_what_its_stages_see(finished, monkeypatch, stage, cells):
    home = finished.folder.parents[1]
    monkeypatch.chdir(home)
    monkeypatch.setenv("GEOBIND_CACHE", str(home / "cache"))
    named = ["--stage", stage] if stage else []
    call("data", "show", "geobind_paper", *named, "--rows", "2", "--draws", "2", "-o", "sheet.png")
    with Image.open(home / "sheet.png") as image:
        assert 150 * cells < image.width < 200 * cells
    own = call("data", "show", "data/soundingearth.parquet", "--rows", "1", "-o", "own.png")
    assert "own.png" in own
