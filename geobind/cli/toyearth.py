"""geobind toyearth."""

from __future__ import annotations

from pathlib import Path

import click


@click.command("toyearth")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--places", type=click.IntRange(1, 100_000), default=100, show_default=True)
@click.option("--held-out", type=click.IntRange(0, 100_000), default=20, show_default=True)
@click.option("--seed", type=click.IntRange(0, 2**31 - 1), default=0, show_default=True)
def command(folder: Path, places: int, held_out: int, seed: int) -> None:
    """Write toy Earth to FOLDER as files with a manifest: tiles, photos, sounds, captions."""
    from geobind.data.options import ToyEarthOptions
    from geobind.data.toyearth_table import write_toyearth

    manifest = write_toyearth(folder, ToyEarthOptions(places=places, held_out=held_out, seed=seed))
    click.echo(f"manifest: {manifest}")
