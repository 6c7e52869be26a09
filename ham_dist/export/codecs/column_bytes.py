"""Bytes of columns in a bundle of some precision, for searches whose target is in these bytes."""

import copy
from math import gcd

from ham_dist.embedding.mask import ColumnLayout
from ham_dist.export.codecs.codec import VALUES
from ham_dist.export.codecs.registry import codec_of
from ham_dist.io.aligned_header import ALIGNMENT


def served_layout(layout: ColumnLayout, precision: str | None) -> ColumnLayout:
    """Returns `layout` with the bytes that its columns take in a bundle.

    Args:
        layout: The columns.
        precision: Name of the codec of the bundle's tables; None for the precision of training, whose bytes
            `layout` has.
    """
    if precision is None:
        return layout
    codec = codec_of(precision)
    served = copy.copy(layout)
    served.column_bytes = {
        table: sum(part.bytes for part in codec.layout(rows, 1).values())
        for table, rows in layout.num_embeddings.items()
    }
    # What is fitted to a column (scale and offset) is padded once per table, so that the rows are aligned.
    fitted = sum(part.bytes for name, part in codec.layout(1, 1).items() if name != VALUES)
    served.padding_bytes = ALIGNMENT - gcd(fitted, ALIGNMENT) if fitted else 0
    return served
