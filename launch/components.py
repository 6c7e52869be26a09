r"""The torchx components that start runs and studies, on this machine or through a scheduler.

`ddp` starts a run on one host or several:

    torchx run dist.ddp -j 1x8 ham_dist/train.py -- launch/runs/movielens_dcnv2.toml
    torchx run -s slurm dist.ddp -j 4x8 --gpu 8 --max_retries 3 ham_dist/train.py -- \
        RUN.toml --run-dir /shared/runs/first --resume
    torchx run -s kubernetes -cfg queue=default dist.ddp -j 4x8 --gpu 8 --image IMAGE --max_retries 3 \
        ham_dist/train.py -- RUN.toml --run-dir /shared/runs/first --resume

In this repository, torchx runs processes on this machine, because `.torchxconfig` sets the scheduler
local_cwd. In any other folder, give the scheduler:

    torchx run -s local_cwd dist.ddp -j 1x8 -m ham_dist.train -- RUN.toml

torchx's own `dist.ddp` takes the script as `--script` or `-m` only, and its `--max_retries` restarts whole
hosts. This component calls it, also accepts the script as the first argument, and lets torchrun restart ranks
that died.

`study` starts the same study on several hosts that share its folder:

    torchx run -s slurm dist.study --replicas 4 -- \
        launch/studies/paper-fig3.toml --out /shared/studies/paper-fig3 --workers 8
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
        script_args: the script (without --script and -m) and its arguments, after `--` if one is an option
        script: the script, as a path
        m: the script, as a module
        image: image of the workspace (docker)
        name: name of the job: {experiment}/{run}, {experiment}/, /{run} or {run}
        h: a registered named resource; overrides cpu, gpu and memMB
        cpu: cores per host; 0: 2 per process
        gpu: GPUs per host
        memMB: memory per host, in MB; 0: 8192 per process
        j: [{min_hosts}:]{hosts}x{processes per host}
        env: environment variables of the run (ENV1=v1,ENV2=v2)
        max_retries: restarts of ranks, and of hosts by the scheduler (then the script needs --resume)
        rdzv_port: port of the rendezvous on the first host; used with several hosts only
        rdzv_backend: backend of the rendezvous; used with several hosts only
        mounts: mounts of the container (docker)
        debug: run with torch's debug flags
        tee: streams that go to the console in addition to files: 0 none, 1 stdout, 2 stderr, 3 both
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
            # Schedulers restart hosts only, and the local scheduler restarts nothing.
            shell_option, command = role.args
            role.args = [
                shell_option,
                command.replace("torchrun ", f"torchrun --max_restarts {max_retries} ", 1),
            ]
    return app


def study(
    *arguments: str,
    image: str = torchx.IMAGE,
    name: str = "study",
    replicas: int = 1,
    h: Optional[str] = None,
    cpu: int = 2,
    gpu: int = 0,
    memMB: int = 8192,
    env: Optional[Dict[str, str]] = None,
    max_retries: int = 0,
    mounts: Optional[List[str]] = None,
) -> specs.AppDef:
    """Runs `ham-dist study ARGUMENTS` on several hosts, which share the folder given by --out.

    Args:
        arguments: the arguments of `ham-dist study`, after `--`
        image: image of the workspace (docker)
        name: name of the job
        replicas: number of hosts, each with its own workers
        h: a registered named resource; overrides cpu, gpu and memMB
        cpu: cores per host
        gpu: GPUs per host
        memMB: memory per host, in MB
        env: environment variables of the study (ENV1=v1,ENV2=v2)
        max_retries: restarts of a host by the scheduler; the study resumes
        mounts: mounts of the container (docker)
    """
    rest = list(arguments)
    if rest[:1] == ["--"]:
        rest = rest[1:]
    return specs.AppDef(
        name=name,
        roles=[
            specs.Role(
                name="study",
                image=image,
                entrypoint="python",
                args=["-m", "ham_dist", "study", *rest],
                env=env or {},
                num_replicas=replicas,
                max_retries=max_retries,
                resource=specs.resource(cpu=cpu, gpu=gpu, memMB=memMB, h=h),
                mounts=specs.parse_mounts(mounts) if mounts else [],
            )
        ],
    )
