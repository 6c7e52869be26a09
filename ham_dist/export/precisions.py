"""Precisions of a bundle's tables: how a number is stored, and how far that may move a probability."""

from dataclasses import dataclass

from ham_dist.errors import BundleError


@dataclass(frozen=True)
class ExportPrecision:
    """One precision.

    Attributes:
        name: As `ham-dist export --precision` takes it.
        type: In manifest.json; also the name of the torch dtype.
        safetensors: The dtype in safetensors files.
        tolerance: Largest difference of a probability from the live model's.
    """

    name: str
    type: str
    safetensors: str
    tolerance: float


PRECISIONS: dict[str, ExportPrecision] = {}
"""All precisions by name."""


def register_precision(precision: ExportPrecision) -> None:
    """Makes a precision available to `ham-dist export`, and its bundles to `ham-dist score`.

    Raises:
        BundleError: Its name, or its type, is another precision's.
    """
    taken = [known.name for known in PRECISIONS.values() if known.type == precision.type]
    if precision.name in PRECISIONS or taken:
        raise BundleError(
            f"precision {precision.name!r}: {(taken or [precision.name])[0]!r} is there already, with type {precision.type!r}. "
            "Give it a name and a type of its own."
        )
    PRECISIONS[precision.name] = precision


def precision_of(name: str) -> ExportPrecision:
    """The precision called `name`.

    Raises:
        BundleError: There is none.
    """
    if name not in PRECISIONS:
        raise BundleError(f"precision = {name!r}: expected one of {', '.join(PRECISIONS)}.")
    return PRECISIONS[name]


def precision_of_type(type_name: str) -> ExportPrecision:
    """The precision whose tables have `type_name` in manifest.json.

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
