"""Cutting columns out of an interaction: each weight that reads columns loses the entries of the closed ones."""

from collections.abc import Mapping

import torch

from ham_dist.config.schema import ModelSettings
from ham_dist.models.interaction import Interaction
from ham_dist.models.registry import build_interaction


def cut_weight(
    wide: Interaction, name: str, values: torch.Tensor, columns: Mapping[str, torch.Tensor]
) -> torch.Tensor:
    """The entries of one weight (or of anything of its shape, such as an optimizer's moment) that stay when only `columns` stay.

    wide:    the interaction that `values` belongs to.
    name:    the weight's name in `wide.state_dict()`.
    returns: a copy; the whole of it where the weight reads no columns.
    """
    for dimension, axis in wide.axes().get(name, {}).items():
        values = values.index_select(dimension, axis.kept(wide.widths, columns).to(values.device))
    return values.clone()


def narrow_interaction(
    wide: Interaction, settings: ModelSettings, columns: Mapping[str, torch.Tensor]
) -> Interaction:
    """The interaction over `columns` alone, with the wide one's weights: it gives the logits that the wide one gives with the other columns at zero.

    wide:    stays as it is.
    columns: kept column numbers of every field in `wide.widths`.
    """
    narrow = build_interaction(settings, {field: len(columns[field]) for field in wide.widths}).to(wide.dtype)
    state = wide.state_dict()
    with torch.no_grad():
        for name, values in narrow.state_dict().items():
            values.copy_(cut_weight(wide, name, state[name], columns))
    return narrow
