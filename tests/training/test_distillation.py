"""Labels softened by a teacher, against the loss as it is written, on any number of ranks and plans."""

from typing import Any

import torch
from torch.nn import functional

from ham_dist.distributed.ranks.gather import gather_rows
from ham_dist.training.distillation import Teacher
from ham_dist.training.evaluation import predict
from ham_dist.training.loop import log_loss, weight_step
from ham_dist.training.state import open_supernet
from tests.support.plain_model import FIELDS
from tests.support.ranks import run_on_ranks
from tests.support.sharded_model import everything, local_batch, settings

WEIGHT = 0.4


def softened() -> dict[str, Any]:
    """A batch prepared for a row-wise student, softened by a trained table-wise teacher."""
    kind: dict[str, Any] = {"precision": {"dense": "float64"}, "orthogonality": {"form": "none"}}
    teacher = open_supernet(settings("dcnv2", seed=1, **kind), FIELDS, torch.device("cpu"))
    student = open_supernet(
        settings("dcnv2", sharding={"sharding_type": "row_wise"}, **kind), FIELDS, torch.device("cpu")
    )
    for seed in range(3):
        weight_step(teacher, local_batch(seed))
    before, batch = everything(teacher), local_batch(5)
    prepared = student.sharded.prepare(batch)
    soft = Teacher(teacher, WEIGHT).softened(prepared)
    student.interaction.eval()
    logits = student.logits(soft).detach()
    after = everything(teacher)
    return {
        "labels": gather_rows(batch.labels),
        "soft": gather_rows(soft.labels),
        "logits": gather_rows(logits),
        "teacher": predict(teacher, [batch])[0],
        "loss": float(log_loss(logits, soft)),
        "changed": [name for name, values in before.items() if not torch.equal(values, after[name])],
        "kept": torch.equal(prepared.labels, batch.labels) and teacher.sharded.model.training,
    }


def test_the_loss_is_that_of_the_labels_and_that_of_the_teacher_in_their_weights() -> None:
    (found,) = run_on_ranks(1, softened)
    probabilities = torch.sigmoid(found["teacher"])
    of_labels = functional.binary_cross_entropy_with_logits(found["logits"], found["labels"].double())
    q, p = probabilities, torch.sigmoid(found["logits"])
    of_teacher = -(q * p.log() + (1 - q) * (1 - p).log()).mean()
    expected = (1 - WEIGHT) * of_labels + WEIGHT * of_teacher
    torch.testing.assert_close(found["loss"], float(expected), rtol=0, atol=1e-7)  # labels are float32
    assert found["changed"] == [], "the teacher does not learn"
    assert found["kept"]
    assert float((probabilities - found["labels"]).abs().min()) > 0


def test_labels_are_the_same_on_any_number_of_ranks() -> None:
    (one,) = run_on_ranks(1, softened)
    for of_rank in run_on_ranks(3, softened):
        assert torch.equal(of_rank["soft"], one["soft"])
        assert of_rank["changed"] == []
