"""A data map as a metric of torchmetrics: needs ``torchmetrics``, the extra ``pymtg[torchmetrics]``."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pymtg._checks import check_classification
from pymtg._moving import to_device
from pymtg._reference import MapState
from pymtg.datamap import DataMap
from pymtg.errors import InvalidArgumentError
from pymtg.functional import multitask_cross_entropy
from pymtg.hooks._reading import MISSING, Reader, as_ids
from pymtg.integrations._optional import needs
from pymtg.tasks import TaskLayout

try:
    from torchmetrics import Metric
except ImportError:
    raise needs("torchmetrics", "torchmetrics", "torchmetrics") from None

__all__ = ["DataMapMetric"]


class DataMapMetric(Metric):  # type: ignore[misc, unused-ignore]
    """Mean, deviation and correctness of every sample's gold-label probability in every task, as a metric.

    It goes where metrics go: into a ``MetricCollection``, through ``.to(device)``, ``clone``, pickle and state
    dictionaries; ``compute`` merges the processes' maps exactly, ``merge_state`` two metrics. Call :meth:`update`:
    calling the metric itself, as ``self.log(..., metric)`` does, also computes the batch's own values, which are as
    large as the map. A metric that is logged is reset at the end of the epoch; one that is not goes on over the
    epochs.

    With the defaults that torchmetrics keeps for :meth:`reset` it takes twice the memory of the map. Snapshots are a
    :class:`pymtg.DataMap`'s: see :attr:`data_map`.

    Parameters
    ----------
    layout
        The tasks, classification only.
    num_samples
        M; sample ids are 0..M-1.
    missing, ddof
        As in :class:`pymtg.DataMap`.
    ignore_index
        The label that stands for "missing". NaN stands for it too in floating-point targets.
    persistent
        Whether state dictionaries hold the map. (For the metrics of torchmetrics False is the default; a data map is
        gathered over a whole training.)
    kwargs
        Those of ``torchmetrics.Metric``: ``sync_on_compute``, ``process_group`` and so on.

    Raises
    ------
    InvalidArgumentError, InvalidTypeError
        For a layout with regression tasks, and what :class:`pymtg.DataMap` refuses.

    Examples
    --------
    >>> metric = DataMapMetric(TaskLayout.binary(["odd", "even"]), num_samples=4)
    >>> metric.update(torch.tensor([[0.0, 2.0]]), torch.tensor([[1, 0]]), sample_ids=torch.tensor([3]))
    >>> metric.compute()["mean"][3]
    tensor([0.5000, 0.1192])
    """

    is_differentiable = False
    higher_is_better = None
    full_state_update = False

    words_and_counts: Tensor
    rejected: Tensor
    kind: Tensor
    """A checksum of what the map is of: states of another layout or size are told by it."""
    missing_label: Tensor
    """The `ignore_index`: metrics of several share no state in a collection."""

    def __init__(
        self,
        layout: TaskLayout,
        num_samples: int,
        *,
        missing: bool = False,
        ddof: int = 0,
        ignore_index: int = MISSING,
        persistent: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        new = DataMap(num_samples, layout, missing=missing, ddof=ddof)
        check_classification(layout)
        self.layout, self.num_samples, self.missing, self.ddof = layout, num_samples, bool(missing), new.ddof
        self._reader = Reader(layout.names[0], layout.num_logits, layout.num_tasks, ignore_index, softmax=False)
        # One tensor for both: what several ranks or metrics hold is merged with means and counts at hand.
        flat = torch.zeros(_words_in(new.state.words) + _words_in(new.state.counts), dtype=torch.int32)
        merged = partial(_merged, like=(layout, num_samples, self.missing))
        self.add_state("words_and_counts", flat, dist_reduce_fx=merged, persistent=persistent)
        self.add_state("rejected", torch.zeros(1, dtype=torch.int64), dist_reduce_fx="sum", persistent=persistent)
        described = json.dumps([layout.to_dict(), num_samples, self.missing, self.ddof]).encode()
        self.add_state("kind", torch.tensor(zlib.crc32(described)), dist_reduce_fx="max", persistent=persistent)
        # Collections share the states of metrics whose states are equal. Not saved: maps of either label fit the other.
        self.add_state("missing_label", torch.tensor(ignore_index), dist_reduce_fx=_last, persistent=False)

    @property
    def data_map(self) -> DataMap:
        """The map as it stands, a copy: for snapshots, files and grouping. Of this process alone, unless synchronised.

        ``with metric.sync_context(): metric.data_map`` is that of all processes.
        """
        view = _view(self.words_and_counts, (self.layout, self.num_samples, self.missing), self.ddof, self.rejected)
        view.state = MapState(*(tensor.clone() for tensor in view.state))
        return view

    def update(self, preds: Tensor, target: Tensor, sample_ids: Tensor) -> None:
        """Record a batch.

        Raises what :func:`pymtg.functional.multitask_cross_entropy` raises; the map is then unchanged.

        Parameters
        ----------
        preds
            Logits ``[B, layout.num_logits]``, detached here.
        target
            ``[B, T]`` class numbers (``[B]`` for one task); 0/1 labels may be floating-point.
        sample_ids
            ``[B]`` positions in the map.
        """
        logits, targets = self._reader.read(preds, target)
        view = _view(self.words_and_counts, (self.layout, self.num_samples, self.missing), self.ddof, self.rejected)
        multitask_cross_entropy(
            logits,
            targets,
            self.layout,
            data_map=view,
            sample_ids=to_device(as_ids(sample_ids), logits.device),
        )

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Record a batch and return the values of it alone.

        Raises what :meth:`update` raises; the map is then unchanged.
        """
        before = dict(self.__dict__)  # torchmetrics resets the states before the update that may raise
        try:
            return super().forward(*args, **kwargs)
        except BaseException:
            self.__dict__.update(before)
            raise

    def compute(self) -> dict[str, Tensor]:
        """Return ``mean``, ``std`` and ``correctness``, float32 ``[M, T]``; 0 where nothing was observed."""
        now = self.data_map
        return {"mean": now.mean, "std": now.std, "correctness": now.correctness}

    def set_dtype(self, dst_type: str | torch.dtype) -> DataMapMetric:
        """Return the metric as it is: a map is packed words and counts, of no floating-point dtype."""
        return self

    def merge_state(self, incoming_state: dict[str, Any] | Metric) -> None:
        """Add the observations of another metric, or of its state: exact.

        Raises
        ------
        InvalidArgumentError
            If it is of another layout or `num_samples`, `missing` or `ddof`; this metric is then unchanged.
        """
        other = incoming_state if isinstance(incoming_state, dict) else vars(incoming_state)
        self._check_kind(other, "incoming_state")
        if isinstance(incoming_state, dict):
            incoming_state = {**incoming_state, "missing_label": self.missing_label}  # state dictionaries have none
        super().merge_state(incoming_state)

    def _check_kind(self, state: Mapping[str, Any], argument: str, prefix: str = "") -> None:
        for name in ("kind", "words_and_counts"):
            given, own = state.get(prefix + name), getattr(self, name)
            if given is None:
                continue
            if not isinstance(given, Tensor) or given.shape != own.shape or (name == "kind" and int(given) != int(own)):
                raise InvalidArgumentError(
                    f"{argument} must be of a metric with this one's layout, num_samples ({self.num_samples}), missing "
                    f"({self.missing}) and ddof ({self.ddof}); got that of another"
                )

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any) -> None:
        self._check_kind(state_dict, "state_dict", prefix)
        label = self.missing_label
        super()._load_from_state_dict(state_dict, prefix, *args)
        self.missing_label = label
        for name in self._defaults:  # torchmetrics takes the dictionary's own tensors, and these are updated in place
            setattr(self, name, getattr(self, name).clone())


Like = tuple[TaskLayout, int, bool]


def _view(flat: Tensor, like: Like, ddof: int = 0, rejected: Tensor | None = None) -> DataMap:
    """Return a map whose state lies in a metric's tensors."""
    layout, num_samples, missing = like
    data_map = DataMap(1, layout, missing=missing, ddof=ddof, device=flat.device)
    size = num_samples * 2 * layout.num_tasks
    counts = flat[size:]
    if missing:
        counts = counts.view(torch.int16)[: num_samples * layout.num_tasks].view(num_samples, layout.num_tasks)
    data_map.state = MapState(
        flat[:size].view(num_samples, 2, layout.num_tasks),
        counts,
        data_map.state.rejected if rejected is None else rejected,
    )
    return data_map


def _merged(states: Tensor, like: Like) -> Tensor:
    """Merge the states ``[ranks, words]`` of several maps, in their order."""
    total = states[0].clone()
    into = _view(total, like)
    for state in states[1:]:
        into.merge_(_view(state, like))
    return total


def _last(states: Tensor) -> Tensor:
    return states[-1]  # of two metrics torchmetrics puts the own state last


def _words_in(tensor: Tensor) -> int:
    return -(-tensor.nbytes // 4)
