"""Settings of a model by its name, for tests that go through all models."""

from typing import Any

from ham_dist.config.schema import ModelSettings
from ham_dist.models.registry import INTERACTIONS


def model_settings(name: str, **keys: Any) -> ModelSettings:
    """The settings of model `name`, with those of `keys` that it has."""
    kind = INTERACTIONS[name].Settings
    return kind.model_validate({key: value for key, value in keys.items() if key in kind.model_fields})
