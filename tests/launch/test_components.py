import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from torchx.specs import AppDef
from torchx.specs.builders import materialize_appdef
from torchx.specs.finder import get_component, get_components

ROOT = Path(__file__).parents[2]


def _command(*arguments: str) -> str:
    app: AppDef = materialize_appdef(get_component("dist.ddp").fn, list(arguments))
    (role,) = app.roles
    return str(role.args[1])


def test_script_is_the_first_argument() -> None:
    command = _command("-j", "1x8", "ham_dist/train.py")
    assert "--nproc_per_node 8" in command
    assert command.endswith(" ham_dist/train.py")


@pytest.mark.parametrize("between", [[], ["--"]])
def test_arguments_are_passed_on(between: list[str]) -> None:
    command = _command(
        "-j", "1x8", "ham_dist/train.py", *between, "launch/runs/movielens_dcnv2.toml", "--set", "seed=1"
    )
    assert command.endswith(" ham_dist/train.py launch/runs/movielens_dcnv2.toml --set seed=1")


def test_hosts_have_memory_and_cores_for_their_processes() -> None:
    for arguments, cpu, memory in (([], 16, 65_536), (["--cpu", "3", "--memMB", "500"], 3, 500)):
        app = materialize_appdef(
            get_component("dist.ddp").fn, ["-j", "1:4x8", "--gpu", "8", *arguments, "ham_dist/train.py"]
        )
        (role,) = app.roles
        assert (role.resource.cpu, role.resource.memMB, role.resource.gpu) == (cpu, memory, 8)


def test_stock_spellings_work() -> None:
    assert _command("-j", "1x2", "--script", "ham_dist/train.py", "--", "run.toml").endswith(
        " ham_dist/train.py run.toml"
    )
    assert _command("-j", "1x2", "-m", "ham_dist.train", "--", "run.toml").endswith(
        " -m ham_dist.train run.toml"
    )


def test_several_hosts_and_retries() -> None:
    app = materialize_appdef(
        get_component("dist.ddp").fn,
        ["-j", "2x4", "--max_retries", "3", "--env", "A=1", "ham_dist/train.py", "--resume"],
    )
    (role,) = app.roles
    assert (role.num_replicas, role.max_retries, role.env["A"]) == (2, 3, "1")
    assert "--nnodes 2 --nproc_per_node 4" in role.args[1]
    assert role.args[1].startswith("torchrun --max_restarts 3 "), (
        "ranks are started again by torchrun, hosts by the scheduler"
    )
    assert role.args[1].endswith(" ham_dist/train.py --resume")


def test_without_a_script_the_error_of_the_stock_component_is_raised() -> None:
    with pytest.raises(ValueError, match="exactly one of --script and -m"):
        _command("-j", "1x2")


def test_our_component_is_registered_with_the_stock_ones() -> None:
    components = get_components()
    assert components["dist.ddp"].fn.__module__ == "launch.components"
    assert {"dist.spmd", "utils.echo", "utils.python"} <= components.keys()


def test_torchx_takes_several_settings(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text("import sys\nprint('arguments', sys.argv[1:])\n")
    torchx = Path(sys.executable).with_name("torchx")
    path = f"{torchx.parent}{os.pathsep}{os.environ['PATH']}"
    command = [
        str(torchx),
        "run",
        "dist.ddp",
        "-j",
        "1x2",
        f"{tmp_path}/script.py",
        "--",
        "run.toml",
        "--set=seed=1",
        "--set=search.epochs=2",
    ]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("arguments ['run.toml', '--set=seed=1', '--set=search.epochs=2']") == 2


def _dry_run(*arguments: str) -> str:
    """Output of torchx --dryrun, with its lines and quotes joined."""
    torchx = Path(sys.executable).with_name("torchx")
    command = [
        str(torchx),
        "run",
        "--dryrun",
        *arguments,
        "ham_dist/train.py",
        "--",
        "run.toml",
        "--run-dir=runs/first",
        "--resume",
    ]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, "NO_COLOR": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    request = done.stdout.partition("=== SCHEDULER REQUEST ===")[2]
    return re.sub(r"[\s'\"]+", " ", request)


def test_one_host_through_the_local_scheduler() -> None:
    request = _dry_run("-s", "local_cwd", "dist.ddp", "-j", "1x4", "--max_retries", "3")
    assert "torchrun --max_restarts 3 " in request
    assert "--nnodes 1 --nproc_per_node 4" in request


def test_several_hosts_through_slurm() -> None:
    request = _dry_run(
        "-s",
        "slurm",
        "-cfg",
        "partition=gpu,time=60",
        "dist.ddp",
        "-j",
        "4x8",
        "--gpu",
        "8",
        "--max_retries",
        "3",
    )
    assert request.count(" --requeue ") == 4
    assert request.count("--nnodes 4 --nproc_per_node 8") == 4, "one torchrun a host"
    assert "--gpus-per-task=8" in request
    assert request.count("ham_dist/train.py run.toml --run-dir=runs/first --resume") == 4


def test_several_hosts_through_kubernetes() -> None:
    pytest.importorskip(
        "kubernetes",
        reason="torchx's Kubernetes scheduler needs the package kubernetes, which is not installed",
    )
    # Without a workspace: with one, torchx would have docker build an image of it.
    request = _dry_run(
        "--workspace",
        "",
        "-s",
        "kubernetes",
        "-cfg",
        "queue=default",
        "dist.ddp",
        "-j",
        "4x8",
        "--gpu",
        "8",
        "--image",
        "ham:1",
        "--max_retries",
        "3",
    )
    assert "kind: Job" in request
    assert request.count("--nnodes 4 --nproc_per_node 8") == 4
    assert "nvidia.com/gpu: 8" in request
    assert "maxRetry: 3" in request


def test_a_study_runs_on_several_hosts() -> None:
    arguments = ["study.toml", "--out", "/shared/study", "--workers", "8"]
    app = materialize_appdef(
        get_component("dist.study").fn, ["--replicas", "4", "--max_retries", "2", "--", *arguments]
    )
    (role,) = app.roles
    assert (role.num_replicas, role.max_retries, role.entrypoint) == (4, 2, "python")
    assert role.args == ["-m", "ham_dist", "study", *arguments]
