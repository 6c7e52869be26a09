"""Scorer: raw records and ids in, the probabilities of the exported model out."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from ham_dist.errors import BundleError, DataError
from ham_dist.export.bundle import open_bundle
from ham_dist.serving import Scorer
from ham_dist.serving.id_batch import concatenated
from tests.support.live_models import as_arrays, export, live_model, some_ids
from tests.support.raw_bundle import IDS, RECIPE, RECORDS, write_raw_bundle


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_raw_bundle(tmp_path_factory.mktemp("bundle"), RECIPE)


def test_raw_records_and_their_ids_have_the_probabilities_of_the_model(path: Path) -> None:
    scorer = Scorer(path)
    genres = torch.tensor([2, 1, 4, 0, 0]), torch.tensor([0, 2, 4, 5])
    ids = {name: torch.tensor(IDS[name]) for name in ("user", "age", "gone")} | {"genres": genres}
    expected = torch.sigmoid(open_bundle(path).model()(ids)).numpy()
    assert scorer.score(RECORDS).tolist() == expected.tolist()
    assert scorer.score_ids(IDS).tolist() == expected.tolist()
    assert scorer.score_ids(IDS | {"other": ["x"], "genres": tuple(map(np.asarray, genres))}).tolist() == (
        expected.tolist()
    )
    one_by_one = np.concatenate([scorer.score(record) for record in RECORDS])
    np.testing.assert_allclose(one_by_one, expected, rtol=0, atol=1e-6)
    assert scorer.score([]).shape == (0,)


def test_batches_are_concatenated_and_cut(path: Path) -> None:
    scorer = Scorer(path)
    whole = scorer.encode(RECORDS)
    parts = [whole[:1], whole[1:1], whole[1:]]
    joined = concatenated(parts)
    assert joined.rows == 3
    assert joined.singles.tolist() == whole.singles.tolist()
    for (values, offsets), (found, starts) in zip(whole.several, joined.several, strict=True):
        assert (values.tolist(), offsets.tolist()) == (found.tolist(), starts.tolist())
    assert scorer.run(joined).tolist() == scorer.run(whole).tolist()


def test_all_forms_of_records_give_the_same_batch(path: Path) -> None:
    scorer = Scorer(path)
    assert scorer.encoder is not None
    columns = {name: [record[name] for record in RECORDS] for name in ("user", "age", "gone")}
    texts = pa.array([["g2", "g1"], ["g4", "nothing"], None])
    for given in (RECORDS, tuple(RECORDS), iter(RECORDS), pa.table({**columns, "genres": texts})):
        batch = scorer.encode(given)
        expected = scorer.order.batch(IDS)
        assert batch.rows == 3
        assert batch.singles.tolist() == expected.singles.tolist()
        assert [[part.tolist() for part in pair] for pair in batch.several] == [
            [part.tolist() for part in pair] for pair in expected.several
        ]
    for number, record in enumerate(RECORDS):
        alone, cut = scorer.encode(record), scorer.encode(RECORDS)[number : number + 1]
        assert alone.singles.tolist() == cut.singles.tolist()
        assert [[part.tolist() for part in pair] for pair in alone.several] == [
            [part.tolist() for part in pair] for pair in cut.several
        ]


def test_ids_of_a_damaged_vocabulary_never_reach_the_model(path: Path) -> None:
    scorer = Scorer(path)
    assert scorer.encoder is not None
    looked_up = scorer.encoder.look_up
    scorer.encoder.look_up = lambda keys: looked_up(keys) + 1000  # type: ignore[method-assign]
    with pytest.raises(DataError, match="user = 1003; its ids go from 0 to"):
        scorer.score(RECORDS)


def test_a_changed_batch_never_reaches_the_model(path: Path) -> None:
    scorer = Scorer(path)
    batch = scorer.encode(RECORDS)
    batch.several[0][0][3] = -1
    with pytest.raises(DataError, match=r"record 1 \(from 0\): genres = -1"):
        scorer.run(batch)


def test_a_recipe_with_other_multi_valued_fields_is_refused(tmp_path: Path) -> None:
    fields = {**RECIPE["fields"], "genres": {"kind": "categorical"}}
    with pytest.raises(BundleError, match="the multi-valued fields are genres, but in its recipe none"):
        Scorer(write_raw_bundle(tmp_path, {**RECIPE, "fields": fields}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"user": [3, 0, 1 << 40]}, r"record 2 \(from 0\): user = 1099511627776; its ids go from 0 to"),
        ({"user": [3, -1, 0]}, r"record 1 \(from 0\): user = -1; its ids"),
        ({"user": np.array([2**64 - 1, 0, 0], np.uint64)}, r"record 0 \(from 0\): user = "),
        ({"user": [3, 1 << 70, 0]}, "user has values of type int; expected integers"),
        ({"user": [3.0, 0, 1]}, "user has values of type float64; expected integers"),
        ({"user": [True, False, True]}, "user has values of type bool; expected integers"),
        ({"user": ["3", "0", "1"]}, "user has values of type <U1; expected integers"),
        ({"user": [[3], [0], [1]]}, "user has 2 dimensions; expected integers in 1"),
        ({"user": [[3], [0, 1], [1]]}, "user is not a list of numbers"),
        ({"user": (np.array([3]), np.array([0, 1]))}, "user has values and offsets"),
        ({"user": 3}, "user has 0 dimensions"),
        (
            {"user": np.ma.array([3, 0, 9], mask=[False, True, False])},
            "user has masked values",
        ),
        ({"user": [3, 0]}, "age has 3 records and user has 2"),
        ({"genres": [[2], [9999], [0]]}, r"record 1 \(from 0\): genres = 9999"),
        ({"genres": [2, 1, 0]}, "genres is multi-valued; expected a list of integers for each record"),
        ({"genres": "abc"}, "genres is multi-valued"),
        ({"genres": ([2], [0, 1, 1, 2])}, "the offsets of genres do not fit its 1 values"),
        ({"genres": ([2], [0, 2, -1, 1])}, "the offsets of genres do not fit"),
        ({"genres": ([2], [])}, "the offsets of genres do not fit"),
        ({"genres": ([2],)}, r"genres is a tuple of 1; expected \(values, offsets\)"),
    ],
)
def test_wrong_ids_never_reach_the_model(path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        Scorer(path).score_ids(IDS | change)


def test_an_absent_field_is_an_error(path: Path) -> None:
    with pytest.raises(DataError, match="the field user is absent"):
        Scorer(path).score_ids({"age": [1], "genres": [[1]], "gone": [0]})


@pytest.mark.parametrize("name", ["dcnv2", "deepfm", "fm", "autoint"])
def test_a_bundle_without_vocabulary_takes_ids_alone(tmp_path: Path, name: str) -> None:
    export(live_model(name), tmp_path / "bundle")
    scorer, ids = Scorer(tmp_path / "bundle"), some_ids(5)
    expected = torch.sigmoid(open_bundle(tmp_path / "bundle").model()(ids))
    assert scorer.score_ids(as_arrays(ids)).tolist() == expected.tolist()
    with pytest.raises(BundleError, match="no vocabulary"):
        scorer.score([{"user": "u1"}])


@pytest.mark.parametrize("records", [None, 3, "u1", b"u1"])
def test_records_of_another_kind_are_an_error(path: Path, records: Any) -> None:
    with pytest.raises(DataError, match=f"{type(records).__name__}; expected a dict, a list of dicts"):
        Scorer(path).score(records)
