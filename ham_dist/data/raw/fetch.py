"""Getting raw data: downloads what may be downloaded, and says of the rest where a person must accept the licence and what to put where."""

import logging
import stat
import tomllib
import zipfile
from pathlib import Path, PurePosixPath
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ham_dist.data.prepare.workdir import clear_leftovers, work_on
from ham_dist.data.recipe.load import dataset_folders
from ham_dist.errors import DataError
from ham_dist.io.atomic import publish_file
from ham_dist.io.download import download
from ham_dist.io.hashing import md5_of

log = logging.getLogger(__name__)


class _SourceSection(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class Archive(_SourceSection):
    """A zip file that anybody may download who accepts the licence."""

    url: Annotated[str, Field(pattern=r"^https?://")]
    md5: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
    """As the owner of the data publishes it."""
    folder: Annotated[str, Field(min_length=1)]
    """In the archive: whose files are wanted."""
    files: Annotated[tuple[str, ...], Field(min_length=1)]
    """What the recipe needs; all must be there."""


class Source(_SourceSection):
    """Where the raw files of one recipe come from: datasets/sources/<recipe>.toml."""

    page: str
    """The owner's page."""
    licence: str
    """Its conditions in short, and where the text is."""
    archive: Archive | None = None
    """What can be downloaded; None where a person must log in or accept first."""
    steps: tuple[str, ...] = ()
    """What that person does; `{out}` stands for the folder."""

    @model_validator(mode="after")
    def _one_way(self) -> "Source":
        if (self.archive is None) == (not self.steps):
            raise ValueError("give either an archive or the steps of a person")
        return self


def load_source(name: str) -> Source:
    """The source of the recipe `name`.

    raises: DataError naming those that exist, or every mistake of the file.
    """
    folders = [folder / "sources" for folder in dataset_folders()]
    path = next((path for folder in folders if (path := folder / f"{name}.toml").is_file()), None)
    if path is None:
        known = ", ".join(sorted({path.stem for folder in folders for path in folder.glob("*.toml")}))
        raise DataError(f"fetch {name}: nothing of that name can be fetched\n  Give one of: {known}.")
    try:
        return Source.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except tomllib.TOMLDecodeError as error:
        raise DataError(f"{path}: not TOML: {error}") from None
    except ValidationError as error:
        raise DataError(
            "\n".join(f"{path}: {'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors())
        ) from None


def fetch(name: str, source: Source, out: Path, licence_accepted: bool) -> None:
    """Put the raw files of the recipe `name` into the new folder `out`. One that holds them already is left alone.

    A download that was cut off goes on where it ended when the same call is made again. `out` is there whole or not at all.
    raises: DataError if a person must act first, the licence is not accepted, or the archive cannot be had or is not the official one.
    """
    if source.archive is None:
        steps = "\n".join(
            f"  {number}. {step.format(out=out)}" for number, step in enumerate(source.steps, 1)
        )
        raise DataError(
            f"fetch {name}: only a person can get it from {source.page}; nothing was fetched\n{steps}\n  Then: {prepare_command(name, out)}"
        )
    if not licence_accepted:
        raise DataError(
            f"fetch {name}: nothing was fetched\n  If you accept the licence above, say so: add --accept-licence"
        )
    if all((out / file).is_file() for file in source.archive.files):
        log.info("%s already holds %s; nothing to do", out, ", ".join(source.archive.files))
        clear_leftovers(out)
        return
    with work_on(out, {"url": source.archive.url, "md5": source.archive.md5}) as work:
        path = work.stage / "archive.zip"
        if not path.exists():
            part = work.stage / "archive.zip.part"
            download(
                source.archive.url,
                part,
                hint=f"Or get it by hand from {source.page}, and unpack it to {out}.",
            )
            _check(part, source.archive)
            publish_file(part, path)
        try:
            _unpack(path, source.archive, work.data)
        except DataError:
            path.unlink()  # of no use; a full disk or Ctrl-C does not make it so
            raise


def prepare_command(name: str, out: Path) -> str:
    """What comes after fetching."""
    return f"ham-dist prepare {name} --raw {out} --out data/{name}"


def _check(path: Path, archive: Archive) -> None:
    found = md5_of(path)
    if found != archive.md5:
        path.unlink()
        raise DataError(
            f"{archive.url}: md5 {found}, not the {archive.md5} of the official archive; what was downloaded is deleted\n"
            "  Try again; if it stays so, what the server gives has changed, and its owner's page should say why."
        )


def _unpack(path: Path, archive: Archive, folder: Path) -> None:
    """Write the files of `archive.folder` into `folder`. The archive is read to its end before anything counts as unpacked."""
    try:
        with zipfile.ZipFile(path) as packed:
            members = {member: _place(member, archive) for member in packed.infolist() if not member.is_dir()}
            lacking = set(archive.files) - {str(place) for place in members.values()}
            if lacking:
                raise DataError(
                    f"{archive.url}: its folder {archive.folder} lacks {', '.join(sorted(lacking))}"
                )
            for member, place in members.items():
                if place is not None:
                    member.filename = str(place)
                    packed.extract(member, folder)
    except (zipfile.BadZipFile, EOFError) as error:
        raise DataError(
            f"{archive.url}: is no whole zip file ({error})\n  Run the same command again."
        ) from None


def _place(member: zipfile.ZipInfo, archive: Archive) -> PurePosixPath | None:
    """Where a file of the archive goes, from the folder that is unpacked to; None for one that is not wanted.

    raises: DataError for a name that leads out of the archive, and for a link.
    """
    path = PurePosixPath(member.filename.replace("\\", "/"))
    if (
        path.is_absolute()
        or ".." in path.parts
        or ":" in path.parts[0]
        or stat.S_ISLNK(member.external_attr >> 16)
    ):
        raise DataError(
            f"{archive.url}: holds {member.filename!r}, which would be written outside of the folder; nothing was unpacked"
        )
    return path.relative_to(archive.folder) if path.is_relative_to(archive.folder) else None
