import io

from rich.console import Console

from ham_dist.embedding.table_size import TableSize
from ham_dist.training.summary import ModelResult, print_summary


def _printed() -> list[list[str]]:
    sizes = [
        TableSize("user", 6041, 16, [0, 3, 7], 3, 4, 386_624, 96_656),
        TableSize("gender", 3, 3, [], 0, 0, 36, 0),
    ]
    before = ModelResult(0.8911, 0.3571, 96_665, 386_660, 40_241)
    after = ModelResult(0.8930, 0.3502, 18_123, 96_656, 3_281)
    stream = io.StringIO()
    print_summary(sizes, before, after, Console(file=stream, width=120))
    return [line.split() for line in stream.getvalue().splitlines()]


def test_fields_and_totals() -> None:
    lines = _printed()
    assert ["user", "6,041", "16", "3", "0.387", "0.097"] in lines
    assert ["gender", "3", "3", "0", "0.000", "0.000"] in lines
    assert ["all", "6,044", "19", "3", "0.387", "0.097"] in lines


def test_models_side_by_side() -> None:
    lines = _printed()
    assert ["AUC", "0.8911", "0.8930", "+0.0019"] in lines
    assert ["log", "loss", "0.3571", "0.3502", "-0.0069"] in lines
    assert ["embedding", "parameters", "96,665", "18,123", "-81.3%"] in lines
    assert ["dense", "parameters", "40,241", "3,281", "-91.8%"] in lines
    assert ["embedding", "bytes", "386,660", "96,656", "-75.0%"] in lines
