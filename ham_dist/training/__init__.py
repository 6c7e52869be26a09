"""One loop for all stages: steps, optimizers, evaluation, checkpoints, and the log of a run."""
