"""`geobind embed`."""

from __future__ import annotations

from pathlib import Path

import click

from geobind.cli.options import bundle_argument, out_file


@click.command("embed")
@bundle_argument
@click.argument("modality")
@click.argument("inputs", nargs=-1, required=True)
@out_file("--out", about="A .npy file for the embeddings.")
@click.option("--batch-size", type=click.IntRange(1), default=64, show_default=True)
def embed_command(bundle: str, modality: str, inputs: tuple[str, ...], out: Path, batch_size: int) -> None:
    """Embed INPUTS (files, or sentences for a text modality) with BUNDLE, a folder or a hub id."""
    import io

    import numpy as np

    from geobind.binder import Binder
    from geobind.utils.files import write_atomic

    embedding_ND = Binder.from_pretrained(bundle).embed(
        modality, list(inputs), batch_size=batch_size, numpy=True
    )
    buffer = io.BytesIO()
    np.save(buffer, embedding_ND, allow_pickle=False)
    write_atomic(out, buffer.getvalue())
    click.echo(f"{out}: {embedding_ND.shape[0]} x {embedding_ND.shape[1]} float32, unit length")
