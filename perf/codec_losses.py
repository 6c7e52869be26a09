"""Bytes and loss of quality of quantized tables, over the finished branches of a study.

    python perf/codec_losses.py studies/ablation
    python perf/codec_losses.py studies/ablation --codecs int8 --lines losses.jsonl

Every bundle of the study is written in each codec, and measured against the bundle as `ham-dist export` does,
on the validation split of the branch's data. The test split is not read. A line of the table has
the branches of one model, arm and target: their number, the bytes of the tables as a share of those in fp32,
and the differences of the AUC. `of the supernet` has the bytes of tables and dense part as a share of those
of the branch's supernet in fp32.
"""

import argparse
import json
import statistics
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ham_dist.config.load import load_run
from ham_dist.errors import HamError
from ham_dist.export.bundle import open_bundle
from ham_dist.export.codecs.registry import tolerance_of
from ham_dist.export.reencode import reencode_bundle

NO_BAR = 1.0
"""Tolerance under which no bundle is refused: losses are measured here, not limited."""


def branches(study: Path) -> Iterator[Path]:
    """Folders of the finished branches with a sliced model."""
    for bundle in sorted(study.glob("groups/*/branches/*/bundle/manifest.json")):
        if (bundle.parents[1] / "line.json").is_file() and (bundle.parents[1] / "result.json").is_file():
            yield bundle.parents[1]


def measure(branch: Path, codec: str) -> dict[str, Any]:
    """Figures of one branch in one codec."""
    line = json.loads((branch / "line.json").read_text(encoding="utf-8"))
    supernet = json.loads((branch / "result.json").read_text(encoding="utf-8"))["supernet"]
    data = load_run(str(branch / "run.toml")).data.path
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "bundle"
        found = reencode_bundle(branch / "bundle", out, codec, f"{data}/validation", tolerance=NO_BAR)
        manifest = open_bundle(out).manifest
    tables = (*manifest.tables, *manifest.first_order)
    full = sum(4 * table.num_embeddings * table.embedding_dim for table in tables)
    stored = sum(table.stored_bytes for table in tables)
    dense = 4 * line["dense_parameters"]
    whole = supernet["embedding_bytes"] + 4 * supernet["dense_parameters"]
    return {
        "study": line["study"],
        "model": line["model"],
        "arm": line["arm"],
        "target": line["target"],
        "seed": line["seed"],
        "codec": codec,
        "share_of_fp32": stored / full,
        "share_of_supernet": (stored + dense) / whole,
        **{name: found[name] for name in ("rows", "auc", "auc_difference", "mean_difference")},
        "log_loss_share": found["log_loss_difference"] / found["log_loss"],
    }


def size_of(target: dict[str, Any] | str | None) -> str:
    """Text of a target; the supernet has none."""
    if isinstance(target, dict):
        if "columns" in target:
            return f"{target['columns']:,} columns"
        return f"{target['bytes']:,} bytes" + (f" in {target['precision']}" if "precision" in target else "")
    return target or "all"


def table(lines: list[dict[str, Any]]) -> Iterator[str]:
    """Rows of a Markdown table."""
    groups: dict[tuple[str, ...], list[dict[str, Any]]] = defaultdict(list)
    for line in lines:
        groups[line["codec"], line["model"], line["arm"], size_of(line["target"])].append(line)
    yield (
        "| codec | model | arm | target | branches | of fp32 | of the supernet "
        "| mean dAUC | largest abs. dAUC | log loss, largest | within the bar |"
    )
    yield "|---|---|---|---|---|---|---|---|---|---|---|"
    for (codec, *names), group in sorted(groups.items()):
        bar = tolerance_of([codec])
        moved = [line["auc_difference"] for line in group]
        losses = [abs(line["log_loss_share"]) for line in group]
        within = sum(
            (bar.auc is None or abs(auc) <= bar.auc) and (bar.log_loss is None or loss <= bar.log_loss)
            for auc, loss in zip(moved, losses, strict=True)
        )
        tables = statistics.mean(line["share_of_fp32"] for line in group)
        whole = statistics.mean(line["share_of_supernet"] for line in group)
        yield (
            f"| {codec} | {' | '.join(names)} | {len(group)} | {tables:.3f} | {whole:.3f} "
            f"| {statistics.mean(moved):+.6f} | {max(map(abs, moved)):.6f} | {max(losses):.5%} "
            f"| {within} of {len(group)} |"
        )


def key(line: dict[str, Any]) -> str:
    """Names a measurement."""
    return json.dumps([line[name] for name in ("arm", "model", "target", "seed", "codec")])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("study", type=Path, help="folder of a study, with its bundles")
    parser.add_argument("--codecs", nargs="+", default=["int8", "int6", "int4"])
    parser.add_argument("--lines", type=Path, help="JSON lines of the branches; measured ones are kept")
    options = parser.parse_args()
    lines = []
    if options.lines and options.lines.exists():
        lines = [json.loads(text) for text in options.lines.read_text(encoding="utf-8").splitlines()]
    known = set(map(key, lines))
    for branch in branches(options.study):
        row = json.loads((branch / "line.json").read_text(encoding="utf-8"))
        for codec in options.codecs:
            if key(row | {"codec": codec}) in known:
                continue
            try:
                lines.append(measure(branch, codec))
            except HamError as error:
                print(f"{branch.name}, {codec}: {error}")
                continue
            if options.lines:
                with options.lines.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(lines[-1]) + "\n")
    print("\n".join(table(lines)))


if __name__ == "__main__":
    main()
