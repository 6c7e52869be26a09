"""What is watched over between forward and backward of each training step.

B rows here
"""

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
"""A loss so many times the usual one is told of."""

USUAL_STEPS = 100
"""Steps that the usual loss is about the mean of; the first ones are not judged."""

FIELD_STEPS = 100
"""Steps after which a table that no gradient has reached is told of."""


STEPS_BEHIND = {"cpu": 0, "cuda": 1}
"""Steps after which a loss is read, by device. On a GPU, to read the loss of the step in progress would make every step wait for the device."""


@dataclass(frozen=True)
class StepLoss:
    """This rank's share of the loss of one step, on its way to the CPU.

    Attributes:
        share: The number, in CPU memory once `copied`.
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
        """Starts the copy of `share` to the CPU, where it is on a GPU."""
        if share.device.type != "cuda":
            return cls(share, None, batch, epoch, step)
        pinned = torch.empty(share.shape, dtype=share.dtype, pin_memory=True)
        pinned.copy_(share, non_blocking=True)
        copied = torch.cuda.Event()
        copied.record()
        return cls(pinned, copied, batch, epoch, step)

    def read(self) -> float:
        """The number; waits for the copy."""
        if self.copied is not None:
            self.copied.synchronize()
        return float(self.share)


class Guard:
    """Sums each step's loss over the ranks, and stops all of them if it is not finite.

    On CPU this happens before any weight moves: fused tables step inside backward(), so afterwards is too late. On a GPU
    the loss of a step is read at the next one (STEPS_BEHIND), so one step with such a loss is done. No checkpoint is
    written before the losses of all steps in it are known to be finite.

    The same exchange, of three numbers, carries whether a rank wants a checkpoint after the step or must stop there.
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
        """Call before backward().

        Args:
            share: This rank's share of the loss of the global batch that `batch` is a part of.
        Raises:
            DivergedError: On all ranks, if a loss is not finite; each rank has saved its part of that step's batch.
        """
        save, stop = self._checkpoints.wishes(self._progress)
        self._unread.append(StepLoss.of(share, batch, self._progress.epochs, self._progress.steps))
        is_due = len(self._unread) > STEPS_BEHIND[share.device.type]
        due = self._unread.popleft() if is_due else None
        loss, saves, stops = process_group.sum_numbers(0.0 if due is None else due.read(), save, stop)
        self._save, self._stop = saves > 0, stops > 0
        self._known = None if due is None else (due, self._finite(due, loss))

    def settle(self) -> None:
        """Reads the losses of the steps that are not known yet. A collective, for the end of an epoch and before a checkpoint.

        Raises:
            DivergedError: As of `check`.
        """
        while self._unread:
            due = self._unread.popleft()
            (loss,) = process_group.sum_numbers(due.read())
            self._progress.loss += self._finite(due, loss)
            self._look_for_spike(due, loss)

    def finish_step(self, samples: int) -> None:
        """After the optimizers' step: count it, warn of what looks wrong, and save if that was wished for.

        samples: rows of the global batch.
        raises:  Preempted, after saving, if a rank must stop.
        """
        self._progress.finish_step(0.0 if self._known is None else self._known[1], samples)
        self._steps += 1
        if self._known is not None:
            self._look_for_spike(*self._known)
            self._known = None
        if self._fields is not None and self._steps == FIELD_STEPS:
            self._tell_of_dead_fields(self._fields.close())
            self._fields = None
        if self._save or self._stop:
            self.settle()
        self._checkpoints.after_step(self._progress, wanted=self._save, stop=self._stop)

    def _look_for_spike(self, step: StepLoss, loss: float) -> None:
        self._losses += 1
        if self._losses > USUAL_STEPS and loss > SPIKE * self._usual and not self._spiked:
            self._spiked = True
            self._log.say(
                f"warning: {self._stage} epoch {step.epoch}, step {step.step + 1}: the training loss is {loss:.3g}, "
                f"where {self._usual:.3g} is usual. {MEND}"
            )
        self._usual += (loss - self._usual) / min(self._losses, USUAL_STEPS)

    def _finite(self, step: StepLoss, loss: float) -> float:
        """`loss` rounded to float32, so that it does not depend on the order of the ranks; if it is not finite, the run ends here."""
        loss = float(rounded(torch.tensor(loss, dtype=torch.float64), FLOAT32_BITS))
        if not math.isfinite(loss):
            self._give_up(step, loss)
        return loss

    def _tell_of_dead_fields(self, dead: Sequence[str]) -> None:
        if dead:
            self._log.say(
                f"warning: {self._stage}: no gradient has reached the tables of {', '.join(dead)} in {FIELD_STEPS} steps. "
                "`ham-dist inspect` on the data shows whether these fields hold any values"
            )

    def _give_up(self, step: StepLoss, loss: float) -> NoReturn:
        name = f"{self._stage}-epoch-{step.epoch}-step-{step.step}"
        folder = self._log.folder.diverged / name

        refused = None
        try:
            folder.mkdir(parents=True, exist_ok=True)
            save_file(_tensors(step.batch), folder / f"rank-{process_group.rank()}.safetensors")
        except (OSError, SafetensorError) as error:
            refused = str(error)
        refusals = [reason for reason in process_group.gather_objects(refused) if reason is not None]
        kept = (
            f"Its batch could not be kept whole in {folder} ({refusals[0]})"
            if refusals
            else f"Its batch lies in {folder}"
        )
        is_done = (self._progress.epochs, self._progress.steps) != (step.epoch, step.step)
        moved = (
            "the step is done, and no checkpoint holds it"
            if is_done
            else "the step is not done, and no weight has moved"
        )
        raise DivergedError(
            f"{self._stage} epoch {step.epoch}, step {step.step}: the training loss is {loss}; {moved}. {kept}.\n  {MEND}"
        )


MEND = "Lower optimizer.learning_rate or optimizer.tables_learning_rate, and look for values out of the ordinary in the data by `ham-dist inspect`"


class FieldWatch:
    """Notes which fields' looked-up vectors get a gradient in rows that hold a value of the field.

    A table that is cut off from the loss gets none, and one whose field is always empty has no row that moves.
    """

    def __init__(self, model: ShardedModel) -> None:
        self._alive = {
            table.field: torch.zeros((), dtype=torch.bool, device=model.device) for table in model.tables
        }
        self._steps_left = FIELD_STEPS
        self._hook = model.model.get_submodule(TABLES).register_forward_hook(self._look)

    def close(self) -> list[str]:
        """Stop, and give the fields that no rank has seen alive."""
        self._hook.remove()
        seen = process_group.gather_objects({field for field, alive in self._alive.items() if bool(alive)})
        return sorted(self._alive.keys() - set().union(*seen))

    def _look(self, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        if not (module.training and torch.is_grad_enabled()):
            return
        self._steps_left -= 1
        if self._steps_left == 0:
            self._hook.remove()  # Nobody closes the watch of a stage that is shorter.
        looked_up: KeyedTensor = output  # or TorchRec's promise of one
        values, keys, dims = looked_up.values(), looked_up.keys(), looked_up.length_per_key()
        features: KeyedJaggedTensor = inputs[0]

        def saw(gradient: torch.Tensor) -> None:
            for key, part in zip(keys, gradient.split(dims, dim=1), strict=True):
                self._alive[key] |= ((part != 0).any(dim=1) & (features[key].lengths() > 0)).any()

        if values.requires_grad:
            values.register_hook(saw)


def _tensors(batch: Batch) -> dict[str, torch.Tensor]:
    """This rank's part of a batch by name: ids and their number a row for every field, and labels."""
    tensors = {"labels": batch.labels}
    for field, jagged in batch.sparse_features.to_dict().items():
        tensors |= {f"{field}.ids": jagged.values(), f"{field}.lengths": jagged.lengths()}
    return {name: values.detach().cpu().clone().contiguous() for name, values in tensors.items()}
