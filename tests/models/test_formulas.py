"""Each interaction against its paper's formula, written a second time, or against TorchRec's same module."""

from collections.abc import Mapping
from itertools import combinations, pairwise
from typing import Literal

import pytest
import torch
from torchrec.modules.crossnet import CrossNet as TorchRecCrossNet
from torchrec.modules.mlp import MLP as TorchRecMLP

from ham_dist.errors import TargetError
from ham_dist.models.autoint import AutoInt, AutoIntSettings
from ham_dist.models.dcnv2 import DCNV2, CrossNet, DCNV2Settings
from ham_dist.models.deepfm import DeepFM, DeepFMSettings
from ham_dist.models.fm import FM, FMSettings, pairwise_products
from ham_dist.models.interaction import Axis
from ham_dist.models.lift import Lift
from ham_dist.models.registry import INTERACTIONS, build_interaction
from tests.support.model_settings import model_settings

DIMS = {"user.id": 5, "gender": 2, "age": 1, "genres": 5}
D = sum(DIMS.values())
B = 7


def columns(dims: Mapping[str, int] = DIMS) -> torch.Tensor:
    return torch.randn(B, sum(dims.values()), dtype=torch.float64)


def lifted_by_loop(lift: Lift, values: torch.Tensor) -> list[torch.Tensor]:
    """The fields, each times its own rows of the weight."""
    ends = torch.tensor(lift.dims).cumsum(0).tolist()
    return [values[:, start:end] @ lift.weight[start:end] for start, end in pairwise([0, *ends])]


def mlp_like(torchrec_mlp: TorchRecMLP, deep: torch.nn.Sequential) -> TorchRecMLP:
    """TorchRec's MLP with the weights of `deep`, whose fresh BatchNorm is made an identity in evaluation."""
    linears = [layer for layer in deep if isinstance(layer, torch.nn.Linear) and layer.out_features > 1]
    for layer in deep:
        if isinstance(layer, torch.nn.BatchNorm1d):
            layer.eps = 1e-30  # torch 2.11 refuses 0
    for perceptron, linear in zip(torchrec_mlp._mlp, linears, strict=True):
        perceptron._linear.load_state_dict(linear.state_dict())
    return torchrec_mlp


@pytest.mark.parametrize("dims", [{"a": 3, "b": 3}, DIMS, {"a": 0, "b": 4, "c": 1, "d": 0}])
def test_lift_is_one_product_a_field(dims: Mapping[str, int]) -> None:
    torch.manual_seed(0)
    lift = Lift(dims, 6).double()
    values = columns(dims)
    assert lift(values).shape == (B, len(dims), 6)
    torch.testing.assert_close(lift(values), torch.stack(lifted_by_loop(lift, values), dim=1))
    assert torch.autograd.gradcheck(
        lambda x, w: torch.func.functional_call(lift, {"weight": w}, x),
        (values.requires_grad_(), lift.weight),
    )


@pytest.mark.parametrize("dims", [{"a": 3, "b": 3}, DIMS, {"a": 0, "b": 4, "c": 1, "d": 0}])
def test_lift_folds_into_the_linear_map_behind_it(dims: Mapping[str, int]) -> None:
    torch.manual_seed(0)
    lift = Lift(dims, 6).double()
    behind = torch.randn(5, len(dims) * 6, dtype=torch.float64, requires_grad=True)
    values, mask = columns(dims), torch.rand(sum(dims.values()), dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(
        values @ lift.folded_into(behind, mask).t(), lift(values * mask).flatten(1) @ behind.t()
    )
    assert torch.autograd.gradcheck(lift.folded_into, (behind, mask))


def test_lift_starts_as_one_linear_a_field() -> None:
    torch.manual_seed(0)
    lift = Lift({"small": 1, "large": 100}, 2000)
    small, large = lift.weight.split((1, 100))
    assert 0.95 < small.abs().max() <= 1
    assert 0.095 < large.abs().max() <= 0.1


def test_fm_is_the_sum_over_pairs_of_fields() -> None:
    torch.manual_seed(0)
    model = FM(DIMS, FMSettings(lift_dim=6)).double()
    values = columns()
    pairs = sum((left * right).sum(1) for left, right in combinations(lifted_by_loop(model.lift, values), 2))
    assert model.linear is not None
    torch.testing.assert_close(model(values), model.bias + values @ model.linear + pairs)


def test_fm_of_one_field_has_no_pairs_and_no_gradient() -> None:
    """Exactly: Adam makes full steps of what rounding would leave."""
    model = FM({"alone": 3}, FMSettings(first_order="table"))
    (0.37 * model(torch.randn(50, 3))).exp().sum().backward()
    assert model.lift.weight.grad is not None
    assert model.lift.weight.grad.abs().max() == 0.0


def test_fm_leaves_the_first_order_to_tables() -> None:
    torch.manual_seed(0)
    model = FM(DIMS, FMSettings(lift_dim=6, first_order="table")).double()
    values = columns()
    torch.testing.assert_close(model(values), model.bias + pairwise_products(model.lift.by_field(values)))
    assert "linear" not in dict(model.named_parameters())
    assert "linear" not in model.axes()


def test_deepfm_is_fm_plus_torchrecs_mlp() -> None:
    torch.manual_seed(0)
    settings = DeepFMSettings(lift_dim=6, mlp=(8, 4))
    model = DeepFM(DIMS, settings).double().eval()
    values = columns()
    torchrec_mlp = mlp_like(TorchRecMLP(len(DIMS) * 6, [8, 4], activation="relu").double(), model.deep)
    flat = torch.cat(lifted_by_loop(model.lift, values), dim=1)
    last = model.get_parameter("deep.6.weight")
    deep = torchrec_mlp(flat) @ last[0]
    torch.testing.assert_close(model(values), FM.forward(model, values) + deep)


def test_deepfm_without_hidden_layers_reads_the_lifted_fields() -> None:
    torch.manual_seed(0)
    model = DeepFM(DIMS, DeepFMSettings(lift_dim=6, mlp=())).double()
    values = columns()
    flat = torch.cat(lifted_by_loop(model.lift, values), dim=1)
    torch.testing.assert_close(
        model(values), FM.forward(model, values) + flat @ model.get_parameter("deep.0.weight")[0]
    )


def test_autoint_is_the_papers_formula() -> None:
    torch.manual_seed(0)
    dims = {**DIMS, "left": 0}
    model = AutoInt(dims, AutoIntSettings(lift_dim=6, attention_heads=2, attention_layers=2)).double()
    values = columns()
    fields = torch.stack(lifted_by_loop(model.lift, values), dim=1)
    for number in range(2):
        query, key, value, residual = model.get_parameter(f"attention.{number}.projection.weight").split(6)
        heads = []
        for rows in (slice(0, 3), slice(3, 6)):
            scores = torch.exp(
                torch.einsum("bmi,hi,hj,bkj->bmk", fields, query[rows], key[rows], fields)
            )  # Eq. 5
            attention = scores / scores.sum(dim=2, keepdim=True)
            heads.append(torch.einsum("bmk,hj,bkj->bmh", attention, value[rows], fields))  # Eq. 6
        fields = torch.clamp(
            torch.cat(heads, dim=2) + torch.einsum("hi,bmi->bmh", residual, fields), min=0
        )  # Eq. 7, 8
    expected = fields.reshape(B, -1) @ model.last.weight[0] + model.last.bias
    torch.testing.assert_close(model(values), expected)


def test_cross_layers_are_torchrecs() -> None:
    torch.manual_seed(0)
    ours, theirs = CrossNet(D, 3).double(), TorchRecCrossNet(D, 3).double()
    for number in range(3):
        bias = ours.get_parameter(f"layers.{number}.bias")
        torch.nn.init.normal_(bias)
        theirs.get_parameter(f"kernels.{number}").data.copy_(ours.get_parameter(f"layers.{number}.weight"))
        theirs.get_parameter(f"bias.{number}").data.copy_(bias[:, None])
    values = columns()
    torch.testing.assert_close(ours(values), theirs(values))


def test_dcnv2_is_one_linear_over_cross_and_torchrecs_mlp() -> None:
    torch.manual_seed(0)
    model = DCNV2(DIMS, DCNV2Settings(mlp=(8, 4))).double().eval()
    values = columns()
    torchrec_mlp = mlp_like(TorchRecMLP(D, [8, 4], activation="relu").double(), model.deep)
    both = torch.cat([model.cross(values), torchrec_mlp(values)], dim=1)
    torch.testing.assert_close(model(values), both @ model.last.weight[0] + model.last.bias)


@pytest.mark.parametrize("name", INTERACTIONS)
def test_a_mask_in_the_weights_is_one_on_the_columns(
    name: Literal["fm", "deepfm", "autoint", "dcnv2"],
) -> None:
    torch.manual_seed(0)
    model = build_interaction(model_settings(name, lift_dim=6, mlp=(8, 4)), DIMS).double().eval()
    values = columns()
    hard = (torch.rand(D) < 0.5).double()
    assert torch.equal(model(values, hard), model(values * hard))
    soft = torch.rand(D, dtype=torch.float64, requires_grad=True)
    inside, outside = model(values, soft), model(values * soft)
    torch.testing.assert_close(inside, outside)
    (gradient,), (expected,) = (
        torch.autograd.grad(logits.square().sum(), soft) for logits in (inside, outside)
    )
    torch.testing.assert_close(gradient, expected)
    assert (gradient.abs() > 0).all()


@pytest.mark.parametrize(("width", "expected"), [(16, 40_241), (4, 3_281)])
def test_dcnv2_has_the_papers_number_of_weights(width: int, expected: int) -> None:
    """HAM paper, section 4.5, for the 7 fields of MovieLens-1M."""
    model = build_interaction(model_settings("dcnv2"), {f"field {number}": width for number in range(7)})
    assert sum(parameter.numel() for parameter in model.parameters()) == expected


@pytest.mark.parametrize("name", INTERACTIONS)
@pytest.mark.parametrize("mlp", [(4,), ()])
def test_gradients_reach_every_weight_and_are_right(name: str, mlp: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    model = build_interaction(model_settings(name, lift_dim=4, mlp=mlp), DIMS).double()
    values = columns().requires_grad_()
    assert torch.autograd.gradcheck(model, (values,))
    model(values).square().sum().backward()
    without = {key for key, parameter in model.named_parameters() if parameter.grad is None}
    assert without == (
        {"deep.0.bias"} if "deep.0.bias" in model.state_dict() else set()
    )  # a bias before BatchNorm is not trained


@pytest.mark.parametrize("name", INTERACTIONS)
def test_the_seed_decides_the_start(name: str) -> None:
    starts = []
    for _ in range(2):
        torch.manual_seed(3)
        starts.append(build_interaction(model_settings(name), DIMS).state_dict())
    assert starts[0].keys() == starts[1].keys()
    assert all(torch.equal(starts[0][key], starts[1][key]) for key in starts[0])
    assert not any("padded" in key for key in starts[0])


@pytest.mark.parametrize("name", INTERACTIONS)
def test_empty_fields_keep_a_slot_only_where_the_model_needs_one(name: str) -> None:
    model = build_interaction(model_settings(name), {"a": 0, "b": 2, "c": 0})
    assert list(model.dims) == (["a", "b", "c"] if model.keeps_slots else ["b"])
    assert model(torch.randn(B, 2)).shape == (B,)
    with pytest.raises(TargetError, match="no field has a column left"):
        build_interaction(model_settings(name), {"a": 0})


def test_axis_counts_columns_blocks_and_the_tail() -> None:
    dims = {"a": 2, "b": 3, "c": 1}
    kept = {"a": torch.tensor([1]), "b": torch.tensor([], dtype=torch.int64), "c": torch.tensor([0])}
    assert Axis(("a", "b", "c")).kept(dims, kept).tolist() == [1, 5]
    assert Axis(("a", "b", "c"), tail=2).kept(dims, kept).tolist() == [1, 5, 6, 7]
    assert Axis(("a", "b", "c"), block=2).kept(dims, kept).tolist() == [0, 1, 4, 5]
    assert Axis(()).kept(dims, kept).dtype == torch.int64
