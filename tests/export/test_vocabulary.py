"""A bundle takes over the vocabulary that the data's manifest vouches for, or none."""

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ham_dist.data.format.shards import PARQUET
from ham_dist.errors import BundleError
from ham_dist.export.package import export_run
from ham_dist.io.hashing import sha256_of
from tests.support.earlier_version import unpack
from tests.support.encoders import write_parquet_vocabulary
from tests.support.live_models import export, live_model


@pytest.fixture
def vocabulary(tmp_path: Path) -> Path:
    (tmp_path / "vocabulary").mkdir()
    for field in live_model("fm").fields:
        write_parquet_vocabulary(tmp_path / "vocabulary" / f"{field.name}.parquet", [field.name])
    return tmp_path / "vocabulary"


def test_a_copy_that_the_manifest_does_not_vouch_for_is_refused(tmp_path: Path, vocabulary: Path) -> None:
    live = live_model("fm")
    hashes = {path.stem: sha256_of(path) for path in vocabulary.iterdir()}
    export(live, tmp_path / "whole", vocabulary=vocabulary, vocabulary_sha256=hashes)
    changed = vocabulary / "user.parquet"
    changed.write_bytes(changed.read_bytes()[:-1] + b"R")
    with pytest.raises(BundleError, match=rf"{changed}: has sha256 .*\.\.\., but the data's manifest has"):
        export(live, tmp_path / "bundle", vocabulary=vocabulary, vocabulary_sha256=hashes)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["vocabulary", "whole"]


def test_a_value_with_two_ids_is_refused(tmp_path: Path, vocabulary: Path) -> None:
    write_parquet_vocabulary(vocabulary / "user.parquet", ["a", "b", "a"])
    with pytest.raises(BundleError, match=r"^vocabulary/user.parquet: has 3 rows with 2 different values"):
        export(live_model("fm"), tmp_path / "bundle", vocabulary=vocabulary)
    assert sorted(tmp_path.iterdir()) == [vocabulary]


def change_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 1
    path.write_bytes(content)


def swap_two_ids(path: Path) -> None:
    table = pq.read_table(path)
    ids = table["id"].to_pylist()
    ids[0], ids[1] = ids[1], ids[0]
    pq.write_table(
        table.set_column(table.column_names.index("id"), "id", pa.array(ids, pa.int32())), path, **PARQUET
    )


@pytest.mark.parametrize("change", [change_a_byte, swap_two_ids])
def test_a_run_is_not_exported_with_a_changed_vocabulary(
    tmp_path: Path, change: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(unpack(tmp_path))
    change(Path("data/vocabulary/movie.parquet"))
    with pytest.raises(BundleError, match=r"movie\.parquet: has sha256"):
        export_run(Path("finished"), tmp_path / "bundle", "fp32")
    assert not (tmp_path / "bundle").exists()
