"""The target of a search."""

from typing import Annotated, Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from ham_dist.config.base import PositiveInt, Settings

BundlePrecision = Literal["fp32", "fp16", "int8", "int6", "int4"]
"""Codecs of the tables of a bundle."""


class Target(Settings):
    """Target size of the tables after a search: a number of columns, or of bytes."""

    columns: PositiveInt | None = None
    """Columns to keep, in all tables together."""
    bytes: PositiveInt | None = None
    """Bytes to keep, in all searched tables together, at searched dims and 4 bytes per number (2 if
    `precision.tables` is `float16` or `bfloat16`), or in `precision`. First-order tables (dim 1) are not
    counted. Without `precision`, the run's own bundle has tables of the same size, except that it stores
    `bfloat16` tables as float32, in twice the bytes."""
    precision: BundlePrecision | None = None
    """Codec in which `bytes` are counted, with scales, offsets and padding: that of the bundle that will be
    served. `ham-dist export` takes it unless `--precision` names another. It does not change training; see
    `retrain.precision`."""
    ladder: Annotated[int | None, Field(ge=2, le=64)] = None
    """Number of targets in columns, in a geometric sequence from 1/2 to 1/16 of the supernet's columns."""

    @model_validator(mode="after")
    def _columns_or_bytes(self) -> "Target":
        if sum(size is not None for size in (self.columns, self.bytes, self.ladder)) != 1:
            raise ValueError("give a target either `columns`, `bytes` or `ladder`")
        if self.precision is not None and self.bytes is None:
            raise ValueError(
                f"precision = {self.precision!r} is the codec in which `bytes` are counted; give `bytes`"
            )
        return self

    @model_serializer(mode="wrap")
    def _without_later_keys(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """The keys of versions without ladders and precisions, whose settings are compared with today's."""
        values: dict[str, Any] = serialize(self)
        for key in ("ladder", "precision"):
            if getattr(self, key) is None:
                values.pop(key, None)
        return values

    @property
    def label(self) -> str:
        """The target's name in folders and logs: `columns-28`, `bytes-1000000` or `bytes-1000000-int8`."""
        if self.columns is not None:
            return f"columns-{self.columns}"
        return f"bytes-{self.bytes}" + (f"-{self.precision}" if self.precision else "")
