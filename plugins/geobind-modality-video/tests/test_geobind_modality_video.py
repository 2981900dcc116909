"""The contract of the video modality, and which frames it takes."""

import io
import sys

import numpy as np
import pytest
import torch
from geobind_modality_video import Video
from PIL import Image

from geobind.errors import DataError
from geobind.testing import ModalityContract
from geobind_toyearth.learning import bind_to_facts

SMALL = {"timm": {"model": "resnet10t", "pretrained": False}, "size": 32}


def fade(frames, size=48, red=0):
    """Frames whose grey says their place: from black to white."""
    levels = np.linspace(0, 250, frames).astype(np.uint8)
    video = np.repeat(levels[:, None, None, None], size, 1).repeat(size, 2).repeat(3, 3)
    video[..., 0] = np.maximum(video[..., 0], red)
    return video


def encode(frames, rate=10, gap=5, kind="mp4"):
    av = pytest.importorskip("av")
    file = io.BytesIO()
    with av.open(file, "w", format=kind) as container:
        # Without its own key frames where the picture changes.
        stream = container.add_stream("mpeg4", rate=rate, options={"sc_threshold": "1000000000"})
        stream.width, stream.height, stream.pix_fmt = frames.shape[2], frames.shape[1], "yuv420p"
        stream.codec_context.gop_size, stream.bit_rate = gap, 4_000_000
        for pixels in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    return file.getvalue()


class TestVideo(ModalityContract):
    modality = Video(**SMALL, frames=3, augment={"hflip": True})
    raws = [fade(9), [Image.fromarray(frame) for frame in fade(4, red=200)], list(fade(2))]
    bad_raws = [
        "no_such_file.mp4",
        b"no video",
        np.zeros((0, 8, 8, 3), np.uint8),
        np.zeros((4, 8, 8), np.uint8),
        np.zeros((4, 8, 8, 2), np.uint8),
        [],
        ["a", "b"],
        None,
    ]

    def test_a_video_file_is_prepared_alike_as_path_and_bytes(self, tmp_path):
        content = encode(fade(20))
        (tmp_path / "a.mp4").write_bytes(content)
        once = self.modality.prepare(content)
        assert torch.equal(once, self.modality.prepare(tmp_path / "a.mp4"))
        assert once.shape == (3, 3, 32, 32)


class TestAttention(ModalityContract):
    modality = Video(**SMALL, frames=2, pooling="attention")
    raws = [fade(6), fade(6, red=200)]


def levels(modality, raw, **options):
    return (modality.prepare(raw, **options).float().mean(dim=(1, 2, 3)) / 250).tolist()


def test_frames_are_the_middles_of_equal_parts():
    assert levels(Video(**SMALL, frames=4), fade(201)) == pytest.approx(
        [1 / 8, 3 / 8, 5 / 8, 7 / 8], abs=0.01
    )


@pytest.mark.parametrize("gap", [1, 7, 100])
@pytest.mark.parametrize("kind", ["mp4", "matroska", "avi"])
def test_a_file_gives_the_frames_that_its_array_gives(gap, kind):
    modality = Video(**SMALL, frames=5)
    frames = fade(40)
    assert levels(modality, encode(frames, gap=gap, kind=kind)) == pytest.approx(
        levels(modality, frames), abs=0.03
    )


def test_training_takes_a_random_frame_of_each_part():
    torch.manual_seed(0)
    modality = Video(**SMALL, frames=2)
    first, second = np.transpose([levels(modality, fade(101), training=True) for _ in range(20)])
    assert first.max() <= 0.5 <= second.min()
    assert np.ptp(first) > 0.2


def test_all_frames_of_a_video_are_changed_alike():
    torch.manual_seed(0)
    noise = np.random.default_rng(0).integers(0, 255, (1, 40, 40, 3), dtype=np.uint8).repeat(4, 0)
    augment = {"hflip": True, "random_resized_crop": [0.3, 0.9], "jitter": 0.3}
    modality = Video(**SMALL, frames=4, augment=augment)
    changed = modality.prepare(noise, training=True)
    assert all(torch.equal(frame, changed[0]) for frame in changed[1:])
    assert not torch.equal(changed, modality.prepare(noise, training=True))


def test_a_list_of_other_files_is_not_followed(tmp_path):
    (tmp_path / "a.ts").write_bytes(encode(fade(20), kind="mpegts"))
    assert Video(**SMALL, frames=2).prepare(tmp_path / "a.ts").shape[0] == 2
    lists = {
        "hls": f"#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\n{tmp_path / 'a.ts'}\n#EXT-X-ENDLIST\n",
        "concat": f"ffconcat version 1.0\nfile '{tmp_path / 'a.ts'}'\n",
    }
    for text in lists.values():
        with pytest.raises(DataError, match="cannot be decoded as a video"):
            Video(**SMALL).prepare(text.encode())


def test_a_long_video_is_refused_before_it_is_decoded():
    content = encode(fade(40), rate=2)
    with pytest.raises(DataError, match=r"longer than `max_seconds` \(10\)"):
        Video(**SMALL, max_seconds=10).prepare(content)


def test_large_frames_are_refused_before_they_are_decoded(monkeypatch):
    monkeypatch.setattr("geobind_modality_video._MOST_PIXELS", 1000)
    with pytest.raises(DataError, match="frames of 48 x 48 pixels; at most 1,000"):
        Video(**SMALL).prepare(encode(fade(5)))


def test_key_frames_too_far_apart_are_refused_with_the_fix(monkeypatch):
    monkeypatch.setattr("geobind_modality_video._MOST_DECODED", 20)
    with pytest.raises(DataError, match="ffmpeg -i INPUT -g 25"):
        Video(**SMALL).prepare(encode(fade(40), gap=100))
    assert len(Video(**SMALL).prepare(encode(fade(40), gap=1))) == 8


def test_a_file_cut_short_is_a_data_error_or_its_first_frames():
    content = encode(fade(40), kind="matroska")
    assert Video(**SMALL, frames=2).prepare(content[: len(content) * 2 // 3]).shape[0] == 2
    for part in (40, 300):
        with pytest.raises(DataError):
            Video(**SMALL).prepare(content[:part])


def test_without_pyav_a_file_is_refused_with_the_command_and_frames_still_work(monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(DataError, match=r"need PyAV .*pip install 'geobind-modality-video\[av\]'"):
        Video(**SMALL).prepare(b"anything")
    assert Video(**SMALL).prepare(fade(3)).shape == (8, 3, 32, 32)


@pytest.mark.slow
def test_clips_of_toy_earth_are_found_by_what_is_there(tmp_path, monkeypatch):
    monkeypatch.setenv("GEOBIND_CACHE", str(tmp_path / "cache"))
    learning = bind_to_facts(
        "video",
        "clip",
        tmp_path,
        {"timm": {"model": "test_resnet", "pretrained": False}, "size": 32, "frames": 2},
    )
    print(learning)
    assert learning.trained > 2 * learning.chance
    assert learning.untrained < 1.6 * learning.chance
