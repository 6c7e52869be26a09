"""A study of five branches, each of a second, on generated data."""

import json
import shutil
from pathlib import Path
from typing import Any

from ham_dist.study.folder import StudyFolder
from ham_dist.study.grid import open_study
from ham_dist.study.worker import work

STUDY = """
name = "small"
test = true
targets = [{ columns = 4 }]

[base.data]
batch_size = 64
evaluation_batch_size = 200
synthetic = { rows = 1_000, planted_ranks = [2, 2, 0], num_embeddings = [30, 20, 10], signal = 3.0 }

[base.model]
base_dim = 4

[base.optimizer]
learning_rate = 3e-3
tables_learning_rate = 3e-3

[base.pretrain]
max_epochs = 1

[base.search]
epochs = 1

[base.retrain]
max_epochs = 1

[[arms]]
label = "ham"
set = { search.method.name = "ham" }

[[arms]]
label = "magnitude"
set = { search.method.name = "magnitude", retrain.start = "scratch" }

[[arms]]
label = "all"
set = { search.method.name = "uniform" }
targets = ["all"]

[[arms]]
label = "plain"
set = { orthogonality.form = "none", search.method.name = "magnitude" }
"""

ONE_GROUP = STUDY[: STUDY.rindex("[[arms]]", 0, STUDY.index('"all"'))]
"""STUDY without its last two arms: all of its branches start from one supernet."""

KEYS = {"seconds", "host", "commit", "versions"}
"""Keys of a line that depend on the machine and its clock."""


def study_folder(out: Path, text: str = STUDY) -> StudyFolder:
    """The folder `out` of the study with the settings `text`."""
    file = out.with_suffix(".toml")
    file.write_text(text, encoding="utf-8")
    return StudyFolder(out, open_study(file))


def do_study(out: Path, text: str = STUDY) -> StudyFolder:
    """Runs the study, as one worker in this process."""
    folder = study_folder(out, text)
    folder.write_grid()
    folder.collect()
    work(folder)
    return folder


def lines_of(folder: Path) -> dict[str, dict[str, Any]]:
    """The lines of results.jsonl by key, without what depends on the machine and its clock."""
    lines = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    keys = [line["key"] for line in lines]
    assert len(keys) == len(set(keys)), "each branch has one line"
    return {line["key"]: {key: value for key, value in line.items() if key not in KEYS} for line in lines}


def copied(folder: Path, out: Path) -> Path:
    """A copy of a study's folder."""
    return Path(shutil.copytree(folder, out))


def scores_of(folder: Path) -> dict[str, dict[str, Any]]:
    """The lines of tests.jsonl by key."""
    lines = map(json.loads, (folder / "tests.jsonl").read_text(encoding="utf-8").splitlines())
    return {line["key"]: line for line in lines}
