"""Warnings about prepared data: splits of one class, numbers that became one id, times that are none."""

from collections.abc import Iterator

from ham_dist.data.format.manifest import Manifest, NumberCheck
from ham_dist.data.recipe.fields import FIRST_YEAR, LAST_YEAR

MOST_OF_ONE_ID = 0.95
"""Share of the samples with a number that one id has at least, for a warning; also where all numbers have one id."""
FEW_IDS, MANY_NUMBERS = 4, 100
"""There is a warning for so few ids (at most) of so many numbers (at least), too."""
MOST_OF_ONE_NUMBER = 0.5
"""There is no warning where a single number has this share of the samples: the data is so, not the transform."""


def warnings_of(manifest: Manifest) -> list[str]:
    """One line, or two, for each finding; empty where there is none, or where the version that prepared the data looked for none."""
    return [*_one_class(manifest), *_collapsed(manifest), *_no_times(manifest)]


def share_of(count: int, total: int) -> str:
    """A share in percent, such as `12.3%`; counts where that would round to none or to all, as in `3 of 12,345`."""
    text = f"{count / total:.1%}" if total else "0.0%"
    hides = (text == "0.0%" and count > 0) or (text == "100.0%" and count < total)
    return f"{count:,} of {total:,}" if hides else text


def _one_class(manifest: Manifest) -> Iterator[str]:
    dropped = manifest.rows_dropped
    for name, split in manifest.splits.items():
        if split.rows and split.positives in (0, split.rows):
            whole = f"all {split.rows:,} samples are" if split.rows > 1 else "its only sample is"
            text = f"split {name}: {whole} {'positive' if split.positives else 'negative'}; AUC is not defined on one class"
            if name != "test":
                text += ", and training needs both"
            if dropped:
                text += f"\n  The label rule drops {dropped:,} sample{'' if dropped == 1 else 's'}: check `label` in the recipe."
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
                f'  Set transform = "quantile", or transform = "log" with a scale, in the recipe\'s fields.{name}.'
            )


def collapsed(check: NumberCheck) -> bool:
    """True where a transform makes nearly one value of numbers that differ."""
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
                f"field {name}: {check.unknown:,} of {check.samples:,} times of the training split are unknown (id 0): they are"
                f" not {fields[name]['layout']} within the years {FIRST_YEAR} to {LAST_YEAR}, such as {check.example!r}\n"
                f"  Check fields.{name}.layout in the recipe."
            )
