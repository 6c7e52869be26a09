"""Checkpoints that a run does not accept as its own."""

from typing import Any

import pytest

from ham_dist.config.load import flat, load_run
from ham_dist.errors import OtherRunError
from ham_dist.training.run_identity import RunIdentity

OWN = RunIdentity("0" * 32, flat(load_run(None)))


def test_its_own_checkpoint_is_accepted() -> None:
    OWN.require_own("epoch-0001", {"run": OWN.mark()})


@pytest.mark.parametrize("settings", [{}, None, [], "seed", {"unknown": 0}], ids=str)
def test_a_checkpoint_without_settings_is_refused(settings: Any) -> None:
    with pytest.raises(
        OtherRunError, match=r"^epoch-0001: has no settings to compare with those of the run\. Remove it"
    ):
        OWN.require_own("epoch-0001", {"run": OWN.mark() | {"settings": settings}})


def test_an_identity_without_settings_is_none() -> None:
    assert RunIdentity.from_json(OWN.to_json()) == OWN
    with pytest.raises(ValueError, match="holds no identity of a run"):
        RunIdentity.from_json(OWN.to_json() | {"settings": {}})
