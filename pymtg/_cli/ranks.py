"""The ranks of a command that torchrun has started several times."""

from __future__ import annotations

import os
from datetime import timedelta

from pymtg._cli.errors import CommandError

__all__ = ["join_ranks", "leave_ranks", "own_rank", "rank_label", "refuse_ranks", "shown_ranks"]

_VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def own_rank() -> int | None:
    """Return the number of this process among those that torchrun has started; None where it has not, or one only."""
    found = [os.environ.get(name, "") for name in _VARIABLES]
    if not all(found) or not (found[0].isdigit() and found[1].isdigit()) or int(found[1]) < 2:
        return None
    return int(found[0])


def rank_label() -> str:
    """Return what follows the command's name in a line on stderr; nothing on rank 0, whose lines are those of one."""
    rank = own_rank()
    return f" (rank {rank})" if rank else ""


def join_ranks(device: str | None, timeout: str) -> bool:
    """Meet the other ranks, where there are any; return whether this one writes files.

    Every rank gets the CUDA device of its local number, where `device` does not name another.

    Raises
    ------
    CommandError
        If the time is none.
    RankError
        If the others do not come in time.
    """
    from pymtg.trainers._interval import seconds_of

    seconds = seconds_of(timeout)
    if seconds is None:
        raise CommandError(f"--rank-timeout must be a time such as 30s, 10min or 2h; got {timeout!r}")
    rank = own_rank()
    if rank is None:
        return True
    import torch
    import torch.distributed as dist

    from pymtg.errors import RankError

    cuda = torch.cuda.is_available() if device is None else device.startswith("cuda")
    if cuda and device in (None, "cuda"):
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", rank)) % torch.cuda.device_count())
    try:
        dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo", timeout=timedelta(seconds=seconds))
    except (dist.DistError, RuntimeError) as error:
        raise RankError(f"rank {rank} could not meet the others within {timeout}: {error}") from error
    return rank == 0


def leave_ranks() -> None:
    """End the process group, where there is one: all ranks are done with it."""
    if own_rank() is None:
        return
    from pymtg._ranks import leave

    leave()


def shown_ranks() -> dict[str, int]:
    """Return what a run's settings hold of its ranks; nothing of one process."""
    return {} if own_rank() is None else {"ranks": int(os.environ["WORLD_SIZE"])}


def refuse_ranks(command: str) -> None:
    """Raise CommandError where torchrun has started a command several times that runs in one process."""
    if own_rank() is not None:
        raise CommandError(
            f"{command} runs in one process, and torchrun has started {os.environ['WORLD_SIZE']}: call it without "
            "torchrun (stg and dmtg take part in a run of several ranks)"
        )
