"""Tables in a floating-point type of torch, one number after the other."""

from collections.abc import Mapping

import torch

from ham_dist.errors import BundleError
from ham_dist.export.codecs.codec import VALUES, Codec, Stored, Tolerance


class FloatCodec(Codec):
    """Tables in a floating-point type.

    Args:
        name: Name of the codec.
        dtype: Type of the stored numbers.
        tolerance: Largest allowed difference of a probability from the live model's.
    """

    def __init__(self, name: str, dtype: torch.dtype, tolerance: float) -> None:
        self.name, self.dtype = name, dtype
        self.bits = 8 * dtype.itemsize
        self.tolerance = Tolerance(probability=tolerance)

    def layout(self, num_embeddings: int, embedding_dim: int) -> dict[str, Stored]:
        """One tensor (C, d)."""
        return {VALUES: Stored(self.dtype, (num_embeddings, embedding_dim))}

    def encode(self, rows: torch.Tensor, fitted: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The rows, rounded to the nearest number of the type."""
        del fitted
        largest = rows.abs().max().item() if rows.numel() else 0.0
        limit = torch.finfo(self.dtype).max
        if largest > limit:
            raise BundleError(
                f"holds {largest:g}, but the largest number in {self.name} is {limit:g}. "
                "Export with precision fp32."
            )
        return rows.to(self.dtype)

    def decode(self, stored: Mapping[str, torch.Tensor], ids: torch.Tensor) -> torch.Tensor:
        """The rows, widened to float32."""
        return torch.nn.functional.embedding(ids, stored[VALUES]).float()
