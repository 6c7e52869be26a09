"""Precisions of a bundle's tables: the stored type, and the tolerance of probabilities."""

from dataclasses import dataclass

from ham_dist.errors import BundleError


@dataclass(frozen=True)
class ExportPrecision:
    """A precision of a bundle's tables.

    Attributes:
        name: Name for `ham-dist export --precision`.
        type: Name in manifest.json; also the name of the torch dtype.
        safetensors: Name of the dtype in safetensors files.
        tolerance: Largest allowed difference of a probability from the live model's.
    """

    name: str
    type: str
    safetensors: str
    tolerance: float


PRECISIONS: dict[str, ExportPrecision] = {}
"""All precisions by name."""


def register_precision(precision: ExportPrecision) -> None:
    """Make a precision available to `ham-dist export`, and its bundles to `ham-dist score`.

    Raises:
        BundleError: Another precision has its name or its type.
    """
    taken = [known.name for known in PRECISIONS.values() if known.type == precision.type]
    if precision.name in PRECISIONS or taken:
        raise BundleError(
            f"precision {precision.name!r}: {(taken or [precision.name])[0]!r} is already registered, "
            f"with type {precision.type!r}. Use another name and another type."
        )
    PRECISIONS[precision.name] = precision


def precision_of(name: str) -> ExportPrecision:
    """Returns the precision called `name`.

    Raises:
        BundleError: There is none.
    """
    if name not in PRECISIONS:
        raise BundleError(f"precision = {name!r}: expected one of {', '.join(PRECISIONS)}.")
    return PRECISIONS[name]


def precision_of_type(type_name: str) -> ExportPrecision:
    """Returns the precision whose tables have `type_name` in manifest.json.

    Raises:
        BundleError: There is none.
    """
    for precision in PRECISIONS.values():
        if precision.type == type_name:
            return precision
    raise BundleError(
        f"type = {type_name!r}: expected one of {', '.join(known.type for known in PRECISIONS.values())}."
    )


# fp32 tables are copied, so that only the order of sums differs; fp16 keeps 11 bits of each number.
register_precision(ExportPrecision("fp32", "float32", "F32", 1e-6))
register_precision(ExportPrecision("fp16", "float16", "F16", 2e-3))
