"""Decoupled orthogonality and L2 with row sampling, per sharding type, against formulas on whole tables."""

import pytest
import torch

from ham_dist.config.schema import RunSettings
from ham_dist.distributed.sharding import gram, row_sampling
from ham_dist.distributed.sharding.model import TABLES
from ham_dist.embedding.orthogonality import gradient_matrix
from ham_dist.training.loop import weight_step
from ham_dist.training.state import open_supernet
from tests.support.plain_model import FIELDS
from tests.support.ranks import run_on_ranks
from tests.support.sharded_model import local_batch, settings, whole
from tests.support.sharding_types import KINDS

EVERY, ROWS, WEIGHT, RATE = 2, 8, 0.5, 0.02
STEPS = 2 * EVERY
"""The last step is the second with row sampling."""


def after_steps(
    cases: dict[str, RunSettings], block_numbers: int = gram.BLOCK_NUMBERS
) -> dict[str, dict[str, torch.Tensor]]:
    """Returns tables and states after all steps; the last step without the regularizer, then with it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(row_sampling, "BLOCK_NUMBERS", block_numbers)
        return _after_steps(cases)


def _after_steps(cases: dict[str, RunSettings]) -> dict[str, dict[str, torch.Tensor]]:
    results = {}
    for name, run in cases.items():
        state = open_supernet(run, FIELDS, torch.device("cpu"))
        after_step = state.regularizer.after_step
        state.regularizer.after_step = lambda *_: None  # type: ignore[method-assign]
        for step in range(STEPS):
            weight_step(state, local_batch(step))
        before = whole(state)
        after_step(state.sharded, state.optimizers)
        results[f"{name} before"], results[f"{name} after"] = before, whole(state)
    return results


def moved(table: torch.Tensor, states: dict[str, torch.Tensor], weight: float, decay: float) -> torch.Tensor:
    """Returns the expected table: R's gradient by autograd, with the table estimated from the sampled rows.

    The gradient of L2 is decay * V.

    Padding is unchanged.
    """
    dim = min(len(table), 8)
    stride = -(-len(table) // ROWS)
    chosen = slice((STEPS // EVERY) % stride, None, stride)
    rows = table[chosen, :dim].clone().requires_grad_()
    share = len(table) / len(rows)
    gram_matrix = rows.T @ rows * share
    penalty = (gram_matrix - torch.eye(dim)).square().sum() / dim**2
    (gradient,) = torch.autograd.grad(weight / share * penalty + decay / 2 * rows.square().sum(), rows)
    square = gradient.square()
    if "exp_avg_sq" in states:
        divisor = (states["exp_avg_sq"][chosen, :dim] / (1 - 0.999**STEPS) + square).sqrt()
    elif "sum" in states:
        rowwise = states["sum"].dim() == 1 or states["sum"].shape[1] == 1
        square = square.mean(dim=1, keepdim=True) if rowwise else square
        divisor = (states["sum"].view(len(table), -1)[chosen, :dim] + STEPS * square).sqrt()
    else:
        divisor = torch.ones(())
    rate = RATE * EVERY * stride / (divisor + (1e-8 if states else 0.0))
    matrix = weight * gradient_matrix(gram_matrix.detach(), "gram", dim) + decay * torch.eye(dim)
    result = table.clone()
    result[chosen, :dim] -= gradient * rate / (1 + rate * matrix.abs().sum(dim=0))
    return result


CASES = (
    [("adam", kind, WEIGHT, 0.0) for kind in KINDS]
    + [("adagrad", kind, WEIGHT, 0.0) for kind in ("grid", "mixed")]
    + [("sgd", "mixed", WEIGHT, 0.0), ("rowwise_adagrad", "row_wise", WEIGHT, 0.0)]
    + [("adagrad", "grid", WEIGHT, 0.3), ("rowwise_adagrad", "row_wise", WEIGHT, 0.3)]
    + [("sgd", "mixed", 0.0, 0.3), ("adagrad", "mixed", 0.0, 0.3), ("rowwise_adagrad", "row_wise", 0.0, 0.3)]
)
"""Table optimizer, sharding types, and the weights of orthogonality and of L2."""


@pytest.mark.parametrize("ranks", [1, 2])
def test_tables_that_do_not_fit_into_one_stack_move_alike(ranks: int) -> None:
    """To 1e-6: products of fewer tables at a time may be rounded differently."""
    orthogonality = {"application": "decoupled", "every": EVERY, "rows": ROWS, "weight": WEIGHT}
    cases = {
        kind: settings("dcnv2", orthogonality=orthogonality, sharding=KINDS[kind])
        for kind in ("row_wise", "mixed")
    }
    together = run_on_ranks(ranks, after_steps, cases)[0]
    one_by_one = run_on_ranks(ranks, after_steps, cases, 1)[0]
    for name, tensors in together.items():
        for key, values in tensors.items():
            torch.testing.assert_close(
                one_by_one[name][key], values, rtol=1e-6, atol=1e-6, msg=f"{name}: {key}"
            )


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_sampled_rows_move_as_the_table_optimizer_would_move_them(ranks: int) -> None:
    weights, cases = {}, {}
    for table_optimizer, kind, weight, decay in CASES:
        name = f"{table_optimizer} {kind} {weight} {decay}"
        weights[name] = {"weight": weight, "decay": decay}
        orthogonality = {"application": "decoupled", "every": EVERY, "rows": ROWS, "weight": WEIGHT}
        cases[name] = settings(
            "dcnv2",
            optimizer={
                "tables": table_optimizer, "tables_learning_rate": RATE, "tables_weight_decay": decay,
            },
            orthogonality={**orthogonality, "form": "gram" if weight else "none"},
            sharding=KINDS[kind],
        )  # fmt: skip
    results = run_on_ranks(ranks, after_steps, cases)[0]
    for name in cases:
        before, after = results[f"{name} before"], results[f"{name} after"]
        for field, count in FIELDS.items():
            key = f"{TABLES}/{field}"
            states = {
                state.split("/")[0]: values
                for state, values in before.items()
                if state.endswith(key) and not state.startswith(TABLES)
            }
            expected = moved(before[key], states, **weights[name])
            torch.testing.assert_close(after[key], expected, rtol=1e-5, atol=1e-6, msg=f"{name}: {field}")
            still = torch.ones(count, dtype=torch.bool)
            stride = -(-count // ROWS)
            still[(STEPS // EVERY) % stride :: stride] = False
            assert torch.equal(after[key][still], before[key][still]), (
                "rows that are not sampled are unchanged"
            )
            assert not torch.equal(after[key][~still], before[key][~still])


def copies_after_steps(run: RunSettings, num_embeddings: dict[str, int]) -> dict[str, torch.Tensor]:
    state = open_supernet(run, num_embeddings, torch.device("cpu"))
    state.optimizers.open_state()
    for step in range(1, 4):
        state.optimizers.steps = step
        state.regularizer.after_step(state.sharded, state.optimizers)
    return {field: local.values.clone() for field, local in state.sharded.local.items()}


def test_copies_stay_the_same_bits_next_to_tables_that_differ_by_rank() -> None:
    """Copies have the same sums on every rank, whichever other tables of similar shape the rank has."""
    num_embeddings = {"copied": 300, "here": 310, "there": 400, "small copy": 100}
    copies = {"copied": "data_parallel", "small copy": "data_parallel"}
    run = settings(
        "dcnv2",
        sharding={"sharding_type": "table_wise", "sharding_types": copies},
        optimizer={"tables": "adam", "tables_learning_rate": RATE},
        orthogonality={"application": "decoupled", "every": 1, "weight": WEIGHT},
    )
    run = run.model_copy(update={"model": run.model.model_copy(update={"base_dim": 16})})
    first, second = run_on_ranks(2, copies_after_steps, run, num_embeddings)
    assert first.keys() != second.keys()
    assert all(torch.equal(first[field], second[field]) for field in copies)


def grams_of_all_samples(run: RunSettings, rows: int) -> dict[str, list[torch.Tensor]]:
    state = open_supernet(run, FIELDS, torch.device("cpu"))
    found: dict[str, list[torch.Tensor]] = {}
    for number in range(max(FIELDS.values()) // rows):
        for product in row_sampling.products(
            state.sharded, lambda matrix, _: matrix, row_sampling.RowSample(number, rows)
        ):
            for key, matrix in zip(product.at.keys, product.matrix, strict=True):
                found.setdefault(key.removeprefix(f"{TABLES}/"), []).append(matrix)
    of_tables = gram.grams(state.sharded)
    return {field: [*estimates, of_tables[field]] for field, estimates in found.items()}


@pytest.mark.parametrize("kind", ["row_wise", "mixed"])
def test_the_gram_matrix_of_sampled_rows_is_unbiased(kind: str) -> None:
    """Over a whole rotation the mean of the estimates is the table's own Gram matrix.

    A rotation has 6 samples of `user`, and 4 of `movie`, so that 4 of the 6 are one rotation.
    """
    for of_rank in run_on_ranks(2, grams_of_all_samples, settings("dcnv2", sharding=KINDS[kind]), 10):
        for field, (*estimates, whole_gram) in of_rank.items():
            rotation = estimates[: -(-FIELDS[field] // 10)]
            torch.testing.assert_close(torch.stack(rotation).mean(dim=0), whole_gram, rtol=1e-5, atol=1e-5)
            if len(rotation) > 1:
                assert all(not torch.allclose(one, whole_gram, rtol=1e-3) for one in rotation), (
                    "each sample has other rows"
                )
