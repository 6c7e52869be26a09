"""The hashed vocabulary: every known value has its id, and nothing else has one."""

import json
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from ham_dist.errors import BundleError, DataError
from ham_dist.io.aligned_header import ALIGNMENT
from ham_dist.serving import build
from ham_dist.serving.build import Source, build_vocabulary
from ham_dist.serving.vocabulary import LAST_KEY, NO_KEY, Header, Vocabulary, key_of, seed_of
from tests.support.encoders import vocabulary_of, write_parquet_vocabulary

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)


def ids_of(known: Vocabulary, field: str, values: list[str]) -> list[int]:
    seed = known.seed(field)
    return known.ids([key_of(value.encode(), seed) for value in values]).tolist()


@given(
    known=st.dictionaries(
        st.sampled_from(["user", "movie", "zip"]), st.lists(texts, unique=True, max_size=40), min_size=1
    ),
    others=st.lists(texts, max_size=20),
    part_keys=st.sampled_from([1, 7, 1000]),
)
@settings(max_examples=15)
def test_known_values_have_their_ids_and_others_0(
    known: dict[str, list[str]],
    others: list[str],
    part_keys: int,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    found = vocabulary_of(tmp_path_factory.mktemp("known"), known, part_keys)
    assert found.fields == {field: len(values) for field, values in known.items()}
    for field, values in known.items():
        assert ids_of(found, field, values) == [place + 1 for place in range(len(values))]
        unknown = [value for value in others if value not in values]
        assert ids_of(found, field, unknown) == [0] * len(unknown)
    assert found.ids([NO_KEY, LAST_KEY]).tolist() == [0, 0]
    assert found.ids([]).tolist() == []


def test_size_alignment_and_format(tmp_path: Path) -> None:
    values = [f"value {number}" for number in range(5000)]
    found = vocabulary_of(tmp_path, {"user": values, "movie": values[:1000]})
    size = (tmp_path / "hashed").stat().st_size
    assert size <= 13 * 6000
    with safe_open(tmp_path / "hashed", framework="np") as file:
        keys, ids = file.get_tensor("keys"), file.get_tensor("ids")
    assert (keys[1:6000] > keys[:5999]).all()
    assert (keys[6000:] == LAST_KEY).all()
    assert sorted(ids[:6000].tolist()) == sorted([*range(1, 5001), *range(1, 1001)])
    content = (tmp_path / "hashed").read_bytes()
    assert content.index(keys.tobytes()) % ALIGNMENT == content.index(ids.tobytes()) % ALIGNMENT == 0
    assert found.header.id_type == "I32"


def test_ids_that_need_64_bits_have_them(tmp_path: Path) -> None:
    write_parquet_vocabulary(tmp_path / "x.parquet", ["a", "b"], [1, 2**33])
    build_vocabulary(tmp_path / "hashed", {"x": Source(tmp_path / "x.parquet", 2**33 + 1)})
    found = Vocabulary(tmp_path / "hashed")
    assert found.header.id_type == "I64"
    assert ids_of(found, "x", ["a", "b", "c"]) == [1, 2**33, 0]


def test_short_values_of_different_fields_have_different_keys(tmp_path: Path) -> None:
    """XXH3 mixes values of up to 3 bytes least."""
    values = [str(number) for number in range(1000)]
    found = vocabulary_of(tmp_path, {f"field{number}": values for number in range(20)})
    assert found.header.salt == 0


@pytest.mark.parametrize("bad", ["equal", NO_KEY, LAST_KEY])
def test_another_salt_resolves_collisions(
    bad: str | int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = {seed_of(2, number) for number in (0, 1)}

    def weak(value: bytes, seed: int) -> int:
        if seed in good or (bad != "equal" and value != b"3"):
            return key_of(value, seed)
        return bad if isinstance(bad, int) else key_of(value, seed) % 97 + 1

    monkeypatch.setattr(build, "key_of", weak)
    values = [str(number) for number in range(200)]
    found = vocabulary_of(tmp_path, {"a": values, "b": values}, part_keys=50)
    assert found.header.salt == 2
    for field in ("a", "b"):
        assert ids_of(found, field, values) == list(range(1, 201))


@pytest.mark.parametrize(
    ("values", "ids", "message"),
    [
        (["a", "b", "a"], [1, 2, 3], "has 3 rows with 2 different values and 3 different ids from 1 to 3"),
        (["a", "b", "c"], [1, 2, 2], "has 3 rows with 3 different values and 2 different ids from 1 to 2"),
        (["a", "b", "c"], [1, 9, 9], "has the id 9; the ids of its table go from 1 to 3"),
        (["a", "b", "c"], [0, 1, 2], "has 3 rows with 3 different values and 3 different ids from 0 to 2"),
        (["a", None, "c"], [1, 2, 3], "has 3 rows with 2 different values and 3 different ids from 1 to 3"),
        (["a", "b", "c"], [1, 2, 9], "has the id 9; the ids of its table go from 1 to 3"),
    ],
)
def test_wrong_vocabularies_are_refused(
    values: list[str], ids: list[int], message: str, tmp_path: Path
) -> None:
    path = tmp_path / "x.parquet"
    write_parquet_vocabulary(path, values, ids)
    with pytest.raises(DataError) as caught:
        build_vocabulary(tmp_path / "hashed", {"x": Source(path, 4)})
    assert str(caught.value).startswith(f"{path}: {message}")
    assert sorted(tmp_path.iterdir()) == [path]


def test_files_that_are_no_vocabulary(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    with pytest.raises(DataError, match=r"x.parquet: no such vocabulary file"):
        build_vocabulary(tmp_path / "hashed", {"x": Source(path, 4)})
    path.write_bytes(b"PAR1 and no more")
    with pytest.raises(DataError, match=r"x.parquet: cannot be read \("):
        build_vocabulary(tmp_path / "hashed", {"x": Source(path, 4)})


def test_memory_is_bounded_by_the_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory for three times the keys, in parts of the same size, is the same but for one byte per value."""
    monkeypatch.setattr(build, "_BATCH_ROWS", 512)
    path, peaks = tmp_path / "x.parquet", []
    for values in (15_000, 45_000):
        write_parquet_vocabulary(path, [f"value {number}" for number in range(values)])
        tracemalloc.start()
        try:
            build_vocabulary(tmp_path / "hashed", {"x": Source(path, values + 1)}, part_keys=1000)
            peaks.append(tracemalloc.get_traced_memory()[1] - values)
        finally:
            tracemalloc.stop()
    # The additional 30,000 keys and ids alone take 360 kB.
    assert peaks[1] - peaks[0] < 100_000


@pytest.mark.parametrize("damage", ["cut", "longer", "header", "other salt", "empty", "no file"])
def test_damaged_files_are_refused(damage: str, tmp_path: Path) -> None:
    vocabulary_of(tmp_path, {"x": [str(number) for number in range(100)]})
    path = tmp_path / "hashed"
    content = path.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    if damage == "other salt":
        header["__metadata__"]["salt"] = "-"
    else:
        header["keys"]["shape"] = [10**9]
    text = json.dumps(header).encode()
    text += b" " * (-(8 + len(text)) % ALIGNMENT)
    changed = len(text).to_bytes(8, "little") + text + content[start:]
    damaged = {"cut": content[:-64], "longer": content + b"0", "empty": b""}.get(damage, changed)
    path.write_bytes(damaged)
    if damage == "no file":
        path.unlink()
    with pytest.raises(BundleError, match="hashed: "):
        Vocabulary(path)


def test_header_is_what_was_written() -> None:
    header = Header(["a", "ü"], [5, 2**31], 3, 1000)
    assert header.id_type == "I64"
    assert header.length == 1008
    assert len(header.encode()) % ALIGNMENT == 0
