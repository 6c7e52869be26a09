"""Downloads raw data, or shows the steps for data whose owner requires a login or a licence."""

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
from ham_dist.io.untrusted import relative_name

log = logging.getLogger(__name__)


class _SourceSection(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class Archive(_SourceSection):
    """A zip file that can be downloaded without a login by anyone who accepts the licence."""

    url: Annotated[str, Field(pattern=r"^https?://")]
    md5: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
    """MD5 that the owner of the data publishes, in hexadecimal digits."""
    folder: Annotated[str, Field(min_length=1)]
    """Folder in the archive that is unpacked."""
    files: Annotated[tuple[str, ...], Field(min_length=1)]
    """Files that the recipe needs. All must be in `folder`."""


class Source(_SourceSection):
    """The source of the raw files of one recipe, from datasets/sources/<recipe>.toml."""

    page: str
    """URL of the owner's page about the data."""
    licence: str
    """Summary of the licence, and where to read it."""
    archive: Archive | None = None
    """The file to download; None if a person must log in or accept the licence on a web page."""
    steps: tuple[str, ...] = ()
    """Steps for that person. `{out}` is replaced by the output folder."""

    @model_validator(mode="after")
    def _one_way(self) -> "Source":
        if (self.archive is None) == (not self.steps):
            raise ValueError("give either archive or steps, not both or neither")
        return self


def load_source(name: str) -> Source:
    """Loads the source of the recipe `name`.

    Raises:
        DataError: There is no such source (the message lists those that exist), or the file has mistakes (the
            message lists all of them).
    """
    folders = [folder / "sources" for folder in dataset_folders()]
    path = next((path for folder in folders if (path := folder / f"{name}.toml").is_file()), None)
    if path is None:
        known = ", ".join(sorted({path.stem for folder in folders for path in folder.glob("*.toml")}))
        raise DataError(f"fetch {name}: no data set of that name can be fetched\n  Give one of: {known}.")
    try:
        return Source.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except tomllib.TOMLDecodeError as error:
        raise DataError(f"{path}: is not TOML: {error}") from None
    except ValidationError as error:
        raise DataError(
            "\n".join(f"{path}: {'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors())
        ) from None


def fetch(name: str, source: Source, out: Path, licence_accepted: bool) -> None:
    """Downloads the raw files of the recipe `name` into the new folder `out`.

    A folder that already has the files is left unchanged. An interrupted download is resumed by the same
    call. `out` is created only when all files are complete.

    Raises:
        DataError: The data cannot be downloaded without a person, the licence is not accepted, the download
            failed, or the archive is not the official one.
    """
    if source.archive is None:
        steps = "\n".join(
            f"  {number}. {step.format(out=out)}" for number, step in enumerate(source.steps, 1)
        )
        raise DataError(
            f"fetch {name}: must be downloaded by hand from {source.page}; nothing was fetched\n{steps}\n"
            f"  Then: {prepare_command(name, out)}"
        )
    if not licence_accepted:
        raise DataError(
            f"fetch {name}: nothing was fetched\n  If you accept the licence above, add --accept-licence"
        )
    if all((out / file).is_file() for file in source.archive.files):
        log.info("%s already has %s; nothing to do", out, ", ".join(source.archive.files))
        clear_leftovers(out)
        return
    with work_on(out, {"url": source.archive.url, "md5": source.archive.md5}) as work:
        path = work.stage / "archive.zip"
        if not path.exists():
            part = work.stage / "archive.zip.part"
            download(
                source.archive.url,
                part,
                hint=f"Or download it by hand from {source.page}, and unpack it to {out}.",
                version=work.stage / "archive.zip.version",
            )
            _check(part, source.archive)
            publish_file(part, path)
        try:
            _unpack(path, source.archive, work.data)
        except DataError:
            path.unlink()  # a bad archive; after a full disk or Ctrl-C it is kept for the next call
            raise


def prepare_command(name: str, out: Path) -> str:
    """The command to run after fetching."""
    return f"ham-dist prepare {name} --raw {out} --out data/{name}"


def _check(path: Path, archive: Archive) -> None:
    found = md5_of(path)
    if found != archive.md5:
        path.unlink()
        raise DataError(
            f"{archive.url}: md5 is {found}; expected {archive.md5}, that of the official archive. "
            "The download was deleted\n"
            "  Try again. If it fails again, the file on the server has changed: see the page of its owner."
        )


def _unpack(path: Path, archive: Archive, folder: Path) -> None:
    """Unpacks the files of `archive.folder` into `folder`. All names in the archive are checked first."""
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
            f"{archive.url}: is not a complete zip file ({error})\n  Run the same command again."
        ) from None


def _place(member: zipfile.ZipInfo, archive: Archive) -> PurePosixPath | None:
    """Path of a file of the archive relative to the output folder; None if it is not in `archive.folder`.

    Raises:
        DataError: The name is not a relative path in the folder, or the file is a symbolic link.
    """
    try:
        path = PurePosixPath(relative_name(member.filename.replace("\\", "/")))
        if stat.S_ISLNK(member.external_attr >> 16):
            raise ValueError("is a symbolic link")
    except ValueError as error:
        raise DataError(
            f"{archive.url}: contains {member.filename!r}, which cannot be unpacked safely: {error}\n"
            "  Nothing was unpacked: the archive is not the official one."
        ) from None
    return path.relative_to(archive.folder) if path.is_relative_to(archive.folder) else None
