"""package.json: the bundle that a package was made of, and the comparison with it."""

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from ham_dist.errors import BundleError
from ham_dist.export.manifest import PositiveCount, mistakes
from ham_dist.io.untrusted import read_json

DESCRIPTION = "package.json"


class Compared(BaseModel):
    """Result of comparing a package with its bundle."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    records: PositiveCount
    """Records that were compared."""
    max_difference: dict[str, float]
    """Largest difference of a probability, for each model in the package."""
    tolerance: float
    """Largest allowed difference."""


class PackageDescription(BaseModel):
    """The content of package.json."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    format: Literal["ham_dist package"] = "ham_dist package"
    package: str
    """Format of the package."""
    ham_dist: str
    """Version of ham_dist that wrote it."""
    bundle: str
    """`checksum` in the manifest.json of its bundle."""
    verified: Compared


def read_description(root: Path) -> PackageDescription:
    """Returns the content of DESCRIPTION in the folder of a package.

    Raises:
        BundleError: It is missing or damaged.
    """
    try:
        return PackageDescription.model_validate(read_json(root / DESCRIPTION))
    except ValidationError as error:
        raise BundleError(f"{root / DESCRIPTION}: {mistakes(error)}\n  Write the package again.") from None
    except (OSError, ValueError) as error:
        raise BundleError(f"{root / DESCRIPTION}: damaged: {error}. Write the package again.") from None
