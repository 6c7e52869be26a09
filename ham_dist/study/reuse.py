"""Reuse of branches that another study has finished.

Several studies have arms in common: the same settings under another label. Their keys are equal, and so is
what they would compute.
"""

import os
import shutil
from pathlib import Path

from ham_dist.errors import ReportError
from ham_dist.io.atomic import write_json
from ham_dist.study.folder import LINE, StudyFolder
from ham_dist.study.results import RESULTS, Lines
from ham_dist.study.scoring import read_grid
from ham_dist.training.run_folder import RunFolder


def reuse(folder: StudyFolder, source: Path) -> int:
    """Takes over the finished branches of another study, with their models, where keys are equal.

    Models are hard links where the file system allows it. Failed branches, those whose model is gone, and
    those of falling searches, which depend on each other, are run again.

    Args:
        folder: The study.
        source: Folder of the other study; it may still be running.
    Returns:
        Number of branches that were taken over.
    Raises:
        ReportError: `source` holds no study.
    """
    if source.resolve() == folder.path.resolve():
        raise ReportError(f"--reuse {source}: is the folder of this study. Give the folder of another one")
    folders = {entry.key: RunFolder(source / entry.folder) for entry in read_grid(source).branches}
    lines = Lines(source / RESULTS).read()
    found = 0
    for keyed in folder.missing():
        line, place = lines.get(keyed.key), folders.get(keyed.key)
        if line is None or line["error"] is not None or keyed.branch.falls:
            continue
        if place is None or not place.bundle.is_dir():
            continue
        _copy_group(RunFolder(place.path.parent.parent), folder.group_folder(keyed.group))
        own = folder.branch_folder(keyed)
        shutil.rmtree(own.path, ignore_errors=True)
        left_out = shutil.ignore_patterns(own.checkpoints.name, own.bundle.name, LINE, ".lock")
        shutil.copytree(place.path, own.path, ignore=left_out)
        shutil.copytree(place.bundle, own.bundle, copy_function=_link)
        labels = {
            "study": folder.study.settings.name,
            "group": keyed.group.label,
            "arm": keyed.branch.arm,
            "model": keyed.group.model,
            "reused": line["study"],
        }
        write_json(own.path / LINE, line | labels)
        found += 1
    return found


def _copy_group(source: RunFolder, target: RunFolder) -> None:
    """Copies the files of a group's run, so that the run can be resumed, and the data that it generated."""
    if target.path.exists():
        return
    target.path.mkdir(parents=True)
    for file in source.path.iterdir():
        if file.is_file() and file.name != ".lock":
            shutil.copy2(file, target.path / file.name)
    if source.data.exists():
        shutil.copytree(source.data, target.data, copy_function=_link)


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
