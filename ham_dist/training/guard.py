"""What is watched over between forward and backward of each training step.

B rows here
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import nn
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor, KeyedTensor

from ham_dist.data.reader.batch import Batch
from ham_dist.distributed.ranks import process_group
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


class Guard:
    """Tells all ranks of each step's loss before any weight moves: fused tables step inside backward(), so afterwards is too late.

    The same exchange, of three numbers, carries whether a rank wants a checkpoint after the step or must stop there.

    loss: mean log loss of the last step's global batch.
    """

    def __init__(
        self,
        stage: str,
        model: ShardedModel,
        progress: StageProgress,
        checkpoints: StageCheckpoints,
        log: RunLog,
    ) -> None:
        self.loss = 0.0
        self._stage, self._progress, self._checkpoints, self._log = stage, progress, checkpoints, log
        self._save = self._stop = False
        self._usual, self._steps, self._spiked = 0.0, 0, False
        # The later stages train the same tables on the same fields.
        self._fields = FieldWatch(model) if stage == "pretrain" else None

    def check(self, share: torch.Tensor, batch: Batch) -> None:
        """Before backward().

        share:  this rank's share of the loss of the global batch that `batch` is a part of.
        raises: DivergedError on all ranks if the loss is not finite; no weight has moved then, and each rank has kept its part of the batch.
        """
        save, stop = self._checkpoints.wishes(self._progress)
        self.loss, saves, stops = process_group.sum_numbers(float(share), save, stop)
        self._save, self._stop = saves > 0, stops > 0
        if not math.isfinite(self.loss):
            self._give_up(batch)

    def finish_step(self, samples: int) -> None:
        """After the optimizers' step: count it, warn of what looks wrong, and save if that was wished for.

        samples: rows of the global batch.
        raises:  Preempted, after saving, if a rank must stop.
        """
        self._progress.finish_step(self.loss, samples)
        self._steps += 1
        self._look_for_spike()
        if self._fields is not None and self._steps == FIELD_STEPS:
            self._tell_of_dead_fields(self._fields.close())
            self._fields = None
        self._checkpoints.after_step(self._progress, wanted=self._save, stop=self._stop)

    def _look_for_spike(self) -> None:
        if self._steps > USUAL_STEPS and self.loss > SPIKE * self._usual and not self._spiked:
            self._spiked = True
            self._log.say(
                f"warning: {self._where()}: the training loss is {self.loss:.3g}, where {self._usual:.3g} is usual. {MEND}"
            )
        self._usual += (self.loss - self._usual) / min(self._steps, USUAL_STEPS)

    def _tell_of_dead_fields(self, dead: Sequence[str]) -> None:
        if dead:
            self._log.say(
                f"warning: {self._stage}: no gradient has reached the tables of {', '.join(dead)} in {FIELD_STEPS} steps. "
                "`ham-dist inspect` on the data shows whether these fields hold any values"
            )

    def _give_up(self, batch: Batch) -> None:
        name = f"{self._stage}-epoch-{self._progress.epochs}-step-{self._progress.steps}"
        folder = self._log.folder.diverged / name

        refused = None
        try:
            folder.mkdir(parents=True, exist_ok=True)
            save_file(_tensors(batch), folder / f"rank-{process_group.rank()}.safetensors")
        except (OSError, SafetensorError) as error:
            refused = str(error)
        refusals = [reason for reason in process_group.gather_objects(refused) if reason is not None]
        kept = (
            f"Its batch could not be kept whole in {folder} ({refusals[0]})"
            if refusals
            else f"Its batch lies in {folder}"
        )
        raise DivergedError(
            f"{self._where()}: the training loss is {self.loss}; the step is not done, and no weight has moved. {kept}.\n  {MEND}"
        )

    def _where(self) -> str:
        return f"{self._stage} epoch {self._progress.epochs}, step {self._progress.steps}"


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
        values, keys, widths = looked_up.values(), looked_up.keys(), looked_up.length_per_key()
        features: KeyedJaggedTensor = inputs[0]

        def saw(gradient: torch.Tensor) -> None:
            for key, part in zip(keys, gradient.split(widths, dim=1), strict=True):
                self._alive[key] |= ((part != 0).any(dim=1) & (features[key].lengths() > 0)).any()

        if values.requires_grad:
            values.register_hook(saw)


def _tensors(batch: Batch) -> dict[str, torch.Tensor]:
    """This rank's part of a batch by name: ids and their number a row for every field, and labels."""
    tensors = {"labels": batch.labels}
    for field, jagged in batch.sparse_features.to_dict().items():
        tensors |= {f"{field}.ids": jagged.values(), f"{field}.lengths": jagged.lengths()}
    return {name: values.detach().cpu().clone().contiguous() for name, values in tensors.items()}
