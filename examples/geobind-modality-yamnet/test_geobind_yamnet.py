"""The contract of every modality, checked for this one."""

import numpy as np
from geobind_yamnet import AudioYamnet

from geobind.testing import ModalityContract

RATE = 16_000


def tone(hertz: float, seconds: float) -> np.ndarray:
    """Make a pure tone."""
    return (0.1 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * RATE)) / RATE)).astype(np.float32)


def hiss(seconds: float) -> np.ndarray:
    """Make white noise."""
    return 0.1 * np.random.default_rng(0).standard_normal(round(seconds * RATE)).astype(np.float32)


class TestAudioYamnet(ModalityContract):
    """The contract, on a second of sound."""

    modality = AudioYamnet(seconds=1.0)
    # A tone, noise, a clip shorter than a second and, at another rate, one that is longer.
    raws = (tone(440, 1), hiss(1), tone(3000, 0.5), (np.repeat(hiss(2), 3), 48_000))
    bad_raws = ("no such file.wav", b"not a sound", np.zeros(0, np.float32))
