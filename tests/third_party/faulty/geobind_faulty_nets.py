"""Encoders of the faulty modalities; this module may import torch."""

import torch
from torch import nn


class Net(nn.Module):
    def __init__(self, samples, width, finish):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(samples, 24), nn.GELU(), nn.Linear(24, width))
        self.finish = finish

    def forward(self, profile_BS):
        return self.finish(self.layers(profile_BS))


class AlwaysTraining(Net):
    def __init__(self, samples, width, finish):
        super().__init__(samples, width, finish)
        self.norm = nn.BatchNorm1d(samples)

    def train(self, mode=True):
        return super().train(True)

    def forward(self, profile_BS):
        return super().forward(self.norm(profile_BS) if len(profile_BS) > 1 else profile_BS)


class Counting(Net):
    def __init__(self, *options):
        super().__init__(*options)
        self.register_buffer("batches", torch.zeros(()))

    def forward(self, profile_BS):
        self.batches += 1
        return super().forward(profile_BS)


class Hiding(Net):
    def __init__(self, samples, *options):
        super().__init__(samples, *options)
        self.hidden = torch.randn(samples)

    def forward(self, profile_BS):
        return super().forward(profile_BS * self.hidden)


class ReadsToTheEnd(Net):
    """A text encoder that cannot see what comes after the largest token."""

    def forward(self, tokens_BS):
        position_S = torch.arange(tokens_BS.shape[1])
        seen_BS = position_S <= tokens_BS.argmax(-1, keepdim=True)
        return super().forward(tokens_BS * seen_BS)


class Scale(nn.Module):
    """One direction, stretched by the mean height: unit length makes every embedding the same."""

    def __init__(self, samples, width):
        super().__init__()
        self.direction = nn.Parameter(torch.randn(width))

    def forward(self, profile_BS):
        return profile_BS.mean(-1, keepdim=True).abs() * self.direction
