"""Each private name of torch, TorchRec and FBGEMM in `distributed/internals.py` does what it is used for."""

import inspect
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from fbgemm_gpu.split_table_batched_embeddings_ops_training import SplitTableBatchedEmbeddingBagsCodegen
from torch import nn
from torch.distributed.checkpoint import FileSystemReader, FileSystemWriter
from torchrec.distributed.embedding_lookup import GroupedPooledEmbeddingsLookup
from torchrec.distributed.planner.shard_estimators import EmbeddingStorageEstimator
from torchrec.modules.embedding_modules import EmbeddingBagCollection

from ham_dist.config.schema import OptimizerSettings, RunSettings
from ham_dist.distributed import internals
from ham_dist.distributed.internals import HOST_MAPPED
from ham_dist.distributed.planning.table_optimizers import table_optimizer_of
from ham_dist.distributed.sharding.id_prefetch import PrefetchingEmbeddingBagCollection
from ham_dist.training.state import open_supernet
from tests.support.plain_model import FIELDS
from tests.support.ranks import run_on_ranks


def on_one_rank(call: Callable[..., Any], *args: Any) -> Any:
    (found,) = run_on_ranks(1, call, *args)
    return found


def _round_trip() -> tuple[list[int], torch.Tensor]:
    shard = internals.Shard(torch.ones(2, 3), internals.ShardMetadata([0, 0], [2, 3], "rank:0/cpu"))
    metadata = internals.ShardedTensorMetadata(
        [shard.metadata], torch.Size([2, 3]), internals.TensorProperties(dtype=torch.float32)
    )
    whole = internals.sharded_tensor([shard], metadata)
    return list(whole.size()), whole.local_shards()[0].tensor


def test_torch_sharded_tensor_init_from_local_shards_and_global_metadata() -> None:
    size, values = on_one_rank(_round_trip)
    assert size == [2, 3]
    assert torch.equal(values, torch.ones(2, 3))


def test_torch_enumerable_sharding_spec() -> None:
    shard = internals.ShardMetadata([0, 0], [2, 3], "rank:0/cpu")
    assert internals.EnumerableShardingSpec([shard]).shards == [shard]


def _store() -> bool:
    store = internals.default_store()
    store.set("word", "here")
    store.wait(["word"], timedelta(seconds=5))
    return isinstance(store, dist.Store) and store.get("word") == b"here"


def test_torch_get_default_store() -> None:
    assert on_one_rank(_store)


def test_torch_storage_info_of_a_checkpoint(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="single process"):
        dist.checkpoint.save({"a": torch.ones(3)}, storage_writer=FileSystemWriter(tmp_path), no_dist=True)
    metadata = FileSystemReader(tmp_path).read_metadata()
    (place,) = metadata.storage_data.values()
    assert isinstance(place, internals.StorageInfo)
    assert {"relative_path", "offset", "length"} <= vars(place).keys()


def _fused_tables() -> tuple[list[str], list[bool], dict[str, list[str]]]:
    run = RunSettings.model_validate(
        {
            "optimizer": {"tables": "rowwise_adagrad"},
            "sharding": {"sharding_type": "table_wise"},
            "orthogonality": {"form": "none"},
        }
    )
    sharded = open_supernet(run, FIELDS, torch.device("cpu")).sharded
    (collection,) = (
        module for module in sharded.model.modules() if isinstance(module, PrefetchingEmbeddingBagCollection)
    )
    lookups = internals.lookups_of(collection)
    usable = [hasattr(lookup, "flush") and hasattr(lookup, "purge") for lookup in lookups]
    states = {key: list(state) for key, state in sharded.kernel_state().items()}
    return [type(lookup).__name__ for lookup in lookups], usable, states


def test_torchrec_lookups_of_a_sharded_collection_and_their_optimizer_state() -> None:
    names, usable, states = on_one_rank(_fused_tables)
    assert names == [GroupedPooledEmbeddingsLookup.__name__]
    assert usable == [True]
    assert states == {f"tables.ebc/{field}": ["sum"] for field in FIELDS}


def test_torch_apply_optimizer_in_backward_notes_the_optimizer() -> None:
    parameter = nn.Parameter(torch.zeros(3, 2))
    kind, options = table_optimizer_of(OptimizerSettings(tables="rowwise_adagrad")).fused or (
        torch.optim.SGD,
        {},
    )
    internals.apply_optimizer_in_backward(kind, [parameter], {"lr": 0.1, **options})
    assert parameter._optimizer_classes == [kind]  # type: ignore[attr-defined]


def test_torchrec_planner_reads_optimizer_classes() -> None:
    source = inspect.getsource(inspect.getmodule(EmbeddingStorageEstimator) or EmbeddingStorageEstimator)
    assert "_optimizer_classes" in source
    parameter = nn.Parameter(torch.zeros(1))
    internals.plan_with_optimizer(parameter, torch.optim.Adam)
    assert parameter._optimizer_classes == [torch.optim.Adam]  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", sorted(HOST_MAPPED))
def test_fbgemm_takes_the_argument_of_host_mapped_memory(name: str) -> None:
    assert name in inspect.signature(SplitTableBatchedEmbeddingBagsCodegen.__init__).parameters


def test_torchrec_sharder_passes_what_a_sharded_collection_takes() -> None:
    from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder

    from ham_dist.distributed.sharding.id_prefetch import PrefetchingSharder

    def names(sharder: type) -> list[str]:
        return list(inspect.signature(inspect.unwrap(sharder.shard)).parameters)  # type: ignore[attr-defined]

    assert names(PrefetchingSharder) == names(EmbeddingBagCollectionSharder)
    assert PrefetchingSharder().module_type is EmbeddingBagCollection
