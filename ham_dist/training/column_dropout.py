"""Column dropout: training steps under random masks over the columns of all tables.

Shape letter: S columns of the model.
"""

import zlib
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class ColumnDropout:
    """Random masks for the steps in the first epochs of a stage, one per step for the whole global batch.

    Each column is dropped with probability `rate`, independently of the others. The kept ones are multiplied
    by 1 / (1 - rate), so that the expected value of every column is that of evaluation, where none is
    dropped: the weights that read the columns need no change at the end of the phase, for evaluation or for
    export (inverted dropout).

    A mask depends on nothing but `seed`, `stage`, and the numbers of the epoch and the step, so it is the
    same on any number of ranks, and in a resumed run.

    Attributes:
        rate: Probability of dropping a column; 0 for the same phase without dropout.
        epochs: Number of epochs with dropout.
        stage: Name of the stage.
        seed: The run's seed.
    Source: Srivastava et al., Dropout: A Simple Way to Prevent Neural Networks from Overfitting, JMLR 15
        (2014), section 10, on columns in place of units.
    """

    rate: float
    epochs: int
    stage: str
    seed: int

    def is_on(self, epoch: int) -> bool:
        """Returns True if the steps of epoch number `epoch` are taken under masks."""
        return epoch < self.epochs and self.rate > 0

    def mask(self, columns: int, epoch: int, step: int) -> torch.Tensor:
        """Returns the mask of one step, (S,) float32 on CPU.

        Args:
            columns: S.
            epoch: Number of the epoch in the stage.
            step: Number of the step in the epoch.
        """
        name = f"{self.seed}/column dropout/{self.stage}/{epoch}/{step}"
        generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
        kept = torch.rand(columns, generator=generator) >= self.rate
        return kept.float() / (1.0 - self.rate)
