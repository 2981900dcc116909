import json

import frozen
import torch
from torch.nn.functional import normalize


def write(path, rows):
    lines = ["key,split,label,pairing,satellite,other", *rows]
    path.write_text("\n".join(lines) + "\n")


def test_training_items_are_listed_once_and_held_out_ones_never(tmp_path):
    for other, table in frozen.TABLES.items():
        cell = json.dumps(["one", "two"]).replace('"', '""')
        rows = [f'a,train,coast,class-level,a,"{cell}"', f'b,train,coast,class-level,b,"{cell}"']
        held_out = f'c,val,road,class-level,c,"{cell.replace("one", "three")}"'
        write(tmp_path / table, [*rows, held_out])
        text = (tmp_path / table).read_text()
        (tmp_path / table).write_text(text.replace("other\n", f"{other}\n", 1))
    found = frozen.trained_on(tmp_path, tmp_path)
    assert {name: [file.name for file in of.files] for name, of in found.items()} == {
        "satellite": ["a", "b"],
        "ground_image": ["one", "two"],
        "audio_yamnet": ["one", "two"],
    }
    assert found["satellite"].labels == ["coast", "coast"]


def test_items_of_one_concept_have_like_probabilities():
    random = torch.Generator().manual_seed(0)
    centre_CD = normalize(torch.randn(3, 10, generator=random), dim=1)
    class_N = torch.arange(60) % 3
    x_ND = normalize(centre_CD[class_N] + 0.1 * torch.randn(60, 10, generator=random), dim=1)
    labels = [("coast", "forest", "road")[c] for c in class_N]
    found_NC = frozen.probabilities(x_ND[:30], labels[:30], x_ND[30:])
    assert found_NC.shape == (30, 3)
    assert torch.allclose(found_NC.norm(dim=1), torch.ones(30))
    assert (found_NC.argmax(1) == class_N[30:]).all()
