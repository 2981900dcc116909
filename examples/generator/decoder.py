"""A small decoder of frozen embeddings: from a vector of a binder's space to a picture of the anchor.

It is trained on pictures and their embeddings alone. What drives it afterwards is any embedding of the space,
moved onto the anchor's own embeddings first: those of another modality lie beside them (the modality gap).
"""

# B pictures in a batch, N pictures, D width of the space, S pixels along a side

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from geobind import Binder
from geobind.archive import model_digest
from geobind.bridge import AnchorBank, Bridge, BridgeOptions
from geobind.data import read_image
from geobind.errors import CheckpointError, DataError

Via = Literal["bank", "shift", "nothing"]
CHANNELS = (96, 64, 32, 16)  # from a sixteenth of the side to half of it
NOISE = 4  # channels of noise at each resolution: what an embedding does not say of a picture
BANK_ROWS = 4000
FORMAT = 1


class Block(nn.Module):
    """A convolution of twice the resolution, with noise beside its features."""

    def __init__(self, channels: int, out: int, grow: bool) -> None:
        super().__init__()
        self.grow = grow
        self.mix = nn.Conv2d(channels + NOISE, out, 3, padding=1, padding_mode="reflect")
        self.norm = nn.GroupNorm(4, out)
        self.deepen = nn.Conv2d(out, out, 3, padding=1, padding_mode="reflect")

    def forward(self, x_BCHW: Tensor, noise: torch.Generator | None) -> Tensor:
        """Return the features of the next resolution."""
        if self.grow:
            x_BCHW = F.interpolate(x_BCHW, scale_factor=2, mode="bilinear")
        count, _, height, width = x_BCHW.shape
        grain = torch.randn(count, NOISE, height, width, generator=noise).to(x_BCHW.device)
        x_BCHW = F.silu(self.norm(self.mix(torch.cat([x_BCHW, grain], dim=1))))
        return x_BCHW + F.silu(self.deepen(x_BCHW))


class Decoder(nn.Module):
    """A decoder of embeddings (B, D) to pictures (B, 3, S, S) in 0..1."""

    def __init__(self, width: int, size: int = 64) -> None:
        super().__init__()
        if size % 16 or size < 32:
            raise DataError(f"the side of a picture must be a multiple of 16 and 32 at least, not {size}")
        self.width, self.size = width, size
        self.start = nn.Linear(width, CHANNELS[0] * (size // 16) ** 2)
        pairs = zip((CHANNELS[0], *CHANNELS), CHANNELS, strict=False)
        self.blocks = nn.ModuleList(Block(one, two, number > 0) for number, (one, two) in enumerate(pairs))
        self.paint = nn.Conv2d(CHANNELS[-1], 3 * 4, 3, padding=1, padding_mode="reflect")

    def forward(self, x_BD: Tensor, noise: torch.Generator | None = None) -> Tensor:
        """Decode embeddings; the same generator of noise gives the same pictures."""
        side = self.size // 16
        x_BCHW = self.start(x_BD * self.width**0.5).reshape(len(x_BD), -1, side, side)
        for block in self.blocks:
            x_BCHW = block(x_BCHW, noise)
        return torch.sigmoid(F.pixel_shuffle(self.paint(x_BCHW), 2))


@dataclass(frozen=True, eq=False)
class Generator:
    """A decoder with the model whose space it decodes, and a bank of the anchor's embeddings.

    Args:
        decoder: The decoder.
        modality: What its pictures are.
        model: Digest of the model that embedded them (`model_digest`).
        bank_RD: Embeddings of pictures it was trained on.
    """

    decoder: Decoder
    modality: str
    model: str
    bank_RD: Tensor

    def move(self, x_ND: Any, via: Via = "bank", mean_D: Any = None) -> Tensor:
        """Move embeddings of another modality to where those of pictures lie: (N, D).

        Args:
            x_ND: Embeddings of the space.
            via: `bank`: to the mean of the bank's rows, weighted by similarity (`Bridge.project`);
                `shift`: by the difference of the two means; `nothing`: leave them.
            mean_D: For `shift`: the mean of the other modality's embeddings.

        Raises:
            DataError: Embeddings of another width, or `shift` without a mean.
        """
        x_ND = torch.as_tensor(x_ND, dtype=torch.float32)
        if x_ND.ndim != 2 or x_ND.shape[1] != self.decoder.width:
            raise DataError(
                f"embeddings of shape {tuple(x_ND.shape)} for a decoder of width {self.decoder.width}: both "
                "must be of one space"
            )
        if via == "bank":
            return Bridge(AnchorBank(self.bank_RD), BridgeOptions()).project(x_ND)
        if via == "shift":
            if mean_D is None:
                raise DataError("a shift needs the mean of the other modality's embeddings")
            x_ND = x_ND - torch.as_tensor(mean_D, dtype=torch.float32) + self.bank_RD.mean(dim=0)
        return F.normalize(x_ND, dim=1)

    def draw(self, x_ND: Any, via: Via = "bank", *, seed: int = 0, mean_D: Any = None) -> NDArray[np.uint8]:
        """Draw a picture for each embedding: (N, S, S, 3); another seed draws others of the same meaning.

        Raises:
            DataError: As `move`.
        """
        moved_ND, noise = self.move(x_ND, via, mean_D), torch.Generator().manual_seed(seed)
        with torch.inference_mode():
            parts = [self.decoder(part_BD, noise) for part_BD in moved_ND.split(64)]
        picture_NSSC = torch.cat(parts).permute(0, 2, 3, 1)
        return (picture_NSSC * 255).round().to(torch.uint8).numpy()

    def save(self, path: str | Path) -> Path:
        """Write the decoder and its bank as one file, without pickle."""
        facts = {"format": FORMAT, "modality": self.modality, "model": self.model}
        facts |= {"width": self.decoder.width, "size": self.decoder.size}
        tensors = {f"decoder.{name}": value for name, value in self.decoder.state_dict().items()}
        save_file(tensors | {"bank": self.bank_RD.half().contiguous()}, path, {"decoder": json.dumps(facts)})
        return Path(path)

    @classmethod
    def load(cls, path: str | Path, binder: Binder) -> Generator:
        """Read a decoder, after a check that it decodes the space of a binder.

        Raises:
            CheckpointError: It is damaged or no decoder, or is of another width, modality or model.
        """
        try:
            with safe_open(path, "pt") as file:
                facts = json.loads((file.metadata() or {})["decoder"])
                check_space(Path(path), facts, binder)
                tensors = {name: file.get_tensor(name) for name in file.keys()}
            decoder = Decoder(int(facts["width"]), int(facts["size"]))
            bank_RD = tensors.pop("bank").float()
            decoder.load_state_dict({name.removeprefix("decoder."): value for name, value in tensors.items()})
        except (SafetensorError, OSError, KeyError, ValueError, TypeError, RuntimeError) as error:
            raise CheckpointError(f"{path}: cannot be read as a decoder ({error}); train it again") from None
        return cls(decoder.eval(), str(facts["modality"]), str(facts["model"]), F.normalize(bank_RD, dim=1))


def check_space(path: Path, facts: dict[str, Any], binder: Binder) -> None:
    """Refuse a decoder of another space than the binder's.

    Raises:
        CheckpointError: Another format, width, modality or model.
    """
    fix = "use the bundle it was trained on, or train another"
    if facts["format"] != FORMAT:
        raise CheckpointError(f"{path}: a decoder of format {facts['format']}, this is {FORMAT}: {fix}")
    if facts["width"] != binder.width:
        raise CheckpointError(
            f"{path}: decodes a space {facts['width']} wide, the bundle's is {binder.width}; {fix}"
        )
    if facts["modality"] not in binder.modalities:
        known = ", ".join(sorted(binder.modalities))
        raise CheckpointError(
            f"{path}: decodes '{facts['modality']}', which the bundle has not (it has {known}); {fix}"
        )
    digest = model_digest(binder, facts["modality"])
    if facts["model"] != digest:
        raise CheckpointError(
            f"{path}: decodes embeddings of another model ({str(facts['model'])[:12]}; the bundle's is "
            f"{digest[:12]}); {fix}"
        )


# Training ---------------------------------------------------------------------------------------------


def train_generator(
    binder: Binder,
    pictures: Sequence[Any],
    modality: str | None = None,
    *,
    size: int = 64,
    epochs: int = 12,
    batch_size: int = 32,
    rate: float = 2e-3,
    again: float = 0.3,
    seed: int = 0,
    show: Callable[[str], object] = lambda line: None,
) -> Generator:
    """Train a decoder of a binder's space on pictures; the binder is frozen.

    The loss compares colours of parts, textures, and embeddings: one minus the cosine of a picture's own
    embedding, through the frozen encoder, with the one it was drawn from. The last alone would draw patterns
    that only the encoder likes; pictures are mirrored at random before it, which makes that harder.

    Args:
        binder: The model.
        pictures: Raw inputs of the modality, images of three channels.
        modality: What they are; default: the anchor.
        size: Side of a picture that is drawn.
        epochs: Passes over the pictures.
        batch_size: Pictures in a step.
        rate: Learning rate at its highest.
        again: Weight of the embeddings' part of the loss; 0 leaves it out.
        seed: Of weights, order and noise.
        show: Receives a line after each epoch.

    Raises:
        DataError: Fewer pictures than a batch has, or one that cannot be read.
        PluginError: The binder has no such modality.
    """
    modality = modality or binder.anchor
    binder.modality(modality)
    if len(pictures) < batch_size:
        raise DataError(f"{len(pictures)} pictures are too few; a batch has {batch_size}")
    picture_NCSS = torch.stack([read_picture(raw, size) for raw in pictures])
    embedding_ND = binder.embed(modality, pictures, progress=False)
    torch.manual_seed(seed)
    decoder, noise = Decoder(binder.width, size), torch.Generator().manual_seed(seed)
    texture = Texture(seed)
    optimizer = torch.optim.AdamW(decoder.parameters(), lr=rate, weight_decay=0.01)
    steps = epochs * (len(pictures) // batch_size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps, pct_start=0.1)
    frozen = [value for value in binder.parameters() if value.requires_grad]
    for value in frozen:
        value.requires_grad_(False)
    binder.eval()
    try:
        for epoch in range(epochs):
            total = 0.0
            order_N = torch.randperm(len(pictures), generator=noise)
            for rows_B in order_N.split(batch_size)[: len(pictures) // batch_size]:
                real_BCSS, given_BD = picture_NCSS[rows_B].float() / 255, embedding_ND[rows_B]
                drawn_BCSS = decoder(given_BD, noise)
                loss = 10 * compare_colours(drawn_BCSS, real_BCSS) + 0.5 * texture(drawn_BCSS, real_BCSS)
                if again:
                    turned_BCSS = mirror(drawn_BCSS, noise)
                    embedded_BD = binder(modality, fit_size(binder, modality, turned_BCSS))
                    loss = loss + again * (1 - (embedded_BD * given_BD).sum(dim=1)).mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                total += float(loss.detach()) * batch_size / len(pictures)
            show(f"epoch {epoch + 1} of {epochs}: loss {total:.3f}")
    finally:
        for value in frozen:
            value.requires_grad_(True)
    rows_R = torch.linspace(0, len(pictures) - 1, min(BANK_ROWS, len(pictures))).long()
    return Generator(decoder.eval(), modality, model_digest(binder, modality), embedding_ND[rows_R])


def read_picture(raw: Any, size: int) -> Tensor:
    """Read an image as (3, S, S) of bytes."""
    image_CHW = read_image(raw)
    if image_CHW.shape[1:] != (size, size):
        resized = F.interpolate(image_CHW[None].float(), (size, size), mode="bilinear", antialias=True)
        image_CHW = resized[0].round().clamp(0, 255).to(torch.uint8)
    return image_CHW


def mirror(picture_BCSS: Tensor, noise: torch.Generator) -> Tensor:
    """Mirror and turn a batch of pictures at random, all alike."""
    turns, flipped = (int(torch.randint(number, (), generator=noise)) for number in (4, 2))
    turned_BCSS = picture_BCSS.rot90(turns, (2, 3))
    return turned_BCSS.flip(3) if flipped else turned_BCSS


def fit_size(binder: Binder, modality: str, picture_BCSS: Tensor) -> Tensor:
    """Scale pictures to the size that the modality's encoder takes, so that gradients pass.

    Raises:
        DataError: The modality does not state a size.
    """
    spec = getattr(binder.modality(modality), "spec", None)
    if spec is None:
        raise DataError(f"'{modality}' does not state the images its encoder takes: train with again=0")
    if picture_BCSS.shape[-1] == spec.size:
        return picture_BCSS
    return F.interpolate(picture_BCSS, (spec.size, spec.size), mode="bilinear", antialias=True)


class Texture(nn.Module):
    """Second moments of random filters at several scales: what a texture is, wherever its parts lie.

    Random filters of one layer are enough to tell textures (Ustyuzhaninov et al., arXiv:1606.00021).
    """

    def __init__(self, seed: int, filters: int = 32, side: int = 5, scales: int = 3) -> None:
        super().__init__()
        weight_FCHW = torch.randn(filters, 3, side, side, generator=torch.Generator().manual_seed(seed))
        weight_FCHW -= weight_FCHW.mean(dim=(2, 3), keepdim=True)  # contrasts; colours are compared apart
        self.weight = nn.Buffer(weight_FCHW / weight_FCHW.flatten(1).norm(dim=1)[:, None, None, None])
        self.scales = scales

    def forward(self, drawn_BCSS: Tensor, real_BCSS: Tensor) -> Tensor:
        """Compare textures: a number."""
        loss = drawn_BCSS.new_zeros(())
        for scale in range(self.scales):
            moment_d, moment_r = (self._measure(one) for one in (drawn_BCSS, real_BCSS))
            loss = loss + (moment_d - moment_r).abs().mean() / moment_r.abs().mean()
            if scale + 1 < self.scales:
                drawn_BCSS, real_BCSS = (F.avg_pool2d(one, 2) for one in (drawn_BCSS, real_BCSS))
        return loss / self.scales

    def _measure(self, picture_BCSS: Tensor) -> Tensor:
        seen_BFP = F.relu(F.conv2d(picture_BCSS, self.weight)).flatten(2)
        return seen_BFP @ seen_BFP.transpose(1, 2) / seen_BFP.shape[2]


def compare_colours(drawn_BCSS: Tensor, real_BCSS: Tensor) -> Tensor:
    """Compare the mean colours of four by four parts, and of whole pictures."""
    drawn_BC44, real_BC44 = (F.adaptive_avg_pool2d(one, 4) for one in (drawn_BCSS, real_BCSS))
    whole_BC = (drawn_BC44 - real_BC44).mean(dim=(2, 3))
    # Squares, not absolute errors: those have a plateau where every picture is the median one.
    return (drawn_BC44 - real_BC44).square().mean() + whole_BC.square().mean()
