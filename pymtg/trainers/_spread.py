"""The specialised networks of STG spread over the ranks: each trains some of them whole, as one process would."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from pymtg._ranks import Ranks
from pymtg.nets._copying import copy_of
from pymtg.trainers import _stopping
from pymtg.trainers._agreement import RankedAgreement, Wish
from pymtg.trainers._keeper import FileKeeper, Keeper
from pymtg.trainers._loop import Trained
from pymtg.trainers._mail import Mail
from pymtg.trainers._run_state import load_weights, stage_of, stage_state
from pymtg.trainers._seeding import seeded
from pymtg.trainers._shared_state import Shares
from pymtg.trainers._together import can_stack, train_together
from pymtg.trainers.results import StageResult

if TYPE_CHECKING:
    from pymtg.trainers._run import Run
    from pymtg.trainers._stages import Setting

__all__ = ["train_spread"]


def train_spread(
    setting: Setting,
    memberships: npt.NDArray[np.float64],
    *,
    epochs: int,
    start: nn.Module | None,
    together: bool = False,
) -> list[Trained]:
    """Train K networks with task weights ``[T, K]``, each whole on one rank; all ranks get all of them.

    In rounds of as many as there are ranks, each network is the one that :meth:`Setting.specialised` trains in one
    process, bit for bit. With `together` there is one round, in which every rank trains its networks as one where they
    have such a form. A round is a stage: the ranks keep step, so that a checkpoint holds the networks of all of them at
    the same batch. A rank for which no network is left trains a copy of another's, which is all there is to do for it.
    """
    ranks, networks = setting.ranks, memberships.shape[1]
    assert ranks is not None
    alone = dataclasses.replace(setting, ranks=None)
    found: list[Trained] = []
    with _in_step(setting.keeper, ranks):
        for members in _rounds(alone, ranks, networks, start, together):
            own = members[ranks.rank] or members[0]
            restored = setting.keeper.knows_next_stage()
            if len(own) == 1:
                trained = [alone.specialised(own[0], memberships[:, own[0]], epochs=epochs, start=start)]
            else:
                trained = train_together(alone, memberships[:, own], epochs=epochs, start=start, members=own)
            states = [stage_state(one.stage) | {"network": dict(one.network.state_dict())} for one in trained]
            each = Shares(ranks).packed({"networks": states})["each"]
            mine = dict(zip(own, trained, strict=True))
            others: dict[int, Any] = {}
            for numbers, state in zip(members, each, strict=True):
                others |= dict(zip(numbers, state["networks"][: len(numbers)], strict=True))
            for k in sorted(others):
                found.append(mine[k] if k in mine else _received(setting, others[k], start, trained[0].network))
                if k not in mine:
                    _tell(setting, found[k].stage, restored)
    return found


def _rounds(
    setting: Setting, ranks: Ranks, networks: int, start: nn.Module | None, together: bool
) -> list[list[list[int]]]:
    """Return for every round the numbers of each rank's networks."""
    if together and networks > ranks.world:
        at_once = [list(range(rank, networks, ranks.world)) for rank in range(ranks.world)]
        own = at_once[ranks.rank]
        alike = torch.tensor([int(len(own) == 1 or can_stack(setting, own, start))])
        if int(ranks.sum_(alike)) == ranks.world:
            return [at_once]
    firsts = range(0, networks, ranks.world)
    return [[[k] if k < networks else [] for k in range(first, first + ranks.world)] for first in firsts]


def _received(setting: Setting, state: dict[str, Any], start: nn.Module | None, like: nn.Module) -> Trained:
    """Return a network that another rank has trained."""
    device = setting.config.torch_device
    with seeded(setting.seed, device):  # the caller's random states are left alone
        network = setting.build(setting.layout) if start is None else copy_of(start)
    load_weights(network, state["network"])
    return Trained(network.to(device).train(like.training), stage_of(state))


def _tell(setting: Setting, stage: StageResult, restored: bool) -> None:
    """Tell of the epochs of a network that another rank has trained, unless that was told before."""
    if restored:
        setting.reporter.restored(stage.name, stage.epochs)
        return
    for epoch in range(1, stage.epochs + 1):
        setting.reporter.epoch(stage.name, stage.history[:epoch], stage.epochs)


@contextmanager
def _in_step(keeper: Keeper, ranks: Ranks) -> Iterator[None]:
    """Let a keeper keep the networks of all ranks as one."""
    before, keeper.agreement = keeper.agreement, _StepAgreement(ranks)
    if isinstance(keeper, FileKeeper):
        keeper.shares = Shares(ranks)
    try:
        yield
    finally:
        keeper.agreement = before
        if isinstance(keeper, FileKeeper):
            keeper.shares = None


class _StepAgreement(RankedAgreement):
    """Of ranks that train networks of their own, batch by batch: they speak about twice a second."""

    def __init__(self, ranks: Ranks) -> None:
        super().__init__(ranks)
        self.mail = Mail(ranks)

    def between(self, run: Run, due: Callable[[], bool]) -> Wish:
        """Ask the others, where it is time to."""
        self.mail.send(None, lambda: Wish(_stopping.asked(), self.ranks.leads and due()))
        return self.mail.wish()
