"""Data maps: running mean, deviation and correctness of every sample's gold-label probability in every task."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pymtg import _faults, _map_io, _map_merge, _map_ranks
from pymtg._backend import backend_named, choose_backend
from pymtg._checks import labels_there
from pymtg._courier import Courier
from pymtg._map_state import allocated_state, check_options
from pymtg._map_update import checked_rows, checked_update
from pymtg._once import in_backward
from pymtg._reference import MapState
from pymtg._snapshot import Snapshot
from pymtg._snapshot_stores import SnapshotStore, gram_of, new_store
from pymtg.errors import InvalidArgumentError, InvalidTypeError
from pymtg.tasks import TaskLayout

if TYPE_CHECKING:
    import pandas
    from torch.distributed import ProcessGroup

__all__ = ["DataMap", "Snapshot"]


class DataMap:
    """Mean and standard deviation of the gold-label probabilities of M samples in T tasks, and their correctness.

    Statistics run over every recorded observation by Welford's update (Welford 1962) in float32; the probabilities are
    the plain ``softmax(logits_t)[y]``, taken in the training forward pass (Swayamdipta et al., EMNLP 2020). Pass the
    map to :class:`pymtg.MultiTaskLoss` or :func:`pymtg.functional.multitask_cross_entropy`, or feed it with
    :meth:`update`.

    Parameters
    ----------
    num_samples
        M, the size of the training set; sample ids are 0..M-1.
    layout
        The tasks.
    device
        Where the logits are that it records; its state lives there too.
    ddof
        0 (the data-map paper's standard deviation) or 1 (that of STG-MTL's released code; 0 at one observation).
    missing
        Whether labels may be missing. Without, the state takes 8 bytes a (sample, task) and 4 a sample; with, 10 bytes
        a (sample, task), and counts stop at 32,767.
    snapshots
        Where :meth:`snapshot` puts the map as it stands. ``"memory"``: a copy, on the map's device. ``"host"``: a copy
        in host memory; from a GPU it travels while the host goes on. ``"disk"``: a copy
        in a nameless file, memory-mapped and read piece by piece; it goes with the map, however the process ends.
        ``"gram"``: nowhere; its features are added to the ``[T, T]`` float64 matrix of :meth:`gram`, on the CPU, and
        forgotten: all that grouping needs, in an amount of memory that grows neither with the samples nor with the
        snapshots.
    directory
        Where the file of ``snapshots="disk"`` is; by default where temporary files go.
    storage
        ``"cpu"`` for a map larger than its `device`'s memory: the state lives in host memory, and the probabilities of
        a batch travel there, recorded by a thread while the device goes on. They travel as 32-bit numbers, with an
        error below 7e-8. Sample ids may then be on the CPU. Such a map cannot be recorded into inside
        ``torch.compile(fullgraph=True)`` or a CUDA graph. None: on `device`.

    Raises
    ------
    InvalidArgumentError, InvalidTypeError
        For a `num_samples` below 1, another `ddof`, another kind of `snapshots`, a `directory` that is not there, or
        something else than a layout.
    MapMemoryError
        If a map of that size cannot be allocated; it says how many bytes it needs.

    Examples
    --------
    >>> layout = TaskLayout.binary(["odd", "even"])
    >>> data_map = DataMap(3, layout)
    >>> data_map.update(torch.tensor([[0.25, 0.5], [0.75, 0.5]]), torch.tensor([2, 2]))
    >>> data_map.mean[2], data_map.std[2]
    (tensor([0.5000, 0.5000]), tensor([0.2500, 0.0000]))
    """

    def __init__(
        self,
        num_samples: int,
        layout: TaskLayout,
        *,
        device: torch.device | str = "cpu",
        ddof: int = 0,
        missing: bool = False,
        snapshots: str = "memory",
        directory: str | os.PathLike[str] | None = None,
        storage: str | None = None,
    ) -> None:
        check_options(num_samples, layout, ddof, storage)
        self._store: SnapshotStore = new_store(snapshots, directory)
        self.layout = layout
        self.ddof = int(ddof)
        self._device = _resolved(device)
        home = self._device if storage is None else torch.device("cpu")
        with torch.inference_mode(False):  # a map built in inference mode can be recorded into outside it
            self._state = allocated_state(num_samples, layout.num_tasks, home, missing=missing)
        self._courier = None if storage is None else Courier(self._state)

    # What it holds

    @property
    def state(self) -> MapState:
        """The tensors, with everything recorded that is on its way; see ``docs/architecture.md``."""
        if self._courier is not None:
            self._courier.settle()
        return self._state

    @state.setter
    def state(self, state: MapState) -> None:
        if self._courier is not None:
            self._courier.settle()
            self._courier.state = state
        self._state = state

    @property
    def num_samples(self) -> int:
        """M, the number of samples."""
        return self._state.words.shape[0]

    @property
    def num_tasks(self) -> int:
        """T, the number of tasks."""
        return self.layout.num_tasks

    @property
    def missing(self) -> bool:
        """Whether labels may be missing."""
        return self._state.missing

    @property
    def device(self) -> torch.device:
        """Where the logits are that it records, and its state, unless that is in host memory (:attr:`storage`)."""
        return self._state.words.device if self._courier is None else self._device

    @property
    def storage(self) -> str | None:
        """``"cpu"`` where the state lives in host memory whatever the device, else None."""
        return None if self._courier is None else "cpu"

    @property
    def nbytes(self) -> int:
        """Bytes of the state, without snapshots."""
        return sum(tensor.nbytes for tensor in self._state)

    @property
    def num_rejected(self) -> int:
        """Rows that were left out because a loss of theirs was not finite."""
        _faults.check(self.device)
        return int(self.state.rejected)

    @property
    def mean(self) -> Tensor:
        """Mean gold-label probability ("confidence"), float32 ``[M, T]``; 0 where nothing was observed."""
        return self._now().mean

    @property
    def std(self) -> Tensor:
        """Standard deviation ("variability"), float32 ``[M, T]``; 0 where less than ddof + 1 was observed."""
        return self._now().std

    @property
    def count(self) -> Tensor:
        """Number of observations, int32 ``[M, T]``."""
        return self._now().count

    @property
    def correctness(self) -> Tensor:
        """Share of observations whose argmax was the gold label, float32 ``[M, T]``; 0 where nothing was observed.

        Taken over the first 4,095 observations of a sample.
        """
        return self._now().correctness

    @property
    def snapshots(self) -> tuple[Snapshot, ...]:
        """The snapshots taken, in the order of their epochs; SnapshotsNotKeptError where the Gram matrix has them."""
        return self._store.kept("snapshots")

    @property
    def snapshot_epochs(self) -> tuple[int, ...]:
        """The epochs of the snapshots taken, kept or not."""
        return self._store.epochs

    @property
    def snapshot_kind(self) -> str:
        """Where snapshots go: ``"memory"``, ``"host"``, ``"disk"`` or ``"gram"``."""
        return self._store.kind

    def __repr__(self) -> str:
        where = "" if self.snapshot_kind == "memory" else f" ({self.snapshot_kind})"
        return (
            f"DataMap({self.num_samples} samples, {self.num_tasks} tasks, ddof={self.ddof}, missing={self.missing}, "
            f"device={str(self.device)!r}, snapshots={list(self.snapshot_epochs)}{where})"
        )

    # Recording

    def update(
        self,
        probabilities: Tensor,
        sample_ids: Tensor,
        *,
        correct: Tensor | None = None,
        valid: Tensor | None = None,
        backend: str | None = None,
    ) -> None:
        """Record gold-label probabilities that were computed elsewhere.

        Parameters
        ----------
        probabilities
            ``[B, T]``, floating point. A row that holds a NaN or an infinity where `valid` is left out and counted in
            :attr:`num_rejected`.
        sample_ids
            ``[B]``, int64 or int32. Rows of the same id count one after the other.
        correct
            ``[B, T]`` bool, whether the prediction was the gold label. By default ``probabilities > 0.5``: exact for
            two classes, too low where a maximum can be below a half.
        valid
            ``[B, T]`` bool, False where a label is missing; all True by default.

        Raises
        ------
        InvalidArgumentError, InvalidTypeError
            For wrong shapes, devices or dtypes, or a probability outside [0, 1].
        SampleIdError, MissingLabelError
            For an id outside the map; for a missing label where the map was built without ``missing=True``. Whatever is
            raised, the map is unchanged.
        """
        p, hit, there = checked_update(probabilities, sample_ids, correct, valid, self.num_tasks, self.device)
        serving = backend_named(choose_backend(backend, self.device))
        ids, refused = checked_rows(p, there, sample_ids, self.num_samples, self.layout, self.missing, serving.defers)
        if self._courier is None:
            serving.record(self._state, p, hit, there, ids, refused)
        else:
            self._courier.record(p, hit, there, ids, refused)
        if serving.defers and _faults.debugging():
            _faults.check(self.device)

    def merge_(self, other: DataMap) -> DataMap:
        """Add another map's observations of the same samples and tasks; exact (Chan et al. 1983). Returns this map.

        Snapshots are left as they are, those in a Gram matrix too.

        Raises
        ------
        InvalidArgumentError
            If the maps differ in layout, number of samples or `missing`.
        """
        if not isinstance(other, DataMap):
            raise InvalidTypeError(f"other must be a DataMap; got {type(other).__name__}")
        _map_merge.check_alike(self, other)
        for one in (self, other):
            _faults.check(one.device)
        _map_merge.add(self.state, other.state)
        return self

    def all_reduce_(self, group: ProcessGroup | None = None) -> DataMap:
        """Add up what the ranks of a process group recorded: afterwards each has the whole map. Returns this map.

        Exact, by two all-reduces of sums in float64, some samples at a time. Every rank of the group has to call it.
        What is whole on every rank must not be added up once more: call it at the end, or on a copy. Snapshots are left
        as they are. Without a process group of several ranks nothing happens.

        Raises
        ------
        RankError
            If the ranks' maps differ in layout, samples or `missing`, or a rank is lost.
        """
        _faults.check(self.device)
        _map_ranks.all_reduce(self, group)
        return self

    def reduce_scatter(self, group: ProcessGroup | None = None) -> tuple[range, DataMap]:
        """Add up what the ranks recorded, each rank getting the samples that it owns: no rank holds the sum whole.

        This map is left as it is; it may go on recording and be added up again later. Features are centred sample by
        sample, so that the Gram matrix of all is the sum of the parts': see :func:`pymtg.ranks.sum_gram`.

        Returns
        -------
        The ids of the samples that this rank owns, as many as another rank has or one less, and their map, whose ids
        begin at 0; without snapshots. Without a process group of several ranks: all of them, and a copy.

        Raises
        ------
        InvalidArgumentError
            If there are more ranks than samples.
        RankError
            As for :meth:`all_reduce_`.
        """
        _faults.check(self.device)
        rows, state = _map_ranks.reduce_scatter(self, group)
        part = DataMap(len(rows), self.layout, device=state.words.device, ddof=self.ddof, missing=self.missing)
        part.state = state
        return rows, part

    def reset(self) -> None:
        """Forget every observation, the snapshots and the number of rejected rows."""
        for tensor in self.state:
            tensor.zero_()
        self._store = self._store.empty()

    def to(self, device: torch.device | str) -> DataMap:
        """Move the state, and snapshots kept in memory, to a device; those in a file and the Gram matrix stay.

        A state in host memory stays; it then records logits on `device`. Returns this map.
        """
        self._device = target = _resolved(device)
        if self._courier is None:
            self._state = MapState(*(tensor.to(target) for tensor in self.state))
            self._store.to(target)
        return self

    def snapshot(self, epoch: int) -> Snapshot:
        """Keep the map as it stands after `epoch`, or add it to the Gram matrix; it goes on accumulating.

        Returns what was kept. With ``snapshots="gram"`` that is its epoch alone: reading its values raises
        SnapshotsNotKeptError.

        Raises
        ------
        InvalidArgumentError
            If a snapshot of this or a later epoch was taken already.
        OSError
            If it cannot be written to the file; the map is then unchanged.
        """
        if isinstance(epoch, bool) or not isinstance(epoch, int):
            raise InvalidTypeError(f"epoch must be an integer; got {epoch!r}")
        taken = self.snapshot_epochs
        if taken and epoch <= taken[-1]:
            raise InvalidArgumentError(f"epoch must be later than the last snapshot's ({taken[-1]}); got {epoch}")
        return self._store.add(self._now(epoch))

    # For grouping

    def features(self) -> Tensor:
        """Return the tasks' feature vectors, float32 ``[T, 2 M E]``: all means and deviations of the E snapshots.

        What was not observed of a sample where other tasks were (missing labels) takes the mean over those: it says
        nothing of its task. Without snapshots, the features of the map as it stands. :meth:`gram` holds all that
        clustering needs in T x T numbers.

        Raises
        ------
        SnapshotsNotKeptError
            If snapshots were added to the Gram matrix and forgotten.
        """
        kept = self._store.kept("features") or (self._now(),)
        slabs = [slab for snapshot in kept for slab in snapshot.slabs()]
        return torch.cat(slabs).T.contiguous()

    def gram(self) -> Tensor:
        """Return the centred Gram matrix of the tasks' feature vectors, float64 ``[T, T]``, on the CPU.

        Features are the mean and standard deviation of every sample at every snapshot (at the present state where none
        was taken), each centred over the tasks. Read in slabs: no feature vector is held. A copy, where the snapshots
        were added up as they were taken.
        """
        gram = self._store.gram(self.num_tasks)
        if gram is None:
            gram = gram_of(self.num_tasks, [self._now()])
        return torch.from_numpy(gram)

    def to_dataframe(self, task: int | str) -> pandas.DataFrame:
        """Return one task's map as a pandas frame: mean, std, correctness, count, indexed by sample id."""
        import pandas

        now, t = self._now(), self.layout.position(task)
        counts = now.counts if now.counts.dim() == 1 else now.counts[:, t : t + 1]
        one = Snapshot(now.epoch, now.words[:, :, t : t + 1], counts, self.ddof)  # the others are not unpacked
        columns = {"mean": one.mean, "std": one.std, "correctness": one.correctness, "count": one.count}
        frame: pandas.DataFrame = pandas.DataFrame(
            {name: values[:, 0].cpu().numpy() for name, values in columns.items()},
            index=pandas.RangeIndex(self.num_samples, name="sample_id"),
        )
        return frame

    # Keeping

    def state_dict(self) -> dict[str, Any]:
        """Return tensors (not copies) and plain values from which :meth:`load_state_dict` restores the map.

        Snapshots on disk are tensors that map the file; in place of those that were forgotten stand the Gram matrix
        and their epochs.
        """
        _faults.check(self.device)
        plain: dict[str, Any] = {"layout": self.layout.to_dict(), "ddof": self.ddof}
        if self.snapshot_kind != "memory":
            plain["snapshots"] = self.snapshot_kind
        return dict(self.state._asdict()) | self._store.state() | plain

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned, snapshots included.

        This map goes on putting snapshots where it put them: kept ones go into memory, into its file or into its Gram
        matrix.

        Raises
        ------
        InvalidArgumentError
            If entries are absent or those of another layout, size or kind of map, or hold a Gram matrix and this map
            keeps snapshots; this map is then unchanged.
        InvalidTypeError
            If the state is no mapping.
        OSError
            If snapshots cannot be written to this map's file; it is then unchanged.
        """
        snapshots, gram = _map_io.checked_state(state, self.state, self.layout, self.ddof)
        store = self._store.empty() if gram is None else self._store.of_gram(*gram)
        for epoch, words, counts in snapshots:
            store.add(Snapshot(epoch, words, counts, self.ddof))
        store.to(self.state.words.device)
        for name, tensor in self.state._asdict().items():
            tensor.copy_(state[name])
        self._store = store

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the map, its snapshots and its layout to a safetensors file.

        Written under a temporary name and renamed: whatever happens, `path` holds the old file or the new one. Equal
        maps give files that are equal byte for byte.

        Raises
        ------
        InvalidTypeError
            If `path` is no path.
        OSError
            If the file cannot be written; a file that was there before is untouched.
        """
        _map_io.save(path, self.state_dict())

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        *,
        device: torch.device | str = "cpu",
        snapshots: str | None = None,
        directory: str | os.PathLike[str] | None = None,
        storage: str | None = None,
    ) -> DataMap:
        """Read a map that :meth:`save` wrote.

        Parameters
        ----------
        path
            The file.
        device
            Where the state is to live.
        snapshots, directory, storage
            As for a new map; by default the `snapshots` of the one that was saved.

        Raises
        ------
        InvalidArgumentError
            If the file holds a Gram matrix and `snapshots` are to be kept.
        InvalidTypeError
            If `path` is no path.
        FileNotFoundError
            If there is no such file.
        FileFormatError
            If it is truncated, of another version, or no data map.
        """
        state = _map_io.load(path)
        layout = TaskLayout.from_dict(state["layout"])
        data_map = cls(
            state["words"].shape[0],
            layout,
            device=device,
            ddof=state["ddof"],
            missing=state["counts"].dim() == 2,
            snapshots=state.get("snapshots", "memory") if snapshots is None else snapshots,
            directory=directory,
            storage=storage,
        )
        data_map.load_state_dict(state)
        return data_map

    # Between recording and reading

    def _begin(self, sample_ids: Tensor) -> tuple[MapState, Tensor]:
        """Return the tensors that a loss records a batch into, and the ids to record at."""
        return (self._state, sample_ids) if self._courier is None else self._courier.begin(sample_ids, self._device)

    def _end(self, batch: MapState, targets: Tensor, ignore_index: int, sample_ids: Tensor) -> None:
        """Take a batch that :meth:`_begin` gave tensors for on to where the state is."""
        if self._courier is not None and not in_backward():
            self._courier.take(batch, labels_there(targets, ignore_index), sample_ids, self.layout)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_state": self.state}

    def _now(self, epoch: int = -1) -> Snapshot:
        _faults.check(self.device)
        return Snapshot(epoch, self.state.words, self.state.counts, self.ddof)


def _resolved(device: torch.device | str) -> torch.device:
    """Return the device that tensors made on `device` say they are on."""
    return torch.empty(0, device=device).device
