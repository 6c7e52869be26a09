"""i-Razor against autograd and torch's Adam, and its two choices against other ways to them."""

from itertools import product
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from ham_dist.config.target import Target
from ham_dist.embedding.mask import ColumnLayout
from ham_dist.methods.budget import Budget
from ham_dist.methods.irazor import IRazor, IRazorSettings, _bands
from ham_dist.methods.method import SearchSpace
from tests.support.search_space import method, with_gradient

BANDS = {"user": [[], [0], [1], [2, 3]], "gender": [[], [4], [5]], "movie": [[], [6], [7], [8, 9]]}
"""Columns of each band of the three tables, which have 4, 2 and 4 columns."""


def irazor(target: Target, **settings: Any) -> IRazor:
    found = method("irazor", target, **settings)
    assert isinstance(found, IRazor)
    return found


def set_probabilities(ours: IRazor, of_tables: list[list[float]]) -> None:
    for row, probabilities in zip(ours.alpha, of_tables, strict=True):
        logits = torch.tensor(probabilities).log() * ours.settings.temperature
        row[: len(logits)] = logits
    for row, probabilities in zip(ours.probabilities(), of_tables, strict=True):
        assert row[: len(probabilities)].tolist() == pytest.approx(probabilities, abs=1e-6)


def test_bands_are_cut_to_the_dim_of_the_table() -> None:
    ends = (1, 2, 4, 8, 16)
    assert _bands(1, ends) == [range(0), range(1)]
    assert _bands(3, ends) == [range(0), range(1), range(1, 2), range(2, 3)]
    assert [len(band) for band in _bands(16, ends)] == [0, 1, 1, 2, 4, 8]
    assert [len(band) for band in _bands(20, ends)] == [0, 1, 1, 2, 4, 8, 4]
    with pytest.raises(ValidationError, match="ascending numbers, for example"):
        IRazorSettings(bands=(4, 2))


@pytest.mark.parametrize("penalty", [0.0, 0.3])
def test_steps_are_those_of_adam_through_the_softmax(penalty: float) -> None:
    ours = irazor(Target(columns=6), penalty=penalty, alpha_learning_rate=0.02, temperature=0.5)
    logits = {table: torch.zeros(len(bands), requires_grad=True) for table, bands in BANDS.items()}
    adam = torch.optim.Adam(logits.values(), lr=0.02)
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        gradient = torch.randn(10, generator=generator)
        mask, columns = torch.zeros(10), torch.zeros(())
        for table, bands in BANDS.items():
            for probability, band in zip(torch.softmax(logits[table] / 0.5, dim=0), bands, strict=True):
                mask = mask.index_add(0, torch.tensor(band, dtype=torch.int64), probability.expand(len(band)))
                columns = columns + probability * len(band)
        torch.testing.assert_close(ours.mask(), mask.detach(), rtol=0, atol=1e-6)
        adam.zero_grad()
        (mask @ gradient + penalty * columns).backward()
        adam.step()
        ours.step(with_gradient(lambda mask, gradient=gradient: gradient))  # type: ignore[misc]
    assert ours.batches == "training"
    assert (ours.probabilities().sum(dim=1) - 1).abs().max() < 1e-6


def test_the_choice_has_the_largest_sum_of_probabilities_of_all_of_its_size() -> None:
    generator = torch.Generator().manual_seed(3)
    bands = [(table, number) for table, of_table in BANDS.items() for number in range(1, len(of_table))]
    for columns in range(1, 11):
        ours = irazor(Target(columns=columns))
        set_probabilities(
            ours,
            [torch.softmax(torch.randn(len(b), generator=generator), 0).tolist() for b in BANDS.values()],
        )
        of_band = dict(zip(BANDS, ours.probabilities().tolist(), strict=True))

        def total(kept: list[tuple[str, int]], of_band: dict[str, list[float]] = of_band) -> float:
            return sum(of_band[table][number] for table, number in kept)

        subsets = [
            [band for band, taken in zip(bands, of_subset, strict=True) if taken]
            for of_subset in product((False, True), repeat=len(bands))
        ]
        best = max(
            (kept for kept in subsets if sum(len(BANDS[table][number]) for table, number in kept) == columns),
            key=total,
        )
        kept = sorted(column for table, number in best for column in BANDS[table][number])
        assert torch.nonzero(ours.choice()).flatten().tolist() == kept


def test_a_target_between_bands_is_met_by_a_part_of_the_most_probable_band_left() -> None:
    ours = irazor(Target(columns=5), bands=(4,))
    set_probabilities(ours, [[0.1, 0.9], [0.8, 0.2], [0.7, 0.3]])
    assert torch.nonzero(ours.choice()).flatten().tolist() == [0, 1, 2, 3, 6]


def test_bytes_are_met_with_the_bands_worth_most() -> None:
    """Columns of user, gender and movie cost 400, 12 and 200 bytes."""
    ours = irazor(Target(bytes=830))
    set_probabilities(ours, [[0.3, 0.5, 0.1, 0.1], [0.4, 0.3, 0.3], [0.1, 0.2, 0.1, 0.6]])
    # 400 for the best band of user, 400 for the 2 columns of movie's best one, 24 for both bands of gender.
    assert torch.nonzero(ours.choice()).flatten().tolist() == [0, 4, 5, 8, 9]


def test_the_authors_choice_takes_bands_until_their_probability_exceeds_the_threshold() -> None:
    ours = irazor(Target(columns=1), fit="probability", threshold=0.6)
    set_probabilities(ours, [[0.1, 0.2, 0.3, 0.4], [0.61, 0.19, 0.2], [0.3, 0.25, 0.05, 0.4]])
    # user: 0.4 and 0.3 exceed 0.6; gender: none but the empty band; movie: 0.4 and the empty band, 0.7.
    assert torch.nonzero(ours.choice()).flatten().tolist() == [1, 2, 3, 8, 9]
    set_probabilities(ours, [[0.8, 0.05, 0.05, 0.1], [0.7, 0.1, 0.2], [0.7, 0.1, 0.1, 0.1]])
    assert torch.nonzero(ours.choice()).flatten().tolist() == [5], "never nothing at all"


def test_what_is_in_use_is_the_expected_number_of_columns() -> None:
    ours = irazor(Target(columns=6))
    set_probabilities(ours, [[0.0001, 0.0001, 0.0001, 0.9997], [0.9998, 0.0001, 0.0001], [0.25] * 4])
    assert ours.used() == 3, "2 of user, none of gender, (1 + 1 + 2) / 4 of movie"
    assert ours.near()
    factors = ours.fold()
    assert factors is not None
    assert torch.equal(factors, ours.mask())


def test_many_large_tables_meet_a_byte_target_within_one_percent() -> None:
    generator = torch.Generator().manual_seed(0)
    rows = (10 ** (1 + 6 * torch.rand(39, generator=generator))).long().tolist()
    layout = ColumnLayout({f"f{j}": 16 for j in range(39)}, {f"f{j}": count for j, count in enumerate(rows)})
    budget = Budget(Target(bytes=sum(rows) * 16), layout)
    ours = IRazor(
        SearchSpace(layout, budget, lambda: torch.ones(624), 0, torch.device("cpu")), IRazorSettings()
    )
    ours.alpha.copy_(torch.randn(39, 6, generator=generator) * 0.1)
    assert 0.99 * budget.limit <= budget.used(ours.choice()) <= budget.limit
