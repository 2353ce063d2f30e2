"""Batches of (sample ids, inputs, targets) from whatever the caller's data is.

Data that is held in tensors is sliced by index, which costs microseconds a batch; anything else goes through a
DataLoader over the dataset with ids.
"""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, TypeAlias

import torch
from torch.utils.data import DataLoader, TensorDataset

from pymtg._moving import rows_to_device, to_device
from pymtg._ranks import Ranks
from pymtg.data import IGNORE_INDEX, ArrayTasks, IndexedDataset, PixelTasks, collate, from_arrays, with_ids
from pymtg.data.arrays import known_targets
from pymtg.errors import InvalidArgumentError, InvalidTypeError
from pymtg.tasks import TaskLayout
from pymtg.trainers.config import TrainConfig

__all__ = ["Batch", "BatchSource", "batch_source", "input_batches"]

Batch: TypeAlias = tuple[torch.Tensor, Any, torch.Tensor]

_RESIDENT_BYTES = 2**31  # tensors up to this size are copied to the device once, larger ones batch by batch


class BatchSource(Protocol):
    """Something that yields batches on the device.

    ``num_samples`` is M; ``unlabelled`` names the tasks that are known to have no label; ``missing`` tells whether
    labels may be missing (True where finding out would mean to read the whole dataset); ``orders_apart`` whether
    :meth:`shuffled_apart` draws every network's order from its own generator, or reads every sample once and gives it
    to all, in the order of the first.
    """

    num_samples: int
    unlabelled: tuple[str, ...]
    missing: bool
    orders_apart: bool

    def shuffled(self, generator: torch.Generator, first: int = 0, ranks: Ranks | None = None) -> Iterator[Batch]:
        """Yield one epoch in an order drawn from the generator, from batch `first` on; this rank's rows of each batch.

        A rank may have none of a batch's rows: the inputs are then None or have no rows.
        """
        ...

    def shuffled_apart(
        self, generators: Sequence[torch.Generator], first: int = 0, ranks: Ranks | None = None
    ) -> Iterator[Batch]:
        """Yield one epoch for K networks at once: ids [B, K], inputs [K, B, ...], targets [K, B, T]."""
        ...

    def in_order(self, ranks: Ranks | None = None) -> Iterator[Batch]:
        """Yield every sample once, in the dataset's order; with ranks, this rank's batches of them."""
        ...

    def select(self, tasks: Sequence[int]) -> BatchSource:
        """Return the same samples with the targets of some tasks only."""
        ...

    def describe(self) -> dict[str, Any]:
        """Return what tells these data from others, JSON-ready: at least the number of samples."""
        ...


def batch_source(data: Any, layout: TaskLayout, config: TrainConfig, argument: str) -> BatchSource:
    """Return the batches of a map-style dataset of (input, targets), or of a tuple (inputs, targets) of arrays.

    Raises
    ------
    InvalidTypeError
        If `data` is neither; `argument` is what the message calls it.
    InvalidArgumentError
        If it is empty, or its targets do not fit the layout.
    """
    if isinstance(data, IndexedDataset):
        data = data.dataset
    if isinstance(data, tuple):
        if len(data) != 2:
            raise InvalidArgumentError(
                f"{argument} must be a dataset or a tuple (inputs, targets); got {len(data)} entries"
            )
        data = from_arrays(*data, layout)
    elif isinstance(data, TensorDataset) and type(data).__getitem__ is TensorDataset.__getitem__:
        if len(data.tensors) != 2:
            raise InvalidArgumentError(f"{argument} must yield (input, targets); got {len(data.tensors)} tensors")
        data = from_arrays(data.tensors[0], data.tensors[1], layout)
    if isinstance(data, ArrayTasks):
        targets = _target_matrix(data.targets, layout, argument)
        prepare = data.prepare if isinstance(data, PixelTasks) else None
        return _TensorBatches(data.inputs, targets, layout, config, prepare)
    dataset = with_ids(data)
    if len(dataset) == 0:
        raise InvalidArgumentError(f"{argument} must hold at least one sample; got an empty dataset")
    return _LoaderBatches(dataset, layout, config, argument)


def input_batches(inputs: torch.Tensor, config: TrainConfig) -> Iterator[torch.Tensor]:
    """Yield slices of an input tensor, on the device.

    Copies: on some processors the last bits of a product depend on where its operands begin in memory, and a tensor's
    rows are to give what the same rows of a dataset give.
    """
    for start, stop in batch_cuts(len(inputs), config.batch_size):
        batch, device = inputs[start:stop], config.torch_device
        yield batch.to(device, copy=True) if batch.device == device else to_device(batch, device)


def _target_matrix(targets: Any, layout: TaskLayout, argument: str) -> torch.Tensor:
    """Return targets as [B, T], of the dtype that the layout's loss takes.

    A sample may hold them as a sequence of numbers, or one label if T is 1.
    """
    num_tasks = layout.num_tasks
    if isinstance(targets, (list, tuple)):
        try:
            targets = torch.stack([torch.as_tensor(column) for column in targets], dim=1)
        except (TypeError, ValueError, RuntimeError) as error:
            raise InvalidTypeError(f"{argument} must have a number per task as targets; {error}") from None
    if not isinstance(targets, torch.Tensor):
        raise InvalidTypeError(f"{argument} must have numeric targets; got {type(targets).__name__}")
    matrix: torch.Tensor = targets.unsqueeze(1) if targets.ndim == 1 and num_tasks == 1 else targets
    if matrix.ndim != 2 or matrix.shape[1] != num_tasks:
        shape = list(matrix.shape)
        raise InvalidArgumentError(f"{argument} must have targets [samples, {num_tasks}] for this layout; got {shape}")
    return _for_loss(matrix, layout, argument)


def _for_loss(matrix: torch.Tensor, layout: TaskLayout, argument: str) -> torch.Tensor:
    """Return targets as integers, or floating where some task is a regression."""
    if layout.has_regression:
        return matrix if matrix.is_floating_point() else matrix.to(torch.get_default_dtype())
    return _class_numbers(matrix, argument) if matrix.is_floating_point() else matrix


def _class_numbers(matrix: torch.Tensor, argument: str) -> torch.Tensor:
    """Return floating targets as integers, NaN as the label that stands for "missing"."""
    missing = matrix.isnan()
    if not bool((missing | (matrix == matrix.floor())).all()):
        value = matrix[~missing & (matrix != matrix.floor())][0].item()
        raise InvalidArgumentError(
            f"{argument} must have class numbers as targets (NaN or -100 if missing); got {value}"
        )
    return matrix.masked_fill(missing, IGNORE_INDEX).long()


def batch_cuts(num_samples: int, batch_size: int) -> list[tuple[int, int]]:
    """Return the bounds of ``ceil(M / batch_size)`` batches whose sizes differ by at most one."""
    count = -(-num_samples // batch_size)
    bounds = [num_samples * i // count for i in range(count + 1)] if count else []
    return list(itertools.pairwise(bounds))


def _shares(cuts: Sequence[tuple[int, int]], ranks: Ranks | None) -> Sequence[tuple[int, int]]:
    """Return the bounds of this rank's rows of every batch; some may be empty."""
    if ranks is None:
        return cuts
    parts = [(start, ranks.part(stop - start)) for start, stop in cuts]
    return [(start + part.start, start + part.stop) for start, part in parts]


def _whole_batches(cuts: Sequence[tuple[int, int]], ranks: Ranks | None) -> Sequence[tuple[int, int]]:
    """Return the bounds of this rank's batches, whole ones."""
    if ranks is None:
        return cuts
    mine = ranks.part(len(cuts))
    return cuts[mine.start : mine.stop]


class _TensorBatches:
    orders_apart = True

    def __init__(
        self,
        inputs: torch.Tensor,
        targets: torch.Tensor,
        layout: TaskLayout,
        config: TrainConfig,
        prepare: Callable[[torch.Tensor], torch.Tensor] | None = None,
    ) -> None:
        self.layout, self.config, self.device = layout, config, config.torch_device
        self.prepare = prepare  # what makes a network's input of what is kept, on the device
        small = inputs.element_size() * inputs.numel() + targets.element_size() * targets.numel() <= _RESIDENT_BYTES
        self.inputs = inputs.to(self.device) if small else inputs
        self.targets = targets.to(self.device) if small else targets
        known = known_targets(targets, layout)
        self.missing = not bool(known.all())
        self.unlabelled = tuple(name for name, any_ in zip(layout, known.any(0).tolist(), strict=True) if not any_)
        self.num_samples = len(inputs)
        self.cuts = batch_cuts(self.num_samples, config.batch_size)

    def shuffled(self, generator: torch.Generator, first: int = 0, ranks: Ranks | None = None) -> Iterator[Batch]:
        return self._batches(torch.randperm(self.num_samples, generator=generator), _shares(self.cuts[first:], ranks))

    def shuffled_apart(
        self, generators: Sequence[torch.Generator], first: int = 0, ranks: Ranks | None = None
    ) -> Iterator[Batch]:
        orders = torch.stack([torch.randperm(self.num_samples, generator=own) for own in generators])
        ids, rows = orders.T.to(self.device), orders.to(self.inputs.device)
        for start, stop in _shares(self.cuts[first:], ranks):
            at = rows[:, start:stop].flatten()
            parts = self._rows(at)
            inputs, targets = (part.view(len(generators), stop - start, *part.shape[1:]) for part in parts)
            yield ids[start:stop], inputs, targets

    def in_order(self, ranks: Ranks | None = None) -> Iterator[Batch]:
        return self._batches(torch.arange(self.num_samples), _whole_batches(self.cuts, ranks))

    def describe(self) -> dict[str, Any]:
        parts = {"inputs": _checksum(self.inputs), "targets": _checksum(self.targets)}
        if self.prepare is not None:
            parts["prepared"] = _checksum(self.prepare(self.inputs[:1]))
        return {"samples": self.num_samples, **parts}

    def select(self, tasks: Sequence[int]) -> BatchSource:
        layout = self.layout.select(tasks)
        targets = _for_loss(self.targets[:, list(tasks)], layout, "targets")
        return _TensorBatches(self.inputs, targets, layout, self.config, self.prepare)

    def _batches(self, order: torch.Tensor, cuts: Sequence[tuple[int, int]]) -> Iterator[Batch]:
        ids = order.to(self.device)
        rows = order.to(self.inputs.device)
        for start, stop in cuts:
            yield ids[start:stop], *self._rows(rows[start:stop])

    def _rows(self, at: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return inputs, as a network takes them, and targets of these rows, on the device."""
        inputs = rows_to_device(self.inputs, at, self.device)
        if self.prepare is not None:
            inputs = self.prepare(inputs)
        return inputs, rows_to_device(self.targets, at, self.device)


class _LoaderBatches:
    unlabelled: tuple[str, ...] = ()
    missing = True
    orders_apart = False

    def __init__(
        self,
        dataset: IndexedDataset,
        layout: TaskLayout,
        config: TrainConfig,
        argument: str,
        tasks: Sequence[int] | None = None,
    ) -> None:
        self.dataset, self.layout, self.config, self.argument = dataset, layout, config, argument
        self.tasks = None if tasks is None else list(tasks)
        self.num_samples = len(dataset)
        self.cuts = batch_cuts(self.num_samples, config.batch_size)

    def shuffled(self, generator: torch.Generator, first: int = 0, ranks: Ranks | None = None) -> Iterator[Batch]:
        order = torch.randperm(self.num_samples, generator=generator)
        # the workers' seeds; drawn from a copy, so that the order of samples is the same as for tensors
        seeds = generator.clone_state()
        if ranks is not None and not ranks.leads:  # or the ranks' workers would draw alike
            seeds.manual_seed(
                seeds.initial_seed() ^ int(torch.randint(2**62, (ranks.world,), generator=seeds)[ranks.rank])
            )
        cuts = _shares(self.cuts, ranks)
        if self.config.num_workers == 0:
            return self._batches(order, seeds, cuts[first:])
        # workers have random states of their own, which the batches before move on
        return itertools.islice(self._batches(order, seeds, cuts), first, None)

    def shuffled_apart(
        self, generators: Sequence[torch.Generator], first: int = 0, ranks: Ranks | None = None
    ) -> Iterator[Batch]:
        for ids, inputs, targets in self.shuffled(generators[0], first, ranks):
            copies = len(generators)
            apart = None if inputs is None else inputs.expand(copies, *inputs.shape)
            yield ids[:, None].expand(-1, copies), apart, targets.expand(copies, *targets.shape)

    def in_order(self, ranks: Ranks | None = None) -> Iterator[Batch]:
        cuts = _whole_batches(self.cuts, ranks)
        return self._batches(torch.arange(self.num_samples), torch.Generator().manual_seed(0), cuts)

    def select(self, tasks: Sequence[int]) -> BatchSource:
        return _LoaderBatches(self.dataset, self.layout, self.config, self.argument, tasks)

    def describe(self) -> dict[str, Any]:
        return {"samples": self.num_samples}

    def _no_rows(self) -> Batch:
        tasks = self.layout.num_tasks if self.tasks is None else len(self.tasks)
        device = self.config.torch_device
        return torch.empty(0, dtype=torch.int64, device=device), None, torch.empty(0, tasks, device=device)

    def _batches(
        self, order: torch.Tensor, generator: torch.Generator, cuts: Sequence[tuple[int, int]]
    ) -> Iterator[Batch]:
        loader = DataLoader(
            self.dataset,
            batch_sampler=[order[a:b].tolist() for a, b in cuts if a < b],
            collate_fn=collate,
            num_workers=self.config.num_workers,
            pin_memory=self.config.torch_device.type == "cuda",
            generator=generator,
        )
        batches = iter(loader)
        for start, stop in cuts:
            yield self._read(next(batches)) if start < stop else self._no_rows()
        next(batches, None)  # ends the workers

    def _read(self, batch: Any) -> Batch:
        device = self.config.torch_device
        if not isinstance(batch, (tuple, list)) or len(batch) != 3:
            raise InvalidTypeError(f"{self.argument} must yield (input, targets) samples of exactly two entries")
        ids, inputs, targets = batch
        matrix = _target_matrix(targets, self.layout, self.argument)
        if self.tasks is not None:
            matrix = _for_loss(matrix[:, self.tasks], self.layout.select(self.tasks), self.argument)
        return _to_device(ids, device), _to_device(inputs, device), _to_device(matrix, device)


def _checksum(values: torch.Tensor) -> int:
    """Return the CRC-32 of a tensor's bytes."""
    plain = values.detach().cpu().contiguous().reshape(-1)
    return zlib.crc32(plain.view(torch.uint8).numpy().data) if plain.numel() else 0


def _to_device(value: Any, device: torch.device) -> Any:
    if isinstance(value, torch.Tensor):
        return to_device(value, device, owned=True)
    if isinstance(value, dict):
        return {key: _to_device(entry, device) for key, entry in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(_to_device(entry, device) for entry in value))
    if isinstance(value, (list, tuple)):
        return type(value)(_to_device(entry, device) for entry in value)
    return value
