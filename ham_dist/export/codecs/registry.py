"""All codecs by name."""

from collections.abc import Iterable

from ham_dist.errors import BundleError
from ham_dist.export.codecs.codec import Codec, Tolerance
from ham_dist.export.codecs.fp16 import FP16
from ham_dist.export.codecs.fp32 import FP32
from ham_dist.export.codecs.int4 import INT4
from ham_dist.export.codecs.int6 import INT6
from ham_dist.export.codecs.int8 import INT8

CODECS: dict[str, Codec] = {}
"""All codecs by name."""


def register_codec(codec: Codec) -> None:
    """Make a codec available to `ham-dist export`, and its bundles to `ham-dist score`.

    Raises:
        BundleError: Another codec has its name.
    """
    if codec.name in CODECS:
        raise BundleError(f"codec {codec.name!r}: is already registered. Use another name.")
    CODECS[codec.name] = codec


def codec_of(name: str) -> Codec:
    """Returns the codec called `name`.

    Raises:
        BundleError: There is none.
    """
    if name not in CODECS:
        raise BundleError(
            f"precision = {name!r}: expected one of {', '.join(CODECS)}.\n"
            "  Import the package that registers it (register_codec) first, if it is another's."
        )
    return CODECS[name]


def tolerance_of(codecs: Iterable[str]) -> Tolerance:
    """Returns the tolerance of a bundle with these codecs: the loosest, and no bound if one has none."""
    tolerances = [codec_of(name).tolerance for name in codecs]
    bounds = [tolerance.probability for tolerance in tolerances]
    measured = [tolerance.auc for tolerance in tolerances if tolerance.auc is not None]
    return Tolerance(
        None if None in bounds else max(bound for bound in bounds if bound is not None),
        max(measured) if measured else None,
    )


for _codec in (FP32, FP16, INT8, INT6, INT4):
    register_codec(_codec)
