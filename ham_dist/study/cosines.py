"""Cosines between the columns of tables (HAM paper, Fig. 5)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ham_dist.study.outcomes import Outcome, Place, Repetition, Results
from ham_dist.study.tables import Column, Table, Value

if TYPE_CHECKING:
    import torch

MOST_PARAMETERS = 50_000_000
"""Largest number of parameters in the tables of a model whose cosines a report computes."""
DECIDING = ("orthogonality", "optimizer.tables_weight_decay")
"""Settings that a comparison of cosines is about."""
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Cosines:
    """The cosines between the columns of one table.

    Attributes:
        field: Field of the table.
        matrix: (d, d) float64, 1 on the diagonal; NaN for a column of zeros.
    """

    field: str
    matrix: Floats

    @property
    def mean(self) -> float | None:
        """Mean absolute cosine of two different columns; None with fewer than two columns that are not 0."""
        off = np.abs(self.matrix[~np.eye(len(self.matrix), dtype=bool)])
        known = off[np.isfinite(off)]
        return float(known.mean()) if len(known) else None


def column_cosines(table: "torch.Tensor") -> Floats:
    """Returns v_i'v_j / (|v_i| |v_j|) for all columns v of a table (C, d), as (d, d) float64.

    Only the Gram matrix is computed in float64, a block of rows at a time.
    """
    import torch

    from ham_dist.distributed.sharding.gram import gram  # imports TorchRec

    products = gram(table.detach(), torch.float64).numpy()
    norms = np.sqrt(np.diagonal(products))
    with np.errstate(invalid="ignore", divide="ignore"):
        return products / np.outer(norms, norms)


def cosines_of(tables: Mapping[str, "torch.Tensor"]) -> dict[str, Cosines]:
    """Returns the cosines of every table with at least two columns, by field."""
    return {
        field: Cosines(field, column_cosines(table)) for field, table in tables.items() if table.shape[1] >= 2
    }


def cosines_of_bundle(bundle: str | Path) -> dict[str, Cosines]:
    """Returns the cosines of the tables in a bundle, by field.

    Raises:
        BundleError: The bundle is damaged or incomplete.
    """
    from ham_dist.export.bundle import open_bundle

    return cosines_of(open_bundle(bundle).tables())


@dataclass(frozen=True)
class PretrainedCosines:
    """The cosines of the pretrained models of one data set and model.

    Attributes:
        place: Data and model.
        models: Cosines by field, by the label of the arm and by seed.
    """

    place: Place
    models: Mapping[str, Mapping[Repetition, Mapping[str, Cosines]]]

    def first_common(self) -> tuple[Repetition, dict[str, Mapping[str, Cosines]]] | None:
        """Returns the first seed that all arms have, with their cosines; None without one."""
        common = set.intersection(*(set(found) for found in self.models.values()))
        if not common:
            return None
        seed = min(common, key=str)
        return seed, {arm: found[seed] for arm, found in self.models.items()}


def pretrained_cosines(results: Results) -> list[PretrainedCosines]:
    """Returns the cosines of pretrained models that differ in orthogonality or in L2 of the tables.

    Models without a bundle on this machine, and very large ones, are left out.

    Raises:
        BundleError: A bundle is damaged or incomplete.
    """
    found = []
    for place in results.places:
        supernets = [o for o in results.of(place) if o.size.unit == "supernet" and o.error is None]
        if len({_deciding(outcome) for outcome in supernets}) < 2:
            continue
        models: dict[str, dict[Repetition, dict[str, Cosines]]] = {}
        for outcome in supernets:
            bundle = results.folders[outcome.key] / "bundle" if outcome.key in results.folders else None
            small = (outcome.embedding_parameters or 0) <= MOST_PARAMETERS
            if bundle is not None and bundle.is_dir() and small:
                models.setdefault(outcome.arm, {})[outcome.repetition] = cosines_of_bundle(bundle)
        if len(models) > 1:
            found.append(PretrainedCosines(place, models))
    return found


def cosine_table(found: Sequence[PretrainedCosines]) -> Table | None:
    """Returns the mean absolute cosine of two columns by arm and field, over seeds; None without any."""
    rows: list[list[Value]] = []
    for entry in found:
        for arm, seeds in entry.models.items():
            for field in dict.fromkeys(name for tables in seeds.values() for name in tables):
                known = [tables[field].mean for tables in seeds.values() if field in tables]
                means = [mean for mean in known if mean is not None]
                if means:
                    spread = stdev(means) if len(means) > 1 else None
                    rows.append([*entry.place, field, arm, fmean(means), spread, len(means)])
    if not rows:
        return None
    columns = (
        Column("data", "data"), Column("model", "model"), Column("field", "field"), Column("arm", "arm"),
        Column("mean |cos|", "mean_absolute_cosine", "{:.4f}".format), Column("sd", "sd", "{:.4f}".format),
        Column("n", "n", str),
    )  # fmt: skip
    return Table(
        "cosines",
        "Cosines between the columns of pretrained tables",
        columns,
        rows,
        "Mean absolute cosine of two different columns of a table, and its mean and sd over n seeds.",
    )


def _deciding(outcome: Outcome) -> str:
    """The settings of a model that its cosines depend on, as text."""
    found = []
    for key in DECIDING:
        value: object = outcome.settings
        for part in key.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        found.append(value)
    return repr(found)
