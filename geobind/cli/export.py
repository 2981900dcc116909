"""`geobind export`."""

from __future__ import annotations

from pathlib import Path

import click

from geobind.cli.options import bundle_argument, json_option, out_file, print_json


@click.command("export")
@bundle_argument
@click.argument("modality")
@click.option("--to", type=click.Choice(["onnx", "pt2"]), help="Format; default: what the file ends in.")
@out_file("-o", "--out", about="The file to write, such as tiles.onnx.")
@click.option(
    "--tolerance",
    type=float,
    default=1e-5,
    show_default=True,
    help="Largest difference from the bundle's embeddings that is allowed.",
)
@click.option(
    "--sample",
    "samples",
    multiple=True,
    metavar="INPUT",
    help="A file, or a sentence for texts, to check with; repeatable. Without any, inputs are made up.",
)
@click.option("--front-end", is_flag=True, help="Take decoded pixels or samples; prepare them in the graph.")
@click.option(
    "--int8", is_flag=True, help="ONNX with matrix products in int8; prints the least cosine of --sample."
)
@json_option
def export_command(
    bundle: str,
    modality: str,
    to: str | None,
    out: Path,
    tolerance: float,
    samples: tuple[str, ...],
    front_end: bool,
    int8: bool,
    as_json: bool,
) -> None:
    """Write the encoder of MODALITY in BUNDLE as one file that runs without geobind.

    ONNX (.onnx) is for onnxruntime and others, .pt2 for torch.export.load. Its embeddings are compared with
    the bundle's first; a difference over the tolerance writes nothing and exits with 2. OUT.json beside the
    file says what it takes and how to prepare it.
    """
    from geobind.binder import Binder
    from geobind.export import export_encoder

    result = export_encoder(
        Binder.from_pretrained(bundle),
        modality,
        out,
        to=to,
        tolerance=tolerance,
        samples=list(samples) or None,
        front_end=front_end,
        int8=int8,
    )
    if as_json:
        print_json({**result._asdict(), "file": str(result.file), "input_file": str(result.input_file)})
        return
    sizes = ", ".join(map(str, result.batch_sizes))
    alike = f"as the bundle to {result.largest_difference:.1e}"
    if int8:
        alike = f"in int8, with a least cosine to the bundle's of {result.least_cosine:.5f}"
    click.echo(f"{result.file}: embeds {alike} (batches of {sizes})")
    click.echo(f"{result.input_file}: what it takes, and how to prepare it")
