"""Settings that earlier versions wrote are read as those of this version."""

from pathlib import Path

import pytest

from ham_dist.config.load import load_run, load_saved_run
from ham_dist.config.migrate import migrate_model, migrate_run
from ham_dist.errors import ConfigError
from ham_dist.export.bundle import open_bundle
from ham_dist.methods.ham import HamSettings
from ham_dist.models.dcnv2 import DCNV2Settings
from tests.support.earlier_version import unpack


def test_runs_and_bundles_of_version_0_1_0(tmp_path: Path) -> None:
    """Their files hold every model's keys, and the method's among those of the search."""
    earlier = unpack(tmp_path)
    for name in ("finished", "unfinished"):
        path = earlier / name / "run.toml"
        run = load_saved_run(path)
        assert run.model == DCNV2Settings(base_dim=4)
        assert run.search.method == HamSettings()
        with pytest.raises(
            ConfigError, match=r"search\.alpha_start: .* It is called search\.method\.alpha_init"
        ):
            load_run(str(path))
    assert open_bundle(earlier / "finished" / "bundle").manifest.model == DCNV2Settings(base_dim=4)


def test_settings_of_this_version_are_unchanged() -> None:
    for tree in (
        {"model": {"name": "dcnv2", "mlp": [4]}, "search": {"method": {"name": "ham", "penalty": 0.5}}},
        {"model": {"name": "a_plug_in", "mlp": [4], "cross_layers": 2}, "search": {"method": "uniform"}},
        {"model": "fm", "search": 3},
        {},
    ):
        assert migrate_run(tree) == tree
    assert migrate_model({"name": ["fm"], "mlp": 3}) == {"name": ["fm"], "mlp": 3}
