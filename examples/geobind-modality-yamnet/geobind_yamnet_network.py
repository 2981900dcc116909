"""YAMNet in PyTorch: the waveform's preparation, the log-mel front end, the 27 convolutions and a head.

Apart from `geobind_yamnet`, so that listing the installed modalities does not import torch. The convolutions
hold their batch-norms, folded in.
"""

# S samples of a clip, L samples of a window, T frames of a window, F frequency bins, M mel bands,
# B clips in a batch, W windows of a clip, N windows of all clips, C channels, HW a feature map, D width

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from geobind.towers import HeadKind, load_strictly, make_head, read_weights

RATE = 16_000  # samples a second
WINDOW = 15_600  # samples in one window: 96 frames of 400 samples every 160
FRAME, HOP, FFT = 400, 160, 512
BANDS, LOW_HZ, HIGH_HZ, LOG_OFFSET = 64, 125.0, 7_500.0, 1e-3
TRUNK_WIDTH = 1_024
# (output channels, stride of the depthwise convolution) of the 13 depthwise-pointwise pairs
PAIRS = (
    *((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2)),
    *((512, 1), (512, 1), (512, 1), (512, 1), (512, 1), (1024, 2), (1024, 1)),
)


def build_head(kind: HeadKind, width: int) -> nn.Module:
    """Build the map from YAMNet's features to the shared width: a layer norm, then what `kind` says."""
    # The features are non-negative and share a large mean: without the norm all clips start out alike.
    return nn.Sequential(nn.LayerNorm(TRUNK_WIDTH), make_head(kind, TRUNK_WIDTH, width, what="YAMNet"))


class ClipTrunk(nn.Module):
    """YAMNet over a whole clip: the mean of its windows' features, (B, S) -> (B, 1024)."""

    def __init__(self) -> None:
        super().__init__()
        self.yamnet = Yamnet()

    def forward(self, clips_BS: Tensor) -> Tensor:
        """Embed every window, then average over each clip."""
        windows_BWL = windows(clips_BS)
        return self.yamnet(windows_BWL.flatten(0, 1)).unflatten(0, windows_BWL.shape[:2]).mean(dim=1)


class Yamnet(nn.Module):
    """The network itself: windows of 0.975 s to features, (N, 15600) -> (N, 1024)."""

    def __init__(self) -> None:
        super().__init__()
        self.front = LogMel()
        convs = [SameConv2d(1, 32, kernel=3, stride=2)]
        channels = 32
        for wider, stride in PAIRS:
            convs += [SameConv2d(channels, channels, kernel=3, stride=stride, groups=channels)]
            convs += [SameConv2d(channels, wider, kernel=1)]
            channels = wider
        self.convs = nn.ModuleList(convs)

    def forward(self, windows_NL: Tensor) -> Tensor:
        """Embed windows of samples in [-1, 1]."""
        map_NCHW = self.front(windows_NL).unsqueeze(1)
        for conv in self.convs:
            map_NCHW = torch.relu(conv(map_NCHW))
        return map_NCHW.mean(dim=(2, 3))


class LogMel(nn.Module):
    """Log-mel spectrogram of windows, (N, L) -> (N, T, 64); there is nothing to learn in it."""

    def __init__(self) -> None:
        super().__init__()
        # Both follow from constants: not persistent, so that bundles hold learnt numbers only.
        self.hann_L = nn.Buffer(torch.hann_window(FRAME), persistent=False)
        self.mel_MF = nn.Buffer(mel_filters(), persistent=False)

    def forward(self, windows_NL: Tensor) -> Tensor:
        """Compute in float32 even under mixed precision: the logarithm of a quiet band needs the digits."""
        with torch.autocast(windows_NL.device.type, enabled=False):
            frames_NTL = windows_NL.float().unfold(-1, FRAME, HOP) * self.hann_L
            magnitude_NTF = torch.fft.rfft(frames_NTL, n=FFT).abs()
            return torch.log(magnitude_NTF @ self.mel_MF.mT + LOG_OFFSET)


class SameConv2d(nn.Conv2d):
    """A convolution with TensorFlow's SAME padding: the odd pixel of it goes right and below."""

    def __init__(self, inputs: int, outputs: int, *, kernel: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__(inputs, outputs, kernel, stride=stride, groups=groups)
        # He et al. 2015 (arXiv:1502.01852): without it a random trunk fades to zero over 27 layers.
        nn.init.kaiming_normal_(self.weight, nonlinearity="relu")
        nn.init.zeros_(self.bias)  # pyright: ignore[reportArgumentType]

    def forward(self, input: Tensor) -> Tensor:
        """Pad so that the output has ceil(size / stride) pixels, then convolve."""
        (kernel, _), (stride, _) = self.kernel_size, self.stride
        bottom, right = (max((math.ceil(n / stride) - 1) * stride + kernel - n, 0) for n in input.shape[-2:])
        padding = (right // 2, right - right // 2, bottom // 2, bottom - bottom // 2)
        return super().forward(functional.pad(input, padding))


def mel_filters() -> Tensor:
    """Compute the (M, F) filters: triangles on the HTK mel scale, evenly spaced from 125 to 7,500 Hz."""
    bins_F = mel(torch.linspace(0, RATE / 2, FFT // 2 + 1, dtype=torch.float64))
    low, high = mel(torch.tensor([LOW_HZ, HIGH_HZ], dtype=torch.float64)).tolist()
    edges = torch.linspace(low, high, BANDS + 2, dtype=torch.float64)[:, None]
    left_M1, centre_M1, right_M1 = edges[:-2], edges[1:-1], edges[2:]
    rising_MF = (bins_F - left_M1) / (centre_M1 - left_M1)
    falling_MF = (right_M1 - bins_F) / (right_M1 - centre_M1)
    return torch.minimum(rising_MF, falling_MF).clamp(min=0).float()


def mel(hertz: Tensor) -> Tensor:
    """Convert hertz to mel (O'Shaughnessy's formula, as in HTK)."""
    return 1127 * torch.log1p(hertz / 700)


def windows(clips_BS: Tensor) -> Tensor:
    """Cut clips into the fewest windows that cover every sample, evenly spaced: (B, S) -> (B, W, L)."""
    spare = clips_BS.shape[-1] - WINDOW
    count = math.ceil(clips_BS.shape[-1] / WINDOW)
    starts = [0] if count == 1 else [spare * i // (count - 1) for i in range(count)]
    return torch.stack([clips_BS[:, start : start + WINDOW] for start in starts], dim=1)


def cut(wave_S: Tensor, samples: int, *, training: bool) -> Tensor:
    """Take `samples` of a wave, repeating a short one; see `AudioYamnet.prepare` for where it starts."""
    length = wave_S.numel()
    start = int(torch.randint(length, ())) if training else max(length - samples, 0) // 2
    return wave_S[(start + torch.arange(samples)) % length]


def lowpass(wave_S: Tensor, hertz: float) -> Tensor:
    """Remove everything above `hertz`; a raised cosine starts at nine tenths of it, so that nothing rings."""
    bins_F = torch.fft.rfftfreq(wave_S.numel(), 1 / RATE)
    slope_F = ((hertz - bins_F) / (0.1 * hertz)).clamp(0, 1)
    gain_F = 0.5 - 0.5 * torch.cos(torch.pi * slope_F)
    return torch.fft.irfft(torch.fft.rfft(wave_S) * gain_F, n=wave_S.numel())


def level(wave_S: Tensor, decibels: float) -> Tensor:
    """Scale a wave to a root mean square of `decibels` full scale, but to a peak of 1 at most."""
    # Below -80 dB is silence, not to be amplified to a storm.
    loudness = wave_S.square().mean().sqrt().clamp(min=1e-4)
    peak = wave_S.abs().max().clamp(min=1e-4)
    return wave_S * torch.minimum(10 ** (decibels / 20) / loudness, 1 / peak)


def load_weights(yamnet: Yamnet, path: Path) -> None:
    """Read the convolutions from a safetensors file; float16 is stored, float32 is computed.

    Raises:
        CheckpointError: The file cannot be read, or a tensor is missing or has another shape.
    """
    stored = read_weights(path)
    # The file's front end is what `LogMel` computes, and its classifier is not used.
    convs = {
        f"convs.{key.removeprefix('conv')}": t.float() for key, t in stored.items() if key.startswith("conv")
    }
    load_strictly(yamnet, convs, str(path))
