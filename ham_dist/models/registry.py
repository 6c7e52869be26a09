"""Registry of the models, by their name in `model.name`."""

from collections.abc import Mapping
from typing import TypeVar

from ham_dist.config import schema
from ham_dist.config.schema import ModelSettings
from ham_dist.models.autoint import AutoInt
from ham_dist.models.candidates import CandidateLift
from ham_dist.models.dcnv2 import DCNV2
from ham_dist.models.deepfm import DeepFM
from ham_dist.models.fm import FM
from ham_dist.models.interaction import Interaction

INTERACTIONS: dict[str, type[Interaction]] = {}
"""All models by name, built-in ones and those of plug-ins."""

InteractionClass = TypeVar("InteractionClass", bound=type[Interaction])


def register_model(model: InteractionClass) -> InteractionClass:
    """Makes a model available in `model.name`, under the name in its settings class; usable as a decorator.

    Raises:
        ConfigError: Its settings have no name, or the name of another model.
    """
    INTERACTIONS[schema.MODELS.register(model.Settings)] = model
    return model


for _built_in in (FM, DeepFM, AutoInt, DCNV2):
    register_model(_built_in)


def build_interaction(settings: ModelSettings, dims: Mapping[str, int]) -> Interaction:
    """Returns the interaction that `settings` names, newly initialized (identical for the same torch seed).

    Args:
        settings: The model's own settings.
        dims: d_j by field, in the order of the columns; a field of dim 0 keeps a slot or is left out,
            depending on the model's `keeps_slots`.
    Raises:
        TargetError: No field has a column.
    """
    kind = INTERACTIONS[settings.name]
    return CandidateLift(dims, settings, kind) if settings.candidates else kind(dims, settings)
