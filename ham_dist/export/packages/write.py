"""Writing a package of a bundle for another server."""

from pathlib import Path

import ham_dist
from ham_dist.errors import BundleError
from ham_dist.export.bundle import verify_files
from ham_dist.export.files import require_outside_bundles, writing
from ham_dist.export.manifest import bundle_identity
from ham_dist.export.packages.check import compare
from ham_dist.export.packages.description import DESCRIPTION, PackageDescription
from ham_dist.export.packages.registry import format_of
from ham_dist.io.atomic import publish_folder, temporary_folder, write_json


def write_package(bundle: str | Path, name: str, out: Path, records: str | None = None) -> PackageDescription:
    """Write a package of a bundle, which is compared with the bundle's model before it gets its name.

    Args:
        bundle: Folder of a bundle of kind `ctr`; all of it is verified.
        name: Name of a format in `FORMATS`.
        out: A folder that does not exist yet.
        records: Records to compare on, as for `compare`.
    Returns:
        The content of package.json.
    Raises:
        BundleError: The bundle is damaged or of kind `custom`, there is no such format, `out` exists or
            cannot be written, or the package differs from the bundle. Nothing is left on the disk.
        BackendError: A library is missing.
        DataError: The records cannot be read.
    """
    package, opened = format_of(name), verify_files(bundle)
    if out.exists() or out.is_symlink():
        raise BundleError(
            f"{out}: already exists; packages are never overwritten. Delete it, or give another folder."
        )
    require_outside_bundles(out)
    with writing(out), temporary_folder(out) as partial:
        package.write(opened, partial)
        description = PackageDescription(
            package=name,
            ham_dist=ham_dist.__version__,
            bundle=bundle_identity(opened.root),
            verified=compare(opened, package.runners(opened, partial), records),
        )
        write_json(partial / DESCRIPTION, description.model_dump(mode="json"))
        try:
            publish_folder(partial, out)
        except FileExistsError:
            raise BundleError(
                f"{out}: another program created it while the package was written. "
                "Delete it, or give another folder."
            ) from None
    return description
