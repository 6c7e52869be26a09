"""Settings of a server."""

import os
from dataclasses import dataclass
from pathlib import Path

from ham_dist.errors import ConfigError
from ham_dist.serving.runtimes.runtime import RuntimeName


@dataclass(frozen=True)
class ServerOptions:
    """Settings of a server; `ham-dist serve --help` explains them.

    Attributes:
        bundle: Folder of a bundle, or of versions with a pointer file.
        name: Name of the model in requests.
        host: Address to listen on.
        port: TCP port of HTTP; 0 for a free one.
        grpc_port: TCP port of gRPC; 0 for a free one, None for no gRPC.
        workers: Processes that serve.
        runtime: As in `Scorer`.
        max_rows: Most records of a request, and of a batch of several requests.
        queue_rows: Most records that are waiting or running in a worker.
        max_body_bytes: Largest body of a request.
        read_seconds: Longest time to receive a request.
        drain_seconds: Longest time to answer accepted requests after SIGTERM.
        warmup: File of recorded requests; None for `warmup.jsonl` in a folder of versions.
        record_warmup: Number of requests to record into that file.
        poll_seconds: Time between two looks at the pointer file.
    """

    bundle: Path
    name: str = ""
    host: str = "127.0.0.1"
    port: int = 8000
    grpc_port: int | None = None
    workers: int = 1
    runtime: RuntimeName = "auto"
    max_rows: int = 4096
    queue_rows: int = 65_536
    max_body_bytes: int = 16 << 20
    read_seconds: float = 10.0
    drain_seconds: float = 25.0
    warmup: Path | None = None
    record_warmup: int = 0
    poll_seconds: float = 1.0

    def __post_init__(self) -> None:
        if self.queue_rows < self.max_rows:
            raise ConfigError(
                f"--queue-rows {self.queue_rows}: smaller than --max-rows {self.max_rows}, so that the "
                "largest request would never be served. Give at least as many"
            )
        if not self.model.isprintable() or "/" in self.model:
            raise ConfigError(
                f"--name {self.model!r}: expected printable characters without /, as it is a part of URLs. "
                "Give another name"
            )

    @property
    def model(self) -> str:
        """Name of the model: `name`, or the name of the folder."""
        return self.name or self.bundle.resolve().name or "model"


def cores() -> int:
    """Cores that this process may use: those of its CPU affinity and of its control group's quota."""
    allowed = len(os.sched_getaffinity(0))
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
        return max(1, min(allowed, int(quota) // int(period)))
    except (OSError, ValueError):  # no control group, or no quota ("max")
        return allowed
