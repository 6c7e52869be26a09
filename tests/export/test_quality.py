"""The measured loss of quantized bundles, and the choice of a codec for each field."""

import itertools
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from ham_dist.embedding.tables import TableChunk
from ham_dist.errors import BundleError, DataError
from ham_dist.export.bundle import open_bundle
from ham_dist.export.choice import CodecLosses, choose_codecs
from ham_dist.export.codecs.codec import TableRows
from ham_dist.export.codecs.registry import CODECS
from ham_dist.export.parts import OpenTable, whole_tables, write_parts
from ham_dist.export.quality import Labelled, LabelledIds, measure_bundle
from tests.support.live_models import Live, chunks, export, live_model, some_ids

QUANTIZED = ("int8", "int6", "int4")


def labelled(live: Live, batches: int = 3) -> Labelled:
    ids = [some_ids(seed=seed) for seed in range(batches)]
    probabilities = torch.cat([live.probabilities(one) for one in ids])
    labels = (
        torch.rand(len(probabilities), generator=torch.Generator().manual_seed(0)) < probabilities
    ).float()

    def records() -> Iterator[LabelledIds]:
        return zip(ids, labels.chunk(batches), strict=True)

    return Labelled("some records", records, torch.logit(probabilities.double()))


def decoded(table: torch.Tensor, codec: str) -> torch.Tensor:
    return CODECS[codec].round_trip(table, CODECS[codec].fit(TableRows([table])))


def with_codecs(live: Live, codecs: dict[str, str]) -> Live:
    """The model with float32 tables that hold the decoded numbers."""
    return replace(
        live,
        tables={name: decoded(table, codecs[name]) for name, table in live.tables.items()},
        first_order={name: decoded(table, codecs[name]) for name, table in live.first_order.items()},
    )


def auc(scores: torch.Tensor, labels: torch.Tensor) -> float:
    pairs = [
        float(one > other) + float(one == other) / 2
        for one in scores[labels == 1]
        for other in scores[labels == 0]
    ]
    return sum(pairs) / len(pairs)


def log_loss(probabilities: torch.Tensor, labels: torch.Tensor) -> float:
    likelihood = torch.where(labels == 1, probabilities, 1 - probabilities)
    return -likelihood.log().mean().item()


@pytest.mark.parametrize("name", ["fm", "dcnv2"])
@pytest.mark.parametrize("codec", QUANTIZED)
def test_the_differences_are_those_of_the_decoded_tables(tmp_path: Path, name: str, codec: str) -> None:
    live = live_model(name, "table")
    records = labelled(live)
    report = export(
        live,
        tmp_path / "bundle",
        precision=codec,
        verify=lambda path: measure_bundle(path, records, tolerance=1.0),
    )
    rounded = with_codecs(live, dict.fromkeys([field.name for field in live.fields], codec))
    labels = torch.cat([labels for _, labels in records.batches()])
    before, after = (
        torch.cat([model.probabilities(ids) for ids, _ in records.batches()]).double()
        for model in (live, rounded)
    )
    wanted: dict[str, Any] = {
        "rows": len(labels),
        "auc": auc(before, labels),
        "log_loss": log_loss(before, labels),
        "auc_difference": auc(after, labels) - auc(before, labels),
        "log_loss_difference": log_loss(after, labels) - log_loss(before, labels),
        "max_difference": (after - before).abs().max().item(),
        "mean_difference": (after - before).abs().mean().item(),
        "auc_tolerance": 1.0,
        "log_loss_tolerance": 5 * log_loss(before, labels),
    }
    assert {key: report[key] for key in wanted} == pytest.approx(wanted, abs=1e-6)
    assert report["max_difference"] > 0
    assert report["overridden"] is True
    manifest = open_bundle(tmp_path / "bundle").manifest
    assert manifest.verified == report
    assert manifest.precision == codec


def test_a_loss_beyond_the_codecs_tolerance_is_refused_with_the_figures(tmp_path: Path) -> None:
    live = live_model("fm", "table")
    records = labelled(live)
    expected = (
        r"(?s)int4 tables change the AUC of 39 records of some records by [-+]0\.\d+, the log loss by "
        r".*at most 0\.0005 for the AUC.*--tolerance 0\.\d+"
    )
    with pytest.raises(BundleError, match=expected) as error:
        export(live, tmp_path / "no", precision="int4", verify=lambda path: measure_bundle(path, records))
    assert not list(tmp_path.iterdir())
    tolerance = float(str(error.value).rpartition("--tolerance ")[2].rstrip("."))
    export(
        live, tmp_path / "yes", precision="int4", verify=lambda path: measure_bundle(path, records, tolerance)
    )
    for less in (0.0, tolerance / 2):
        with pytest.raises(BundleError, match="int4 tables change"):
            measure_bundle(tmp_path / "yes", records, less)


def test_another_models_records_are_refused(tmp_path: Path) -> None:
    live = live_model()
    records = labelled(live)
    export(live, tmp_path / "bundle")
    assert measure_bundle(tmp_path / "bundle", records)["max_difference"] <= 1e-6
    for wrong, error, message in [
        (replace(records, logits=records.logits + 0.1), BundleError, "at most 1e-06 for a probability"),
        (replace(records, logits=records.logits[1:]), BundleError, "39 records.*38 logits"),
        (replace(records, batches=lambda: iter(())), DataError, "some records: no records"),
        (
            replace(records, batches=lambda: ((ids, torch.ones(13)) for ids, _ in records.batches())),
            DataError,
            "all 39 records have the same label",
        ),
    ]:
        with pytest.raises(error, match=message):
            measure_bundle(tmp_path / "bundle", wrong)


def opened(live: Live, root: Path) -> list[OpenTable]:
    root.mkdir()
    first_order = chunks(live.first_order)
    tables: list[TableChunk] = chunks(live.tables, rows=2)
    whole = whole_tables(live.fields, list(write_parts(root, live.fields, tables, first_order)))
    return [table.opened(root) for table in whole]


@pytest.mark.parametrize("name", ["fm", "deepfm", "dcnv2", "autoint"])
def test_the_loss_of_one_field_in_a_codec(tmp_path: Path, name: str) -> None:
    live = live_model(name, "table")
    records = labelled(live)
    losses = CodecLosses(opened(live, tmp_path / "parts"), live.interaction, records)

    def probabilities(model: Live) -> torch.Tensor:
        return torch.cat([model.probabilities(ids) for ids, _ in records.batches()]).double()

    before = probabilities(live)
    names = [field.name for field in live.fields if field.name in (live.tables | live.first_order)]
    for field, codec in itertools.product(names, CODECS):
        after = probabilities(with_codecs(live, dict.fromkeys(names, "fp32") | {field: codec}))
        odds, rest = before / after, (1 - before) / (1 - after)
        wanted = (before * odds.log() + (1 - before) * rest.log()).sum().item()
        assert losses.increase(field, CODECS[codec]) == pytest.approx(wanted, rel=0.02, abs=1e-8)
        assert codec != "fp32" or losses.increase(field, CODECS[codec]) == 0


class GivenLosses(CodecLosses):
    def __init__(self, losses: dict[str, dict[str, float]]) -> None:
        self._given = losses

    def increase(self, field: str, codec: Any) -> float:
        return self._given[field][codec.name]


@pytest.mark.parametrize("limit", range(250, 1100, 50))
def test_the_choice_is_the_best_of_all(tmp_path: Path, limit: int) -> None:
    live = live_model("fm", "table")
    tables = opened(live, tmp_path / "parts")
    names = list(dict.fromkeys(table.field.name for table in tables))
    generator = torch.Generator().manual_seed(limit)
    losses = {name: {codec: float(torch.rand(1, generator=generator)) for codec in CODECS} for name in names}

    def size(codecs: tuple[str, ...]) -> int:
        of_field = dict(zip(names, codecs, strict=True))
        return sum(
            CODECS[of_field[table.field.name]].stored_bytes(
                table.rows.num_embeddings, table.rows.embedding_dim
            )
            for table in tables
        )

    fitting = [codecs for codecs in itertools.product(CODECS, repeat=len(names)) if size(codecs) <= limit]
    if not fitting:
        with pytest.raises(BundleError, match=rf"--bytes {limit}: the tables have at least"):
            choose_codecs(GivenLosses(losses), tables, limit)
        return
    least = min(
        math.fsum(losses[name][codec] for name, codec in zip(names, codecs, strict=True))
        for codecs in fitting
    )
    chosen = choose_codecs(GivenLosses(losses), tables, limit)
    assert size(tuple(chosen[name] for name in names)) <= limit
    assert sum(losses[name][codec] for name, codec in chosen.items()) == pytest.approx(least)


@pytest.mark.parametrize("name", ["fm", "dcnv2"])
def test_a_mixed_bundle_scores_like_its_decoded_tables(tmp_path: Path, name: str) -> None:
    live = live_model(name, "table")
    codecs = {"user": "int8", "gone": "int6", "genres": "int4", "age": "fp16"}
    export(live, tmp_path / "bundle", precision=codecs)
    bundle = open_bundle(tmp_path / "bundle")
    assert bundle.manifest.precision == "mixed"
    tables = (*bundle.manifest.tables, *bundle.manifest.first_order)
    assert all(table.codec == codecs[table.field] for table in tables)
    assert bundle.manifest.table_bytes == sum(
        CODECS[table.codec].stored_bytes(table.num_embeddings, table.embedding_dim) for table in tables
    )
    rounded = with_codecs(live, codecs)
    for field, table in bundle.tables().items():
        assert torch.equal(table.float(), rounded.tables[field])
    export(rounded, tmp_path / "decoded")
    ids = some_ids()
    with torch.no_grad():
        found, expected = bundle.model()(ids), open_bundle(tmp_path / "decoded").model()(ids)
    assert torch.equal(found, expected)
    rows = {field: torch.arange(0, count, 2) for field, count in {"user": 11, "genres": 7, "age": 3}.items()}
    some = bundle.model(rows)
    for field, stored in zip(some.fields, some.tables, strict=True):
        assert torch.equal(stored(torch.arange(len(rows[field]))), rounded.tables[field][::2])
