import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from geobind.errors import DataError
from geobind.evaluation import Resampling, build_prototypes, build_prototypes_from_labels, zero_shot

FEW = Resampling(resamples=100)


def unit(*shape, seed=0):
    return normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def clusters(rows=90, width=16, noise=0.2, seed=0):
    names = ["beach", "forest", "town"]
    centre_CD = unit(3, width)
    class_N = torch.arange(rows) % 3
    x_ND = normalize(centre_CD[class_N] + noise * unit(rows, width, seed=seed + 1), dim=1)
    return x_ND, [names[c] for c in class_N], centre_CD


def test_a_prototype_is_the_mean_of_its_examples_at_unit_length():
    a, b = unit(5, 8), unit(2, 8, seed=1)
    found = build_prototypes({"a": a, "b": b.numpy()})
    assert found.classes == ("a", "b")
    assert torch.allclose(found.class_CD, normalize(torch.stack([a.mean(0), b.mean(0)]), dim=1), atol=1e-6)


def test_prompts_and_exemplars_of_another_modality_both_recognise_well_parted_classes():
    x_ND, labels, centre_CD = clusters()
    prompts = build_prototypes({name: centre_CD[[c]] for c, name in enumerate(("beach", "forest", "town"))})
    sounds, sound_labels, _ = clusters(30, noise=0.3, seed=7)
    for through in (prompts, build_prototypes_from_labels(sounds, sound_labels)):
        found = zero_shot(x_ND, labels, through, options=FEW)
        assert found.metrics["accuracy"].value == found.metrics["mean_per_class"].value == 1.0
        assert found.metrics["accuracy"].chance == pytest.approx(1 / 3)


def test_a_constant_embedding_scores_chance():
    _, labels, _centre_CD = clusters()
    same = torch.full((90, 16), 0.25)
    through = build_prototypes({name: same[:2] for name in ("beach", "forest", "town")})
    assert zero_shot(same, labels, through, options=FEW).metrics["accuracy"].value == pytest.approx(1 / 3)


def test_shuffled_labels_score_chance():
    x_ND, labels, _ = clusters(3000)
    through = build_prototypes_from_labels(x_ND[:300], labels[:300])
    shuffled = np.random.default_rng(1).permutation(labels).tolist()
    metric = zero_shot(x_ND, shuffled, through, options=FEW).metrics["accuracy"]
    assert metric.low < 1 / 3 < metric.high
    assert metric.high - metric.low < 0.05


def test_rows_without_a_label_are_not_measured():
    x_ND, labels, _centre_CD = clusters()
    through = build_prototypes_from_labels(x_ND, labels)
    found = zero_shot(x_ND, [None if i % 2 else name for i, name in enumerate(labels)], through, options=FEW)
    assert found.queries == 45


def test_numpy_and_torch_give_the_same():
    x_ND, labels, _ = clusters(noise=1.5)
    through = build_prototypes_from_labels(x_ND[:9], labels[:9])
    one, two = (zero_shot(x, labels, through, options=FEW).to_dict() for x in (x_ND, x_ND.numpy()))
    assert one == two


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda x, labels: build_prototypes({"a": x}), "two or more different classes"),
        (
            lambda x, labels: build_prototypes({"a": x, "b": 2 * x}),
            "examples of class 'b': row 0 has length 2",
        ),
        (lambda x, labels: build_prototypes({"a": x, "b": x[:, :8] * 0}), "8 wide"),
        (lambda x, labels: zero_shot(x, ["?"] * 90, build_prototypes_from_labels(x, labels)), "labelled \\?"),
        (
            lambda x, labels: zero_shot(x[:, :8] * 0, labels, build_prototypes_from_labels(x, labels)),
            "8 wide",
        ),
    ],
)
def test_what_does_not_fit_is_refused(act, message):
    x_ND, labels, _ = clusters()
    with pytest.raises(DataError, match=message):
        act(x_ND, labels)
