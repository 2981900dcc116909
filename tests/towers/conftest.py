import pytest
import torch

TINY_CLIP = {
    "embed_dim": 24,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "patch_size": 8, "head_width": 16},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}


@pytest.fixture
def tiny_clip():
    return {**TINY_CLIP, "vision_cfg": dict(TINY_CLIP["vision_cfg"]), "text_cfg": dict(TINY_CLIP["text_cfg"])}


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)
