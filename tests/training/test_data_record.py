"""A run belongs to the data that it began with."""

from pathlib import Path

import pytest

from ham_dist.config.load import load_run
from ham_dist.data.format.manifest import Manifest
from ham_dist.data.recipe.load import parse_recipe
from ham_dist.errors import CheckpointError
from ham_dist.training.data_record import differences, digest_of, record_of
from ham_dist.training.run_folder import RunFolder, read_json
from tests.support.earlier_version import unpack
from tests.support.numbered import write_numbered


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    return write_numbered(tmp_path / "data", [60, 40], 20)


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    folder = RunFolder(tmp_path / "run")
    folder.start(load_run(None), resume=False, world_size=1, device="cpu")
    return folder


def changed(manifest: Manifest) -> Manifest:
    """Another first shard, and one more."""
    train = manifest.splits["train"]
    shards = (train.shards[0].model_copy(update={"sha256": "0" * 64}), *train.shards[1:])
    return manifest.model_copy(
        update={"seed": 7, "splits": {"train": train.model_copy(update={"shards": shards})}}
    )


def test_the_digest_is_of_what_is_in_the_data(manifest: Manifest, tmp_path: Path) -> None:
    assert digest_of(manifest) == digest_of(Manifest.load(tmp_path / "data"))
    assert digest_of(changed(manifest)) != digest_of(manifest)
    assert digest_of(manifest.model_copy(update={"engine": {"duckdb": "9"}})) == digest_of(manifest)


def test_differences_name_the_part(manifest: Manifest) -> None:
    first = manifest.splits["train"].shards[0]
    assert differences(record_of(manifest), manifest) == []
    assert differences(record_of(manifest), changed(manifest)) == [
        "seed: 0, not 7",
        f'splits.train.shards[{first.file}].sha256: "{first.sha256[:56]}..., not "{"0" * 56}...',
    ]
    fewer = manifest.model_copy(
        update={"fields": manifest.fields[1:], "splits": {"test": manifest.splits["train"]}}
    )
    assert differences(record_of(manifest), fewer) == [
        "fields: 3 entries, not 2 entries",
        'splits.train: {"rows": 100, "positives": 50, "shards": [{"file": "train..., not nothing',
        'splits.test: nothing, not {"rows": 100, "positives": 50, "shards": [{"file": "train...',
    ]


def test_many_differences_are_counted(manifest: Manifest) -> None:
    train = manifest.splits["train"]
    many = [manifest.model_copy(update={"splits": {"train": train.model_copy(update={"shards": tuple(
        train.shards[0].model_copy(update={"file": f"{number}", "rows": rows}) for number in range(30)
    )})}}) for rows in (1, 2)]  # fmt: skip
    lines = differences(record_of(many[0]), many[1])
    assert lines[0] == "splits.train.shards[0].rows: 1, not 2"
    assert len(lines) == 9
    assert lines[-1] == "and 22 more"


def test_a_run_goes_on_with_its_own_data_alone(folder: RunFolder, manifest: Manifest) -> None:
    folder.check_data(manifest)
    folder.tie(manifest)
    assert read_json(folder.data_record)["sha256"] == digest_of(manifest)
    folder.tie(manifest)
    folder.check_data(manifest)
    for refused in (folder.tie, folder.check_data):
        with pytest.raises(CheckpointError) as caught:
            refused(changed(manifest))
        assert str(caught.value).startswith(
            f"{folder.path}: the run began with other data than its data folder holds now:\n"
            "  seed: 0, not 7\n  splits.train.sh"
        )
    assert read_json(folder.data_record)["sha256"] == digest_of(manifest), "it is not written over"


def test_a_run_that_ended_early_may_start_anew_on_other_data(folder: RunFolder, manifest: Manifest) -> None:
    folder.tie(manifest)
    folder.start(load_run(None), resume=False, world_size=1, device="cpu")
    folder.tie(changed(manifest))


def test_data_of_the_earlier_version_is_still_the_data_of_its_runs(tmp_path: Path) -> None:
    folder = unpack(tmp_path)
    manifest = Manifest.load(folder / "data")
    for run in ("finished", "unfinished"):
        assert read_json(folder / run / "data.json")["sha256"] == digest_of(manifest)


def test_a_recipe_of_the_earlier_version_is_written_as_it_was(tmp_path: Path) -> None:
    written = Manifest.load(unpack(tmp_path) / "data").recipe
    assert written is not None
    recipe = parse_recipe(written, where="manifest.json")
    assert recipe.model_dump(mode="json", exclude={"max_rejected"}) == written
