"""Which branch serves which task: a categorical distribution per task, learned through relaxed samples."""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pymtg._moving import to_device
from pymtg.errors import InvalidArgumentError, InvalidTypeError
from pymtg.nets._slicing import cut
from pymtg.nets.backbones import checked_size
from pymtg.nets.temperature import check_temperature

__all__ = ["INITS", "SAMPLING", "TaskAssignment"]

SAMPLING = ("gumbel", "hard", "softmax", "per_sample", "fixed")
INITS = ("ones", "diagonal", "normal")


class TaskAssignment(nn.Module):
    """Logits ``theta`` [T, K] of a categorical distribution over K branches for each of T tasks (DMTG).

    Every draw is a number in one stream that follows from `seed`: it depends neither on the device, nor on the global
    generators, nor on the rank of a distributed run, so that all ranks draw the same. The count of draws is part of
    ``state_dict``.

    Parameters
    ----------
    num_tasks, num_branches
        T and K.
    sampling
        ``"gumbel"``: ``softmax((theta + g) / temperature)`` with Gumbel noise g, one draw for the whole batch (as
        released). ``"hard"``: its one-hot argmax, with the gradient of the relaxed sample (straight-through).
        ``"softmax"``: ``softmax(theta / temperature)`` without noise. ``"per_sample"``: ``"gumbel"`` with a draw for
        every row of the batch. ``"fixed"``: the one-hot argmax of theta, which is not learned.
    init
        ``"ones"``: ``1 + eps * U(0, 1)``. ``"diagonal"``: 0.9 on branch ``t mod K``, ``0.1 / (K - 1)`` elsewhere.
        ``"normal"``: ``N(1, 0.2^2)``.
    eps
        Of ``"ones"``; 0 leaves the choice to the noise of the draws.
    seed
        Draws the start and the samples.

    Attributes
    ----------
    theta : torch.nn.Parameter
        [T, K]. Samples are computed in float32 whatever its dtype (float64 if that is its dtype).
    draws : int
        Samples drawn so far.

    Raises
    ------
    InvalidArgumentError, InvalidTypeError
        For sizes below 1, unknown names, an `eps` that is negative or not finite, a negative seed.

    Notes
    -----
    Gao et al., "DMTG: One-shot differentiable multi-task grouping", ICML 2024, arXiv 2407.05082; Jang et al.,
    "Categorical reparameterization with Gumbel-softmax", ICLR 2017.

    Examples
    --------
    >>> assignment = TaskAssignment(4, 2, sampling="hard", seed=3)
    >>> assignment.sample(1.0).sum(dim=1)
    tensor([1., 1., 1., 1.], grad_fn=<SumBackward1>)
    """

    theta: nn.Parameter

    def __init__(
        self,
        num_tasks: int,
        num_branches: int,
        *,
        sampling: str = "gumbel",
        init: str = "ones",
        eps: float = 0.0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        tasks, branches = checked_size(num_tasks, "num_tasks"), checked_size(num_branches, "num_branches")
        self.sampling = _checked_name("sampling", sampling, SAMPLING)
        self.init = _checked_name("init", init, INITS)
        self.seed = _checked_count("seed", seed)
        self.draws = 0
        self.branch_ids = tuple(range(branches))
        self._drawn_branches = branches  # noise is drawn for all of them: dropping one leaves the others' draws alone
        theta = _start(tasks, branches, init, _checked_eps(eps), _generator(self.seed, -1))
        self.theta = nn.Parameter(theta, requires_grad=sampling != "fixed")

    @classmethod
    def fixed(cls, labels: Sequence[int] | Tensor, num_branches: int) -> TaskAssignment:
        """Return the assignment of task t to branch ``labels[t]``, not learned.

        Raises InvalidArgumentError for a label that is no branch, or no labels; InvalidTypeError for no numbers.
        """
        try:
            at = torch.as_tensor(labels)
        except (TypeError, ValueError, RuntimeError):
            raise InvalidTypeError(f"labels must be integers, one per task; got {labels!r}") from None
        if at.ndim != 1 or at.numel() == 0 or at.is_floating_point() or at.is_complex() or at.dtype == torch.bool:
            raise InvalidArgumentError(f"labels must be integers, one per task; got {labels!r}")
        branches = checked_size(num_branches, "num_branches")
        if int(at.min()) < 0 or int(at.max()) >= branches:
            raise InvalidArgumentError(f"labels must be 0..{branches - 1}; got {at.tolist()}")
        made = cls(len(at), branches, sampling="fixed")
        with torch.no_grad():
            made.theta.copy_(nn.functional.one_hot(at.long(), branches))
        return made

    @property
    def num_tasks(self) -> int:
        """T."""
        return int(self.theta.shape[0])

    @property
    def num_branches(self) -> int:
        """K, of the branches that are left."""
        return int(self.theta.shape[1])

    def sample(self, temperature: float = 1.0, rows: int | None = None, *, first_row: int = 0) -> Tensor:
        """Draw an assignment in training mode; in eval mode, and where it is fixed, return the one-hot argmax.

        Parameters
        ----------
        temperature
            Above 0: near 0 samples are almost one-hot, large ones are almost equal shares.
        rows
            B, needed for ``"per_sample"`` only.
        first_row
            Of ``"per_sample"``: where this batch's rows stand in the batch of all ranks, whose draws are then those
            of a single rank with all the rows.

        Returns
        -------
        Z, rows that sum to 1: [T, K], or [B, T, K] for ``"per_sample"`` in training mode. float32, or float64 where
        theta is; never NaN while theta is finite.

        Raises
        ------
        InvalidArgumentError, InvalidTypeError
            For a temperature outside 1e-30..1e30, rows that are not given where they are needed, or no counts.
        """
        check_temperature("temperature", temperature)
        if not self.training or self.sampling == "fixed":
            return self._one_hot()
        with torch.autocast(self.theta.device.type, enabled=False):
            logits = self.theta if self.theta.dtype == torch.float64 else self.theta.float()
            if self.sampling != "softmax":
                drawn = self._gumbel(rows, first_row).to(logits.dtype)
                logits = logits + to_device(drawn, logits.device)
            # The largest becomes 0 first: a difference over a tiny temperature may overflow, but to -inf only.
            relaxed = ((logits - logits.detach().amax(-1, keepdim=True)) / temperature).softmax(-1)
            if self.sampling != "hard":
                return relaxed
            # of the logits: divided by a large temperature, different ones may become equal
            chosen = nn.functional.one_hot(logits.argmax(-1), self.num_branches).to(relaxed)
            return chosen + (relaxed - relaxed.detach())

    forward = sample

    def probabilities(self) -> Tensor:
        """Return ``softmax(theta)``, detached, [T, K] float32 or float64; one-hot where the assignment is fixed."""
        if self.sampling == "fixed":
            return self._one_hot()
        theta = self.theta.detach()
        return (theta if theta.dtype == torch.float64 else theta.float()).softmax(-1)

    def labels(self) -> Tensor:
        """Return each task's most probable branch [T], int64, among those that are left; the first of several."""
        return self.theta.detach().argmax(-1)

    def entropy(self) -> Tensor:
        """Return ``mean_t sum_k [-p ln p - (1 - p) ln(1 - p)]``, p = softmax(theta_t), differentiable (DMTG, eq. 8).

        0 for a fixed assignment, whose probabilities are 0 and 1.
        Both logarithms are taken as differences of log-sum-exps, so that a p of 0 or 1 gives 0 and a finite gradient.
        """
        theta = self.theta if self.theta.dtype == torch.float64 else self.theta.float()
        if self.num_branches == 1 or self.sampling == "fixed":
            return theta.sum() * 0
        theta = theta - theta.detach().amax(-1, keepdim=True)  # far from 0 a float32 has no digits left for differences
        log_p = theta.log_softmax(-1)
        itself = torch.eye(self.num_branches, dtype=torch.bool, device=theta.device)
        others = theta.unsqueeze(-2).masked_fill(itself, -math.inf).logsumexp(-1)  # [T, K], without branch k
        log_q = others - theta.logsumexp(-1, keepdim=True)
        return -(log_p.exp() * log_p + log_q.exp() * log_q).sum(-1).mean()

    def imbalance(self) -> Tensor:
        """Return how unevenly the branches are asked for: ``sum_k q_k ln(K q_k)``, q the mean of the probabilities.

        The divergence of q from equal shares, differentiable, 0 to ln K (ours; as in load balancing of experts).
        """
        theta = self.theta if self.theta.dtype == torch.float64 else self.theta.float()
        log_q = theta.log_softmax(-1).logsumexp(0) - math.log(self.num_tasks)
        return (log_q.exp() * log_q).sum() + math.log(self.num_branches)

    def drop(self, keep: Sequence[int] | Tensor, optimizer: torch.optim.Optimizer | None = None) -> None:
        """Keep the branches at these positions only; the draws of those that stay do not change.

        `theta` becomes a new parameter, in the optimizer too, which keeps its state. Raises InvalidArgumentError for a
        position that is none, or none at all.
        """
        at = [_checked_count("keep", k) for k in (keep.tolist() if isinstance(keep, Tensor) else keep)]
        if not at or len(set(at)) != len(at) or max(at) >= self.num_branches:
            raise InvalidArgumentError(f"keep must be different positions in 0..{self.num_branches - 1}; got {at}")
        self.branch_ids = tuple(self.branch_ids[k] for k in at)
        self.theta = cut(self.theta, torch.tensor(at, device=self.theta.device), optimizer, dim=1)

    def get_extra_state(self) -> Tensor:
        """Return for ``state_dict`` what theta does not hold: the count of draws, and which branches are left."""
        return torch.tensor([self.draws, self._drawn_branches, *self.branch_ids])

    def set_extra_state(self, state: Any) -> None:
        """Take the draws and the branches back; InvalidArgumentError if there are more or fewer of these here."""
        draws, drawn, *branches = state.tolist()
        if len(branches) != self.num_branches:
            raise InvalidArgumentError(
                f"state must be of {self.num_branches} branches, as here; got one of {len(branches)}"
            )
        self.draws, self._drawn_branches, self.branch_ids = draws, drawn, tuple(branches)

    def extra_repr(self) -> str:
        """Name sizes and sampling in ``repr``."""
        return f"{self.num_tasks} tasks, {self.num_branches} branches, sampling={self.sampling!r}"

    def _one_hot(self) -> Tensor:
        dtype = torch.float64 if self.theta.dtype == torch.float64 else torch.float32
        return nn.functional.one_hot(self.labels(), self.num_branches).to(dtype)

    def _gumbel(self, rows: int | None, first_row: int) -> Tensor:
        shape = [self.num_tasks, self._drawn_branches]
        first = 0
        if self.sampling == "per_sample":
            if rows is None:
                raise InvalidArgumentError("rows must be given for sampling 'per_sample'; got None")
            first = _checked_count("first_row", first_row)
            shape = [first + _checked_count("rows", rows), *shape]
        generator = _generator(self.seed, self.draws)
        self.draws += 1
        # -log of an exponential draw: no logarithm of a uniform draw that may be 0 or 1
        noise = torch.empty(shape, dtype=torch.float64).exponential_(generator=generator)
        noise = noise.clamp_(min=torch.finfo(torch.float64).tiny).log_().neg_()
        noise = noise[first:] if self.sampling == "per_sample" else noise
        if self.branch_ids != tuple(range(self._drawn_branches)):  # some are gone, or all stand in another order
            noise = noise[..., list(self.branch_ids)]
        return noise


def _start(tasks: int, branches: int, init: str, eps: float, generator: torch.Generator) -> Tensor:
    if init == "normal":
        return 1 + 0.2 * torch.randn(tasks, branches, generator=generator)
    if init == "diagonal":
        theta = torch.full((tasks, branches), 0.1 / max(branches - 1, 1))
        theta[torch.arange(tasks), torch.arange(tasks) % branches] = 0.9
        return theta
    return 1 + eps * torch.rand(tasks, branches, generator=generator)


def _generator(seed: int, draw: int) -> torch.Generator:
    """Return a CPU generator for draw number `draw` of the stream of `seed`.

    torch keeps 32 bits of a seed, so that all of both numbers are mixed into them first (splitmix64, Steele et al.
    2014).
    """
    word = (seed * 0x9E3779B97F4A7C15 + draw + 2) % 2**64
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        word = ((word ^ (word >> shift)) * factor) % 2**64
    return torch.Generator().manual_seed((word ^ (word >> 31)) >> 32)


def _checked_count(argument: str, value: Any) -> int:
    """Return `value` if it is an integer of at least 0."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise InvalidTypeError(f"{argument} must be an integer; got {value!r}")
    if value < 0:
        raise InvalidArgumentError(f"{argument} must not be negative; got {value}")
    return int(value)


def _checked_name(argument: str, value: Any, known: tuple[str, ...]) -> str:
    if not isinstance(value, str) or value not in known:
        raise InvalidArgumentError(f"{argument} must be one of {', '.join(map(repr, known))}; got {value!r}")
    return value


def _checked_eps(eps: Any) -> float:
    if isinstance(eps, bool) or not isinstance(eps, (int, float)):
        raise InvalidTypeError(f"eps must be a number; got {eps!r}")
    if not 0 <= eps < math.inf:
        raise InvalidArgumentError(f"eps must be finite and not negative; got {eps}")
    return float(eps)
