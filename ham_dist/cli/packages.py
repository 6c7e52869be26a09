"""Commands that turn a bundle into something else: package."""

from pathlib import Path
from typing import Annotated

import typer

from ham_dist.cli.printing import say


def package(
    bundle: Annotated[str, typer.Argument(metavar="BUNDLE", help="Folder of a bundle.")],
    format: Annotated[str, typer.Option(help="onnx, pt2, triton (a model repository) or torchrec.")],
    out: Annotated[Path, typer.Option(help="New folder for the package.")],
    records: Annotated[
        str | None,
        typer.Option(
            help="Raw or prepared records to compare on, in addition to generated ids, "
            "which span every table.",
        ),
    ] = None,
) -> None:
    """Write a bundle in the format of another server.

    The package's probabilities are compared with the bundle's before it is moved to OUT. A difference of more
    than 0.00001 is refused. Needs `pip install 'ham-dist[package]'`.

    \b
    Example:
      ham-dist package bundles/first --format onnx --out packages/first
      ham-dist package bundles/first --format triton --out models
    """
    from ham_dist.export.packages.write import write_package

    verified = write_package(bundle, format, out, records).verified
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    say(f"{out}: {size:,} bytes")
    records_compared = f"{verified.records:,} records"
    for name, difference in verified.max_difference.items():
        say(f"{name}: within {difference:.2g} of the bundle's probabilities on {records_compared}")
