"""Batches of the three splits of a data set, for each stage.

With search.validation = "halved", the first half of the validation split (V1) is for the method, and the
second half (V2) for evaluation.
"""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import torch

from ham_dist.config.schema import RunSettings
from ham_dist.data.format.manifest import Manifest
from ham_dist.data.reader.batch import Batch
from ham_dist.data.reader.halves import Half
from ham_dist.data.reader.split import Split, open_split
from ham_dist.distributed.ranks import process_group
from ham_dist.errors import DataError
from ham_dist.training.data_record import digest_of

StageName = Literal["pretrain", "search", "retrain", "quantize"]

ORDER_OF = {"pretrain": 0, "search": 1, "retrain": 2, "method": 3}
"""Numbers that give each stage, and the steps of its method, an order of samples under the run's one seed.
Another number of entries would change the orders of all runs."""

_QUANTIZE_EPOCH = 1 << 20
"""The stage `quantize` continues the orders of `retrain` from this epoch on."""

Source = Literal["validation", "training"]
"""Splits that a size-search method can read."""

_SPLIT_OF = {"validation": "method", "training": "train"}


class Samples:
    """This rank's part of every batch; the global batches do not depend on the number of ranks.

    Attributes:
        folder: A prepared data folder, local or of a scheme that ham_dist/io/paths.py supports.
        manifest: The manifest in the folder.
        digest: sha256 of the manifest; identifies the data independently of the folder's name.
        steps: Training batches per epoch.
        reads_test: False if the test split must not be read; `test` is then no split of this object.
    Raises:
        DataError: The data does not fit the batch sizes of the settings, or its validation AUC is undefined.
    """

    def __init__(
        self,
        folder: str | Path,
        manifest: Manifest,
        settings: RunSettings,
        device: torch.device,
        *,
        reads_test: bool = True,
    ) -> None:
        self.folder = folder
        self.manifest = manifest
        self.digest = digest_of(manifest)
        require_samples(folder, manifest, settings, process_group.world_size())
        self._splits = {
            name: open_split(folder, manifest, name, settings.data)
            for name in ("train", *(["test"] if reads_test else []))
        } | validation_of(folder, manifest, settings)
        self.reads_test = reads_test
        self._settings = settings
        self.device = device
        self.steps = self._splits["train"].steps(settings.data.batch_size, keep_last=False)

    @property
    def held_out(self) -> Literal["validation", "test"]:
        """Split on which final models are evaluated: test, or validation if test must not be read."""
        return "test" if self.reads_test else "validation"

    def training(self, stage: StageName, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Yields the training batches of one epoch, in the epoch's own order, from batch number `start`.

        An incomplete last batch is left out.
        """
        return self._batches("train", order=self._order(stage, epoch), start=start)

    def forever(self, split: Source, start: int) -> Iterator[Batch]:
        """Yields batches of a split without end, from batch number `start`, for the steps of a method.

        Each pass over the split has another order. Of a halved validation split, it yields V1 only.
        """
        name = _SPLIT_OF[split]
        steps = self._splits[name].steps(self._method_batch(name), keep_last=False)
        for epoch in itertools.count(start // steps):
            yield from self._batches(
                name, order=self._order("method", epoch), start=start % steps, size=self._method_batch(name)
            )
            start = 0

    def once(self, split: Source) -> Iterator[Batch]:
        """Yields every row of a split (V1 if halved) once, in file order, in batches of data.batch_size."""
        name = _SPLIT_OF[split]
        return self._batches(name, order=None, keep_last=True, size=self._method_batch(name))

    def rows(self, split: Source) -> int:
        """Returns the number of rows that `once` yields in all batches together."""
        return self._splits[_SPLIT_OF[split]].rows

    def evaluation(self, split: Literal["validation", "test"]) -> Iterator[Batch]:
        """Yields every row of a split (V2 if halved) once, in file order."""
        return self._batches(
            split, order=None, keep_last=True, size=self._settings.data.evaluation_batch_size
        )

    def part(self, split: Literal["validation", "test"], rows: int) -> Batch:
        """Returns this rank's part of the first `rows` rows of a split, or of all rows if there are fewer."""
        return next(
            self._batches(split, order=None, keep_last=True, size=min(rows, self._splits[split].rows))
        )

    def whole(self, split: Literal["validation", "test"], rows: int) -> Batch:
        """Returns the same rows as `part`, all of them on this rank."""
        return self._splits[split].take(rows).to(self.device)

    def _method_batch(self, split: str) -> int:
        """Rows of a method's global batch: as a training batch, or the whole split if that is smaller."""
        return min(self._settings.data.batch_size, self._splits[split].rows)

    def _batches(
        self,
        split: str,
        *,
        order: tuple[int, int] | None,
        keep_last: bool = False,
        start: int = 0,
        size: int | None = None,
    ) -> Iterator[Batch]:
        batches = self._splits[split].batches(
            size or self._settings.data.batch_size,
            rank=process_group.rank(),
            world_size=process_group.world_size(),
            order=order,
            keep_last=keep_last,
            start=start,
            # A copy from page-locked memory runs in parallel with the previous step.
            pin_memory=self.device.type == "cuda",
        )
        for batch in batches:
            yield batch.to(self.device, non_blocking=True)

    def _order(self, stage: str, epoch: int) -> tuple[int, int]:
        if stage == "quantize":
            stage, epoch = "retrain", epoch + _QUANTIZE_EPOCH
        return self._settings.seed, epoch * len(ORDER_OF) + ORDER_OF[stage]


def validation_of(folder: str | Path, manifest: Manifest, settings: RunSettings) -> dict[str, Split]:
    """Opens the validation split for evaluation (`validation`) and for the method (`method`).

    Raises:
        DataError: A shard is damaged, or a half has one label only.
    """
    if settings.search.validation == "shared":
        whole = open_split(folder, manifest, "validation", settings.data)
        return {"validation": whole, "method": whole}
    half_of: dict[str, Half] = {"validation": "second", "method": "first"}
    halves = {
        name: open_split(folder, manifest, "validation", settings.data, half)
        for name, half in half_of.items()
    }
    for split in halves.values():
        if (label := split.only_label()) is not None:
            raise DataError(
                f'{folder}: search.validation = "halved", but all {split.rows:,} samples of one half of the '
                f"validation split have label {label}; expected both labels in each half\n"
                '  Prepare more validation samples, or set search.validation = "shared".'
            )
    return halves


def require_samples(folder: str | Path, manifest: Manifest, settings: RunSettings, ranks: int) -> None:
    """Check, before training, for faults of the data that would stop the run after an epoch or at its end.

    Args:
        folder: The data folder, for messages.
        ranks: Number of ranks that share each batch.
    Raises:
        DataError: A split is empty, the validation split has one class or fewer samples than there are ranks,
            or a batch size does not fit.
    """
    for name in ("train", "validation", "test"):
        if name in manifest.splits and manifest.splits[name].rows == 0:
            raise DataError(
                f"{folder}: the {name} split has no samples. Prepare the data again with other splits"
            )
    if (train := manifest.splits.get("train")) and settings.data.batch_size > train.rows:
        raise DataError(
            f"data.batch_size = {settings.data.batch_size}: "
            f"more than the {train.rows} samples of the train split\n  Set it to at most that."
        )
    for key in ("batch_size", "evaluation_batch_size"):
        if (size := getattr(settings.data, key)) < ranks:
            raise DataError(
                f"data.{key} = {size}: fewer rows than the {ranks} ranks that share them\n"
                f"  Set it to at least {ranks}."
            )
    validation = manifest.splits.get("validation")
    halved = settings.search.validation == "halved"
    if validation and (rows := validation.rows // (1 + halved)) < ranks:
        raise DataError(
            f"{folder}: {'one half of ' if halved else ''}its validation split has {rows} samples, "
            f"fewer than the {ranks} ranks that share a step on alpha\n"
            f"  Prepare more validation samples, or start at most {max(rows, 1)} ranks."
        )
    if validation and validation.positives in (0, validation.rows):
        label = int(validation.positives > 0)
        raise DataError(
            f"{folder}: all samples of the validation split have label {label}, "
            "so the validation AUC is undefined\n"
            "  Prepare the data again with both labels in its validation split."
        )
