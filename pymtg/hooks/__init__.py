"""Data maps from a training loop that somebody else wrote: forward hooks on its loss or its model."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from pymtg._checks import check_classification
from pymtg.datamap import DataMap
from pymtg.errors import InvalidArgumentError, InvalidTypeError
from pymtg.hooks._errors import RecordingError
from pymtg.hooks._loader import RecordedLoader
from pymtg.hooks._recorder import Recorder
from pymtg.hooks._sources import sources_of
from pymtg.tasks import TaskLayout

__all__ = ["RecordedLoader", "Recorder", "RecordingError", "record"]


def record(
    loss_or_model: nn.Module | Mapping[str, nn.Module] | None,
    layout: TaskLayout,
    num_samples: int | None = None,
    *,
    data_map: DataMap | None = None,
    missing: bool | None = None,
    ddof: int | None = None,
    ignore_index: int | None = None,
    in_order: bool = False,
) -> Recorder:
    """Return a recorder that fills a data map from somebody else's training loop.

    Use it as a context manager or with :meth:`Recorder.attach` and :meth:`Recorder.detach`. While attached it listens,
    by a forward hook, to the loss (or the model) and records the gold-label probabilities of every training batch,
    with the same operator as :class:`pymtg.MultiTaskLoss`. It changes no loss, no gradient and no random state, and
    keeps no graph alive. The loop has to say which samples a batch holds: either one line in its body,
    ``recorder.ids(ids)``, before the forward; or one line above it, ``loader = recorder.batches(loader)``, where the
    loader's dataset is wrapped in :func:`pymtg.data.with_ids`.

    **What is recorded.** Forwards in training mode (``module.training``) with gradients enabled, so that a validation
    pass under ``torch.no_grad()`` is left out; not what :meth:`Recorder.pause` or :meth:`Recorder.paused` cover, and
    not the recomputation of a checkpointed segment in the backward pass. (``checkpoint(use_reentrant=True)`` runs its
    *first* forward under ``no_grad``: a module inside one is never recorded. Use ``use_reentrant=False``.)
    Class weights, ``pos_weight``, label smoothing and the reduction of the loss do not change the gold probability.

    **What cannot be hooked.** Functional calls such as ``F.cross_entropy``: use
    ``recorder.record(logits, targets, ids)`` there. ``torch.compile``: attach to the module that the loop calls, that
    is, to the compiled one; its hook then runs outside the graph, ``fullgraph=True`` included. A module that is hooked
    inside a compiled region breaks the graph there (an error with ``fullgraph=True``), and if it is hooked after
    the region was compiled, its hook is never called; :meth:`Recorder.snapshot` raises where nothing was recorded.
    ``nn.DataParallel``: attach to the wrapper or to the loss, not to the module inside.
    A loss that works on its logits in place is seen after it has: attach to the model.

    **On a GPU** the backends "triton" and "cuda" do not stop the host for a bad id or label (a soft one among them):
    its row is left out, and the error comes where the map is read, as with :class:`pymtg.MultiTaskLoss`. Soft labels
    beside float64 logits are an error at once.

    Parameters
    ----------
    loss_or_model
        - ``nn.CrossEntropyLoss`` for one softmax task: logits ``[B, C]``, integer targets ``[B]``. Its own
          ``ignore_index`` marks missing labels.
        - ``nn.BCEWithLogitsLoss`` for T one-logit tasks: logits and 0/1 targets ``[B, T]``, or ``[B]`` for one task.
        - A dict or ``nn.ModuleDict`` with one loss per task of the layout, each called with the logits and targets of
          its task, in any order. Together they are one batch, recorded when the last task was seen. With a map of
          missing labels the loop may skip tasks: those not seen by the end of the batch (the next ids, a snapshot, the
          end of the loader, detach or flush) count as missing in it. With a map of complete labels that is an error.
        - Any other module called as ``loss(logits [B, num_logits], targets [B, T])``.
        - A model whose output is the logits ``[B, num_logits]``: a tensor, the first entry of a tuple, an attribute or
          key ``logits``, or a dict of logits by task name. The loop's line is then ``recorder.batch(ids, targets)``
          (or ``recorder.targets(targets)`` where :meth:`Recorder.batches` gives the ids).
        - None: nothing is hooked, for :meth:`Recorder.record` alone.
    layout
        The tasks.
    num_samples
        M, the size of the training set: ids are 0..M-1. Not needed with `data_map`.
    data_map
        An existing map to go on with, on the logits' device. By default a new one, which moves to the device of the
        logits at the first batch.
    missing, ddof
        Of the new map, as in :class:`pymtg.DataMap`: False and 0 by default.
    ignore_index
        The label that stands for "missing", -100 by default; a cross-entropy loss has its own. NaN stands for it too
        in floating-point targets.
    in_order
        Allow one module to stand for several tasks of the dict. A call does not say which task it is for, so the calls
        of each batch are taken in the order of the dict, and all of its tasks have to come.

    Raises
    ------
    InvalidArgumentError, InvalidTypeError
        For a loss whose logits cannot be read off its arguments (``nn.NLLLoss`` takes log-probabilities, for one), one
        that does not fit the layout, losses that are not one per task, one module for several tasks without
        `in_order`, a map of another layout or size, or what :class:`pymtg.DataMap` refuses.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> layout = TaskLayout(["species"], [3])
    >>> model, loss_function = nn.Linear(4, 3), nn.CrossEntropyLoss()
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> with record(loss_function, layout, num_samples=8) as recorder:
    ...     for epoch in range(2):
    ...         for ids in torch.arange(8).split(4):
    ...             recorder.ids(ids)  # the one line that is added
    ...             loss = loss_function(model(torch.ones(4, 4)), torch.tensor([0, 1, 2, 0]))
    ...             optimizer.zero_grad()
    ...             loss.backward()
    ...             optimizer.step()
    ...         snapshot = recorder.snapshot(epoch)
    >>> recorder.data_map.mean.shape, recorder.data_map.count.unique()
    (torch.Size([8, 1]), tensor([2], dtype=torch.int32))
    """
    if not isinstance(layout, TaskLayout):
        raise InvalidTypeError(f"layout must be a TaskLayout; got {type(layout).__name__}")
    check_classification(layout, "; MultiTaskLoss records both kinds")
    sources = () if loss_or_model is None else sources_of(loss_or_model, layout, ignore_index, in_order)
    if data_map is not None:
        _check_map(data_map, layout, num_samples, missing, ddof)
        return Recorder(sources, layout, data_map, follow_device=False, ignore_index=ignore_index)
    if num_samples is None:
        raise InvalidArgumentError("num_samples must be given unless data_map is; got None")
    data_map = DataMap(num_samples, layout, ddof=0 if ddof is None else ddof, missing=bool(missing))
    return Recorder(sources, layout, data_map, follow_device=True, ignore_index=ignore_index)


def _check_map(
    data_map: DataMap, layout: TaskLayout, num_samples: int | None, missing: bool | None, ddof: int | None
) -> None:
    if not isinstance(data_map, DataMap):
        raise InvalidTypeError(f"data_map must be a DataMap; got {type(data_map).__name__}")
    if data_map.layout != layout:
        raise InvalidArgumentError("data_map must have the layout that is recorded; theirs differ")
    asked = {"num_samples": num_samples, "missing": missing, "ddof": ddof}
    for name, value in asked.items():
        has = getattr(data_map, name)
        if value is not None and value != has:
            raise InvalidArgumentError(f"{name} must be that of data_map ({has}) or left out; got {value!r}")
