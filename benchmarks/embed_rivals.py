"""Embedding with CLIP's ViT-B/32, as others do it: images from JPEG files, and captions.

    python benchmarks/embed_rivals.py [--files 48] [--captions 64] [--rounds 5] [--batch 16]

Images: `Binder.embed` in float32 and, where it pays, in bfloat16, against a script with open_clip and a
DataLoader, a pipeline of transformers, and `encode` of sentence-transformers. Captions of about 14 tokens:
`Binder.embed`, which cuts the padding that all texts of a batch have, against open_clip's `encode_text` of 77
tokens. Weights are random. A rival that is not installed is named and left out.

One thread, one process; contenders take turns. Printed are CPU seconds and, of neighbours, the ratio to
open_clip's script with a bootstrap interval.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import open_clip
import torch
from embed import build, write_images
from paired import ratio, take_turns
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from geobind import Binder
from geobind.plugins import registry

Calls = dict[str, Callable[[], object]]
MODEL = "ViT-B-32"


class Files(Dataset):
    """JPEG files as open_clip's own transform prepares them."""

    def __init__(self, files: list[Path], transform: Callable) -> None:
        self.files, self.transform = files, transform

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, number: int) -> torch.Tensor:
        return self.transform(Image.open(self.files[number]))


def image_calls(files: list[Path], batch: int) -> Calls:
    model, _, transform = open_clip.create_model_and_transforms(MODEL)
    model.eval()
    binder = build("ViT-B/32, 224 pixels")

    @torch.no_grad()
    def script() -> torch.Tensor:
        loader = DataLoader(Files(files, transform), batch)
        return torch.cat([model.encode_image(images, normalize=True) for images in loader])

    calls: Calls = {
        "open_clip script": script,
        "geobind": lambda: binder.embed("satellite", files, batch_size=batch, workers=0),
        "geobind, precision auto": lambda: binder.embed(
            "satellite", files, batch_size=batch, workers=0, precision="auto"
        ),
    }
    for name, make in (("transformers pipeline", pipeline), ("sentence-transformers", sentences)):
        try:
            calls[name] = make(files, batch)
        except ImportError as error:
            print(f"{name}: left out ({error})")
    return calls


def pipeline(files: list[Path], batch: int) -> Callable[[], object]:
    from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModel
    from transformers import pipeline as make

    model = CLIPVisionModel(CLIPVisionConfig()).eval()
    run = make("image-feature-extraction", model=model, image_processor=CLIPImageProcessor(), device="cpu")
    names = [str(file) for file in files]
    return lambda: run(names, batch_size=batch, return_tensors=True)


def sentences(files: list[Path], batch: int) -> Callable[[], object]:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import CLIPModel
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPProcessor, CLIPTokenizer
    from transformers import CLIPModel as Weights

    with tempfile.TemporaryDirectory() as folder:
        Weights(CLIPConfig()).save_pretrained(folder)
        tokenizer = CLIPTokenizer(vocab={"<|startoftext|>": 0, "<|endoftext|>": 1}, merges=[])
        CLIPProcessor(CLIPImageProcessor(), tokenizer).save_pretrained(folder)
        model = SentenceTransformer(modules=[CLIPModel(folder)], device="cpu")
    return lambda: model.encode([Image.open(file) for file in files], batch_size=batch)


def caption_calls(captions: list[str], batch: int) -> Calls:
    model, tokenize = open_clip.create_model(MODEL).eval(), open_clip.get_tokenizer(MODEL)
    options = {"clip": {"model": MODEL, "pretrained": False}}
    binder = Binder({"text": registry().get("text").model_validate(options)}, 512, seed=0)
    parts = [captions[start : start + batch] for start in range(0, len(captions), batch)]

    @torch.no_grad()
    def script() -> torch.Tensor:
        return torch.cat([model.encode_text(tokenize(part), normalize=True) for part in parts])

    return {
        "open_clip script": script,
        "geobind": lambda: binder.embed("text", captions, batch_size=batch, workers=0),
    }


def compare(title: str, calls: Calls, rounds: int) -> None:
    times = take_turns(calls, rounds)
    print(title)
    for name, values in times.items():
        print(
            f"  {name:26}{statistics.median(values):8.2f} CPU s  {ratio(values, times['open_clip script'])}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--files", type=int, default=48)
    parser.add_argument("--captions", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int, default=16)
    args = parser.parse_args()
    torch.set_num_threads(1)
    with suppress(ImportError):
        from transformers.utils import logging

        logging.set_verbosity_error()
    with tempfile.TemporaryDirectory() as folder:
        calls = image_calls(write_images(Path(folder), args.files), args.batch)
        compare(f"{args.files} JPEG files of 256 pixels", calls, args.rounds)
    places = ("a harbour", "a vineyard", "wet meadows", "a railway yard")
    captions = [f"a photo of {places[i % 4]} in the hills, seen from above" for i in range(args.captions)]
    compare(f"{args.captions} captions", caption_calls(captions, args.batch), args.rounds)


if __name__ == "__main__":
    main()
