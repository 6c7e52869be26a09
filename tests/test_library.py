"""The library on a user's model: a search changes only alpha, and an exported model can be built again."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torchrec.modules.embedding_configs import DataType, EmbeddingBagConfig, EmbeddingConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection, EmbeddingCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from ham_dist.config.schema import MethodSettings
from ham_dist.errors import BundleError, ConfigError, SlicingError, TargetError
from ham_dist.export.bundle import open_bundle
from ham_dist.library import Search, export, mask_columns, slice_columns
from ham_dist.methods.loo import LeaveOneOutSettings
from ham_dist.methods.sseds import SSEDSSettings
from tests.support.ranks import run_on_ranks


class ClickModel(nn.Module):
    """Two tables, a frozen BatchNorm, a dropout."""

    def __init__(self) -> None:
        super().__init__()
        configs = [
            EmbeddingBagConfig(name=f"t_{f}", embedding_dim=4, num_embeddings=9, feature_names=[f])
            for f in ("user", "item")
        ]
        self.ebc = EmbeddingBagCollection(tables=configs)
        self.norm = nn.BatchNorm1d(8).eval()
        self.over = nn.Sequential(nn.Dropout(0.5), nn.Linear(8, 1))

    def forward(self, features: KeyedJaggedTensor) -> torch.Tensor:
        return self.over(self.norm(self.ebc(features).values())).squeeze(1)


def features() -> KeyedJaggedTensor:
    return KeyedJaggedTensor(
        ["user", "item"], torch.tensor([1, 2, 3, 4, 5, 0]), lengths=torch.ones(6, dtype=torch.int64)
    )


def opened(columns: int = 3) -> tuple[ClickModel, Search]:
    torch.manual_seed(0)
    model = ClickModel()
    model.ebc = mask_columns(model.ebc)
    return model, Search(model, columns=columns)


def test_a_step_changes_only_alpha() -> None:
    model, search = opened()
    before = {name: values.clone() for name, values in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    alpha = search.method.tensors()["alpha"].clone()
    for _ in range(3):
        search.step(lambda: model(features()).square().mean())
    assert not torch.equal(search.method.tensors()["alpha"], alpha)
    assert all(torch.equal(values, before[name]) for name, values in model.state_dict().items())
    assert [module.training for module in model.modules()] == modes
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_one_shot_method_needs_a_pass_over_data() -> None:
    model, _ = opened()
    search = Search(model, columns=3, method="sseds")
    with pytest.raises(ConfigError, match=r"sseds.* has seen no data"):
        search.finish()
    search.score([lambda: model(features()).square().mean()] * 2)
    kept = search.mask.layout.join(search.finish()).bool()
    scores = search.method.tensors()["scores"]
    assert kept.sum() == 3
    assert scores[kept].min() > scores[~kept].max()


@pytest.mark.parametrize("method", [LeaveOneOutSettings, SSEDSSettings])
def test_the_value_of_a_closed_column_is_a_setting(method: type[MethodSettings]) -> None:
    """If all rows have the same ids, a column's mean, and its value in another row, are its own values."""
    model, _ = opened()
    same = KeyedJaggedTensor(["user", "item"], torch.tensor([1, 1, 4, 4]), lengths=torch.ones(4).long())
    for closed in ("zero", "mean", "shuffled"):
        search = Search(model, columns=3, method=method.model_validate({"closed": closed}))
        search.score([lambda: model(same).square().mean()])
        scores = search.method.tensors()["scores"]
        assert (scores.abs() > 1e-6).all() if closed == "zero" else (scores.abs() < 1e-8).all()


def test_a_model_can_be_built_again_from_an_export(tmp_path: Path) -> None:
    model, search = opened()
    search.step(lambda: model(features()).square().mean())
    columns = search.finish()
    assert sum(map(len, columns.values())) == 3
    sliced = slice_columns(model, columns, example=features())
    export(sliced, tmp_path / "bundle", run={"by": "test"})
    bundle = open_bundle(tmp_path / "bundle")
    again = torch.zeros(9, 8)
    tables: Any = bundle.manifest.run["tables"]
    for place, (table, described) in enumerate(tables.items()):
        if described["columns"]:
            again[:, [4 * place + column for column in described["columns"]]] = bundle.tables()[table]
    assert search.mask.values is not None
    wanted = torch.cat([weight.detach() for weight in model.ebc.ebc.parameters()], dim=1) * search.mask.values
    assert torch.equal(again, wanted)
    assert tables["t_user"]["keys"] == ["user"]
    assert bundle.dense().keys() == {name for name in model.state_dict() if not name.startswith("ebc.")}


def _export_on_ranks(out: str, who: str) -> str:
    """Exports the same model from rank 0 only, from every rank, or from ranks with different weights."""
    model, search = opened()
    if who == "others" and dist.get_rank() == 1:
        with torch.no_grad():
            model.over.get_parameter("1.bias").add_(1.0)
    sliced = slice_columns(model, search.finish())
    if who != "first" or dist.get_rank() == 0:
        try:
            export(sliced, out)
        except BundleError as error:
            return str(error)
    return ""


@pytest.mark.parametrize("who", ["first", "all"])
def test_export_works_from_one_rank_and_from_all(tmp_path: Path, who: str) -> None:
    assert run_on_ranks(2, _export_on_ranks, str(tmp_path / "bundle"), who) == ["", ""]
    model, search = opened()
    sliced = slice_columns(model, search.finish())
    found, wanted = open_bundle(tmp_path / "bundle").dense(), sliced.state_dict()
    assert all(torch.equal(values, wanted[name]) for name, values in found.items())
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_ranks_that_export_other_weights_to_one_folder_are_refused(tmp_path: Path) -> None:
    failures = run_on_ranks(2, _export_on_ranks, str(tmp_path / "bundle"), "others")
    (failure,) = filter(None, failures)
    assert "with other weights than those of rank" in failure


def test_one_process_never_exports_onto_a_bundle(tmp_path: Path) -> None:
    model, search = opened()
    sliced = slice_columns(model, search.finish())
    export(sliced, tmp_path / "bundle")
    with pytest.raises(BundleError, match="already exists"):
        export(sliced, tmp_path / "bundle")


def test_bytes_are_those_of_each_tables_own_numbers() -> None:
    configs = [
        EmbeddingBagConfig(
            name=f, embedding_dim=4, num_embeddings=rows, feature_names=[f], data_type=data_type
        )
        for f, rows, data_type in (("t_half", 10, DataType.FP16), ("t_whole", 7, DataType.FP32))
    ]
    model = nn.Module()
    model.ebc = mask_columns(EmbeddingBagCollection(tables=configs))
    search = Search(model, bytes=4 * 10 * 2 + 4 * 7 * 4)
    assert search.used == 4 * 10 * 2 + 4 * 7 * 4
    with pytest.raises(TargetError, match="more bytes than the 192"):
        Search(model, bytes=193)
    with pytest.raises(TargetError, match="the smallest takes 20"):
        Search(model, bytes=19)


def _tower(field: str) -> EmbeddingBagCollection:
    return EmbeddingBagCollection(
        tables=[EmbeddingBagConfig(name=field, embedding_dim=4, num_embeddings=9, feature_names=[field])]
    )


def test_unsupported_models_are_refused_by_name() -> None:
    model = nn.ModuleDict({"u": mask_columns(_tower("user")), "i": mask_columns(_tower("item"))})
    with pytest.raises(SlicingError, match=r"2 masked collections \(u, i\).*\n.*one EmbeddingBagCollection"):
        Search(model, columns=1)
    sequences: Any = EmbeddingCollection(
        tables=[EmbeddingConfig(name="a", embedding_dim=8, num_embeddings=9, feature_names=["a"])]
    )
    with pytest.raises(SlicingError, match="got EmbeddingCollection, expected torchrec's EmbeddingBagColl"):
        mask_columns(sequences)
    masked: Any = mask_columns(_tower("user"))
    with pytest.raises(SlicingError, match="already masked"):
        mask_columns(masked)


def test_what_cannot_be_sliced_is_refused() -> None:
    model, search = opened()
    columns = search.finish()
    with pytest.raises(SlicingError, match="leave `readers` out"):
        slice_columns(model, columns, readers={"over.1.weight": 1}, example=features())
    assert search.mask.values is not None
    with pytest.raises(TargetError, match="columns = 9: more columns than the 8"):
        Search(model, columns=9)
    with pytest.raises(SlicingError, match="mask_columns"):
        Search(nn.Linear(1, 1), columns=1)


def test_methods_that_need_the_trainer_are_refused() -> None:
    model, _ = opened()
    with pytest.raises(ConfigError, match=r"'pep' trains a function of the tables.*\n.*ham-dist train"):
        Search(model, columns=3, method="pep")
    with pytest.raises(ConfigError, match=r"no candidate dims.*\n.*model\.candidates"):
        Search(model, columns=3, method="autodim")
