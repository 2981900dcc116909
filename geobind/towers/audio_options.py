"""The options of audio towers, as recipes spell them. This module must not import torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from pydantic import BaseModel, Field, model_validator

from geobind.extras import INSTALL
from geobind.towers.options import Fraction, HeadKind, Options, TimmOptions, Weights


class HtsatOptions(Options):
    """The audio tower of CLAP: HTSAT with its projection, as transformers ships it."""

    pretrained: Weights = Field(
        description="A hub id such as laion/clap-htsat-unfused, a .safetensors or PyTorch file, its folder, "
        "or false."
    )
    fused: bool = Field(
        default=False,
        description="Whether the weights are fused ones: they see a recording longer than 10 s as a whole "
        "and in three parts, the others one part of it.",
    )
    config: dict[str, Any] = Field(
        default={}, description="Arguments of transformers.ClapAudioConfig that differ from its defaults."
    )

    @model_validator(mode="after")
    def _consistent(self) -> HtsatOptions:
        if self.pretrained is True or self.pretrained == "":
            raise ValueError(
                "pretrained: name a hub id (such as laion/clap-htsat-unfused) or a file, or say false"
            )
        if "enable_fusion" in self.config:
            raise ValueError("config cannot hold enable_fusion: write fused: true")
        return self


class AudioAugment(Options):
    """Random changes to a recording that is trained on; one longer than the window is cropped in any case."""

    shift: bool = Field(default=False, description="Turn the window around itself by a random time.")
    gain_db: float = Field(
        default=0, ge=0, description="Change the level by up to this many decibels, up or down."
    )
    noise_snr_db: tuple[float, float] | None = Field(
        default=None,
        description="Add white noise at a signal-to-noise ratio drawn from [lowest, highest] dB.",
    )
    mask_time: Fraction = Field(default=0, description="SpecAugment: hide up to this share of the frames.")
    mask_mels: Fraction = Field(default=0, description="SpecAugment: hide up to this share of the mel bands.")


class AudioOptions(BaseModel):
    """The options of an audio modality; inherit them beside `Modality`."""

    htsat: HtsatOptions | None = Field(
        default=HtsatOptions(pretrained="laion/clap-htsat-unfused"),
        description="Encode with CLAP's audio tower (needs `pip install 'geobind[audio]'`); left out where "
        "timm is given.",
    )
    timm: TimmOptions | None = Field(
        default=None,
        description="Encode the log-mel spectrogram, as an image of one band, with this timm backbone.",
    )
    head: HeadKind = Field(
        default="auto",
        description="What maps the backbone to the shared width; auto: nothing where it fits, else linear.",
    )
    rate: int | None = Field(
        default=None, ge=1000, le=192_000, description="Samples a second; 16000, HTSAT 48000."
    )
    seconds: float | None = Field(default=None, gt=0, le=600, description="Length of the window heard; 10.")
    crops: int = Field(
        default=1,
        ge=1,
        le=64,
        description="Where nothing is trained: of a longer recording, this many windows from its beginning "
        "to its end are heard, and their embeddings averaged; 1 hears the middle.",
    )
    loudness: float | None = Field(
        default=None,
        ge=-70,
        le=0,
        description="Bring every window to this loudness in LUFS (ITU-R BS.1770), such as -23; by default "
        "levels stay.",
    )
    mels: int | None = Field(default=None, ge=8, le=512, description="Mel bands; 64.")
    window_ms: float | None = Field(
        default=None, gt=0, le=1000, description="Length of a frame; 25, HTSAT 21.3."
    )
    hop_ms: float | None = Field(default=None, gt=0, le=1000, description="Time between frames; 10.")
    fmin: float | None = Field(default=None, ge=0, description="Lowest frequency in Hz; 20, HTSAT 50.")
    fmax: float | None = Field(
        default=None, gt=0, description="Highest frequency in Hz; half the rate, HTSAT 14000."
    )

    @model_validator(mode="before")
    @classmethod
    def _timm_replaces_htsat(cls, data: Any) -> Any:
        if isinstance(data, dict) and data.get("timm") is not None and "htsat" not in data:
            return {**data, "htsat": None}
        return data

    @model_validator(mode="after")
    def _consistent(self) -> AudioOptions:
        if (self.htsat is None) == (self.timm is None):
            raise ValueError("give either htsat or timm")
        sound = {"rate", "seconds", "mels", "window_ms", "hop_ms", "fmin", "fmax"}
        given = sorted(field for field in sound if getattr(self, field) is not None)
        if self.htsat is not None and given:
            raise ValueError(
                f"{', '.join(given)}: HTSAT hears 10 s at 48 kHz in 64 mel bands; use timm to choose"
            )
        if self.crops > 1 and self.htsat is not None and self.htsat.fused:
            raise ValueError("crops: a fused HTSAT hears a longer recording as a whole already")
        rate = self.rate or 16_000
        low, high = self.fmin or 0, self.fmax or rate / 2
        if not low < high <= rate / 2:
            raise ValueError(f"fmin < fmax <= rate / 2 must hold, not {low:g} < {high:g} <= {rate / 2:g}")
        return self

    def requires(self) -> Mapping[str, str]:
        """Return the packages that the chosen encoder needs: module to the command that installs it."""
        return {} if self.htsat is None else {"transformers": INSTALL["transformers"]}

    @property
    def chosen(self) -> HtsatOptions | TimmOptions:
        """The one encoder that was given."""
        return cast("HtsatOptions | TimmOptions", self.htsat or self.timm)
