"""A modality of numbers whose training draws from all three generators, for tests of loading."""

import random

import numpy as np
import torch

from geobind.errors import DataError
from geobind.modality import Modality


class Number(Modality):
    """A number and, in training, noise, as a dict."""

    name = "number"

    def encoder(self, width, *, pretrained=True):
        return torch.nn.Identity()

    def prepare(self, raw, *, training=False):
        if not isinstance(raw, int):
            raise DataError(f"{raw!r} is not a number")
        noise = torch.rand(1).item() + np.random.rand() + random.random() if training else 0.0
        return {"value": torch.tensor(raw), "noise": torch.tensor(noise)}
