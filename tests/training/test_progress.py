import json
import math

from ham_dist.training.progress import StageProgress
from ham_dist.training.stopping import EarlyStopper


def test_progress_before_the_first_auc_is_json_and_comes_back() -> None:
    values = StageProgress(EarlyStopper(2), steps=3).values()
    assert values["stopper"]["best"] is None
    text = json.dumps(values, allow_nan=False)
    progress = StageProgress(EarlyStopper(5))
    progress.take(json.loads(text))
    assert progress.stopper == EarlyStopper(5)
    assert progress.steps == 3


def test_a_checkpoint_with_minus_infinity_is_read() -> None:
    values = StageProgress(EarlyStopper(2)).values()
    values["stopper"]["best"] = -math.inf  # as version 0.1.0 wrote it
    progress = StageProgress(EarlyStopper(2))
    progress.take(values)
    assert progress.stopper.best == -math.inf


def test_the_best_auc_comes_back() -> None:
    progress = StageProgress(EarlyStopper(2))
    progress.finish_epoch(0.75)
    again = StageProgress(EarlyStopper(2))
    again.take(progress.values())
    assert again.stopper == EarlyStopper(2, 0.75, 1, 0)
