"""Compiled models give the probabilities of the eager one, and are never run where they do not fit."""

import json
import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ham_dist.errors import BackendError, ConfigError
from ham_dist.export.bundle import Bundle, open_bundle
from ham_dist.io.cache import cache_folder
from ham_dist.serving import Scorer
from ham_dist.serving.id_batch import IdBatch, concatenated
from ham_dist.serving.runtimes import choice, code_key, compiling
from ham_dist.serving.runtimes.aot import AotRuntime
from ham_dist.serving.runtimes.compiling import LIBRARY, RECORD, compile_bundle, mismatch
from ham_dist.serving.runtimes.eager import EagerRuntime
from ham_dist.serving.runtimes.plain_inputs import plain_model
from tests.support.compiled import MIXED, given_ids, needs_compiler, require_equal
from tests.support.live_models import export, live_model

pytestmark = needs_compiler


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two bundles with models of the same structure and other weights, and the code of the first."""
    root: Path = tmp_path_factory.mktemp("compiled")
    for name, seed in (("bundle", 0), ("next", 1)):
        live = live_model("deepfm", "table", seed=seed)
        for number, weights in enumerate(live.interaction.state_dict().values()):
            if weights.is_floating_point():  # none is equal in both, even where it starts at 0 or 1
                weights += seed * 0.01 * (number + 1)
        export(live, root / name, precision=MIXED)
    compile_bundle(open_bundle(root / "bundle"), root / "code")
    return root


@pytest.fixture
def bundle(folder: Path) -> Bundle:
    return open_bundle(folder / "bundle")


@pytest.fixture
def in_cache(folder: Path, bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The code is in the cache folder; returns the places for which it was compiled again."""
    made: list[Path] = []

    def compiled_again(bundle: Bundle, out: Path) -> None:
        made.append(out)
        shutil.copytree(folder / "code", out)

    monkeypatch.setattr(compiling, "compile_bundle", compiled_again)
    with compiling.compiled_code(bundle):
        pass
    made.clear()
    return made


def compare(bundle: Bundle, code: Path) -> None:
    """Compares probabilities of batches of several sizes with those of the eager runtime."""
    model = plain_model(bundle)
    compiled = AotRuntime(model, code / LIBRARY, "")
    eager = EagerRuntime(model, "")
    values = set()
    for rows, seed in [(0, 1), *((1, seed) for seed in range(8)), (2, 1), (3, 1), (13, 1), (700, 2)]:
        batch = model.order.batch(given_ids(rows, seed))
        values |= {len(found) for found, _ in batch.several}
        require_equal(compiled(batch), eager(batch))
        assert compiled(batch).tolist() == compiled(batch).tolist()
    assert {0, 1, 2} <= values, "batches without a value, and with one"


def test_probabilities_are_those_of_the_eager_model(folder: Path, bundle: Bundle) -> None:
    compare(bundle, folder / "code")


@pytest.mark.parametrize(("name", "precision"), [("dcnv2", "int4"), ("autoint", "fp16")])
def test_probabilities_of_other_models(tmp_path: Path, name: str, precision: str) -> None:
    export(live_model(name), tmp_path / "bundle", precision=precision)
    bundle = open_bundle(tmp_path / "bundle")
    compile_bundle(bundle, tmp_path / "code")
    assert sorted(path.name for path in (tmp_path / "code").iterdir()) == [RECORD, LIBRARY]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle", "code"]
    compare(bundle, tmp_path / "code")


def test_code_has_no_weights_and_serves_every_model_of_its_structure(folder: Path) -> None:
    other = open_bundle(folder / "next")
    assert mismatch(other, folder / "code") is None
    compare(other, folder / "code")
    first, second = (
        AotRuntime(model, folder / "code" / LIBRARY, "")(model.order.batch(given_ids(9)))
        for model in (plain_model(open_bundle(folder / name)) for name in ("bundle", "next"))
    )
    assert not np.isclose(first, second).any()


def test_tables_are_read_where_they_are_mapped(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "bundle", tmp_path / "bundle")
    bundle = open_bundle(tmp_path / "bundle")
    model = plain_model(bundle)
    runtime = AotRuntime(model, folder / "code" / LIBRARY, "")
    batch = model.order.batch(given_ids(20))
    before = runtime(batch)
    table = next(table for table in bundle.manifest.tables if table.field == "user")
    path = bundle.root / table.files[0].file
    content = path.read_bytes()
    with path.open("r+b") as file:  # in place, under the mapping
        file.seek(len(content) - table.stored_bytes + 2 * 4 * table.embedding_dim)
        file.write(bytes(len(content) - file.tell()))
    assert not np.array_equal(runtime(batch), before)


def test_threads_share_a_scorer(bundle: Bundle, in_cache: list[Path]) -> None:
    scorer, eager = Scorer(bundle, runtime="aot"), Scorer(bundle, runtime="eager")
    batches = [scorer.order.batch(given_ids(rows, seed)) for seed, rows in enumerate([1, 2, 40, 300] * 8)]
    expected = [eager.run(batch) for batch in batches]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(5):
            for found, wanted in zip(pool.map(scorer.run, batches), expected, strict=True):
                require_equal(found, wanted)
    require_equal(scorer.run(concatenated(batches)), np.concatenate(expected))
    assert in_cache == []


def test_ids_that_cannot_be_written_are_scored(bundle: Bundle, in_cache: list[Path]) -> None:
    """As those in a request's bytes; torch warns of such memory."""
    scorer = Scorer(bundle, runtime="aot")
    given = given_ids(5)
    fixed = {name: tuple(map(_fixed, ids)) if isinstance(ids, tuple) else ids for name, ids in given.items()}
    expected = scorer.score_ids(given)
    assert scorer.score_ids(fixed).tolist() == expected.tolist()
    assert Scorer(bundle, runtime="eager").score_ids(fixed).shape == expected.shape
    whole = scorer.order.batch(given)
    assert np.concatenate([scorer.run(whole[:2]), scorer.run(whole[2:])]).shape == expected.shape


def _fixed(ids: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return np.frombuffer(ids.tobytes(), ids.dtype)


def test_code_of_another_model_is_refused_without_running_it(folder: Path, tmp_path: Path) -> None:
    export(live_model("dcnv2"), tmp_path / "bundle")
    with pytest.raises(RuntimeError, match=r"reads model\.first_order.*which the model lacks"):
        AotRuntime(plain_model(open_bundle(tmp_path / "bundle")), folder / "code" / LIBRARY, "")


@pytest.mark.parametrize("wrong", [0.5, np.nan])
def test_code_with_other_probabilities_is_not_kept(
    folder: Path, bundle: Bundle, monkeypatch: pytest.MonkeyPatch, wrong: float
) -> None:
    def other(self: EagerRuntime, batch: IdBatch) -> Any:
        return np.full(batch.rows, wrong, np.float32)

    compiling.require_equal(plain_model(bundle), folder / "code" / LIBRARY)
    monkeypatch.setattr(EagerRuntime, "__call__", other)
    with pytest.raises(RuntimeError, match="the probabilities of 1 records differ by"):
        compiling.require_equal(plain_model(bundle), folder / "code" / LIBRARY)


@pytest.mark.parametrize("name", ["torch", "cpu", "model", "sources", "ham_dist"])
def test_code_is_compiled_again_if_its_record_differs(
    bundle: Bundle, in_cache: list[Path], name: str
) -> None:
    """Even at its own place, which is named after what it is made of."""
    (code,) = (path.parent for path in cache_folder().rglob(RECORD))
    record = json.loads((code / RECORD).read_text())
    record["key"][name] = "another"
    (code / RECORD).write_text(json.dumps(record))
    assert f"compiled for another {name} (another; here" in str(mismatch(bundle, code))
    Scorer(bundle, runtime="aot")
    assert in_cache == [code]
    assert mismatch(bundle, code) is None


@pytest.mark.parametrize("damage", ["library", "record", "none"])
def test_damaged_code_is_compiled_again(bundle: Bundle, in_cache: list[Path], damage: str) -> None:
    (code,) = (path.parent for path in cache_folder().rglob(RECORD))
    if damage == "library":
        content = (code / LIBRARY).read_bytes()
        (code / LIBRARY).unlink()  # another process may have it open
        (code / LIBRARY).write_bytes(content[: len(content) // 2])
    elif damage == "record":
        (code / RECORD).write_text("{")
    Scorer(bundle, runtime="aot")
    assert in_cache == ([] if damage == "none" else [code])


def test_another_processor_has_code_of_its_own(
    bundle: Bundle, in_cache: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(code_key, "cpu_of_this_machine", lambda: "another")
    with compiling.compiled_code(bundle) as library:
        assert in_cache == [library.parent]
    assert len(list(cache_folder().rglob(RECORD))) == 2


def test_other_sizes_and_codecs_are_another_model(folder: Path, tmp_path: Path) -> None:
    for number, precision in enumerate(("fp32", "fp16")):
        export(live_model("deepfm", "table"), tmp_path / str(number), precision=precision)
        assert "compiled for another model" in str(
            mismatch(open_bundle(tmp_path / str(number)), folder / "code")
        )


def test_a_cache_that_cannot_be_written_is_not_needed(
    bundle: Bundle, in_cache: list[Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    scorer = Scorer(bundle, runtime="aot")
    (made,) = in_cache
    assert not made.exists()
    require_equal(scorer.score_ids(given_ids(3)), Scorer(bundle, runtime="eager").score_ids(given_ids(3)))


def test_kept_code_is_opened_without_torchs_compiler(
    folder: Path, bundle: Bundle, in_cache: list[Path]
) -> None:
    """Importing it takes three seconds."""
    program = (
        "import sys\n"
        "from ham_dist.serving import Scorer\n"
        "scorer = Scorer(sys.argv[1])\n"
        "ids = {'user': [3], 'gone': [1], 'age': [2], 'genres': [[1, 2]]}\n"
        "print(scorer.runtime.name, repr(float(scorer.score_ids(ids)[0])))\n"
        "print('torch._inductor' in sys.modules, 'torchrec' in sys.modules)\n"
    )
    ids = {"user": [3], "gone": [1], "age": [2], "genres": [[1, 2]]}
    expected = Scorer(bundle, runtime="aot").score_ids(ids)[0]
    found = subprocess.run(
        [sys.executable, "-c", program, str(bundle.root)],
        env={**os.environ, "HAM_DIST_RUNTIME": "aot"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout.split() == ["aot", repr(float(expected)), "False", "False"]


@pytest.mark.parametrize("compiler", [True, False])
def test_without_a_compiled_model_it_is_eager(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, compiler: bool
) -> None:
    def fails(bundle: Bundle, out: Path) -> None:
        raise OSError("no space\nleft")

    monkeypatch.setattr(compiling, "compile_bundle", fails)
    monkeypatch.delenv("HAM_DIST_RUNTIME")
    if not compiler:
        monkeypatch.setenv("CXX", "no such compiler")
    reason = "no space" if compiler else "there is no C++ compiler"
    scorer = Scorer(bundle)
    assert scorer.runtime.name == "eager"
    assert reason in scorer.runtime.reason
    with pytest.raises(BackendError, match=rf"runtime = 'aot': .*{re.escape(reason)}"):
        Scorer(bundle, runtime="aot")


def test_the_runtime_is_named(bundle: Bundle, in_cache: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    assert Scorer(bundle).runtime.reason == f"{choice.VARIABLE} is set"
    monkeypatch.delenv(choice.VARIABLE)
    assert (Scorer(bundle).runtime.name, Scorer(bundle, "eager").runtime.name) == ("aot", "eager")
    with pytest.raises(ConfigError, match="runtime = 'gpu'"):
        Scorer(bundle, runtime="gpu")  # type: ignore[arg-type]


def test_two_versions_take_turns(folder: Path, in_cache: list[Path]) -> None:
    """As while a server activates the next one: each has its own tables."""
    scorers = [Scorer(folder / name, runtime="aot") for name in ("bundle", "next")]
    expected = [Scorer(folder / name, runtime="eager").score_ids(given_ids(6)) for name in ("bundle", "next")]
    for _ in range(3):
        for scorer, wanted in zip(scorers, expected, strict=True):
            require_equal(scorer.score_ids(given_ids(6)), wanted)
    del scorers[0]
    require_equal(scorers[0].score_ids(given_ids(6)), expected[1])
    assert in_cache == []
