from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from ham_dist.config.load import load_run
from ham_dist.data.format.manifest import Manifest
from ham_dist.data.synthetic.write import generate
from ham_dist.errors import DataError
from ham_dist.training.samples import Samples, require_samples


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("samples") / "data"
    generate(load_run(None, ["data.synthetic.rows=1000"]).data.synthetic, folder)
    return folder


def with_split(name: str, **changes: int) -> Callable[[Manifest], Manifest]:
    def change(manifest: Manifest) -> Manifest:
        return manifest.model_copy(
            update={"splits": manifest.splits | {name: manifest.splits[name].model_copy(update=changes)}}
        )

    return change


@pytest.mark.parametrize(
    ("change", "settings", "message"),
    [
        (with_split("validation", rows=0, positives=0), [], r": the validation split has no samples"),
        (with_split("test", rows=0, positives=0), [], r": the test split has no samples"),
        (
            with_split("validation", positives=0),
            [],
            r": all samples of the validation split have label 0, so the validation AUC",
        ),
        (
            with_split("validation", positives=100),
            [],
            r": all samples of the validation split have label 1, so the validation AUC",
        ),
        (
            with_split("train"),
            ["data.batch_size=801"],
            r"data.batch_size = 801: more than the 800 samples of the train split\n  Set it to at most that",
        ),
    ],
)
def test_what_no_run_could_end_with_is_refused_before_training(
    folder: Path, change: Callable[[Manifest], Manifest], settings: list[str], message: str
) -> None:
    manifest = change(Manifest.load(folder))
    assert manifest.splits["validation"].rows in (0, 100)
    with pytest.raises(DataError, match=message):
        Samples(folder, manifest, load_run(None, ["data.batch_size=100", *settings]), torch.device("cpu"))
    Samples(folder, Manifest.load(folder), load_run(None, ["data.batch_size=100"]), torch.device("cpu"))


def test_fewer_samples_than_ranks_are_refused_before_training(folder: Path) -> None:
    manifest, settings = Manifest.load(folder), load_run(None, ["data.batch_size=200"])
    require_samples(folder, manifest, settings, ranks=100)
    with pytest.raises(DataError, match="its validation split has 100 samples, fewer than the 101 ranks"):
        require_samples(folder, manifest, settings, ranks=101)
    with pytest.raises(DataError, match=r"data.batch_size = 200: fewer rows than the 201 ranks"):
        require_samples(folder, manifest, settings, ranks=201)
