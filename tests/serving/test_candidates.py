"""Scorer.rank: the probabilities of the joined records, from a context that is read once."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from ham_dist.errors import BundleError, DataError
from ham_dist.serving import Scorer
from tests.support.live_models import export, live_model
from tests.support.raw_bundle import RECIPE, write_raw_bundle
from tests.support.raw_bundle import RECORDS as THREE_RECORDS

RECORDS = [*THREE_RECORDS, {"user": "u1", "genres": "g3", "age": "a1", "gone": "g2"}]


@pytest.fixture(scope="module")
def scorer(tmp_path_factory: pytest.TempPathFactory) -> Scorer:
    return Scorer(write_raw_bundle(tmp_path_factory.mktemp("bundle"), RECIPE))


def part(record: dict[str, Any], columns: set[str]) -> dict[str, Any]:
    return {column: record[column] for column in columns}


@pytest.mark.parametrize("columns", [set(), {"user"}, {"user", "genres"}, {"age", "gone"}, set(RECORDS[0])])
@pytest.mark.parametrize("count", [0, 1, 4])
def test_candidates_have_the_probabilities_of_the_joined_records(
    scorer: Scorer, columns: set[str], count: int
) -> None:
    for user in RECORDS:
        context = part(user, columns)
        candidates = [part(record, RECORDS[0].keys() - columns) for record in RECORDS[:count]]
        joined = [context | candidate for candidate in candidates]
        batch, expected = scorer.encode_candidates(context, candidates), scorer.encode(joined)
        assert batch.rows == count
        assert batch.singles.tolist() == expected.singles.tolist()
        for (values, offsets), (wanted, starts) in zip(batch.several, expected.several, strict=True):
            assert (values.tolist(), offsets.tolist()) == (wanted.tolist(), starts.tolist())
        np.testing.assert_allclose(scorer.rank(context, candidates), scorer.score(joined), rtol=0, atol=1e-6)


def test_candidates_in_a_table(scorer: Scorer) -> None:
    table = pa.table({"genres": ["g2|g1", None, "g3"], "age": ["a1", "a2", "x"], "other": [1, 2, 3]})
    context = {"user": "u3", "gone": "g1", "more": 1.5}
    joined = [{**context, **row} for row in table.to_pylist()]
    expected = scorer.score(joined).tolist()
    for form in (table, table.to_batches()[0], table.to_pylist(), iter(table.to_pylist())):
        assert scorer.rank(context, form).tolist() == expected


@pytest.mark.parametrize("form", [list, pa.Table.from_pylist])
def test_columns_are_in_one_of_both(scorer: Scorer, form: Any) -> None:
    candidates = [{"genres": "g1", "user": "u1"}, {"genres": "g1", "user": "u2"}]
    with pytest.raises(DataError, match=r"candidate.*has the column user, which the context has too"):
        scorer.rank({"user": "u3", "age": "a1"}, form(candidates))
    with pytest.raises(DataError, match=r"candidate.*lacks the column age, which the field age is made"):
        scorer.rank({}, form(candidates))


def test_errors_name_the_candidate(scorer: Scorer) -> None:
    context, good = {"user": "u3", "gone": "g1"}, {"genres": "g1", "age": "a1"}
    for wrong, message in [
        ({"genres": "g1"}, r"candidate 2 \(from 0\): lacks the column age"),
        ({"genres": "g1", "age": 1.5}, r"candidate 2 \(from 0\): column age is double"),
        ({"genres": [1.5], "age": "a1"}, r"candidate 2 \(from 0\): column genres is list"),
        ({**good, "gone": "g1"}, r"candidate 2 \(from 0\): has the column gone"),
        ("text", r"candidate 2 \(from 0\): is string; expected a dict"),
    ]:
        with pytest.raises(DataError, match=message):
            scorer.rank(context, [good, good, wrong])
    with pytest.raises(DataError, match="context: column user is double"):
        scorer.rank({"user": 1.5, "gone": "g1"}, [good])
    with pytest.raises(DataError, match="context: is list"):
        scorer.rank([context], [good])  # type: ignore[arg-type]


def test_a_bundle_without_vocabulary_has_no_candidates(tmp_path: Path) -> None:
    export(live_model("dcnv2"), tmp_path / "bundle")
    with pytest.raises(BundleError, match="no vocabulary"):
        Scorer(tmp_path / "bundle").rank({}, [])


def test_unknown_values_are_counted(scorer: Scorer) -> None:
    counts = scorer.counts(scorer.encode(RECORDS))
    assert counts.values == {"user": 4, "age": 4, "genres": 6}
    assert counts.unknown == {"user": 1, "age": 1, "genres": 2}
    assert scorer.counts(scorer.encode([])).values == {"user": 0, "age": 0, "genres": 0}
