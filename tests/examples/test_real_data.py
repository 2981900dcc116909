import csv
import json
import random
from pathlib import Path

import make_manifests
import measure
import pytest
import torch
import yaml

from geobind.data.options import DataOptions
from geobind.data.table import open_table

RECIPE = Path(make_manifests.__file__).with_name("recipe.yaml")
TABLES = ("train_ground.csv", "train_audio.csv", "evaluate.csv")
MODALITIES = ("satellite", "ground_image", "audio_yamnet")


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


@pytest.fixture(scope="module")
def miniature(tmp_path_factory):
    """The layout of the real folder: 10 tiles a class (two alike), 14 photos, 6 recordings of two clips."""
    root = tmp_path_factory.mktemp("data")
    clips, places = [], []
    for tiles, photos, sounds in make_manifests.CONCEPTS.values():
        for folder in tiles:
            for i in range(10):
                write(root / f"sat/ucm/{folder}/{folder}{i:02}.jpg", f"{folder} {max(i, 1)}".encode())
        for folder in photos:
            for i in range(14):
                split = "train" if i < 10 else "test"
                write(root / f"ground/scene8/{folder}/{split}_{i}.jpg", f"{folder} photo {i}".encode())
        for folder in sounds:
            dataset, cls = folder.split("/")
            for i in range(12):
                file = f"audio/{folder}/r{i // 2}__{i}.ogg"
                write(root / file, file.encode())
                clips.append({"file": file, "dataset": dataset, "cls": cls, "group": f"{cls}_{i // 2}"})
    for i in range(8):
        files = [f"geo_soundmap/a/audio/p{i}__{k}.ogg" for k in range(2)]
        for file in files:
            write(root / file, file.encode())
        places.append({"id": f"p{i}", "audio": files, "tags": ["traffic"] if i % 2 else []})
    with open(root / "audio/manifest.csv", "w", newline="") as file:
        table = csv.DictWriter(file, ["file", "dataset", "cls", "group"])
        table.writeheader()
        table.writerows(clips)
    write(root / "geo_soundmap/manifest.json", json.dumps(places).encode())
    return root


@pytest.fixture(scope="module", params=["miniature", "data"])
def folder(request):
    return request.getfixturevalue(request.param)


def items_of(folder, seed=0):
    makers = (make_manifests.satellite, make_manifests.ground_image, make_manifests.sound)
    return [item for make in makers for item in make(folder, seed)]


def test_no_file_is_listed_twice_and_no_group_is_in_two_splits(folder):
    items = items_of(folder)
    assert len({item.file for item in items}) == len(items)
    splits = {}
    for item in items:
        splits.setdefault((item.modality, item.group), set()).add(item.split)
    assert all(len(found) == 1 for found in splits.values())


def test_clips_of_one_recording_share_a_group(folder):
    of_file = {item.file: item.group for item in items_of(folder) if item.modality == "audio_yamnet"}
    with open(folder / "audio/manifest.csv", newline="") as file:
        recordings = {row["file"]: (row["dataset"], row["group"]) for row in csv.DictReader(file)}
    for file, recording in recordings.items():
        if file in of_file:
            assert of_file[file] == "/".join(recording)


def test_photos_keep_the_split_of_their_source(folder):
    for item in items_of(folder):
        if item.modality == "ground_image":
            assert (item.split == "test") == Path(item.file).name.startswith("test_")


@pytest.mark.parametrize("modality", MODALITIES)
def test_every_concept_is_in_every_split(folder, modality):
    found = {(item.label, item.split) for item in items_of(folder) if item.modality == modality}
    assert found == {
        (label, split) for label in make_manifests.CONCEPTS for split in ("train", "val", "test")
    }


def test_tiles_of_the_same_content_stay_together(miniature):
    for seed in range(8):
        splits = {item.file: item.split for item in items_of(miniature, seed)}
        assert splits["sat/ucm/beach/beach00.jpg"] == splits["sat/ucm/beach/beach01.jpg"]


def test_only_tagged_places_of_the_sound_map_are_used(miniature):
    files = {item.file for item in items_of(miniature) if item.file.startswith("geo_soundmap")}
    assert files == {f"geo_soundmap/a/audio/p{i}__{k}.ogg" for i in (1, 3, 5, 7) for k in range(2)}


def test_the_same_seed_gives_the_same_tables_and_another_seed_other_ones(miniature, tmp_path):
    for name, seed in (("one", 0), ("again", 0), ("other", 1)):
        make_manifests.main(miniature, tmp_path / name, seed)
    for table in TABLES:
        one, again, other = ((tmp_path / n / table).read_bytes() for n in ("one", "again", "other"))
        assert one == again != other


def test_a_content_in_two_splits_stops_the_script(miniature):
    items = [item for item in items_of(miniature) if item.modality == "satellite"]
    test = next(item for item in items if item.split == "test")
    with pytest.raises(SystemExit, match="same file"):
        make_manifests.check(miniature, [*items, test._replace(split="train")])


def test_a_missing_file_stops_the_script(miniature):
    item = items_of(miniature)[0]._replace(file="sat/ucm/beach/none.jpg")
    with pytest.raises(SystemExit, match=r"none\.jpg: no such file"):
        make_manifests.check(miniature, [item])


# The tables as geobind reads them


@pytest.fixture(scope="module")
def manifests(folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("manifests")
    make_manifests.main(folder, out, 0)
    return out


@pytest.mark.parametrize("other", ["ground_image", "audio_yamnet"])
def test_a_row_is_a_tile_with_every_item_of_its_concept_and_split(folder, manifests, other):
    options = DataOptions(manifest=manifests / f"train_{other.split('_')[0]}.csv", root=folder)
    table = open_table(options, Path(), MODALITIES)
    items = items_of(folder)
    pools = {}
    for item in items:
        if item.modality == other:
            pools.setdefault((item.split, item.label), set()).add(folder / item.file)
    for split in ("train", "val"):
        pairs = table.split(split).pairs("satellite", other)
        assert len(pairs) == sum(item.modality == "satellite" and item.split == split for item in items)
        for index in random.Random(0).sample(range(len(pairs)), 5):
            pair = pairs[index]
            assert pair.anchor.is_file() and set(pair.other) == pools[split, pair.label]


def test_held_out_items_are_in_no_training_row(folder, manifests):
    held_out = measure.read_held_out(manifests / "evaluate.csv", folder, MODALITIES)
    assert set(held_out) == set(MODALITIES)
    trained = (manifests / "train_ground.csv").read_text() + (manifests / "train_audio.csv").read_text()
    for items in held_out.values():
        assert all(file.is_file() for file in items.files)
        assert not [file for file in items.files if f'"{file.relative_to(folder).as_posix()}"' in trained]
        assert len(items.files) == len(items.labels) and set(items.labels) == set(make_manifests.CONCEPTS)


def test_tables_say_that_pairs_are_class_level(manifests):
    for name in TABLES:
        with open(manifests / name, newline="") as file:
            assert {row["pairing"] for row in csv.DictReader(file)} == {"class-level"}


# The measure and the recipe


def test_perfect_embeddings_score_one_and_constant_ones_chance():
    labels = {"a": list("xxyyzz"), "b": list("xyzxyzxyz")}
    perfect = {name: torch.eye(3)[["xyz".index(x) for x in of]] for name, of in labels.items()}
    constant = {name: torch.ones(len(of), 3) / 3**0.5 for name, of in labels.items()}
    for rows, wanted in (
        (measure.measure(perfect, labels, {frozenset("ab")}), 1.0),
        (measure.measure(constant, labels, set()), 1 / 3),
    ):
        assert [(row["query"], row["gallery"]) for row in rows] == [("a", "b"), ("b", "a")]
        for row in rows:
            assert row["metrics"]["R@1"]["value"] == pytest.approx(wanted)
            assert row["metrics"]["R@1"]["chance"] == pytest.approx(1 / 3)
            assert row["accuracy"] == {"value": pytest.approx(wanted), "chance": pytest.approx(1 / 3)}
            assert row["mark"] == ("trained" if wanted == 1 else "unconnected")
            assert measure.line(row)


def test_the_recipe_is_valid_and_never_pairs_photos_with_sounds(miniature, tmp_path):
    from geobind.recipe import load_recipe

    (tmp_path / "recipe.yaml").write_bytes(RECIPE.read_bytes())
    make_manifests.main(miniature, tmp_path / "manifests", 0)
    (tmp_path / "data" / "weights").mkdir(parents=True)
    for name in ("timm_mobilenetv2_100_fp16", "yamnet_fp16"):
        (tmp_path / "data" / "weights" / f"{name}.safetensors").touch()
    recipe = load_recipe(tmp_path / "recipe.yaml")
    assert {recipe.anchor_of(stage) for stage in recipe.stages} == {"satellite"}
    assert set(recipe.stages[0].parts.values()) | set(recipe.stages[1].parts.values()) == {"head"}
    assert set(yaml.safe_load(RECIPE.read_text())["modalities"]) == set(MODALITIES)
