import errno
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from ham_dist import __version__, cli
from ham_dist import run as run_module
from ham_dist.cli import app, failures
from ham_dist.config.load import DEMO, load_run
from ham_dist.config.schema import PrecisionSettings, RunSettings
from ham_dist.config.synthetic import SyntheticSettings
from ham_dist.data.format.manifest import Manifest
from ham_dist.errors import DataError
from ham_dist.training.data_record import digest_of
from ham_dist.training.run_folder import RunFolder
from tests.support.raw_movielens import write_raw_movielens

COMMANDS = (
    "fetch", "prepare", "generate", "train", "export", "verify", "package", "apply-delta", "score", "report",
    "inspect", "doctor",
)  # fmt: skip

runner = CliRunner()


def _fail(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def run(settings: RunSettings, run_dir: Path | None, *, resume: bool) -> None:
        raise error

    monkeypatch.setattr(run_module, "run_stages", run)


def _calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[RunSettings, Path | None, bool]]:
    calls: list[tuple[RunSettings, Path | None, bool]] = []

    def run(settings: RunSettings, run_dir: Path | None, *, resume: bool) -> None:
        calls.append((settings, run_dir, resume))

    monkeypatch.setattr(run_module, "run_stages", run)
    return calls


def test_version() -> None:
    assert runner.invoke(app, ["--version"]).stdout == f"ham-dist {__version__}\n"


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_every_command_has_an_example(command: str) -> None:
    result = runner.invoke(app, [command, "--help"])
    assert result.exit_code == 0
    assert f"Example:\n    ham-dist {command}" in result.stdout


def test_train_without_arguments_is_the_demo(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = _calls(monkeypatch)
    assert runner.invoke(app, ["train"]).exit_code == 0
    assert calls == [(RunSettings(precision=PrecisionSettings(dense="float64")), None, False)]


def test_train_takes_file_settings_and_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    calls = _calls(monkeypatch)
    (tmp_path / "a.toml").write_text("seed = 1\n")
    arguments = [
        "train",
        str(tmp_path / "a.toml"),
        "--set",
        "search.epochs=2",
        "--set=model.name=fm",
        "--run-dir",
        "x",
        "--resume",
    ]
    assert runner.invoke(app, arguments).exit_code == 0
    assert calls == [(load_run(None, ["seed=1", "search.epochs=2", "model.name=fm"]), Path("x"), True)]


def test_resume_takes_the_settings_of_the_run_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    calls = _calls(monkeypatch)
    settings = load_run(None, ["seed=7"])
    folder = RunFolder(tmp_path / "run")
    folder.start(settings, resume=False, world_size=1, device="cpu")
    resume = ["train", "--run-dir", str(folder.path), "--resume"]
    assert runner.invoke(app, resume).exit_code == 0
    assert runner.invoke(app, [*resume, "--set", "retrain.max_epochs=40"]).exit_code == 0
    raised = load_run(None, ["seed=7", "retrain.max_epochs=40"])
    assert calls == [(settings, folder.path, True), (raised, folder.path, True)]


def test_resume_does_not_use_a_run_toml_written_by_the_user(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "run.toml").write_text("seed = 7\n")
    refused = runner.invoke(app, ["train", "--run-dir", str(tmp_path), "--resume"])
    assert refused.exit_code == 2
    assert "holds run.toml, but no run" in refused.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["run.toml"]


def test_scripts_take_the_same_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = _calls(monkeypatch)
    with pytest.raises(SystemExit) as ended:
        cli.train_command(["--set=seed=3"])
    assert ended.value.code == 0
    assert calls == [(load_run(DEMO, ["seed=3"]), None, False)]


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (DataError("data/x: is damaged"), "ham-dist: data/x: is damaged\n"),
        (
            OSError(errno.ENOSPC, "No space left on device", "runs/x"),
            "ham-dist: runs/x: No space left on device. Free disk space",
        ),
        (
            PermissionError(errno.EACCES, "Permission denied", "/x"),
            "ham-dist: /x: Permission denied. Give another path",
        ),
        (MemoryError(), "ham-dist: out of memory\n  Lower data.batch_size"),
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried 2 GiB"),
            "ham-dist: out of memory (CUDA out of memory. Tried 2 GiB)\n",
        ),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory: 9 bytes\nmore"),
            "ham-dist: out of memory (DefaultCPU",
        ),
    ],
)
def test_an_error_that_the_user_can_fix_is_a_short_message(
    monkeypatch: pytest.MonkeyPatch, error: Exception, message: str
) -> None:
    _fail(monkeypatch, error)
    result = runner.invoke(app, ["train"])
    assert result.exit_code == 2
    assert result.stderr.startswith(message)
    assert "Traceback" not in result.stderr


def test_debug_shows_the_traceback_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    _fail(monkeypatch, DataError("is damaged"))
    result = runner.invoke(app, ["--debug", "train"])
    assert result.exit_code == 2
    assert "Traceback" in result.stderr
    assert result.stderr.endswith("ham-dist: is damaged\n")


@pytest.mark.parametrize(
    "error",
    [KeyError("x"), RuntimeError("shapes differ"), FileNotFoundError(errno.ENOENT, "No such file", "x")],
)
def test_bugs_are_not_caught(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    _fail(monkeypatch, error)
    result = runner.invoke(app, ["train"])
    assert result.exit_code == 1
    assert result.exception is error


def test_interrupted_training_prints_how_to_resume(monkeypatch: pytest.MonkeyPatch) -> None:
    _fail(monkeypatch, KeyboardInterrupt())
    result = runner.invoke(app, ["train"])
    assert result.exit_code == 130
    assert "--resume resumes" in result.stderr


def test_usage_errors_exit_with_2() -> None:
    assert runner.invoke(app, ["train", "--no-such-option"]).exit_code == 2
    assert runner.invoke(app, ["train", "--resume"]).stderr.endswith("Give --run-dir FOLDER\n")
    assert "Give --raw FOLDER" in runner.invoke(app, ["prepare", "movielens-1m", "--out", "x"]).stderr


def test_other_ranks_put_their_number_before_the_message(monkeypatch: pytest.MonkeyPatch) -> None:
    _fail(monkeypatch, DataError("is damaged"))
    monkeypatch.setattr(failures, "GRACE_SECONDS", 0)
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert runner.invoke(app, ["train"]).stderr == "[rank 3] ham-dist: is damaged\n"


def test_ranks_of_a_machine_print_the_same_error_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """However slowly torchrun ends the others after the first one has failed."""
    monkeypatch.setattr(failures, "GRACE_SECONDS", 0)
    printed = []
    for attempt in ("attempt_0", "attempt_1"):
        for rank, message in ((1, "rank 0: is damaged"), (0, "is damaged"), (2, "rank 0: is damaged")):
            folder = tmp_path / attempt / str(rank)
            folder.mkdir(parents=True)
            monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(folder / "error.json"))
            monkeypatch.setenv("RANK", str(rank))
            monkeypatch.setenv("LOCAL_RANK", str(rank))
            _fail(monkeypatch, DataError(message))
            printed.append(runner.invoke(app, ["train"]).stderr)
    assert printed == ["[rank 1] ham-dist: rank 0: is damaged\n", "", ""] * 2


def test_an_error_of_all_ranks_is_printed_once() -> None:
    torchrun = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node=3",
        "-m",
        "ham_dist.train",
    ]
    done = subprocess.run(
        [*torchrun, "--set=modle.name=fm"], capture_output=True, text=True, check=False, timeout=600
    )
    assert done.returncode != 0
    assert done.stderr.count("ham-dist: --set: modle: no such key. Did you mean model?") == 1


def test_generated_data_can_be_prepared_and_inspected(tmp_path: Path) -> None:
    arguments = ["prepare", "synthetic", "--out", str(tmp_path / "data"), "--set", "data.synthetic.rows=2000"]
    prepared = runner.invoke(app, arguments)
    assert prepared.exit_code == 0, prepared.stderr
    assert "prepared data, synthetic" in prepared.stdout
    inspected = runner.invoke(app, ["inspect", str(tmp_path / "data"), "--dim", "4"]).stdout
    assert inspected.startswith(prepared.stdout)
    assert "tables of embedding dim 4 as float32: 0.04 MB" in inspected
    figures = json.loads(runner.invoke(app, ["inspect", str(tmp_path / "data"), "--json"]).stdout)
    assert figures["dim"] == RunSettings().model.base_dim
    assert [field["rows"] for field in figures["fields"]] == list(SyntheticSettings().num_embeddings)


def test_one_raw_folder_prepared_with_several_seeds(tmp_path: Path) -> None:
    raw = write_raw_movielens(tmp_path / "raw", ratings=500)
    command = ["prepare", "movielens-1m", "--raw", str(raw), "--out"]
    for name, seed in (("default", []), ("s0", ["--seed", "0"]), ("s1", ["--seed", "1"])):
        done = runner.invoke(app, [*command, str(tmp_path / name), *seed])
        assert done.exit_code == 0, done.stderr
    by_default, s0, s1 = (Manifest.load(tmp_path / name) for name in ("default", "s0", "s1"))
    assert (s0.seed, s1.seed) == (0, 1)
    assert digest_of(by_default) == digest_of(s0) != digest_of(s1)
    for count in ("rows", "positives"):
        assert sum(getattr(split, count) for split in s0.splits.values()) == sum(
            getattr(split, count) for split in s1.splits.values()
        )
    assert s0.raw == s1.raw
    other = runner.invoke(app, [*command, str(tmp_path / "s0"), "--seed", "1"])
    assert other.exit_code == 2
    assert "holds movielens-1m with seed 0, which differs in seed; nothing was written" in other.stderr


def test_a_seed_that_nothing_depends_on_is_refused(tmp_path: Path) -> None:
    out = ["--out", str(tmp_path / "out"), "--seed", "3"]
    generated = runner.invoke(app, ["prepare", "synthetic", *out])
    by_files = runner.invoke(app, ["prepare", "criteo-1tb", "--raw", str(tmp_path), *out])
    assert generated.exit_code == by_files.exit_code == 2
    assert "--seed applies to raw files only" in generated.stderr
    assert "give --set data.synthetic.seed=N" in generated.stderr
    assert "prepare criteo-1tb: --seed 3: the recipe splits by files" in by_files.stderr
    assert not (tmp_path / "out").exists()


def test_only_data_has_statistics(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    run.start(load_run(None), resume=False, world_size=1, device="cpu")
    for option in (["--json"], ["--dim", "4"]):
        refused = runner.invoke(app, ["inspect", str(run.path), *option])
        assert refused.exit_code == 2
        assert "--dim and --json work for prepared data only" in refused.stderr


def test_criteo_text_is_one_file_or_a_folder_of_days(tmp_path: Path) -> None:
    def generate(*arguments: str) -> str:
        result = runner.invoke(app, ["generate", "criteo-text", "--rows", "30", *arguments])
        return result.stdout if result.exit_code == 0 else f"exit {result.exit_code}: {result.stderr}"

    file, folder = tmp_path / "train.txt", tmp_path / "days"
    assert generate("--out", str(file)) == f"30 rows in {file}\n"
    assert len(file.read_text().splitlines()) == 30
    assert generate("--out", str(folder), "--days", "2", "--gzip", "--seed", "1") == f"30 rows in {folder}\n"
    assert sorted(path.name for path in folder.iterdir()) == ["day_0.gz", "day_1.gz"]
    assert generate("--out", str(file)).startswith(
        f"exit 2: ham-dist: {file}: already exists; nothing was written\n"
    )
    assert "--gzip needs --days" in generate("--out", str(tmp_path / "x"), "--gzip")


def test_plan_only_prints_what_each_rank_would_hold_and_makes_no_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    calls = _calls(monkeypatch)
    arguments = [
        "train",
        "--plan-only",
        "--topology",
        "4x8xA100-80GB",
        "--set",
        "sharding.sharding_types.field_1=row_wise",
    ]
    planned = runner.invoke(app, arguments)
    assert planned.exit_code == 0, planned.stderr
    assert "4x8xA100-80GB: 32 x cuda on 4 hosts, 80 GB each" in planned.stdout
    assert re.search(r"field_1 +400 +16 +row_wise +dense +0 to 31 \(32\)", planned.stdout)
    assert "columns-16" in planned.stdout
    assert calls == []
    assert list(tmp_path.iterdir()) == []
    hosted = [
        "optimizer.tables=rowwise_adagrad",
        "orthogonality.application=decoupled",
        "sharding.compute_kernels.field_0=fused_uvm_caching",
        "precision.tables=float16",
    ]
    sets = [word for text in hosted for word in ("--set", text)]
    printed = runner.invoke(app, ["train", "--plan-only", "--topology", "4xV100-16GB+256GB", *sets]).stdout
    assert "tables in float16" in printed
    assert "fused_uvm_caching" in printed
    assert "in host memory" in printed
    here = runner.invoke(app, ["train", "--plan-only"])
    assert "the ranks of this job: 1 x cpu" in here.stdout
    assert runner.invoke(app, ["train", "--topology", "2x1GB"]).stderr.endswith("Give --plan-only with it\n")
    assert (
        "expected [HOSTSx]RANKSx[CARD-]MEMORY"
        in runner.invoke(app, ["train", "--plan-only", "--topology", "8"]).stderr
    )
