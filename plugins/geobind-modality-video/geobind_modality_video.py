"""Videos as a modality: frames sampled evenly, an image tower for each, and their mean or an attention."""

# B batch, F frames, D shared width, H, W rows and columns, C features of a frame

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast

import numpy as np
from pydantic import Field

import geobind
from geobind.errors import DataError
from geobind.modality import Role, Widget
from geobind.towers import ImageOptions, PhotoAugment

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor, nn

    from geobind.towers import ImageSpec

_INSTALL = "pip install 'geobind-modality-video[av]'"
_MOST_PIXELS = 40_000_000  # of a frame: somewhat more than 8K
_MOST_FRAMES = 200_000  # of a file: over an hour at 50 a second
_MOST_DECODED = 5_000  # frames decoded of one file
# Containers that hold their own streams; lists of other files and addresses (HLS, concat) are none.
_CONTAINERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,ogg,flv,asf,gif"


class Video(ImageOptions, geobind.Modality):
    """A video of a place."""

    name: ClassVar[str] = "video"
    role: ClassVar[Role] = "trainable"
    accepts: ClassVar[str] = "a video file (path or bytes), frames (T, H, W, 3), or a list of images"
    widget: ClassVar[Widget] = "file"

    frames: int = Field(default=8, ge=1, le=128, description="frames F that the encoder sees")
    pooling: Literal["mean", "attention"] = Field(
        default="mean", description="how frames become one; attention is trained, and knows their order"
    )
    max_seconds: float = Field(
        default=600.0, gt=0, le=7200, description="longer files are refused before they are decoded"
    )
    augment: PhotoAugment = Field(
        default=PhotoAugment(), description="random changes in training, alike in all frames of a video"
    )

    @cached_property
    def spec(self) -> ImageSpec:
        """Return the size and normalisation of the images that the tower takes."""
        from geobind.towers import image_spec

        return image_spec(self)

    def encoder(self, width: int, *, pretrained: bool = True) -> nn.Module:
        """Build the image tower, the pooling of its features over frames, and a head of this width."""
        import torch
        from torch import nn

        from geobind.towers import Tower, image_encoder

        class Frames(nn.Module):
            def __init__(self, image: nn.Module) -> None:
                super().__init__()
                self.image = image

            def forward(self, x: Tensor) -> Tensor:
                """Encode (B, F, 3, H, W) to features (B, F, C)."""
                return self.image(x.flatten(0, 1)).unflatten(0, x.shape[:2])

        class Attention(nn.Module):
            def __init__(self, frames: int, features: int) -> None:
                super().__init__()
                self.order = nn.Parameter(0.02 * torch.randn(frames, features))
                self.score = nn.Linear(features, 1, bias=False)

            def forward(self, x_BFC: Tensor) -> Tensor:
                """Weigh the features of frames to (B, C)."""
                x_BFC = x_BFC + self.order
                return (self.score(x_BFC).softmax(dim=1) * x_BFC).sum(dim=1)

        class Mean(nn.Module):
            def forward(self, x_BFC: Tensor) -> Tensor:
                """Average the features of frames to (B, C)."""
                return x_BFC.mean(dim=1)

        image = image_encoder(self, width, pretrained=pretrained)
        head, image.head = image.head, nn.Identity()
        features = next((part.in_features for part in head.modules() if isinstance(part, nn.Linear)), width)
        pool = Attention(self.frames, features) if self.pooling == "attention" else Mean()
        return Tower(nn.Sequential(Frames(image), pool), head)

    def prepare(self, raw: Any, *, training: bool = False) -> Tensor:
        """Turn a video into (F, 3, size, size).

        The video is cut into F equal parts: of each the middle frame is taken, in training a random one. A
        video of fewer frames repeats some.

        Raises:
            DataError: It cannot be read, has no frames, is too long or too large, or PyAV is missing.
        """
        import torch

        from geobind.towers import prepare_image

        at = (torch.rand(self.frames) if training else torch.full((self.frames,), 0.5)).numpy()
        images = self.read_frames(raw, (np.arange(self.frames) + at) / self.frames)
        augment = self.augment if training else None
        state = torch.get_rng_state()
        prepared: list[Tensor] = []
        for image in images:
            torch.set_rng_state(state)  # each frame is cropped, mirrored and recoloured as the first
            prepared.append(prepare_image(image, self.spec, augment))
        if len({frame.dtype for frame in prepared}) > 1:
            prepared = [frame.float() / 255 if frame.dtype == torch.uint8 else frame for frame in prepared]
        return torch.stack(prepared)

    def read_frames(self, raw: Any, shares: NDArray[np.float64]) -> list[Any]:
        """Read the frames that lie at some shares of a video, which ascend from 0 to below 1.

        Raises:
            DataError: As `prepare`.
        """
        if isinstance(raw, str | Path | bytes | bytearray | memoryview):
            return _decode(raw, shares, self.max_seconds)
        given = _list_frames(raw, self.accepts)
        return [given[int(share * len(given))] for share in shares]

    def picture(self, raw: Any) -> NDArray[np.uint8]:
        """Draw a video as three of its frames, side by side."""
        import torch

        from geobind.data import read_image

        images = [read_image(image) for image in self.read_frames(raw, np.array([1, 3, 5]) / 6)]
        strip_CHW = torch.cat(
            [image if image.dtype == torch.uint8 else 255 * image for image in images], dim=2
        )
        return strip_CHW.clamp(0, 255).to(torch.uint8).permute(1, 2, 0).numpy()


def _list_frames(raw: Any, accepts: str) -> Sequence[Any]:
    from PIL import Image

    if isinstance(raw, list | tuple):
        images = cast("list[Any]", raw)
        if not images:
            raise DataError("a video has no frames; leave the cell empty")
        if all(isinstance(image, Image.Image) for image in images):
            return images
        shapes = {getattr(image, "shape", None) for image in images}
        if len(shapes) == 1 and None not in shapes:
            return [_check_frame(image) for image in images]
        raise DataError(f"the frames of a video are images, or arrays of one shape; give {accepts}")
    if getattr(raw, "ndim", None) != 4 or not hasattr(raw, "shape"):
        raise DataError(f"cannot read a {type(raw).__name__} as a video; give {accepts}")
    if not len(raw):
        raise DataError("a video has no frames; leave the cell empty")
    _check_frame(raw[0])
    return raw


def _check_frame(frame: Any) -> Any:
    if len(frame.shape) != 3 or frame.shape[-1] != 3:
        raise DataError(f"a frame of a video has the shape (H, W, 3), not {tuple(frame.shape)}")
    return frame if isinstance(frame, np.ndarray) else np.asarray(frame)


@contextmanager
def _open_stream(raw: Any) -> Generator[tuple[Any, Any]]:
    """Open the first video stream of a file: its container and itself.

    Raises:
        DataError: PyAV is missing, or this is no video.
    """
    from geobind.data import open_binary

    try:
        import av  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise DataError(
            f"video files need PyAV ({error}): {_INSTALL}; or give frames (T, H, W, 3)"
        ) from error
    name = _name(raw)
    # A file that is opened here, of a container that is listed, leads to no other file or address.
    options = {"format_whitelist": _CONTAINERS, "protocol_whitelist": "pipe"}
    with open_binary(raw) as file:
        try:
            with av.open(file, options=options, metadata_errors="replace") as container:
                if not container.streams.video:
                    raise DataError(f"{name}: has no video stream")
                yield container, container.streams.video[0]
        except av.FFmpegError as error:
            raise DataError(
                f"{name}: cannot be decoded as a video ({error.strerror}); if it plays elsewhere, convert "
                "it: ffmpeg -i INPUT output.mp4"
            ) from error


def _decode(raw: Any, shares: NDArray[np.float64], max_seconds: float) -> list[NDArray[np.uint8]]:
    """Decode the frames at some shares of a file, each from the key frame before it."""
    name = _name(raw)
    with _open_stream(raw) as (container, stream):
        width, height = stream.codec_context.width, stream.codec_context.height
        if not 0 < width * height <= _MOST_PIXELS:
            raise DataError(
                f"{name}: frames of {width} x {height} pixels; at most {_MOST_PIXELS:,} are decoded"
            )
        times, keys = _list_times(container, stream, name, max_seconds)
        wanted = [times[int(share * len(times))] for share in shares]
        decoder, now, decoded = None, None, 0
        images: list[NDArray[np.uint8]] = []
        frame: Any = None
        for time in wanted:
            key = max((at for at in keys if at <= time), default=times[0])
            if now is None or key > now:
                container.seek(key, stream=stream)
                decoder, now = container.decode(stream), None
            while decoder is not None and (now is None or now < time):
                following = next(decoder, None)
                if following is None:
                    decoder = None  # the file ends before the last frames that it lists
                    break
                frame, now = following, _time(following, now)
                decoded += 1
                if decoded > _MOST_DECODED:
                    raise DataError(
                        f"{name}: {_MOST_DECODED} frames were decoded, and more are needed: its key frames "
                        "are too far apart; encode it again: ffmpeg -i INPUT -g 25 output.mp4"
                    )
            if frame is None:
                raise DataError(f"{name}: lists {len(times)} frames, of which none can be decoded")
            images.append(_as_upright(frame))
    return images


def _list_times(container: Any, stream: Any, name: str, max_seconds: float) -> tuple[list[int], list[int]]:
    """List the times of all frames and those of key frames, without decoding any; in the stream's unit."""
    times: list[int] = []
    keys: list[int] = []
    for packet in container.demux(stream):
        time = packet.pts if packet.pts is not None else packet.dts
        if time is None:  # the empty packet at the end
            continue
        times.append(time)
        if packet.is_keyframe:
            keys.append(time)
        seconds = float((time - times[0]) * stream.time_base)
        if len(times) > _MOST_FRAMES or seconds > max_seconds:
            raise DataError(
                f"{name}: is longer than `max_seconds` ({max_seconds:g}) or {_MOST_FRAMES:,} frames; cut it "
                "into clips, or raise `max_seconds`"
            )
    if not times:
        raise DataError(f"{name}: has no frames; leave the cell empty")
    return sorted(times), keys


def _time(frame: Any, before: int | None) -> int:
    time = frame.pts if frame.pts is not None else frame.dts
    return time if time is not None else (before or 0) + 1


def _as_upright(frame: Any) -> NDArray[np.uint8]:
    """Return a frame as (H, W, 3), turned as its file says, such as those of a phone held upright."""
    pixels_HWC = frame.to_ndarray(format="rgb24")
    return np.ascontiguousarray(np.rot90(pixels_HWC, round(getattr(frame, "rotation", 0) / 90)))


def _name(raw: Any) -> str:
    return str(raw)[:300] if isinstance(raw, str | Path) else getattr(raw, "name", "") or f"{len(raw)} bytes"


@geobind.hookimpl
def geobind_modalities() -> list[type[geobind.Modality]]:
    """Provide the modality of this package."""
    return [Video]
