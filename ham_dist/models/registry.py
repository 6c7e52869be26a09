"""The interactions by the name that `model.name` gives them."""

from collections.abc import Mapping

from ham_dist.config.schema import ModelSettings
from ham_dist.models.autoint import AutoInt
from ham_dist.models.dcnv2 import DCNV2
from ham_dist.models.deepfm import DeepFM
from ham_dist.models.fm import FM
from ham_dist.models.interaction import Interaction

INTERACTIONS: dict[str, type[FM] | type[AutoInt] | type[DCNV2]] = {
    "fm": FM,
    "deepfm": DeepFM,
    "autoint": AutoInt,
    "dcnv2": DCNV2,
}
"""To add a model: a class like these, with `(widths, settings)`, a line here, and its name in `ModelSettings.name`."""


def build_interaction(settings: ModelSettings, widths: Mapping[str, int]) -> Interaction:
    """The interaction that `settings` names, freshly started (the same under the same torch seed).

    widths:  d_j by field, in the order of the columns; a field of width 0 keeps a slot or is left out, as the model's `keeps_slots` says.
    raises:  TargetError if no field has a column.
    """
    return INTERACTIONS[settings.name](widths, settings)
