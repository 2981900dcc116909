"""The moving average of weights: what it is, what it leaves alone, how it goes on."""

import pytest
import torch
from torch import nn

from geobind.recipe.schema import EmaOptions
from geobind.training.ema import WeightAverage


def moved(weight, values, average):
    for value in values:
        with torch.no_grad():
            weight.fill_(value)
        average.update()


def net(value=0.0, dtype=torch.float32):
    layer = nn.Linear(1, 1, bias=False).to(dtype)
    nn.init.constant_(layer.weight, value)
    return layer


def test_it_is_the_mean_that_its_formula_says():
    layer = net(1.0)
    average = WeightAverage({"one": layer}, EmaOptions(decay=0.9, warmup=False))
    moved(layer.weight, [2.0, 4.0], average)
    assert average.means[0].item() == pytest.approx(0.9 * (0.9 * 1 + 0.1 * 2) + 0.1 * 4)


def test_a_warm_up_forgets_the_first_weights_sooner():
    layer = net(1.0)
    average = WeightAverage({"one": layer}, EmaOptions(decay=0.15))
    moved(layer.weight, [2.0, 4.0], average)
    first = (1 / 10) * 1 + (9 / 10) * 2
    assert average.means[0].item() == pytest.approx(0.15 * first + 0.85 * 4)  # 2 / 11 is more than 0.15


def test_weights_are_back_to_the_bit_after_they_made_room_for_their_mean():
    layer = net(1.0)
    average = WeightAverage({"one": layer}, EmaOptions(decay=0.5, warmup=False))
    moved(layer.weight, [1 / 3], average)
    memory = layer.weight.data_ptr()
    with average.swapped_in():
        assert layer.weight.item() == pytest.approx((1 + 1 / 3) / 2)
    assert layer.weight.item() == torch.tensor(1 / 3).item()
    with pytest.raises(ValueError), average.swapped_in():
        raise ValueError
    assert layer.weight.item() == torch.tensor(1 / 3).item()
    average.copy_to_weights()
    assert layer.weight.item() == average.means[0].item() and layer.weight.data_ptr() == memory


def test_small_moves_of_coarse_weights_are_not_lost():
    layer = net(1.0, torch.bfloat16)
    average = WeightAverage({"one": layer}, EmaOptions(decay=0.999, warmup=False))
    moved(layer.weight, [2.0], average)
    assert average.means[0].dtype == torch.float32
    assert average.means[0].item() == pytest.approx(1.001)  # bfloat16 knows nothing between 1 and 1.0078
    assert (
        WeightAverage({"one": net(1.0, torch.float64)}, EmaOptions(decay=0.9)).means[0].dtype == torch.float64
    )


def test_only_what_is_trained_is_averaged_and_what_is_shared_once():
    body = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    body[0].requires_grad_(False)
    average = WeightAverage({"one": body, "two": body}, EmaOptions(decay=0.9))
    assert [mean.shape for mean in average.means] == [torch.Size([2])] * 2
    assert WeightAverage({"one": body}, None).means == []


def test_a_checkpoint_of_it_goes_on_to_the_bit():
    one, two = net(1.0), net(1.0)
    whole = WeightAverage({"one": one}, EmaOptions(decay=0.9))
    moved(one.weight, [2.0, 3.0, 5.0], whole)
    first = WeightAverage({"one": two}, EmaOptions(decay=0.9))
    moved(two.weight, [2.0], first)
    second = WeightAverage({"one": two}, EmaOptions(decay=0.9))
    second.load_state_dict(first.state_dict())
    moved(two.weight, [3.0, 5.0], second)
    assert torch.equal(whole.means[0], second.means[0])
