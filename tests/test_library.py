"""The library's door on a model that is not ours: alpha alone moves, modes and weights stay; what export writes can be built again."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torchrec.modules.embedding_configs import EmbeddingBagConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from ham_dist.errors import SlicingError, TargetError
from ham_dist.export.bundle import open_bundle
from ham_dist.library import Search, export, mask_columns, slice_columns


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


def test_a_step_moves_alpha_and_nothing_else() -> None:
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


def test_export_holds_what_it_takes_to_build_the_model_again(tmp_path: Path) -> None:
    model, search = opened()
    search.step(lambda: model(features()).square().mean())
    columns = search.finish()
    assert sum(map(len, columns.values())) == 3
    narrow = slice_columns(model, columns, example=features())
    export(narrow, tmp_path / "bundle", run={"by": "test"})
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


def test_what_cannot_be_cut_is_said() -> None:
    model, search = opened()
    columns = search.finish()
    with pytest.raises(SlicingError, match="leave `readers` out"):
        slice_columns(model, columns, readers={"over.1.weight": 1}, example=features())
    assert search.mask.values is not None
    with pytest.raises(TargetError, match="columns = 9: more columns than the 8"):
        Search(model, columns=9)
    with pytest.raises(SlicingError, match="mask_columns"):
        Search(nn.Linear(1, 1), columns=1)
