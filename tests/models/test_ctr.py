"""The mask can be multiplied into looked-up vectors or into the weights that read them: the same model."""

from typing import Any, Literal

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from ham_dist.embedding.mask import ColumnLayout, ColumnMask, MaskedEmbeddingBagCollection, ordered_columns
from ham_dist.embedding.tables import Table, embedding_bags
from ham_dist.models.ctr import CTRModel
from ham_dist.models.registry import INTERACTIONS, build_interaction
from tests.support.model_settings import model_settings

DIMS = {"user": 4, "genres": 3, "hour": 1}
ROWS = 10


def opened(name: Literal["fm", "deepfm", "autoint", "dcnv2"]) -> CTRModel:
    torch.manual_seed(0)
    bags = embedding_bags([Table(field, ROWS, width, width, width) for field, width in DIMS.items()], "cpu")
    layout = ColumnLayout(DIMS, dict.fromkeys(DIMS, ROWS))
    interaction = build_interaction(model_settings(name, lift_dim=6, mlp=(8, 4)), DIMS).double()
    tables = MaskedEmbeddingBagCollection(bags, ColumnMask(layout))
    return CTRModel(tables, interaction, None, single_valued={"user", "hour"}).eval()


def features() -> KeyedJaggedTensor:
    """Four rows; of genres none, one, two and three ids."""
    lengths = torch.tensor([1, 1, 1, 1, 0, 1, 2, 3, 1, 1, 1, 1])
    ids = torch.randint(ROWS, (int(lengths.sum()),), generator=torch.Generator().manual_seed(1))
    return KeyedJaggedTensor(list(DIMS), ids, lengths=lengths)


def logits_of_masked_vectors(model: CTRModel) -> torch.Tensor:
    """The mask in the vectors, as any model has it; the interaction knows of none."""
    counts = {"genres": features()["genres"].lengths().clamp(min=1).unsqueeze(1)}
    columns = ordered_columns(model.tables(features()), DIMS, counts)
    logits: torch.Tensor = model.interaction(columns.double())
    return logits


@pytest.mark.parametrize("name", INTERACTIONS)
def test_both_places_give_the_same_logits(name: Literal["fm", "deepfm", "autoint", "dcnv2"]) -> None:
    model = opened(name)
    for closed in ([0], [1, 4, 7], [4, 5, 6], []):
        mask = torch.ones(8)
        mask[closed] = 0.0
        model.mask.set(mask)
        assert torch.equal(model(features()), logits_of_masked_vectors(model))
    all_open = model(features())
    model.mask.set(None)
    assert torch.equal(model(features()), all_open)


@pytest.mark.parametrize("name", INTERACTIONS)
def test_the_forward_pass_never_replaces_a_weight_so_threads_can_share_a_model(
    name: Literal["fm", "deepfm", "autoint", "dcnv2"],
) -> None:
    model = opened(name)
    weights = list(map(id, model.parameters()))
    operations = 0

    class Watch(TorchFunctionMode):
        def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            nonlocal operations
            operations += 1
            assert list(map(id, model.parameters())) == weights, function
            return function(*args, **kwargs or {})

    with Watch():
        model(features())
    assert operations > 5


@pytest.mark.parametrize("name", INTERACTIONS)
def test_both_places_give_the_same_gradient_of_the_mask_and_none_of_the_tables(
    name: Literal["fm", "deepfm", "autoint", "dcnv2"],
) -> None:
    model = opened(name)
    start = torch.tensor([1.0, 0, 1, 1, 0, 1, 1, 1], dtype=torch.float64)
    gradients = []
    for logits_of in (lambda model: model(features()), logits_of_masked_vectors):
        values = start.clone().requires_grad_()
        with model.mask.differentiable(values):
            loss = logits_of(model).square().sum()
        loss.backward()
        assert values.grad is not None
        assert all(parameter.grad is None for parameter in model.tables.parameters())
        gradients.append(values.grad)
        model.zero_grad()
    # With the mask in the weights, the mean of a bag is taken in float32; with the mask in the vectors, after
    # the product with the mask.
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-6, atol=1e-8)
    assert (gradients[0] != 0).any()
