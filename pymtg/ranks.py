"""Several ranks of torch.distributed in a loop of your own: Gram matrices added up, samplers' padding told apart.

The trainers need none of this: they take part by themselves where a process group is initialised. A
:class:`pymtg.DataMap` is merged over the ranks by its methods ``all_reduce_`` and ``reduce_scatter``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.data import DistributedSampler

from pymtg._ranks import Ranks
from pymtg.errors import InvalidArgumentError, InvalidTypeError, RankError

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

__all__ = ["RankError", "own_samples", "sum_gram"]


def sum_gram(gram: Tensor, group: ProcessGroup | None = None) -> Tensor:
    """Return the sum of the ranks' Gram matrices: that of all samples, from the parts of their owners.

    Parameters
    ----------
    gram
        ``[T, T]`` float64, as :meth:`pymtg.DataMap.gram` of a part returns it; left as it is.
    group
        The process group; by default all ranks. Every rank of it has to call this.

    Returns
    -------
    ``[T, T]`` float64, the same bits on every rank; a copy where there is one rank only.

    Raises
    ------
    InvalidTypeError
        If it is no float64 tensor.
    RankError
        If a rank is lost, or the shapes differ.

    Examples
    --------
    >>> from pymtg import DataMap, TaskLayout
    >>> data_map = DataMap(3, TaskLayout.binary(["odd", "even"]))
    >>> owned, part = data_map.reduce_scatter()
    >>> sum_gram(part.gram()).shape
    torch.Size([2, 2])
    """
    if not isinstance(gram, Tensor) or gram.dtype != torch.float64:
        raise InvalidTypeError(f"gram must be a float64 tensor; got {getattr(gram, 'dtype', type(gram).__name__)}")
    ranks, total = Ranks.here(group), gram.clone()
    if ranks is not None:
        ranks.check_alike(str(list(gram.shape)), "shape of its Gram matrix")
        ranks.sum_(total)
    return total


def own_samples(sampler: Any) -> int:
    """Return how many of the samples that a sampler draws an epoch are no repeats that fill up the last round.

    :class:`torch.utils.data.DistributedSampler` without ``drop_last`` repeats samples until every rank has as many as
    the others. The repeats stand at the end: all that a rank draws after its first ``own_samples(sampler)`` ones was
    seen elsewhere in the same epoch, and must not be recorded a second time.
    :meth:`pymtg.hooks.Recorder.batches` sees to that by itself.

    Parameters
    ----------
    sampler
        A DistributedSampler, or any sampler with a length; one that is none of the first kind repeats nothing.

    Raises
    ------
    InvalidArgumentError
        If it has no length.

    Examples
    --------
    >>> from torch.utils.data import DistributedSampler
    >>> [own_samples(DistributedSampler(range(10), num_replicas=4, rank=rank)) for rank in range(4)]
    [3, 3, 2, 2]
    """
    if isinstance(sampler, DistributedSampler) and not sampler.drop_last:
        size: int = len(sampler.dataset)  # type: ignore[arg-type]
        return len(range(sampler.rank, size, sampler.num_replicas))
    if not hasattr(sampler, "__len__"):
        raise InvalidArgumentError(f"sampler must have a length; got {type(sampler).__name__}")
    return len(sampler)
