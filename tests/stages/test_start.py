"""`retrain.start`: the weights from which retraining starts."""

from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch

from ham_dist.config.schema import RunSettings
from ham_dist.data.format.manifest import Manifest
from ham_dist.distributed.ranks import process_group
from ham_dist.distributed.sharding.model import TABLES
from ham_dist.embedding.mask import Columns
from ham_dist.run import run_stages
from ham_dist.stages import branch
from ham_dist.stages.slice import slice_columns
from ham_dist.training.checkpoints import load_best_weights
from ham_dist.training.state import TrainingState, open_supernet
from tests.support.ranks import run_on_ranks
from tests.support.small_run import tiny_run
from tests.support.whole_runs import FLOAT64, Stopped, assert_same_bits, do_part, do_run, result

FIELDS = 3


def start_of(settings: RunSettings, folder: Path) -> dict[str, torch.Tensor]:
    """The training state at the start of retraining, of a run that ends there."""
    found: dict[str, torch.Tensor] = {}

    def stop(state: TrainingState, *rest: Any) -> None:
        found.update({name: values.clone() for name, values in plain(state.tensors()).items()})
        raise Stopped

    with patch.object(branch, "retrain", stop), pytest.raises(Stopped):
        run_stages(settings, folder, resume=False)
    return found


def plain(tensors: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Tensors of a state on one rank, without TorchRec's sharded tensors around them."""
    return {
        name: values.local_shards()[0].tensor if hasattr(values, "local_shards") else values
        for name, values in tensors.items()
    }


def uniform(base_dim: int, start: str) -> RunSettings:
    """A run that keeps two columns of every table."""
    return tiny_run(
        model={"base_dim": base_dim},
        search={"targets": [{"columns": 2 * FIELDS}], "method": "uniform"},
        retrain={"start": start},
    )


def test_scratch_is_the_initial_model_of_the_same_dims(tmp_path: Path) -> None:
    found = start_of(uniform(4, "scratch"), tmp_path / "run")
    data = Manifest.load(tmp_path / "run" / "data")
    with process_group.process_group() as device:
        made = plain(open_supernet(uniform(2, "scratch"), data.num_embeddings(), device).tensors())
        assert found.keys() == made.keys()
        assert all(torch.equal(found[name], made[name]) for name in made)
    assert any(name.startswith(TABLES) and values.any() for name, values in found.items())


def test_pretrained_takes_columns_from_the_search_and_weights_from_pretraining(tmp_path: Path) -> None:
    kept: dict[str, torch.Tensor] = {}
    sliced = slice_columns

    def spy(state: TrainingState, columns: Columns, *rest: Any) -> TrainingState:
        kept.update(columns)
        return sliced(state, columns, *rest)

    settings = tiny_run(retrain={"start": "pretrained"})
    with patch("ham_dist.stages.branch.slice_columns", spy):
        found = start_of(settings, tmp_path / "run")
    data = Manifest.load(tmp_path / "run" / "data")
    with process_group.process_group() as device:
        wide = open_supernet(settings, data.num_embeddings(), device)
        load_best_weights(tmp_path / "run" / "checkpoints" / "pretrain", wide)
        tables = plain(wide.weights())
        compared = 0
        for field, columns in kept.items():
            if len(columns):
                assert torch.equal(found[f"{TABLES}/{field}"], tables[f"{TABLES}/{field}"][:, columns])
                compared += 1
    assert compared > 1


def test_each_start_has_weights_of_its_own(tmp_path: Path) -> None:
    starts = [
        start_of(tiny_run(retrain={"start": start}), tmp_path / start)
        for start in ("searched", "pretrained", "scratch")
    ]
    assert starts[0].keys() == starts[1].keys() == starts[2].keys()
    dense = [
        torch.cat([values.flatten() for name, values in start.items() if "dense/" in name])
        for start in starts
    ]
    assert not any(torch.equal(dense[one], dense[other]) for one, other in ((0, 1), (0, 2), (1, 2)))


@pytest.mark.parametrize("start", ["pretrained", "scratch"])
def test_a_run_killed_in_retraining_resumes_from_its_start(tmp_path: Path, start: str) -> None:
    settings = tiny_run(retrain={"start": start})
    do_run(settings, tmp_path / "unbroken")
    do_part(settings, tmp_path / "run", 2 * 12 + 2 * 12 + 3)  # within the first epoch of retraining
    do_run(settings, tmp_path / "run", resume=True)
    assert_same_bits(tmp_path / "run", tmp_path / "unbroken")
    searched = tiny_run()
    do_run(searched, tmp_path / "searched")
    assert result(tmp_path / "searched")["test_logloss"] != result(tmp_path / "run")["test_logloss"]


def test_scratch_is_the_same_on_two_ranks(tmp_path: Path) -> None:
    settings = tiny_run(retrain={"start": "scratch"}, precision=FLOAT64)
    do_run(settings, tmp_path / "one")
    run_on_ranks(2, do_run, settings, tmp_path / "two")
    assert_same_bits(tmp_path / "two", tmp_path / "one")
