"""The device of each rank; too few GPUs never lead to the CPU."""

import pytest
import torch
import torch.distributed as dist

from ham_dist.distributed.ranks.device import device_of_rank, require_one_device
from ham_dist.errors import BackendError


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A host whose GPUs and ranks a test sets."""
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    return monkeypatch


def with_gpus(host: pytest.MonkeyPatch, gpus: int, ranks: int, rank: int) -> None:
    host.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    host.setattr(torch.cuda, "device_count", lambda: gpus)
    host.setenv("LOCAL_WORLD_SIZE", str(ranks))
    host.setenv("LOCAL_RANK", str(rank))


@pytest.mark.parametrize(
    ("wanted", "gpus", "ranks", "expected"),
    [
        ("auto", 0, 4, "cpu"),
        ("auto", 4, 2, "cuda:1"),
        ("auto", 2, 2, "cuda:1"),
        ("cpu", 2, 4, "cpu"),
        ("cpu", 0, 4, "cpu"),
        ("cuda", 2, 2, "cuda:1"),
    ],
)
def test_a_rank_has_its_own_gpu_or_the_cpu(
    host: pytest.MonkeyPatch, wanted: str, gpus: int, ranks: int, expected: str
) -> None:
    with_gpus(host, gpus, ranks, rank=1)
    assert device_of_rank(wanted) == torch.device(expected)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("wanted", "gpus", "fix"),
    [
        ("auto", 2, "Start 2 ranks on each host, or set ranks.device"),
        ("cuda", 2, "Start 2 ranks on each host, or set ranks.device"),
        ("cuda", 0, "Install a torch that finds the GPU"),
    ],
)
@pytest.mark.parametrize("rank", range(4))
def test_ranks_without_their_own_gpu_are_refused(
    host: pytest.MonkeyPatch, wanted: str, gpus: int, fix: str, rank: int
) -> None:
    with_gpus(host, gpus, 4, rank)
    with pytest.raises(BackendError) as caught:
        device_of_rank(wanted)  # type: ignore[arg-type]
    assert f'ranks.device = "{wanted}": this host has 4 ranks and {gpus} GPUs' in str(caught.value)
    assert fix in str(caught.value)


def test_hosts_with_and_without_gpus_are_refused() -> None:
    store = dist.HashStore()
    require_one_device(store, 0, torch.device("cuda", 0))
    require_one_device(store, 1, torch.device("cuda", 1))
    with pytest.raises(BackendError, match="rank 2 is on cpu and rank 0 on cuda"):
        require_one_device(store, 2, torch.device("cpu"))
