"""Raw records as one table of ids."""

from typing import Any

import pyarrow as pa

from ham_dist.data.encode.records import encode_blocks


def encode_raw(*arguments: Any, **options: Any) -> pa.Table:
    """The blocks of `encode_blocks`, which has the same arguments, joined."""
    return pa.concat_tables(encode_blocks(*arguments, **options)).combine_chunks()
