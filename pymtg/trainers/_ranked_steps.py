"""The training of one network by several ranks: every batch is cut into shares, and the step is that of the whole."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from pymtg._ranks import Ranks
from pymtg.errors import InvalidArgumentError
from pymtg.trainers._agreement import Wish
from pymtg.trainers._batches import batch_cuts
from pymtg.trainers._mail import Mail
from pymtg.trainers._predict import forward_all
from pymtg.trainers._ranked_map import RankedMap
from pymtg.trainers._seeding import random_states, reseed, set_random_states, stage_seed
from pymtg.trainers._shared_state import shared

if TYPE_CHECKING:
    from pymtg.trainers._run import Run

__all__ = ["RankedSteps"]


class RankedSteps:
    """What a run does differently where several ranks train its network.

    A loss is a mean over the rows of a batch whose label is there, of which ranks have different numbers; and
    DistributedDataParallel takes the plain mean of the ranks' gradients. So each rank's loss of task t counts
    ``n_t W / N_t``, where n_t of the N_t labels of the whole batch are in its share: the mean is then the gradient of
    the whole batch. A share may be empty.
    """

    def __init__(self, run: Run, ranks: Ranks) -> None:
        self.run, self.ranks = run, ranks
        self.cuts = batch_cuts(run.train.num_samples, run.config.batch_size)
        _check_normalisation(run.network, min(stop - start for start, stop in self.cuts), ranks)
        self.map = None if run.job.data_map is None else RankedMap(run.job.data_map, ranks)
        self.wish: Callable[[], Wish] = lambda: Wish(None, False)
        self.first_row = 0
        """Where this rank's rows begin among those of the present batch."""
        self._mail = Mail(ranks, run.job.layout)
        self._factors: Tensor | None = None
        self._together: _Together | None = None
        for tensor in (*run.network.parameters(), *run.network.buffers()):
            ranks.give_(tensor.detach())  # a factory may draw elsewhere than from the seeded generators
        if not ranks.leads:  # every rank has rows of its own, and so noise of its own
            reseed(stage_seed(run.job.seed, "rank", ranks.rank), run.config.torch_device)

    # A step

    def losses(self, ids: Tensor, inputs: Any, targets: Tensor) -> tuple[Tensor, Tensor, float]:
        """Return the total to go back from, this rank's part of the T task losses, and by what both count."""
        start, stop = self.cuts[self.run.batch]
        self.first_row = self.ranks.part(stop - start).start
        self._factors = None if self.run.train.missing else self._plain_factors(len(ids), stop - start)
        self._mail.send(targets if self.run.train.missing else None, self.wish)
        if self._together is None or not self._together.serves(self.run.network):
            self._together = _Together(self.run, self.ranks)
        total, task_losses = self._together.losses(ids, inputs, targets)
        return total, task_losses * self.factors(), (stop - start) / self.ranks.world

    def factors(self) -> Tensor:
        """Return by what each task's loss counts here, [T]: with the network's outputs there, the counts are too."""
        if self._factors is None:
            own, total = self._mail.counts()
            self._factors = (own * self.ranks.world / total.clamp(min=1)).to(torch.get_default_dtype())
        return self._factors

    def agreed(self) -> Wish:
        """Return what the ranks have agreed on with the last batch."""
        return self._mail.wish()

    def after_backward(self) -> None:
        """See to the gradients where nothing else does."""
        if self._together is not None:
            self._together.after_backward()

    def _plain_factors(self, own: int, total: int) -> Tensor:
        tasks, device = self.run.job.layout.num_tasks, self.run.config.torch_device
        return torch.full((tasks,), own * self.ranks.world / total, device=device)

    # An epoch

    def total(self, sums: Tensor) -> Tensor:
        """Return the ranks' sums added up."""
        return self.ranks.sum_(sums.clone())

    def load_sums(self, sums: Tensor) -> Tensor:
        """Return this rank's part of sums that were added up."""
        return sums if self.ranks.leads else torch.zeros_like(sums)

    def random_states(self) -> list[dict[str, Any]]:
        """Return the states of the other ranks' generators."""
        own = random_states(self.run.config.torch_device)
        return [shared(self.ranks, own, rank) for rank in range(1, self.ranks.world)]

    def load_random_states(self, states: list[dict[str, Any]]) -> None:
        """Take this rank's states back; other ones, made from the seed, where there were other ranks."""
        device = self.run.config.torch_device
        if len(states) == self.ranks.world:
            set_random_states(states[self.ranks.rank], device)
        else:
            reseed(stage_seed(self.run.job.seed + len(self.run.history) + 1, "rank", self.ranks.rank), device)

    def settle(self) -> None:
        """Give every rank the buffers of rank 0: its running statistics are the network's."""
        for buffer in self.run.network.buffers():
            self.ranks.give_(buffer)

    def scores(self) -> tuple[float, ...] | None:
        """Return the validation scores, the same on all ranks; each predicts a part, rank 0 scores them all."""
        run = self.run
        if run.val is None:
            return None
        parts = forward_all(run.network, run.val, run.job.layout, run.config, ranks=self.ranks)
        logits, targets = (self.ranks.joined(part) for part in parts)
        found = self.ranks.first(lambda: run.scores_of(logits, targets))
        values = torch.zeros(run.job.layout.num_tasks, dtype=torch.float64)
        if found is not None:
            values = torch.tensor(found, dtype=torch.float64)
        return tuple(self.ranks.give_(values).tolist())


class _Together:
    """A network under DistributedDataParallel, as long as its parameters are the same ones."""

    def __init__(self, run: Run, ranks: Ranks) -> None:
        self.ranks = ranks
        self.network, self.parameters = run.network, [p for p in run.network.parameters() if p.requires_grad]
        self.objective = _Objective(run)
        self.wrapped: DistributedDataParallel | None = None

    def serves(self, network: nn.Module) -> bool:
        """Return whether this is the network, with no parameter dropped since."""
        now = [p for p in network.parameters() if p.requires_grad]
        return network is self.network and list(map(id, now)) == list(map(id, self.parameters))

    def losses(self, ids: Tensor, inputs: Any, targets: Tensor) -> tuple[Tensor, Tensor]:
        found: tuple[Tensor, Tensor] = (self.wrapped or self.objective)(ids, inputs, targets)
        return found

    def after_backward(self) -> None:
        """Average the first step's gradients, and see which parameters have any, before the network is wrapped.

        DistributedDataParallel waits for the gradients of all parameters, unless it is told beforehand to look in every
        step for those that have none.
        """
        if self.wrapped is not None:
            return
        here = [p.grad is not None and self.objective.had_rows for p in self.parameters]
        used = self.ranks.sum_(torch.tensor(here, dtype=torch.int64)) > 0
        for parameter, somewhere in zip(self.parameters, used.tolist(), strict=True):
            if somewhere:
                gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
                parameter.grad = self.ranks.sum_(gradient.div_(self.ranks.world))
            else:
                parameter.grad = None
        self.objective.used = [p for p, somewhere in zip(self.parameters, used.tolist(), strict=True) if somewhere]
        self.wrapped = DistributedDataParallel(
            self.objective, process_group=self.ranks.group, find_unused_parameters=not bool(used.all())
        )


class _Objective(nn.Module):
    """Network and loss in one module: whatever the total depends on is seen."""

    def __init__(self, run: Run) -> None:
        super().__init__()
        self.run = run
        self.network = run.network
        self.used = [p for p in run.network.parameters() if p.requires_grad]
        self.had_rows = False

    def forward(self, ids: Tensor, inputs: Any, targets: Tensor) -> tuple[Tensor, Tensor]:
        self.had_rows = len(ids) > 0
        if self.had_rows:
            return self.run.loss_of(ids, inputs, targets)
        nothing = torch.zeros((), device=targets.device)
        for parameter in self.used:  # whose gradients, of zeros, the other ranks wait for
            nothing = nothing + parameter.sum() * 0
        task_losses = torch.zeros(self.run.job.layout.num_tasks, device=targets.device)
        return self.run.loss_of_nothing(nothing), task_losses


def _check_normalisation(network: nn.Module, fewest: int, ranks: Ranks) -> None:
    """Raise InvalidArgumentError where a rank without rows would leave the others waiting in a layer of theirs."""
    synced = any(isinstance(module, nn.SyncBatchNorm) for module in network.modules())
    if synced and fewest < ranks.world:
        raise InvalidArgumentError(
            f"batch_size must leave every one of the {ranks.world} ranks a row where the network has SyncBatchNorm; "
            f"got a batch of {fewest}"
        )
