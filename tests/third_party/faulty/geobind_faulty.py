"""A modality that keeps every promise, and one that breaks each: the contract must tell them apart."""

from __future__ import annotations

import json
import multiprocessing
import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from geobind.errors import DataError
from geobind.modality import Modality

if TYPE_CHECKING:
    from torch import Tensor, nn


class Profile(Modality):
    """Heights along a path: read whole, however long, and seen by two layers."""

    name = "profile"
    role = "trainable"

    samples: int = Field(default=16, ge=2)

    def encoder(self, width: int, *, pretrained: bool = True) -> nn.Module:
        from geobind_faulty_nets import Net

        return Net(self.samples, width, self.finish)

    @staticmethod
    def finish(embedding_BD: Tensor) -> Tensor:
        return embedding_BD

    def prepare(self, raw: list[float], *, training: bool = False) -> Tensor:
        import torch
        from torch.nn import functional as F

        if isinstance(raw, str | Path | bytes):
            raw = self.read(raw)
        if not isinstance(raw, list) or len(raw) < 2:
            raise DataError("profile: give a list of two heights or more")
        heights_1L = torch.tensor(raw, dtype=torch.float32)[None]
        profile_S = F.interpolate(heights_1L[None], self.samples, mode="linear", align_corners=True)[0, 0]
        return profile_S + torch.randn(self.samples) if training else profile_S

    def read(self, raw: str | Path | bytes) -> list[float]:
        from geobind.data import open_binary

        with open_binary(raw) as file:
            return json.load(file)


def unpicklable() -> Modality:
    class Local(Profile):
        pass

    return Local()


class KillsItsProcess(Profile):
    def prepare(self, raw, *, training=False):
        if multiprocessing.parent_process():
            os._exit(1)
        return super().prepare(raw, training=training)


class RemembersItsProcess(Profile):
    def prepare(self, raw, *, training=False):
        return super().prepare(raw, training=training) + os.getpid()


class AlwaysAugments(Profile):
    def prepare(self, raw, *, training=False):
        return super().prepare(raw, training=True)


class AugmentsTheInputItself(Profile):
    def prepare(self, raw, *, training=False):
        if training:
            raw[0] += 1.0  # the caller's own list
        return super().prepare(raw)


class ReadsPathsAlone(Profile):
    def read(self, raw):
        if isinstance(raw, bytes):
            raise TypeError("bytes have no name")
        return super().read(raw)


class LooksAtTheName(Profile):
    def read(self, raw):
        return super().read(raw)[:: 1 if isinstance(raw, Path) else -1]


class PicturesANumber(Profile):
    def picture(self, raw):
        return 4.0


class KeepsTheLength(Profile):
    def prepare(self, raw, *, training=False):
        super().prepare(raw)
        import torch

        return torch.tensor(raw)


class CropsToTrain(Profile):
    def prepare(self, raw, *, training=False):
        return super().prepare(raw)[: 8 if training else None]


class ReturnsAnArray(Profile):
    def prepare(self, raw, *, training=False):
        return super().prepare(raw).numpy()


class RaisesKeyError(Profile):
    def prepare(self, raw, *, training=False):
        if not isinstance(raw, list):
            raise KeyError("heights")
        return super().prepare(raw)


class AcceptsAnything(Profile):
    def prepare(self, raw, *, training=False):
        return super().prepare(raw if isinstance(raw, list) else [0.0, 0.0])


class RefusesWithoutAWord(Profile):
    def prepare(self, raw, *, training=False):
        if not isinstance(raw, list):
            raise DataError
        return super().prepare(raw)


class ForgetsAnOption(Profile):
    offset: float = Field(default=0.0, exclude=True)


class IgnoresTheWidth(Profile):
    def encoder(self, width, *, pretrained=True):
        return super().encoder(32)


class SqueezesABatchOfOne(Profile):
    @staticmethod
    def finish(embedding_BD):
        return embedding_BD.squeeze(0)


class ReturnsATuple(Profile):
    @staticmethod
    def finish(embedding_BD):
        return (embedding_BD,)


class DividesByZero(Profile):
    @staticmethod
    def finish(embedding_BD):
        return embedding_BD / 0


class IgnoresItsInput(Profile):
    def prepare(self, raw, *, training=False):
        return super().prepare(raw) * 0 + 1


class EmbedsOnlyTheScale(Profile):
    def encoder(self, width, *, pretrained=True):
        from geobind_faulty_nets import Scale

        return Scale(self.samples, width)


class CutsTheEnd(Profile):
    def prepare(self, raw, *, training=False):
        return super().prepare(raw[:16] if isinstance(raw, list) else raw)


class Words(Profile):
    """Tokens, read up to the end-of-text token, the largest; if that is cut off, to another large one."""

    keeps_the_end: bool = True

    def prepare(self, raw, *, training=False):
        import torch

        super().prepare(raw)
        room = self.samples - 1 if self.keeps_the_end else self.samples
        tokens = [*raw[:room], 1000.0, *[0.0] * self.samples]
        return torch.tensor(tokens[: self.samples])

    def encoder(self, width, *, pretrained=True):
        from geobind_faulty_nets import ReadsToTheEnd

        return ReadsToTheEnd(self.samples, width, self.finish)


class CentresTheBatch(Profile):
    @staticmethod
    def finish(embedding_BD):
        return embedding_BD - embedding_BD.mean(0)


class DropsOutForEver(Profile):
    @staticmethod
    def finish(embedding_BD):
        from torch.nn import functional as F

        return F.dropout(embedding_BD)


class LeavesBatchNormOn(Profile):
    def encoder(self, width, *, pretrained=True):
        from geobind_faulty_nets import AlwaysTraining

        return AlwaysTraining(self.samples, width, self.finish)


class CountsBatches(Profile):
    def encoder(self, width, *, pretrained=True):
        from geobind_faulty_nets import Counting

        return Counting(self.samples, width, self.finish)


class Detaches(Profile):
    @staticmethod
    def finish(embedding_BD):
        return embedding_BD.detach()


class HasASpareLayer(Profile):
    def encoder(self, width, *, pretrained=True):
        from torch import nn

        net = super().encoder(width)
        net.spare = nn.Linear(4, 4)
        return net


class HasNothingToTrain(Profile):
    def encoder(self, width, *, pretrained=True):
        return super().encoder(width).requires_grad_(False)


class AsksAHost(Profile):
    def encoder(self, width, *, pretrained=True):
        try:
            socket.create_connection(("127.0.0.1", 9), timeout=0.1).close()
        except OSError:
            pass  # a fallback that hides the attempt
        return super().encoder(width)


class ReadsWeights(Profile):
    def encoder(self, width, *, pretrained=True):
        try:
            Path("no_such_folder/profile.safetensors").read_bytes()
        except OSError:
            pass
        return super().encoder(width)


class HidesAWeight(Profile):
    def encoder(self, width, *, pretrained=True):
        from geobind_faulty_nets import Hiding

        return Hiding(self.samples, width, self.finish)
