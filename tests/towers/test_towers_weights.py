import json

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from geobind.errors import CheckpointError
from geobind.towers.weights import load_strictly, read_weights

ONE, TWO = {"one": torch.ones(2)}, {"two": torch.zeros(3)}


def test_a_folder_with_one_file_stands_for_it(tmp_path):
    save_file(ONE, tmp_path / "model.safetensors")
    assert read_weights(tmp_path)["one"].tolist() == [1, 1]


def test_shards_are_read_together(tmp_path):
    save_file(ONE, tmp_path / "a.safetensors")
    save_file(TWO, tmp_path / "b.safetensors")
    index = {"weight_map": {"one": "a.safetensors", "two": "b.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert set(read_weights(tmp_path)) == {"one", "two"}


def test_two_files_without_an_index_are_ambiguous(tmp_path):
    save_file(ONE, tmp_path / "a.safetensors")
    save_file(TWO, tmp_path / "b.safetensors")
    with pytest.raises(CheckpointError, match=r"found a\.safetensors, b\.safetensors; name the file itself"):
        read_weights(tmp_path)


def test_an_empty_folder_and_a_missing_path_are_told_apart(tmp_path):
    with pytest.raises(CheckpointError, match="found none"):
        read_weights(tmp_path)
    with pytest.raises(CheckpointError, match="no such file or folder"):
        read_weights(tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["../a.safetensors", "sub/a.safetensors", "a.pt", 3, "/etc/x.safetensors"])
def test_an_index_cannot_lead_out_of_its_folder(tmp_path, name):
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"one": name}}))
    with pytest.raises(CheckpointError, match=r"is not a \.safetensors file of this folder"):
        read_weights(tmp_path)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"weight_map": 3}'])
def test_a_damaged_index_is_refused(tmp_path, content):
    (tmp_path / "model.safetensors.index.json").write_text(content)
    with pytest.raises(CheckpointError, match="not an index of sharded weights"):
        read_weights(tmp_path)


def test_a_missing_shard_is_named(tmp_path):
    index = {"weight_map": {"one": "a.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"its shard a\.safetensors is missing"):
        read_weights(tmp_path)


def test_a_damaged_file_is_refused(tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"\x80\x04 not safetensors at all")
    with pytest.raises(CheckpointError, match=r"model\.safetensors: cannot be read as safetensors"):
        read_weights(path)


def test_a_pickle_is_refused_by_its_name(tmp_path):
    (tmp_path / "model.pt").write_bytes(b"")
    with pytest.raises(CheckpointError, match="a pickle can run code"):
        read_weights(tmp_path / "model.pt")


def test_only_the_first_of_many_faults_are_spelt_out():
    model = nn.Sequential(*(nn.Linear(2, 2) for _ in range(4)))
    with pytest.raises(CheckpointError) as caught:
        load_strictly(model, {"0.weight": torch.zeros(3, 3), "extra": torch.zeros(1)}, "file.safetensors")
    assert str(caught.value) == (
        "file.safetensors: the weights are not this model's: missing 0.bias, 1.weight, 1.bias and 4 more; "
        "unexpected extra; shape 0.weight (3, 3) for (2, 2)"
    )
