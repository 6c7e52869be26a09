"""The torchx component that runs start with, on one host or several, here or through a scheduler:

    torchx run dist.ddp -j 1x8 ham_dist/train.py -- launch/runs/movielens_dcnv2.toml
    torchx run -s slurm dist.ddp -j 4x8 --gpu 8 --max_retries 3 ham_dist/train.py -- RUN.toml --run-dir /shared/runs/first --resume
    torchx run -s kubernetes -cfg queue=default dist.ddp -j 4x8 --gpu 8 --image IMAGE --max_retries 3 ham_dist/train.py -- RUN.toml ... --resume

A torchx that is started in this repository runs processes on this machine, as `.torchxconfig` sets the scheduler local_cwd. From any other folder,
name the scheduler:

    torchx run -s local_cwd dist.ddp -j 1x8 -m ham_dist.train -- RUN.toml

torchx's own `dist.ddp` wants the script as `--script` or `-m`, and has `--max_retries` start whole hosts again; this one takes the script as the
first argument as well, has torchrun start ranks again that have died, and hands on to that one.
"""

from typing import Dict, List, Optional

import torchx
from torchx import specs
from torchx.components import dist


def ddp(
    *script_args: str,
    script: Optional[str] = None,
    m: Optional[str] = None,
    image: str = torchx.IMAGE,
    name: str = "/",
    h: Optional[str] = None,
    cpu: int = 0,
    gpu: int = 0,
    memMB: int = 0,
    j: str = "1x2",
    env: Optional[Dict[str, str]] = None,
    max_retries: int = 0,
    rdzv_port: int = 29500,
    rdzv_backend: str = "c10d",
    mounts: Optional[List[str]] = None,
    debug: bool = False,
    tee: int = 3,
) -> specs.AppDef:
    """Runs a script on several processes and hosts, joined by torchrun.

    Args:
        script_args: the script, unless --script or -m names it, and its arguments (after `--` where one looks like an option)
        script: the script, as a path
        m: the script, as a module
        image: image of the workspace (docker)
        name: {experiment}/{run}, {experiment}/, /{run} or {run}
        h: a registered named resource; takes precedence over cpu, gpu and memMB
        cpu: cores a host; 0: 2 a process
        gpu: GPUs a host
        memMB: memory a host, in MB; 0: 8192 a process
        j: [{least hosts}:]{hosts}x{processes a host}
        env: environment variables of the run (ENV1=v1,ENV2=v2)
        max_retries: how often ranks are started again after one has died, and hosts by their scheduler (for which the script needs --resume)
        rdzv_port: port on the first host where the hosts meet; used with several hosts only
        rdzv_backend: how the hosts meet; used with several hosts only
        mounts: mounts of the container (docker)
        debug: run with torch's debug flags
        tee: which streams go to the console as well as to files: 0 none, 1 stdout, 2 stderr, 3 both
    """
    rest = list(script_args)
    if script is None and m is None and rest:
        script = rest.pop(0)
    if rest[:1] == ["--"]:
        rest = rest[1:]
    _, _, processes, _ = dist.parse_nnodes(j)
    app = dist.ddp(
        *rest,
        script=script,
        m=m,
        image=image,
        name=name,
        h=h,
        cpu=cpu or 2 * processes,
        gpu=gpu,
        memMB=memMB or 8192 * processes,
        j=j,
        env=env,
        max_retries=max_retries,
        rdzv_port=rdzv_port,
        rdzv_backend=rdzv_backend,
        mounts=mounts,
        debug=debug,
        tee=tee,
    )
    if max_retries:
        for role in app.roles:
            # Schedulers start hosts again, and the one of this machine not even those.
            shell_option, command = role.args
            role.args = [
                shell_option,
                command.replace("torchrun ", f"torchrun --max_restarts {max_retries} ", 1),
            ]
    return app
