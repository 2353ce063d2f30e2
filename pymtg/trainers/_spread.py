"""The specialised networks of STG spread over the ranks: each trains some of them whole, as one process would."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from torch import nn

from pymtg._ranks import Ranks
from pymtg.trainers import _stopping
from pymtg.trainers._agreement import RankedAgreement, Wish
from pymtg.trainers._keeper import FileKeeper, Keeper
from pymtg.trainers._loop import Trained
from pymtg.trainers._mail import Mail
from pymtg.trainers._run_state import load_weights, stage_of, stage_state
from pymtg.trainers._seeding import seeded
from pymtg.trainers._shared_state import Shares
from pymtg.trainers.results import StageResult

if TYPE_CHECKING:
    from pymtg.trainers._loop import Run
    from pymtg.trainers._stages import Setting

__all__ = ["train_spread"]


def train_spread(
    setting: Setting, memberships: npt.NDArray[np.float64], *, epochs: int, start: nn.Module | None
) -> list[Trained]:
    """Train networks with task weights ``[T, K]`` in rounds of as many as there are ranks; all ranks get all of them.

    Each network is the one that :meth:`Setting.specialised` trains in one process, bit for bit. A round is a stage: the
    ranks keep step, so that a checkpoint holds the networks of all of them at the same batch. In the last round a rank
    for which no network is left trains a copy of the first of them, which is all there is to do for it.
    """
    ranks, networks = setting.ranks, memberships.shape[1]
    assert ranks is not None
    alone = dataclasses.replace(setting, ranks=None)
    found: list[Trained] = []
    with _in_step(setting.keeper, ranks):
        for first in range(0, networks, ranks.world):
            own = first + ranks.rank if first + ranks.rank < networks else first
            restored = setting.keeper.knows_next_stage()
            one = alone.specialised(own, memberships[:, own], epochs=epochs, start=start)
            each = Shares(ranks).packed(stage_state(one.stage) | {"network": dict(one.network.state_dict())})["each"]
            for k in range(first, min(first + ranks.world, networks)):
                found.append(one if k == own else _received(setting, each[k - first], start, one.network))
                if k != own:
                    _tell(setting, found[k].stage, restored)
    return found


def _received(setting: Setting, state: dict[str, Any], start: nn.Module | None, like: nn.Module) -> Trained:
    """Return a network that another rank has trained."""
    device = setting.config.torch_device
    with seeded(setting.seed, device):  # the caller's random states are left alone
        network = setting.build(setting.layout) if start is None else copy.deepcopy(start)
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
