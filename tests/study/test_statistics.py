"""Paired tests, intervals and Holm's correction against published examples and independent formulas."""

import math
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ham_dist.study.statistics import Paired, holm, mean_of, paired

# Extra hours of sleep of ten patients under two drugs: Student, The probable error of a mean, Biometrika 6
# (1908). The figures of the test are those that R prints for it (?t.test, data set `sleep`).
DRUG_1 = dict(enumerate((0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0)))
DRUG_2 = dict(enumerate((1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4)))


def test_student_s_sleep_data() -> None:
    found = paired(DRUG_1, DRUG_2)
    assert found.n == 10
    assert found.mean == pytest.approx(-1.58)
    assert found.t == pytest.approx(-4.0621, abs=5e-5)
    assert found.p == pytest.approx(0.002833, abs=5e-7)
    assert (found.low, found.high) == pytest.approx((-2.4598858, -0.7001142), abs=5e-8)
    assert (found.wins, found.ties, found.losses) == (0, 1, 9)


def test_order_of_arms_changes_only_the_sign() -> None:
    one, other = paired(DRUG_1, DRUG_2), paired(DRUG_2, DRUG_1)
    assert other.p == one.p
    assert (other.mean, other.low, other.high) == pytest.approx((1.58, 0.7001142, 2.4598858), abs=1e-7)
    assert other.wins == one.losses == 9


def test_only_seeds_that_both_have_are_pairs() -> None:
    first = {seed: value for seed, value in DRUG_1.items() if seed not in (2, 5)}
    second = {seed: value for seed, value in DRUG_2.items() if seed not in (5, 7)}
    common = [seed for seed in range(10) if seed not in (2, 5, 7)]
    found = paired(first, second)
    assert found == paired({s: DRUG_1[s] for s in common}, {s: DRUG_2[s] for s in common})
    assert found.n == 7


def test_order_of_seeds_is_of_no_matter() -> None:
    assert paired(dict(reversed(DRUG_1.items())), DRUG_2) == paired(DRUG_1, DRUG_2)


def test_two_pairs_by_hand() -> None:
    """With one degree of freedom t is Cauchy: p = 1 - 2 arctan(t) / pi."""
    found = paired({0: 3.0, 1: 5.0}, {0: 2.0, 1: 2.0})  # differences 1 and 3: mean 2, sd sqrt(2), t = 2
    assert found.t == pytest.approx(2.0)
    assert found.p == pytest.approx(1 - 2 * math.atan(2.0) / math.pi)
    quantile = math.tan(math.pi * 0.475)
    assert found.high == pytest.approx(2 + quantile)


def test_one_pair_is_no_test() -> None:
    found = paired({3: 0.9, 4: 0.8}, {3: 0.8})
    assert (found.n, found.p, found.low, found.no_test, found.wins) == (1, None, None, "one pair", 1)
    assert found.mean == pytest.approx(0.1)


def test_no_pair_is_no_test() -> None:
    assert paired({1: 0.5}, {2: 0.5}) == Paired(0, None, None, None, None, None, None, 0, 0, "no pairs")


@pytest.mark.parametrize("gap", [0.0, 0.01])
def test_equal_differences_are_no_test(gap: float) -> None:
    first = {seed: 0.1 * seed + gap for seed in range(5)}
    found = paired(first, {seed: 0.1 * seed for seed in range(5)})
    assert (found.p, found.t, found.no_test) == (None, None, "all 5 differences are equal")
    assert found.mean == pytest.approx(gap)
    assert found.low == found.high == found.mean


def test_not_worse_by_the_lower_end() -> None:
    found = paired(DRUG_1, DRUG_2)
    assert found.not_worse(2.5) is True
    assert found.not_worse(2.4) is False
    assert paired({0: 1.0}, {0: 1.0}).not_worse(1.0) is None


def test_holm_by_hand() -> None:
    """0.005 x 4, 0.01 x 3, 0.03 x 2, and 0.04 x 1 raised to the one before it."""
    found = holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005})
    assert found == {
        "a": pytest.approx(0.03),
        "b": pytest.approx(0.06),
        "c": pytest.approx(0.06),
        "d": pytest.approx(0.02),
    }


def test_a_planned_test_without_result_counts() -> None:
    assert holm({"a": 0.01, "b": None, "c": 0.02}) == {"a": 0.03, "b": None, "c": 0.04}
    assert holm({"a": None}) == {"a": None}


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_keeps_the_order_and_lies_between_plain_and_bonferroni(p_values: list[float]) -> None:
    found = holm(dict(enumerate(p_values)))
    for number, p in enumerate(p_values):
        corrected = found[number]
        assert corrected is not None
        assert p <= corrected <= min(1.0, p * len(p_values))
    ordered = [found[number] for number in sorted(found, key=lambda number: p_values[number])]
    assert ordered == sorted(ordered)  # type: ignore[type-var]


def test_mean_of_values() -> None:
    found = mean_of([2.0, 4.0, 9.0])
    assert found is not None
    assert (found.n, found.mean, found.best) == (3, 5.0, 9.0)
    assert found.sd == pytest.approx(math.sqrt(13))
    # 4.302653 is the 97.5 % quantile of t with 2 degrees of freedom.
    assert found.high == pytest.approx(5 + 4.302653 * math.sqrt(13 / 3), rel=1e-6)
    assert found.low == pytest.approx(5 - 4.302653 * math.sqrt(13 / 3), rel=1e-6)


def test_mean_of_one_value_has_no_interval() -> None:
    found = mean_of([0.5])
    assert found is not None
    assert (found.n, found.mean, found.sd, found.low, found.high) == (1, 0.5, None, None, None)
    assert mean_of([]) is None


def test_missing_scipy_is_named() -> None:
    script = (
        "import sys; sys.modules['scipy'] = None\n"
        "from ham_dist.errors import ReportError\n"
        "import ham_dist.training.auc_bootstrap\n"
        "from ham_dist.study.statistics import mean_of, require_scipy\n"
        "try: require_scipy()\n"
        "except ReportError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "scipy is not installed" in done.stdout
    assert "pip install 'ham-dist[study]'" in done.stdout
