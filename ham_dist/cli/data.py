"""Commands about data: raw files, prepared data, generated data, and what any folder holds."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from ham_dist.cli.printing import describe_folder, print_parts, say
from ham_dist.errors import ConfigError


def fetch(
    recipe: Annotated[str, typer.Argument(help="A data set of datasets/sources/, such as movielens-1m.")],
    out: Annotated[Path, typer.Option(help="New folder for the raw files.")],
    accept_licence: Annotated[
        bool, typer.Option("--accept-licence", help="You have read the licence that is shown, and accept it.")
    ] = False,
) -> None:
    """Download raw files, or say where a person must accept a licence and what to put where.

    A download that was cut off goes on with the same command.

    \b
    Example:
      ham-dist fetch movielens-1m --out ml-1m --accept-licence
    """
    from ham_dist.data.raw.fetch import fetch as fetch_data
    from ham_dist.data.raw.fetch import load_source, prepare_command

    source = load_source(recipe)
    say(f"{source.page}\n{source.licence}\n")
    fetch_data(recipe, source, out, accept_licence)
    say(f"raw files in {out}. Next:\n  {prepare_command(recipe, out)}")


def prepare(
    recipe: Annotated[
        str,
        typer.Argument(
            help="A recipe of datasets/ by name, the path of one, or `synthetic` for generated data."
        ),
    ],
    out: Annotated[Path, typer.Option(help="New folder for the prepared data.")],
    raw: Annotated[
        str | None, typer.Option(help="Folder with the raw files; generated data needs none.")
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="For `synthetic`: a key of data.synthetic."),
    ] = None,
    memory: Annotated[
        str | None, typer.Option(metavar="SIZE", help="What the work may take, such as 4GB (the default).")
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="As many as cores, without it.")] = None,
    spill: Annotated[
        Path | None,
        typer.Option(help="Folder for what does not fit in memory; beside the output, without it."),
    ] = None,
    engine: Annotated[
        Literal["duckdb", "spark"], typer.Option(help="What counts and encodes: both write the same.")
    ] = "duckdb",
    master: Annotated[
        str | None, typer.Option(metavar="URL", help="Spark's master address; this machine, without it.")
    ] = None,
    max_rejected: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Over the recipe's: the share of a file's lines that may be bad."),
    ] = None,
) -> None:
    """Turn raw files into Parquet shards, vocabularies and a manifest.

    Stopped at any moment, the same command goes on with what is finished. Lines that cannot be read stand in OUT/rejected, each with its reason.

    \b
    Example:
      ham-dist prepare movielens-1m --raw ml-1m --out data/movielens-1m
      ham-dist prepare criteo-kaggle --raw criteo --out data/criteo-kaggle --memory 8GB --threads 4 --spill /fast/spill
      ham-dist prepare synthetic --out data/synthetic --set data.synthetic.rows=1000000 --set data.synthetic.preset=dlrm
    """
    if recipe == "synthetic":
        if raw is not None:
            raise ConfigError("prepare synthetic: has no raw files. Leave --raw out")
        if wrong := [override for override in overrides or [] if not override.startswith("data.synthetic.")]:
            raise ConfigError(
                f"prepare synthetic: --set {wrong[0]}: only keys of data.synthetic count here, such as --set data.synthetic.seed=3"
            )
        given = {
            "--memory": memory,
            "--threads": threads,
            "--spill": spill,
            "--master": master,
            "--max-rejected": max_rejected,
        }
        if unused := [name for name, value in given.items() if value is not None] + ["--engine"] * (
            engine != "duckdb"
        ):
            raise ConfigError(f"prepare synthetic: {unused[0]} is for raw files. Leave it out")
        from ham_dist.config.load import load_run
        from ham_dist.data.synthetic.write import generate

        generate(load_run(None, overrides or []).data.synthetic, out)
    elif raw is None:
        raise ConfigError(f"prepare {recipe}: needs the folder of the raw files. Give --raw FOLDER")
    elif overrides:
        raise ConfigError(
            f"prepare {recipe}: --set {overrides[0]}: a recipe's settings stand in its TOML. Copy it, change it, and name the copy"
        )
    else:
        from ham_dist.data.engines.base import Machine, parse_size
        from ham_dist.data.prepare.pipeline import prepare as prepare_data
        from ham_dist.data.recipe.load import load_recipe

        machine = Machine(
            memory=parse_size(memory) if memory is not None else Machine.memory,
            threads=threads,
            spill=spill,
            engine=engine,
            master=master,
        )
        chosen = load_recipe(recipe)
        if max_rejected is not None:
            chosen = chosen.model_copy(update={"max_rejected": max_rejected})
        prepare_data(chosen, raw, out, machine=machine)
    describe_folder(out)


def generate(
    kind: Annotated[
        Literal["criteo-text"], typer.Argument(help="Text in the format of Criteo's click logs.")
    ],
    rows: Annotated[int, typer.Option(min=1, help="Rows in all.")],
    out: Annotated[
        Path, typer.Option(help="New file, gzipped where it ends in .gz; with --days, a new folder.")
    ],
    days: Annotated[
        int | None, typer.Option(min=1, help="Spread over files day_0, day_1, ... in the folder OUT.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the rows.")] = 0,
    gzipped: Annotated[bool, typer.Option("--gzip", help="With --days: day_0.gz, day_1.gz, ...")] = False,
) -> None:
    """Write raw text that stands in for licensed click logs, to measure preparation at size.

    Its counts of values, and how often they are missing, are those of Criteo's Kaggle file; what it says of clicks is made up. `ham-dist prepare
    synthetic` makes data for training.

    \b
    Example:
      ham-dist generate criteo-text --rows 1000000 --out criteo/train.txt
      ham-dist generate criteo-text --rows 4000000 --days 24 --gzip --out criteo-days
    """
    from ham_dist.data.synthetic.criteo_text import write_criteo_days, write_criteo_file

    if days is not None:
        write_criteo_days(out, rows, days, seed=seed, gzipped=gzipped)
    elif gzipped:
        raise ConfigError(
            f"generate {kind}: --gzip is for --days; of one file the name decides. Give --out {out}.gz, and leave --gzip out"
        )
    else:
        write_criteo_file(out, rows, seed=seed)
    say(f"{rows:,} rows in {out}")


def inspect(
    path: Annotated[Path, typer.Argument(help="Folder of prepared data, of a run, or of a bundle.")],
    width: Annotated[
        int | None,
        typer.Option(min=1, help="Of data: count the bytes of tables this wide; model.base_dim without it."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Of data: the same figures as JSON.")] = False,
) -> None:
    """Say what a folder holds. Data is read once through: how its ids are spread, and whether the splits hold the same ones.

    \b
    Example:
      ham-dist inspect runs/first
      ham-dist inspect data/movielens-1m --width 8 --json
    """
    from ham_dist.cli.describe import describe_look, holds_data
    from ham_dist.config.schema import ModelSettings

    if not holds_data(path):
        if as_json or width is not None:
            raise ConfigError(
                f"inspect {path}: is no prepared data, and --width and --json are for that. Leave them out"
            )
        describe_folder(path)
        return
    from ham_dist.data.format.manifest import Manifest
    from ham_dist.data.statistics import compute_statistics

    look = compute_statistics(
        path, Manifest.load(path), width or ModelSettings.model_fields["base_dim"].default
    )
    if as_json:
        typer.echo(look.model_dump_json(indent=1))
    else:
        describe_folder(path)
        print_parts(describe_look(look))
