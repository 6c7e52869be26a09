import io

from rich.console import Console

from ham_dist.data.format.manifest import Truth
from ham_dist.embedding.table_size import TableSize
from ham_dist.report import grids
from ham_dist.report.record import Result, Supernet
from ham_dist.report.terminal import print_grids


def _printed(*shown: grids.Grid) -> list[list[str]]:
    stream = io.StringIO()
    print_grids(shown, Console(file=stream, width=120))
    return [line.split() for line in stream.getvalue().splitlines()]


def test_fields_and_totals() -> None:
    sizes = [
        TableSize("user", 6041, 16, [0, 3, 7], 3, 4, 386_624, 96_656),
        TableSize("[red]", 3, 3, [], 0, 0, 36, 0),
    ]
    lines = _printed(grids.sizes(sizes, None))
    assert ["Columns", "kept"] in lines
    assert ["user", "6,041", "16", "3", "386.6", "kB", "96.66", "kB", "-75.0%"] in lines
    assert ["[red]", "3", "3", "0", "36", "bytes", "0", "bytes", "-100.0%"] in lines
    assert ["all", "6,044", "19", "3", "386.7", "kB", "96.66", "kB", "-75.0%"] in lines
    truth = Truth(planted_ranks={"user": 2, "[red]": 1}, bayes_auc=0.9, bayes_log_loss=0.3)
    assert [
        line[-1]
        for line in _printed(grids.sizes(sizes, truth))
        if line and line[0] in ("user", "[red]", "all")
    ] == ["2", "1", "3"]


def test_models_side_by_side() -> None:
    before = Supernet(
        auc=0.8911,
        logloss=0.3571,
        embedding_parameters=96_665,
        embedding_bytes=386_660,
        dense_parameters=40_241,
    )
    after = Result(
        model="dcnv2", method="ham", dataset="x", seed=0, kept_columns={"user": 3},
        test_auc=0.8930, test_logloss=0.3502, validation_auc=0.89,
        embedding_parameters=18_123, embedding_bytes=96_656, dense_parameters=3_281, supernet=before,
        seconds={}, samples_per_second={}, peak_memory_bytes=0, world_size=1, device="cpu",
    )  # fmt: skip
    lines = _printed(grids.quality(after))
    assert ["test", "AUC", "0.8911", "0.8930", "+0.0019"] in lines
    assert ["test", "log", "loss", "0.3571", "0.3502", "-0.0069"] in lines
    assert ["validation", "AUC", "\N{EN DASH}", "0.8900", "\N{EN DASH}"] in lines
    assert ["embedding", "parameters", "96,665", "18,123", "-81.3%"] in lines
    assert ["dense", "parameters", "40,241", "3,281", "-91.8%"] in lines
    assert ["embedding", "bytes", "386.7", "kB", "96.66", "kB", "-75.0%"] in lines
