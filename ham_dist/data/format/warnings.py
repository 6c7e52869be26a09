"""Warnings about prepared data: splits of one class, collapsed numbers, unreadable times."""

from collections.abc import Iterator

from ham_dist.data.format.manifest import Manifest, NumberCheck
from ham_dist.data.recipe.fields import FIRST_YEAR, LAST_YEAR

MOST_OF_ONE_ID = 0.95
"""Warn if a single id has at least this share of the samples (missing numbers excluded).

If all numbers have one id, there is always a warning.
"""
FEW_IDS, MANY_NUMBERS = 4, 100
"""Warn if at least MANY_NUMBERS distinct numbers became at most FEW_IDS ids."""
MOST_OF_ONE_NUMBER = 0.5
"""No warning if a single number has this share of the samples: the skew is in the data, not the transform."""


def warnings_of(manifest: Manifest) -> list[str]:
    """Warnings about the data, each of one or two lines.

    Empty if there are none, or if the version that prepared the data made no checks.
    """
    return [*_one_class(manifest), *_collapsed(manifest), *_no_times(manifest)]


def share_of(count: int, total: int) -> str:
    """Share in percent, such as `12.3%`; if that would round to 0% or 100%, counts such as `3 of 12,345`."""
    text = f"{count / total:.1%}" if total else "0.0%"
    hides = (text == "0.0%" and count > 0) or (text == "100.0%" and count < total)
    return f"{count:,} of {total:,}" if hides else text


def _one_class(manifest: Manifest) -> Iterator[str]:
    dropped = manifest.rows_dropped
    for name, split in manifest.splits.items():
        if split.rows and split.positives in (0, split.rows):
            whole = f"all {split.rows:,} samples are" if split.rows > 1 else "its only sample is"
            label = "positive" if split.positives else "negative"
            text = f"split {name}: {whole} {label}; AUC is not defined on one class"
            if name != "test":
                text += ", and training needs both"
            if dropped:
                text += (
                    f"\n  The label rule drops {dropped:,} sample{'' if dropped == 1 else 's'}:"
                    " check `label` in the recipe."
                )
            yield text


def _collapsed(manifest: Manifest) -> Iterator[str]:
    for name, check in manifest.checks.numbers.items():
        if collapsed(check):
            share = share_of(check.most_frequent_id, check.samples)
            ids = (
                "1 id"
                if check.ids == 1
                else f"{check.ids:,} ids, of which one has {share} of the training samples"
            )
            yield (
                f"field {name}: {check.numbers:,} distinct numbers became {ids}\n"
                '  Set transform = "quantile", or transform = "log" with a scale, in the recipe\'s'
                f" fields.{name}."
            )


def collapsed(check: NumberCheck) -> bool:
    """True if a transform maps different numbers to nearly a single id."""
    if check.numbers < 2:
        return False
    if check.ids == 1:
        return True
    if check.most_frequent_number >= MOST_OF_ONE_NUMBER * check.samples:
        return False
    few = check.ids <= FEW_IDS and check.numbers >= MANY_NUMBERS
    return few or check.most_frequent_id >= MOST_OF_ONE_ID * check.samples


def _no_times(manifest: Manifest) -> Iterator[str]:
    fields = (manifest.recipe or {}).get("fields", {})
    for name, check in manifest.checks.times.items():
        if check.unknown and name in fields:  # a damaged manifest may name any field
            yield (
                f"field {name}: {check.unknown:,} of {check.samples:,} times of the training split are"
                f" unknown (id 0): they are not {fields[name]['layout']} within the years"
                f" {FIRST_YEAR} to {LAST_YEAR}, such as {check.example!r}\n"
                f"  Check fields.{name}.layout in the recipe."
            )
