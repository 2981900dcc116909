"""Small bundles: what is in them, what they give with their base, and which bases they refuse."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from geobind import plugins
from geobind.binder import Binder
from geobind.bundles.delta import apply_delta, compute_delta
from geobind.bundles.stability import find_faults
from geobind.errors import CheckpointError
from geobind.modality import Modality


class Net(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(40, 60), nn.ReLU(), nn.Linear(60, 60))
        self.head = nn.Linear(60, width)

    def forward(self, x_BF: torch.Tensor) -> torch.Tensor:
        return self.head(self.trunk(x_BF).relu())


class Tile(Modality):
    """Forty numbers."""

    name = "tile"
    role = "trainable"

    def encoder(self, width: int, *, pretrained: bool = True) -> nn.Module:
        return Net(width)

    def prepare(self, raw, *, training: bool = False) -> torch.Tensor:
        return torch.as_tensor(raw)


class Sound(Tile):
    """Forty others."""

    name = "sound"


INPUTS = list(torch.randn(5, 40, generator=torch.Generator().manual_seed(0)))


@pytest.fixture(autouse=True)
def two_modalities(monkeypatch):
    found = {c.name: plugins.Plugin(c, plugins.Source(c.name, "toy", "1.0")) for c in (Tile, Sound)}
    monkeypatch.setattr(plugins, "registry", lambda: plugins.Registry("modality", found, ()))


@pytest.fixture
def base(tmp_path):
    return Binder({"tile": Tile()}, 8, seed=0).save(tmp_path / "base")


def tuned(folder, *others) -> Binder:
    """The binder in a folder after two stages of LoRA and one of its head."""
    start = Binder.load(folder)
    binder = Binder({"tile": Tile(), **{other.name: other() for other in others}}, 8, seed=1)
    binder.encoders["tile"].load_state_dict(start.encoders["tile"].state_dict())
    random = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for layer in (binder.encoders["tile"].trunk[0], binder.encoders["tile"].trunk[2]):
            for rank in (2, 1):
                up, down = (torch.randn(n, rank, generator=random) / 10 for n in layer.weight.shape)
                layer.weight += up @ down.T
        binder.encoders["tile"].head.bias += 1
    return binder


def test_a_small_bundle_with_its_base_embeds_as_the_whole_one_does(base, tmp_path):
    binder = tuned(base)
    small = binder.save(tmp_path / "small", over=base)
    again = Binder.load(small)
    assert torch.equal(again.embed("tile", INPUTS), binder.embed("tile", INPUTS))
    assert find_faults(again) == []
    moved = Binder.load(small.rename(tmp_path.parent / f"{tmp_path.name}-moved"), base=base)
    assert torch.equal(moved.embed("tile", INPUTS), again.embed("tile", INPUTS))


def test_it_holds_the_tensors_that_changed_and_no_more(base, tmp_path):
    binder = tuned(base)
    small = binder.save(tmp_path / "small", over=base)
    held = load_file(small / "adapter.safetensors")
    assert set(held) == {"tile.head.bias", "tile.trunk.0.weight", "tile.trunk.2.weight"}
    assert all(torch.equal(tensor, binder.encoders.state_dict()[name]) for name, tensor in held.items())
    assert not (small / "model.safetensors").exists()
    assert "changes of the bundle `base`" in (small / "README.md").read_text()


def with_factors(small, rank: int = 3):
    """Rewrite a small bundle as earlier versions did: the change of a weight as two factors."""
    held = load_file(small / "adapter.safetensors")
    base = load_file(small.parent / "base" / "model.safetensors")
    for name in ("tile.trunk.0.weight", "tile.trunk.2.weight"):
        left, size, right = torch.linalg.svd(held.pop(name) - base[name])
        held[f"{name}.lora_A"] = right[:rank].contiguous()
        held[f"{name}.lora_B"] = (left[:, :rank] * size[:rank]).contiguous()
    save_file(held, small / "adapter.safetensors")
    return held


def test_one_of_an_earlier_version_with_factors_still_loads(base, tmp_path):
    binder = tuned(base)
    small = binder.save(tmp_path / "small", over=base)
    assert {"tile.trunk.0.weight.lora_A", "tile.trunk.2.weight.lora_B"} < set(with_factors(small))
    again = Binder.load(small)
    torch.testing.assert_close(again.embed("tile", INPUTS), binder.embed("tile", INPUTS), atol=1e-6, rtol=0)


def test_a_modality_that_the_base_has_not_is_there_whole(base, tmp_path):
    binder = tuned(base, Sound)
    again = Binder.load(binder.save(tmp_path / "small", over=base))
    assert torch.equal(again.embed("sound", INPUTS), binder.embed("sound", INPUTS))


def test_another_base_is_refused(base, tmp_path):
    small = tuned(base).save(tmp_path / "small", over=base)
    other = Binder({"tile": Tile()}, 8, seed=5).save(tmp_path / "other")
    with pytest.raises(
        CheckpointError, match=r"over the bundle 'base', but .*other has other weights of tile"
    ):
        Binder.load(small, base=other)
    lacking = Binder({"sound": Sound()}, 8, seed=0).save(tmp_path / "lacking")
    with pytest.raises(CheckpointError, match="has other weights of tile"):
        Binder.load(small, base=lacking)


def test_a_base_that_is_gone_is_told_by_its_name(base, tmp_path):
    small = tuned(base).save(tmp_path / "small", over=base)
    base.rename(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match=r"the bundle 'base', which is not beside it; .*base=FOLDER"):
        Binder.load(small)
    assert Binder.load(small, base=tmp_path / "elsewhere").width == 8


def test_a_small_bundle_is_no_base_and_no_bundle_its_own(base, tmp_path):
    binder = tuned(base)
    small = binder.save(tmp_path / "small", over=base)
    with pytest.raises(CheckpointError, match="holds only changes of another bundle"):
        binder.save(tmp_path / "smaller", over=small)
    with pytest.raises(CheckpointError, match="cannot be its own base"):
        binder.save(base, over=base)


def test_a_whole_bundle_in_the_place_of_a_small_one_leaves_nothing_of_it(base, tmp_path):
    binder = tuned(base)
    small = binder.save(tmp_path / "small", over=base)
    Binder.load(small).save(small)
    assert not (small / "adapter.safetensors").exists()
    assert json.loads((small / "binder.json").read_text())["over"] is None
    base.rename(tmp_path / "gone")
    assert Binder.load(small).width == 8


def test_a_damaged_one_is_told(base, tmp_path):
    small = tuned(base).save(tmp_path / "small", over=base)
    held = with_factors(small)
    held["tile.trunk.0.weight.lora_A"] = torch.zeros(3, 7)
    save_file(held, small / "adapter.safetensors")
    with pytest.raises(CheckpointError, match="does not fit its base"):
        Binder.load(small)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64])
def test_weights_come_back_from_their_delta_to_the_bit(dtype):
    before = {"w": torch.ones(40, 40, dtype=dtype), "same": torch.ones(2)}
    after = {"w": before["w"].clone(), "same": torch.ones(2), "new": torch.zeros(1)}
    after["w"][0] += 1
    delta = compute_delta(before, after)
    assert set(delta) == {"w", "new"}
    back = apply_delta(before, delta, after)
    assert all(torch.equal(back[name], tensor) for name, tensor in after.items())


def test_a_weight_of_another_shape_or_type_is_part_of_the_delta():
    before = {"shape": torch.ones(2, 2), "type": torch.ones(2)}
    after = {"shape": torch.ones(4), "type": torch.ones(2, dtype=torch.float64)}
    assert set(compute_delta(before, after)) == {"shape", "type"}
