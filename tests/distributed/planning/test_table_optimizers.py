"""The table optimizers by name."""

import subprocess
import sys

import pytest

from ham_dist.config.schema import TABLE_OPTIMIZERS, OptimizerSettings
from ham_dist.distributed.planning.table_optimizers import (
    TABLE_OPTIMIZER_OF_NAME,
    register_table_optimizer,
    table_optimizer_of,
)
from ham_dist.errors import ConfigError


def test_the_names_that_settings_take_are_those_that_are_registered() -> None:
    names = "from ham_dist.config.schema import TABLE_OPTIMIZERS; print(*TABLE_OPTIMIZERS)"
    done = subprocess.run([sys.executable, "-c", names], capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) <= TABLE_OPTIMIZER_OF_NAME.keys() == set(TABLE_OPTIMIZERS)
    for name in TABLE_OPTIMIZERS:
        assert table_optimizer_of(OptimizerSettings(tables=name)).name == name


def test_a_name_is_registered_once() -> None:
    with pytest.raises(ConfigError, match="'sgd' is registered already"):
        register_table_optimizer(TABLE_OPTIMIZER_OF_NAME["sgd"])
