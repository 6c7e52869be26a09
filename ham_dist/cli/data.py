"""Commands for data: fetch, prepare, generate and inspect."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

import typer

from ham_dist.cli.printing import describe_folder, print_parts, say
from ham_dist.errors import ConfigError


def fetch(
    recipe: Annotated[
        str, typer.Argument(help="Name of a data set in datasets/sources/, such as movielens-1m.")
    ],
    out: Annotated[Path, typer.Option(help="New folder for the raw files.")],
    accept_licence: Annotated[
        bool,
        typer.Option("--accept-licence", help="You have read the licence that is printed, and accept it."),
    ] = False,
) -> None:
    """Download the raw files of a public data set.

    Where a licence must be accepted on a web page, it prints the steps to do by hand. After an interrupted
    download, run the same command again to resume it.

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
            help="Name of a recipe in datasets/, path of a recipe, or `synthetic` for generated data."
        ),
    ],
    out: Annotated[Path, typer.Option(help="New folder for the prepared data.")],
    raw: Annotated[
        str | None, typer.Option(help="Folder with the raw files; not used for generated data.")
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="For `synthetic`: a key of data.synthetic; may be repeated."
        ),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(
            min=0,
            max=2**63 - 1,
            help="Seed of a random split into train, validation and test (default: 0).",
            show_default=False,
        ),
    ] = None,
    memory: Annotated[str | None, typer.Option(metavar="SIZE", help="Memory limit (default: 4GB).")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Worker threads (default: all cores).")] = None,
    spill: Annotated[
        Path | None,
        typer.Option(
            help="Folder for temporary data that does not fit in memory (default: next to the output)."
        ),
    ] = None,
    engine: Annotated[
        Literal["duckdb", "spark"],
        typer.Option(help="Engine that counts and encodes the values; both give the same output."),
    ] = "duckdb",
    master: Annotated[
        str | None, typer.Option(metavar="URL", help="Address of the Spark master (default: this machine).")
    ] = None,
    max_rejected: Annotated[
        float | None,
        typer.Option(
            min=0, max=1, help="Share of a file's lines that may be rejected; overrides the recipe's."
        ),
    ] = None,
) -> None:
    """Turn raw files into Parquet shards, vocabularies and a manifest.

    After an interruption, run the same command again to resume. Lines that cannot be read are written to
    OUT/rejected, each with the reason.

    \b
    Example:
      ham-dist prepare movielens-1m --raw ml-1m --out data/movielens-1m
      ham-dist prepare movielens-1m --raw ml-1m --out data/movielens-1m-s1 --seed 1
      ham-dist prepare criteo-kaggle --raw criteo --out data/criteo-kaggle --memory 8GB --spill /fast/spill
      ham-dist prepare synthetic --out data/synthetic --set data.synthetic.rows=1000000
    """
    if recipe == "synthetic":
        raw_options = {
            "--raw": raw,
            "--seed": seed,
            "--memory": memory,
            "--threads": threads,
            "--spill": spill,
            "--engine": None if engine == "duckdb" else engine,
            "--master": master,
            "--max-rejected": max_rejected,
        }
        _prepare_synthetic(out, overrides or [], raw_options)
    elif raw is None:
        raise ConfigError(f"prepare {recipe}: the folder of the raw files is missing. Give --raw FOLDER")
    elif overrides:
        raise ConfigError(
            f"prepare {recipe}: --set {overrides[0]}: --set works with `synthetic` only. "
            "To change a recipe, copy its TOML file, edit the copy, and give the path of the copy"
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
        if seed is not None and chosen.split.kind != "random":
            raise ConfigError(
                f"prepare {recipe}: --seed {seed}: the recipe splits by files, so nothing is random; "
                'expected [split] kind = "random". Remove --seed'
            )
        prepare_data(chosen, raw, out, seed=seed or 0, machine=machine)
    describe_folder(out)


def _prepare_synthetic(out: Path, overrides: list[str], raw_options: Mapping[str, object]) -> None:
    if unused := [name for name, value in raw_options.items() if value is not None]:
        raise ConfigError(
            f"prepare synthetic: {unused[0]} applies to raw files only. Generated data has none: remove it"
            + (", and give --set data.synthetic.seed=N" if unused[0] == "--seed" else "")
        )
    if wrong := [override for override in overrides if not override.startswith("data.synthetic.")]:
        raise ConfigError(
            f"prepare synthetic: --set {wrong[0]}: expected a key of data.synthetic, "
            "such as --set data.synthetic.seed=3"
        )
    from ham_dist.config.load import load_run
    from ham_dist.data.synthetic.write import generate

    generate(load_run(None, overrides).data.synthetic, out)


def generate(
    kind: Annotated[Literal["criteo-text"], typer.Argument(help="Format: text as in Criteo's click logs.")],
    rows: Annotated[int, typer.Option(min=1, help="Number of rows in total.")],
    out: Annotated[
        Path, typer.Option(help="New file, compressed if its name ends in .gz; with --days, a new folder.")
    ],
    days: Annotated[
        int | None,
        typer.Option(min=1, help="Number of files (day_0, day_1, ...) to write in the folder OUT."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the rows.")] = 0,
    gzipped: Annotated[
        bool, typer.Option("--gzip", help="With --days: compress the files (day_0.gz, day_1.gz, ...).")
    ] = False,
) -> None:
    """Write raw text like Criteo's click logs, to benchmark `prepare`.

    The number of distinct values and the share of missing values are those of Criteo's Kaggle file; the
    labels are made up. For generated data to train on, use `ham-dist prepare synthetic`.

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
            f"generate {kind}: --gzip needs --days; a single file is compressed if its name ends in .gz. "
            f"Give --out {out}.gz, and remove --gzip"
        )
    else:
        write_criteo_file(out, rows, seed=seed)
    say(f"{rows:,} rows in {out}")


def inspect(
    path: Annotated[Path, typer.Argument(help="Folder of prepared data, of a run, or of a bundle.")],
    dim: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="For data: embedding dim for the sizes of tables (default: that of model.base_dim).",
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="For data: print the same figures as JSON.")
    ] = False,
) -> None:
    """Describe a folder of prepared data, a run, a bundle, a delta or a package.

    Prepared data is read completely, for the frequencies of ids and the share of ids that training lacks.

    \b
    Example:
      ham-dist inspect runs/first
      ham-dist inspect data/movielens-1m --dim 8 --json
    """
    from ham_dist.cli.describe import describe_statistics, holds_data
    from ham_dist.config.schema import ModelSettings

    if not holds_data(path):
        if as_json or dim is not None:
            raise ConfigError(
                f"inspect {path}: --dim and --json work for prepared data only, "
                "and this is not prepared data. Remove them"
            )
        describe_folder(path)
        return
    from ham_dist.data.format.manifest import Manifest
    from ham_dist.data.statistics import compute_statistics

    statistics = compute_statistics(
        path, Manifest.load(path), dim or ModelSettings.model_fields["base_dim"].default
    )
    if as_json:
        typer.echo(statistics.model_dump_json(indent=1))
    else:
        describe_folder(path)
        print_parts(describe_statistics(statistics))
