"""TorchRec packages: on one process, quantized, and sharded."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from ham_dist.errors import BundleError
from ham_dist.export.bundle import Bundle, open_bundle
from ham_dist.export.packages.check import TOLERANCE, generated_batches, read_fields
from ham_dist.export.packages.torchrec import CONFIG, features_of, load_quantized, load_torchrec
from ham_dist.export.packages.write import write_package
from tests.support.live_models import export, live_model
from tests.support.ranks import run_on_ranks


@pytest.fixture(scope="module")
def package(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("torchrec") / "package"
    report = write_package(bundle.root, "torchrec", out)
    assert list(report.verified.max_difference) == ["torchrec"]
    return out


def test_the_collection_has_the_tables_of_the_bundle(bundle: Bundle, package: Path) -> None:
    model = load_torchrec(package)
    weights = {name: bag.weight for name, bag in model.ebc.embedding_bags.items()}
    tables = bundle.tables()
    assert list(weights) == [f"table_{field}" for field in tables]
    for field, rows in tables.items():
        found = weights[f"table_{field}"]
        assert found.shape[1] % 4 == 0
        assert torch.equal(found[:, : rows.shape[1]], rows.float()), field
        assert not found[:, rows.shape[1] :].any()
    configs = json.loads((package / CONFIG).read_text())["tables"]
    assert {config["feature"]: config["data_type"] for config in configs} == {
        "user": "fp32",
        "genres": "fp32",
        "age": "fp32",
        "zip": "fp32",
        "gone": "fp16",
    }
    with pytest.raises(BundleError, match="a scale for each column"):
        load_quantized(package)


def test_quantized_by_torchrec(tmp_path: Path) -> None:
    live = live_model("fm", "table")
    export(
        live, tmp_path / "bundle", precision={"user": "fp16", "gone": "fp16", "genres": "fp16", "age": "fp32"}
    )
    report = write_package(tmp_path / "bundle", "torchrec", tmp_path / "package")
    assert list(report.verified.max_difference) == ["torchrec", "torchrec, quantized"]
    model: Any = load_quantized(tmp_path / "package")
    types = {config.name: config.data_type.value for config in model.ebc.embedding_bag_configs()}
    assert types == {"table_user": "FP16", "table_genres": "FP16", "table_age": "FP32"}


def test_damage_is_found(package: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(package, tmp_path / "copy"))
    path = copy / "tables" / "user.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    with pytest.raises(BundleError, match="has another size"):
        load_torchrec(copy)
    path.write_bytes(whole)
    content = json.loads((copy / CONFIG).read_text())
    content["tables"][0]["num_embeddings"] += 1
    (copy / CONFIG).write_text(json.dumps(content))
    with pytest.raises(BundleError, match="has other tensors than"):
        load_torchrec(copy)
    content["tables"][0]["file"] = "../user"
    (copy / CONFIG).write_text(json.dumps(content))
    with pytest.raises(BundleError, match="not a relative path"):
        load_torchrec(copy)
    (copy / CONFIG).unlink()
    with pytest.raises(BundleError, match="damaged"):
        load_torchrec(copy)


def _sharded(package: Path, root: Path) -> tuple[list[torch.Tensor], set[str]]:
    """Probabilities of the generated batches by the sharded model on this rank, and its kinds of sharding."""
    import torch.distributed as dist
    from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
    from torchrec.distributed.model_parallel import DistributedModelParallel
    from torchrec.distributed.sharding_plan import construct_module_sharding_plan, row_wise, table_wise
    from torchrec.distributed.types import ShardingEnv, ShardingPlan

    model: Any = load_torchrec(package)
    sharder = EmbeddingBagCollectionSharder()
    plan = ShardingPlan(
        {
            name: construct_module_sharding_plan(
                collection,
                {
                    table: row_wise() if place % 2 else table_wise(rank=0)
                    for place, table in enumerate(collection.embedding_bags)
                },
                sharder,
                world_size=dist.get_world_size(),
                local_size=dist.get_world_size(),
                device_type="cpu",
            )
            for name, collection in (("ebc", model.ebc), ("first_order_ebc", model.first_order_ebc))
        }
    )
    state = model.state_dict()
    sharded = DistributedModelParallel(
        model, ShardingEnv.from_process_group(dist.group.WORLD), torch.device("cpu"), plan, sharders=[sharder]
    )
    sharded.load_state_dict(state)
    fields = read_fields(open_bundle(root))
    names = [field.name for field in fields]
    with torch.no_grad():
        found = [
            torch.sigmoid(sharded(features_of(names, ids)))
            for ids in generated_batches(fields, seed=dist.get_rank())
        ]
    kinds = {str(parameter.sharding_type) for module in plan.plan.values() for parameter in module.values()}
    return found, kinds


def test_sharded_on_two_ranks(bundle: Bundle, package: Path) -> None:
    model = bundle.model()
    for rank, (found, kinds) in enumerate(run_on_ranks(2, _sharded, package, bundle.root)):
        assert kinds == {"table_wise", "row_wise"}
        batches = generated_batches(read_fields(bundle), seed=rank)
        for probabilities, ids in zip(found, batches, strict=True):
            expected = torch.sigmoid(model(ids))
            torch.testing.assert_close(probabilities, expected, rtol=0, atol=TOLERANCE)
