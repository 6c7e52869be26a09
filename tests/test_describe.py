import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from ham_dist.config.load import load_run
from ham_dist.describe import describe
from ham_dist.errors import BundleError, DataError
from ham_dist.training.run_folder import RunFolder, write_json


def _described(path: Path) -> list[list[str]]:
    stream = io.StringIO()
    console = Console(file=stream, width=120)
    for part in describe(path):
        console.print(part, soft_wrap=True)
    return [line.split() for line in stream.getvalue().splitlines()]


def test_run_of_several_targets(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.start(load_run(None, ["search.targets=[{columns = 14}, {bytes = 99}]"]), resume=False, world_size=1, device="cpu")
    done = RunFolder(tmp_path / "columns-14")
    done.path.mkdir()
    write_json(done.result, {"test_auc": 0.8916, "test_logloss": 0.35, "embedding_bytes": 1234, "dense_parameters": 3281})
    lines = _described(tmp_path)
    assert ["columns-14", "done", "0.8916", "0.3500", "1,234", "3,281"] in lines
    assert ["bytes-99", "not", "done"] in lines


def test_what_is_not_ours_is_said(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no such folder"):
        _described(tmp_path / "none")
    with pytest.raises(DataError, match=r"holds neither a manifest\.json"):
        _described(tmp_path)


@pytest.mark.parametrize(("content", "error"), [("{", DataError), ("[]", DataError), (json.dumps({"format": "ham_dist bundle"}), BundleError)])
def test_damaged_manifest_is_refused(tmp_path: Path, content: str, error: type[Exception]) -> None:
    (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(error, match=r"manifest\.json"):
        _described(tmp_path)
