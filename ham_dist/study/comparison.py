"""Comparing the arms of a study with a reference arm (docs/protocol.md)."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from ham_dist.errors import ReportError
from ham_dist.study.outcomes import Outcome, Place, Repetition, Results, Size
from ham_dist.study.statistics import Mean, Paired, holm, mean_of, paired

REFERENCE = "ham"
"""Reference arm by default, if there is one of that label."""

Values = dict[Repetition, float]


@dataclass(frozen=True)
class Cell:
    """One arm of a model at one size, over all seeds.

    Attributes:
        place: Data and model.
        size: Target size.
        arm: Label of the arm.
        outcomes: Its branches, failed ones included.
        mean: Mean AUC; None without a value.
        failures: Number of failed branches.
        difference: AUC less that of the reference at the same size, or at equal bytes; None for the reference
            itself and for all columns.
    """

    place: Place
    size: Size
    arm: str
    outcomes: list[Outcome]
    mean: Mean | None
    failures: int
    difference: Paired | None = None


@dataclass(frozen=True)
class Endpoint:
    """The primary endpoint of one arm: per seed, the mean AUC over the model's sizes.

    Attributes:
        place: Data and model.
        arm: Label of the arm.
        mean: Mean over the seeds that have all sizes; None without one.
        difference: The endpoint less that of the reference; None for the reference itself.
        p_holm: p-value of the difference, corrected for all rivals of the place; None without a test.
        equal_bytes: True if the arm is compared at equal bytes, as it has no budget of columns.
    """

    place: Place
    arm: str
    mean: Mean | None
    difference: Paired | None
    p_holm: float | None
    equal_bytes: bool


class Comparison:
    """The arms of a study against one of them.

    Args:
        results: Results of the study.
        reference: Label of the reference arm; None: `ham`, or else the first arm with a target.
    Attributes:
        results: Results of the study.
        measure: Split of the AUCs.
        reference: Label of the reference arm; empty in a study without targets.
    Raises:
        ReportError: There is no such arm.
    """

    def __init__(self, results: Results, reference: str | None = None) -> None:
        arms = list(dict.fromkeys(outcome.arm for outcome in results.outcomes if outcome.size.is_budget))
        if reference is not None and reference not in arms:
            raise ReportError(
                f"--reference {reference}: no arm with a target has this label. "
                f"The study has: {', '.join(arms) or 'none'}"
            )
        self.results, self.measure = results, results.measure
        self._of = {place: results.of(place) for place in results.places}
        self.reference = reference or (REFERENCE if REFERENCE in arms else arms[0] if arms else "")

    def cells(self, place: Place) -> list[Cell]:
        """The cells of a model: by size, then arms in the order of the results, the reference first."""
        found: dict[tuple[Size, str], list[Outcome]] = {}
        for outcome in self._of[place]:
            found.setdefault((outcome.size, outcome.arm), []).append(outcome)
        order = self.arms(place)
        keys = sorted(found, key=lambda key: (key[0].order, order.index(key[1])))
        return [self._cell(place, size, arm, found[size, arm]) for size, arm in keys]

    def arms(self, place: Place) -> list[str]:
        """The arms of a model, the reference first."""
        labels = list(dict.fromkeys(outcome.arm for outcome in self._of[place]))
        return sorted(labels, key=lambda label: label != self.reference)

    def rivals(self, place: Place) -> list[str]:
        """The arms that are tested against the reference: all others that have a target."""
        targeted = {outcome.arm for outcome in self._of[place] if outcome.size.is_budget}
        return [arm for arm in self.arms(place) if arm in targeted and arm != self.reference]

    def sizes(self, place: Place) -> list[Size]:
        """The sizes of the reference, over which the primary endpoint is the mean."""
        found = {
            outcome.size
            for outcome in self._of[place]
            if outcome.arm == self.reference and outcome.size.is_budget
        }
        return sorted(found, key=lambda size: size.order)

    def endpoints(self, place: Place) -> list[Endpoint]:
        """The primary endpoint of the reference and of every rival, with its test; none without a target."""
        if not self.sizes(place):
            return []
        own = self._means(place, self.reference, self.sizes(place))
        found = [Endpoint(place, self.reference, mean_of(list(own.values())), None, None, False)]
        for arm in self.rivals(place):
            equal_bytes = self.without_column_budget(place, arm)
            values, against = self._at_equal_bytes(place, arm) if equal_bytes else (
                self._means(place, arm, self.sizes(place)), own,
            )  # fmt: skip
            test = paired(values, against)
            if test.n == 0:
                test = replace(test, no_test=self._why_no_pairs(place, arm, equal_bytes))
            found.append(Endpoint(place, arm, mean_of(list(values.values())), test, None, equal_bytes))
        corrected = holm({entry.arm: entry.difference.p for entry in found if entry.difference})
        return [replace(entry, p_holm=corrected.get(entry.arm)) for entry in found]

    def over_supernet(self, place: Place) -> list[tuple[Cell, str, Paired]]:
        """The cells with a target against all columns: cell, the arm with all columns, difference.

        Pretrained models are compared with the arms that began with them, further trained ones with all.
        """
        cells = self.cells(place)
        whole = [cell for cell in cells if not cell.size.is_budget]
        return [
            (cell, _whole_label(other), paired(self._values(cell.outcomes), self._values(other.outcomes)))
            for cell in cells
            if cell.size.is_budget
            for other in whole
            if other.size.unit == "all" or _groups(cell) & _groups(other)
        ]

    def without_column_budget(self, place: Place, arm: str) -> bool:
        """True if the arm does not keep a given number of columns, so that it is compared at equal bytes."""
        sizes = self.sizes(place)
        return any(
            outcome.stored_bytes is not None
            or (outcome.size.unit == "bytes" and outcome.size not in sizes)
            or (outcome.size.unit == "columns" and outcome.columns not in (None, outcome.size.count))
            for outcome in self._of[place]
            if outcome.arm == arm and outcome.error is None
        )

    def missing(self, place: Place) -> list[str]:
        """The seeds that an arm has at some of its sizes only, a line for each arm and set of seeds."""
        held: dict[str, dict[Size, set[Repetition]]] = {}
        for outcome in self._of[place]:
            held.setdefault(outcome.arm, {}).setdefault(outcome.size, set()).add(outcome.repetition)
        lines = []
        for arm, by_size in held.items():
            seeds = set().union(*by_size.values())
            absent = {size: seeds - found for size, found in by_size.items() if seeds - found}
            for size in sorted(absent, key=lambda size: size.order):
                named = ", ".join(str(seed) for _, seed in sorted(absent[size], key=str))
                lines.append(f"{arm}, size {size.label}: no result for seed {named}")
        return lines

    def _cell(self, place: Place, size: Size, arm: str, outcomes: list[Outcome]) -> Cell:
        values = self._values(outcomes)
        failures = sum(outcome.failed(self.measure) for outcome in outcomes)
        cell = Cell(place, size, arm, outcomes, mean_of(list(values.values())), failures)
        if arm == self.reference or not size.is_budget:
            return cell
        if self.without_column_budget(place, arm):
            pairs = self._pairs_at_equal_bytes(place, outcomes)
            first, second = _halves(pairs)
            return replace(cell, difference=paired(first, second))
        reference = [o for o in self._of[place] if o.arm == self.reference and o.size == size]
        return replace(cell, difference=paired(values, self._values(reference)))

    def _values(self, outcomes: Sequence[Outcome]) -> Values:
        found = ((outcome.repetition, outcome.auc(self.measure)) for outcome in outcomes)
        return {repetition: auc for repetition, auc in found if auc is not None}

    def _means(self, place: Place, arm: str, sizes: Sequence[Size]) -> Values:
        """The mean AUC over `sizes`, by repetition; only repetitions that have all of them."""
        of_arm = [outcome for outcome in self._of[place] if outcome.arm == arm]
        by_size = [self._values([o for o in of_arm if o.size == size]) for size in sizes]
        complete = set.intersection(*map(set, by_size)) if by_size else set()
        return {
            repetition: fmean(values[repetition] for values in by_size)
            for repetition in by_size[0]
            if repetition in complete
        } if by_size else {}  # fmt: skip

    def _at_equal_bytes(self, place: Place, arm: str) -> tuple[Values, Values]:
        """Mean AUC over the arm's sizes, and of the reference at its bytes; by complete repetition.

        Sizes with fewer bytes than the reference ever has are left out.
        """
        outcomes = [o for o in self._of[place] if o.arm == arm and o.size.is_budget]
        sizes = {outcome.size for outcome in outcomes}
        halves = [
            _halves(self._pairs_at_equal_bytes(place, [o for o in outcomes if o.size == size]))
            for size in sizes
        ]
        halves = [half for half in halves if half[0]]
        complete = set.intersection(*(set(first) for first, _ in halves)) if halves else set()
        repetitions = [o.repetition for o in self._of[place] if o.repetition in complete]
        return (
            {repetition: fmean(first[repetition] for first, _ in halves) for repetition in repetitions},
            {repetition: fmean(second[repetition] for _, second in halves) for repetition in repetitions},
        )

    def _pairs_at_equal_bytes(
        self, place: Place, outcomes: Sequence[Outcome]
    ) -> dict[Repetition, tuple[float, float]]:
        """AUC of each outcome, and of the reference at as many bytes, by repetition."""
        found = {}
        for outcome in outcomes:
            auc, size = outcome.auc(self.measure), outcome.counted_bytes
            line = self._reference_line(place, outcome.repetition)
            if auc is not None and size is not None and line:
                other = auc_at(line, size)
                if other is not None:
                    found[outcome.repetition] = (auc, other)
        return found

    def _reference_line(self, place: Place, repetition: Repetition) -> dict[int, float]:
        """AUC by bytes of the reference in one repetition; empty unless it has all its sizes."""
        points: dict[int, list[float]] = {}
        done = 0
        for outcome in self._of[place]:
            if outcome.arm == self.reference and outcome.repetition == repetition and outcome.size.is_budget:
                auc, size = outcome.auc(self.measure), outcome.counted_bytes
                if auc is not None and size is not None:
                    points.setdefault(size, []).append(auc)
                    done += 1
        return (
            {size: fmean(values) for size, values in points.items()} if done == len(self.sizes(place)) else {}
        )

    def _why_no_pairs(self, place: Place, arm: str, equal_bytes: bool) -> str:
        if equal_bytes:
            return f"no seed in which {self.reference} has as few bytes, or not all sizes"
        has = {o.size for o in self._of[place] if o.arm == arm}
        absent = [size.label for size in self.sizes(place) if size not in has]
        return f"no result at size {', '.join(absent)}" if absent else "no seed with all sizes in both arms"


def auc_at(line: Mapping[int, float], size: int) -> float | None:
    """Returns the AUC at `size` bytes on the line through points of AUC over the logarithm of bytes.

    The line is not extended: above its last point the AUC is that of the last point, which has fewer bytes;
    below its first point there is none.

    Args:
        line: AUC by bytes; at least one point.
    """
    points = sorted(line.items())
    below = [point for point in points if point[0] <= size]
    above = [point for point in points if point[0] > size]
    if not below:
        return None
    (low, auc_low) = below[-1]
    if not above or low == size:
        return auc_low
    (high, auc_high) = above[0]
    share = math.log(size / low) / math.log(high / low)
    return auc_low + share * (auc_high - auc_low)


def _halves(pairs: Mapping[Repetition, tuple[float, float]]) -> tuple[Values, Values]:
    return {key: one for key, (one, _) in pairs.items()}, {key: other for key, (_, other) in pairs.items()}


def _groups(cell: Cell) -> set[str]:
    return {outcome.group for outcome in cell.outcomes}


def _whole_label(cell: Cell) -> str:
    return cell.arm if cell.size.unit == "supernet" else f"{cell.arm}, all columns"
