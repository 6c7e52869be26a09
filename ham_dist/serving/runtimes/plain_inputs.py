"""The exported model with plain tensors as inputs, so that torch.export can read it.

F single-valued fields, n records
"""

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from ham_dist.export.bundle import Bundle
from ham_dist.export.compact import CompactModel, Ids
from ham_dist.export.manifest import FieldEntry
from ham_dist.serving.id_batch import FieldOrder


class PlainInputs(nn.Module):
    """Probabilities of an `IdBatch`.

    Args:
        model: The exported model.
        fields: The fields that it reads.
    """

    def __init__(self, model: CompactModel, fields: Sequence[FieldEntry]) -> None:
        super().__init__()
        # In compiled code, the names of tensors begin with `model_`: a name such as s23 could be that of a
        # symbolic size.
        self.model = model
        self.order = FieldOrder(fields)
        """The order of the fields in a batch."""

    def forward(self, singles: torch.Tensor, *several: torch.Tensor) -> torch.Tensor:
        """Returns the probabilities, (n,).

        Args:
            singles: Ids of the single-valued fields, (F, n) int64.
            several: Values and offsets of each multi-valued field in turn, int64.
        """
        return torch.sigmoid(self.model(self._by_field(singles, several)))

    def _by_field(self, singles: torch.Tensor, several: Sequence[torch.Tensor]) -> Mapping[str, Ids]:
        ids: dict[str, Ids] = {field.name: singles[place] for place, field in enumerate(self.order.singles)}
        for place, field in enumerate(self.order.several):
            ids[field.name] = several[2 * place], several[2 * place + 1]
        return ids

    def constants(self) -> dict[str, torch.Tensor]:
        """Returns all tables, weights and other constants by name; the tables are the mapped ones."""
        tensors = dict(self.named_parameters()) | dict(self.named_buffers())
        return {name: tensor.detach() for name, tensor in tensors.items()}


def plain_model(bundle: Bundle) -> PlainInputs:
    """Returns the model of a bundle.

    Raises:
        BundleError: The bundle is of kind `custom`.
    """
    model = bundle.model()
    by_name = {field.name: field for field in bundle.manifest.fields}
    return PlainInputs(model, [by_name[name] for name in model.read_fields])
