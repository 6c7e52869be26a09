"""Size and validation AUC of all models of a run: the frontier, from which one is chosen."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ham_dist.errors import CheckpointError
from ham_dist.io import untrusted
from ham_dist.training.run_paths import RunPaths


@dataclass(frozen=True)
class SizedModel:
    """One model on the frontier.

    Attributes:
        target: Label of its target, such as `columns-28`.
        columns: Columns that it keeps.
        bytes: Bytes of its tables.
        validation_auc: AUC on the rows that are compared.
        difference: The same less that of the supernet.
        standard_error: Of the difference, by a paired bootstrap over the rows.
        within: True if the difference is at least -tolerance.
    """

    target: str
    columns: int
    bytes: int
    validation_auc: float
    difference: float
    standard_error: float
    within: bool


def smallest_within(points: Sequence[SizedModel], tolerance: float) -> SizedModel | None:
    """Returns the smallest model that loses at most `tolerance` of the supernet's AUC; None if none does."""
    within = [point for point in points if point.difference >= -tolerance]
    return min(within, key=lambda point: point.bytes) if within else None


def to_json(points: Sequence[SizedModel], tolerance: float) -> dict[str, Any]:
    """Returns the content of frontier.json."""
    best = smallest_within(points, tolerance)
    return {
        "tolerance": tolerance,
        "smallest_within": best.target if best else None,
        "models": [asdict(point) for point in points],
    }


def read_frontier(folder: RunPaths) -> list[SizedModel]:
    """Returns the content of frontier.json; empty if there is none.

    Raises:
        CheckpointError: The file is damaged.
    """
    try:
        return [SizedModel(**point) for point in untrusted.read_json(folder.frontier)["models"]]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{folder.frontier}: is damaged: {error}. Resume the run to write it again"
        ) from None


def choose_within(folder: RunPaths, tolerance: float) -> str:
    """Returns the target of the smallest model of a finished run that loses at most `tolerance`.

    Raises:
        CheckpointError: The run has no frontier.json, or no such model.
    """
    points = read_frontier(folder)
    if not points:
        raise CheckpointError(
            f"{folder.path}: has no frontier.json, which a run with several targets writes at its end.\n"
            "  Export the folder of one target, or finish the run."
        )
    best = smallest_within(points, tolerance)
    if best is None:
        listed = ", ".join(f"{point.target} {point.difference:+.5f}" for point in points)
        raise CheckpointError(
            f"export --within {tolerance:g}: every model of {folder.path} loses more validation AUC: "
            f"{listed}.\n  Give a larger tolerance, or search for larger targets."
        )
    return best.target
