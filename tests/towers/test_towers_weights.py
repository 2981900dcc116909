import json
from typing import ClassVar

import pytest
import timm
import torch
from pydantic import ValidationError
from safetensors.torch import save_file
from torch import nn

from geobind import pretrained
from geobind.binder import Binder
from geobind.errors import CheckpointError
from geobind.plugins import Plugin, Registry, Source
from geobind.pretrained import PackagedWeights
from geobind.towers.weights import find_weights_file, load_strictly, read_weights
from geobind_satellite import Satellite
from geobind_text import Text

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
    (tmp_path / "model.pkl").write_bytes(b"")
    with pytest.raises(CheckpointError, match="a pickle can run code"):
        read_weights(tmp_path / "model.pkl")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "last.ckpt"])
@pytest.mark.parametrize("nest", [(), ("state_dict",), ("state_dict", "model")])
def test_a_pytorch_file_is_read_wherever_its_trainer_put_the_weights(tmp_path, name, nest):
    held = {**ONE, "epoch": 3}
    for word in reversed(nest):
        held = {word: held, "hyper_parameters": {"device": torch.device("cpu"), "lr": 0.1}}
    torch.save(held, tmp_path / name)
    for source in (tmp_path / name, tmp_path):
        assert {key: value.tolist() for key, value in read_weights(source).items()} == {"one": [1, 1]}


def test_safetensors_are_taken_before_a_pickle_of_the_same_folder(tmp_path):
    save_file(ONE, tmp_path / "model.safetensors")
    (tmp_path / "pytorch_model.bin").write_bytes(b"not even that")
    assert set(read_weights(tmp_path)) == {"one"}


class Payload:
    def __reduce__(self):
        return (print, ("this must never be printed",))


def test_a_pytorch_file_that_would_run_code_is_refused(tmp_path, capsys):
    path = tmp_path / "model.pt"
    torch.save({**ONE, "payload": Payload()}, path)
    with pytest.raises(CheckpointError, match=r"model\.pt: holds more than weights .*print.*could run code"):
        read_weights(path)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut off", b"not torch at all"])
def test_a_damaged_pytorch_file_is_refused(tmp_path, content):
    (tmp_path / "model.pt").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"model\.pt: (cannot be read|holds more)"):
        read_weights(tmp_path / "model.pt")


@pytest.mark.parametrize("held", [[torch.ones(1)], {"state_dict": {"epoch": 1}}, torch.ones(2)])
def test_a_pytorch_file_without_named_weights_is_refused(tmp_path, held):
    torch.save(held, tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match=r"model\.pt: holds no weights by name; save a state_dict"):
        read_weights(tmp_path / "model.pt")


def test_a_hub_is_asked_for_safetensors_first_and_for_the_config(tmp_path, monkeypatch):
    import huggingface_hub

    asked = []

    def download(owner, name):
        asked.append(name)
        if name.endswith(".safetensors"):
            raise OSError("no such file there")
        (tmp_path / name).touch()
        return str(tmp_path / name)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    assert find_weights_file("someone/weights") == tmp_path / "pytorch_model.bin"
    assert asked == [
        "model.safetensors",
        "open_clip_model.safetensors",
        "pytorch_model.bin",
        "config.json",
    ]
    assert find_weights_file("no hub name") is None


def test_only_the_first_of_many_faults_are_spelt_out():
    model = nn.Sequential(*(nn.Linear(2, 2) for _ in range(4)))
    with pytest.raises(CheckpointError) as caught:
        load_strictly(model, {"0.weight": torch.zeros(3, 3), "extra": torch.zeros(1)}, "file.safetensors")
    assert str(caught.value) == (
        "file.safetensors: the weights are not this model's: missing 0.bias, 1.weight, 1.bias and 4 more; "
        "unexpected extra; shape 0.weight (3, 3) for (2, 2)"
    )


class Packaged(PackagedWeights):
    name: ClassVar[str] = "tiny"
    needs: ClassVar[str] = "tiny_weights"
    install: ClassVar[str] = "pip install tiny-weights"

    def path(self):
        return self.folder() / "model.safetensors"


class Torn(Packaged):
    name: ClassVar[str] = "torn"

    def path(self):
        raise OSError("no such disk")


TIMM = {"model": "test_vit", "pretrained": "package:tiny"}


@pytest.fixture
def offered(monkeypatch):
    plugins = {cls.name: Plugin(cls, Source("tiny", "acme-tiny", "1.0")) for cls in (Packaged, Torn)}
    monkeypatch.setattr(pretrained, "registry", lambda: Registry("pretrained weights", plugins, ()))


@pytest.fixture
def package(offered, tmp_path, monkeypatch):
    """An installed package that holds the weights of a small model, and must not be imported."""
    folder = tmp_path / "tiny_weights"
    folder.mkdir()
    (folder / "__init__.py").write_text("raise SystemExit('imported')")
    torch.manual_seed(3)
    save_file(timm.create_model("test_vit").state_dict(), folder / "model.safetensors")
    monkeypatch.syspath_prepend(str(tmp_path))
    return folder


def test_a_tower_starts_from_the_weights_of_a_package_which_is_not_imported(package):
    weights = read_weights(package)
    state = Satellite(timm=TIMM, head="identity").encoder(64).state_dict()
    trunk = {key.removeprefix("trunk."): value for key, value in state.items() if "trunk." in key}
    assert trunk
    assert all(torch.equal(value, weights[key]) for key, value in trunk.items())


def test_a_package_is_found_for_every_kind_of_encoder(package):
    assert find_weights_file("package:tiny") == package / "model.safetensors"


@pytest.mark.parametrize("name", ["tinny", "", "../tiny", "/etc/passwd", "tiny/model.safetensors", "tiny.pt"])
def test_no_name_of_a_package_is_a_path(package, name):
    with pytest.raises(CheckpointError, match=r"no pretrained weights named .*\n  installed: tiny, torn"):
        find_weights_file(f"package:{name}")


def test_without_plugins_that_offer_weights_the_message_says_so(monkeypatch):
    monkeypatch.setattr(pretrained, "registry", lambda: Registry("pretrained weights", {}, ()))
    with pytest.raises(CheckpointError, match="package:tiny: no plugin that offers weights is installed"):
        find_weights_file("package:tiny")


def test_a_missing_package_is_named_with_the_line_that_installs_it(offered):
    with pytest.raises(
        CheckpointError, match="needs tiny_weights, which is not installed: pip install tiny-w"
    ):
        Satellite(timm=TIMM).encoder(64)
    with pytest.raises(ValidationError, match=r"package:tiny needs tiny_weights.*: pip install tiny-weights"):
        Text(transformer={"folder": "package:tiny"})


def test_a_plugin_that_fails_to_locate_its_weights_is_named(package):
    with pytest.raises(CheckpointError, match=r"acme-tiny 1\.0 \[tiny\] cannot locate it \(OSError: no such"):
        find_weights_file("package:torn")


def test_a_bundle_carries_packaged_weights_and_looks_no_name_up(package, tmp_path, monkeypatch):
    binder = Binder({"satellite": Satellite(timm=TIMM, head="identity", size=160)}, 64)
    binder.save(tmp_path / "bundle")
    monkeypatch.setattr(pretrained, "registry", lambda: pytest.fail("a name of a bundle was looked up"))
    image = torch.rand(3, 160, 160)
    loaded = Binder.from_pretrained(tmp_path / "bundle")
    assert torch.equal(loaded.embed("satellite", image), binder.embed("satellite", image))
