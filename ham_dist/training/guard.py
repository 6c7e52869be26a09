"""Checks between the forward and the backward pass of each training step: the loss, and dead tables."""

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import nn
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor, KeyedTensor

from ham_dist.data.reader.batch import Batch
from ham_dist.distributed.ranks import process_group
from ham_dist.distributed.ranks.rounding import FLOAT32_BITS, rounded
from ham_dist.distributed.sharding.model import TABLES, ShardedModel
from ham_dist.errors import DivergedError
from ham_dist.training.checkpoints import StageCheckpoints
from ham_dist.training.progress import StageProgress
from ham_dist.training.run_log import RunLog

SPIKE = 3.0
"""Ratio of a loss to the usual loss from which a warning is logged."""

USUAL_STEPS = 100
"""Steps over which the usual loss is averaged; there are no warnings in the first ones."""

FIELD_STEPS = 100
"""Steps after which a warning lists the tables that no gradient has reached."""

STEPS_BEHIND = {"cpu": 0, "cuda": 1}
"""Steps after which a loss is read, by device type. On a GPU, reading the loss of the current step would make
every step wait for the device."""


@dataclass(frozen=True)
class StepLoss:
    """This rank's share of the loss of one step, while it is copied to the CPU.

    Attributes:
        share: The share, a scalar; in CPU memory once the copy is done.
        copied: The CUDA event of the copy; None on CPU.
        batch: This rank's part of the step's batch.
        epoch, step: Numbers of the step.
    """

    share: torch.Tensor
    copied: torch.cuda.Event | None
    batch: Batch
    epoch: int
    step: int

    @classmethod
    def of(cls, share: torch.Tensor, batch: Batch, epoch: int, step: int) -> "StepLoss":
        """Start the copy of `share` to the CPU if it is on a GPU."""
        if share.device.type != "cuda":
            return cls(share, None, batch, epoch, step)
        pinned = torch.empty(share.shape, dtype=share.dtype, pin_memory=True)
        pinned.copy_(share, non_blocking=True)
        copied = torch.cuda.Event()
        copied.record()
        return cls(pinned, copied, batch, epoch, step)

    def read(self) -> float:
        """Returns the share; waits for the copy."""
        if self.copied is not None:
            self.copied.synchronize()
        return float(self.share)


class Guard:
    """Sums each step's loss over the ranks, and stops all of them if it is not finite.

    On CPU this happens before any weight is updated: fused tables are updated inside backward(), so
    afterwards is too late. On a GPU the loss of a step is read at the next one (STEPS_BEHIND), so the step
    with such a loss is finished. No checkpoint is written before the losses of all steps in it are known to
    be finite.

    The same exchange, of three numbers, carries whether a rank requests a checkpoint after the step or must
    stop there.
    """

    def __init__(
        self,
        stage: str,
        model: ShardedModel,
        progress: StageProgress,
        checkpoints: StageCheckpoints,
        log: RunLog,
    ) -> None:
        self._stage, self._progress, self._checkpoints, self._log = stage, progress, checkpoints, log
        self._save = self._stop = False
        self._unread: deque[StepLoss] = deque()
        self._known: tuple[StepLoss, float] | None = None
        self._usual, self._losses, self._spiked = 0.0, 0, False
        self._steps = 0
        # The later stages train the same tables on the same fields.
        self._fields = FieldWatch(model) if stage == "pretrain" else None

    def check(self, share: torch.Tensor, batch: Batch) -> None:
        """Start the check of a step's loss; call it before backward().

        Args:
            share: This rank's share of the loss of the global batch.
            batch: This rank's part of the batch.
        Raises:
            DivergedError: On all ranks, if a loss is not finite; each rank has saved its part of that step's
                batch.
        """
        save, stop = self._checkpoints.wishes(self._progress)
        self._unread.append(StepLoss.of(share, batch, self._progress.epochs, self._progress.steps))
        is_due = len(self._unread) > STEPS_BEHIND[share.device.type]
        due = self._unread.popleft() if is_due else None
        loss, saves, stops = process_group.sum_numbers(0.0 if due is None else due.read(), save, stop)
        self._save, self._stop = saves > 0, stops > 0
        self._known = None if due is None else (due, self._finite(due, loss))

    def settle(self) -> None:
        """Read the remaining losses. A collective, for the end of an epoch and before a checkpoint.

        Raises:
            DivergedError: As for `check`.
        """
        while self._unread:
            due = self._unread.popleft()
            (loss,) = process_group.sum_numbers(due.read())
            self._progress.loss += self._finite(due, loss)
            self._warn_of_spike(due, loss)

    def finish_step(self, samples: int) -> None:
        """Count a finished step, log warnings, and save a checkpoint if one was requested.

        Call it after the step of the optimizers.

        Args:
            samples: Rows of the global batch.
        Raises:
            Preempted: A rank received SIGTERM; raised after saving.
        """
        self._progress.finish_step(0.0 if self._known is None else self._known[1], samples)
        self._steps += 1
        if self._known is not None:
            self._warn_of_spike(*self._known)
            self._known = None
        if self._fields is not None and self._steps == FIELD_STEPS:
            self._warn_of_dead_fields(self._fields.close())
            self._fields = None
        if self._save or self._stop:
            self.settle()
        self._checkpoints.after_step(self._progress, wanted=self._save, stop=self._stop)

    def _warn_of_spike(self, step: StepLoss, loss: float) -> None:
        self._losses += 1
        if self._losses > USUAL_STEPS and loss > SPIKE * self._usual and not self._spiked:
            self._spiked = True
            self._log.say(
                f"warning: {self._stage} epoch {step.epoch}, step {step.step + 1}: "
                f"the training loss is {loss:.3g}, and the usual loss is {self._usual:.3g}. {ADVICE}"
            )
        self._usual += (loss - self._usual) / min(self._losses, USUAL_STEPS)

    def _finite(self, step: StepLoss, loss: float) -> float:
        """`loss` rounded to float32, so it is independent of the order of ranks; raises if not finite."""
        loss = float(rounded(torch.tensor(loss, dtype=torch.float64), FLOAT32_BITS))
        if not math.isfinite(loss):
            self._raise_diverged(step, loss)
        return loss

    def _warn_of_dead_fields(self, dead: Sequence[str]) -> None:
        if dead:
            self._log.say(
                f"warning: {self._stage}: no gradient has reached the tables of {', '.join(dead)} "
                f"in {FIELD_STEPS} steps. "
                "Check with `ham-dist inspect` whether these fields have any values in the data"
            )

    def _raise_diverged(self, step: StepLoss, loss: float) -> NoReturn:
        name = f"{self._stage}-epoch-{step.epoch}-step-{step.step}"
        folder = self._log.folder.diverged / name
        failure = None
        try:
            folder.mkdir(parents=True, exist_ok=True)
            save_file(_tensors(step.batch), folder / f"rank-{process_group.rank()}.safetensors")
        except (OSError, SafetensorError) as error:
            failure = str(error)
        failures = [reason for reason in process_group.gather_objects(failure) if reason is not None]
        saved = (
            f"The batch could not be saved completely to {folder} ({failures[0]})"
            if failures
            else f"Batch saved to {folder}"
        )
        is_done = (self._progress.epochs, self._progress.steps) != (step.epoch, step.step)
        effect = (
            "the step was finished, but no checkpoint contains it"
            if is_done
            else "the step was not finished, and no weight was updated"
        )
        raise DivergedError(
            f"{self._stage} epoch {step.epoch}, step {step.step}: the training loss is {loss}; "
            f"{effect}. {saved}.\n  {ADVICE}"
        )


ADVICE = (
    "Lower optimizer.learning_rate or optimizer.tables_learning_rate, and check the data for outliers with "
    "`ham-dist inspect`"
)


class FieldWatch:
    """Records which fields' embeddings receive a nonzero gradient in rows that have a value of the field.

    A table that the loss does not depend on receives none, nor does one whose field is always empty.
    """

    def __init__(self, model: ShardedModel) -> None:
        self._alive = {
            table.field: torch.zeros((), dtype=torch.bool, device=model.device) for table in model.tables
        }
        self._steps_left = FIELD_STEPS
        self._hook = model.model.get_submodule(TABLES).register_forward_hook(self._look)

    def close(self) -> list[str]:
        """Stop recording; returns the fields without a gradient on any rank."""
        self._hook.remove()
        seen = process_group.gather_objects({field for field, alive in self._alive.items() if bool(alive)})
        return sorted(self._alive.keys() - set().union(*seen))

    def _look(self, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        if not (module.training and torch.is_grad_enabled()):
            return
        self._steps_left -= 1
        if self._steps_left == 0:
            self._hook.remove()  # close() may come too late, or never in a shorter stage
        looked_up: KeyedTensor = output  # or TorchRec's awaitable of one
        values, keys, dims = looked_up.values(), looked_up.keys(), looked_up.length_per_key()
        features: KeyedJaggedTensor = inputs[0]

        def saw(gradient: torch.Tensor) -> None:
            for key, part in zip(keys, gradient.split(dims, dim=1), strict=True):
                self._alive[key] |= ((part != 0).any(dim=1) & (features[key].lengths() > 0)).any()

        if values.requires_grad:
            values.register_hook(saw)


def _tensors(batch: Batch) -> dict[str, torch.Tensor]:
    """This rank's part of a batch by name: ids and their number per row for every field, and labels."""
    tensors = {"labels": batch.labels}
    for field, jagged in batch.sparse_features.to_dict().items():
        tensors |= {f"{field}.ids": jagged.values(), f"{field}.lengths": jagged.lengths()}
    return {name: values.detach().cpu().clone().contiguous() for name, values in tensors.items()}
