"""Taskonomy-5: depth, normals, semantic classes, keypoints and edges at every pixel of indoor scenes."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset

from pymtg.data.arrays import IGNORE_INDEX
from pymtg.data.images import pillow, read_image
from pymtg.errors import FileFormatError, InvalidArgumentError, InvalidTypeError
from pymtg.nets.backbones import checked_size
from pymtg.tasks import TaskLayout

__all__ = ["TASKONOMY5", "TINY_BUILDINGS", "TaskonomyData", "TaskonomyViews", "taskonomy"]

TASKONOMY5 = TaskLayout(
    ["depth_zbuffer", "normal", "segment_semantic", "keypoints2d", "edge_texture"],
    [1, 3, 18, 1, 1],
    kinds=["regression", "regression", "classification", "regression", "regression"],
)
"""The five tasks with their output channels, as DMTG has them."""

TINY_BUILDINGS: Mapping[str, tuple[str, ...]] = {
    "train": (
        *("allensville", "beechwood", "benevolence", "coffeen", "cosmos", "forkland", "hanson", "hiteman"),
        *("klickitat", "lakeville", "leonardo", "lindenwood", "marstons", "merom", "mifflinburg", "newfields"),
        *("onaga", "pinesdale", "pomaria", "ranchester", "shelbyville", "stockman", "tolstoy", "wainscott"),
        "woodbine",
    ),
    "val": ("collierville", "corozal", "darden", "markleeville", "wiconisco"),
    "test": ("ihlen", "mcdade", "muleshoe", "noxapater", "uvalda"),
}
"""Taskonomy's "tiny" split of buildings, which DMTG uses."""

_NO_DEPTH = 2**13
# (value - shift) / scale of the 16-bit files, by the released code of DMTG and of Standley et al. (2020)
_SCALES = {"depth_zbuffer": (1500.0, 1000.0), "keypoints2d": (50.0, 100.0), "edge_texture": (718.0, 1070.0)}
_IN_FILE = {"segment_semantic": "segmentsemantic"}
_VIEW = re.compile(r"(point_\d+_view_\d+)_domain_rgb\.png")


@dataclass(frozen=True)
class TaskonomyData:
    """The tasks and the parts; `val` and `test` are None where none of their buildings are there."""

    layout: TaskLayout
    train: TaskonomyViews
    val: TaskonomyViews | None
    test: TaskonomyViews | None


class TaskonomyViews(Dataset[tuple[Tensor, dict[str, Tensor]]]):
    """A dataset of ``(rgb [3, size, size], {task: target})``, whose files are read one by one.

    Made for a ``DataLoader`` with workers: it holds names only, and pickles. ``default_collate`` batches its samples,
    and :class:`pymtg.BranchedLoss` takes the batched targets as they are. Floats are of torch's default dtype:

    - rgb in 0..1;
    - ``depth_zbuffer`` [1, size, size]: ``(z - 1500) / 1000`` of the file's units, 1/512 m; NaN where there is no depth
      (2^13 and above);
    - ``normal`` [3, size, size] in -1..1; NaN where there is no depth;
    - ``segment_semantic`` [size, size] int64: classes 1..17, -100 where the file has 0, which says "unknown";
    - ``keypoints2d``, ``edge_texture`` [1, size, size]: ``(v - 50) / 100`` and ``(v - 718) / 1070``.

    Parameters
    ----------
    views
        Per view the paths of its files, by domain.
    size
        Height and width. Depth, normals and classes are brought to it by the nearest pixel, which leaves "missing" what
        it is; the others by bilinear interpolation.
    """

    def __init__(self, views: Sequence[Mapping[str, Path]], size: int = 256) -> None:
        pillow()
        self.views = list(views)
        self.size = checked_size(size, "size")
        if not self.views:
            raise InvalidArgumentError("views must hold at least one view; got none")

    def __len__(self) -> int:
        return len(self.views)

    def __getitem__(self, index: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Return a sample; FileFormatError if a file is no image of its domain."""
        view = self.views[index]
        depth = self._numbers(view, "depth_zbuffer", nearest=True)
        missing = depth >= _NO_DEPTH
        normal = self._colours(view, "normal", nearest=True) * 2 - 1
        targets = {
            "depth_zbuffer": _as_tensor(np.where(missing, np.nan, _scaled("depth_zbuffer", depth))),
            "normal": _as_tensor(np.where(missing, np.nan, normal)),
            "segment_semantic": self._classes(view),
        }
        for domain in ("keypoints2d", "edge_texture"):
            targets[domain] = _as_tensor(_scaled(domain, self._numbers(view, domain)))
        return _as_tensor(self._colours(view, "rgb")), targets

    def __repr__(self) -> str:
        return f"TaskonomyViews({len(self)} views, size={self.size})"

    def _colours(self, view: Mapping[str, Path], domain: str, nearest: bool = False) -> npt.NDArray[np.float64]:
        """Return ``[3, size, size]`` in 0..1."""
        image = self._resized(read_image(view[domain]).convert("RGB"), nearest)
        pixels: npt.NDArray[np.float64] = np.asarray(image, dtype=np.float64).transpose(2, 0, 1) / 255
        return pixels

    def _numbers(self, view: Mapping[str, Path], domain: str, nearest: bool = False) -> npt.NDArray[np.float64]:
        """Return ``[1, size, size]`` as in the file."""
        image = self._single(view[domain])
        # resized as floats: Pillow does not interpolate 16-bit images
        values = pillow().fromarray(np.asarray(image, dtype=np.float32))
        return np.asarray(self._resized(values, nearest), dtype=np.float64)[None]

    def _classes(self, view: Mapping[str, Path]) -> Tensor:
        path = view["segment_semantic"]
        values = self._resized(pillow().fromarray(np.asarray(self._single(path), dtype=np.int32)), nearest=True)
        classes = torch.from_numpy(np.asarray(values, dtype=np.int64))
        highest = TASKONOMY5.num_classes[2] - 1
        if int(classes.max()) > highest or int(classes.min()) < 0:
            raise FileFormatError(f"{path} must hold classes in 0..{highest}; got {int(classes.max())}")
        return torch.where(classes == 0, IGNORE_INDEX, classes)

    def _single(self, path: Path) -> Any:
        image = read_image(path)
        if len(image.getbands()) != 1:  # a palette's numbers are what counts, not its colours
            raise FileFormatError(f"{path} must have one channel of numbers; it is an image of mode {image.mode}")
        return image

    def _resized(self, image: Any, nearest: bool) -> Any:
        size = (self.size, self.size)
        sampling = pillow().Resampling
        return image if image.size == size else image.resize(size, sampling.NEAREST if nearest else sampling.BILINEAR)


def taskonomy(
    directory: str | os.PathLike[str], *, size: int = 256, buildings: Mapping[str, Sequence[str]] | None = None
) -> TaskonomyData:
    """Find the views of Taskonomy-5 in a folder.

    Parameters
    ----------
    directory
        Where the files stand as ``BUILDING/DOMAIN/point_X_view_Y_domain_DOMAIN.png`` or, as some copies have it,
        ``DOMAIN/BUILDING/...``, for the domains ``rgb`` and those of :data:`TASKONOMY5`. Nothing is downloaded.
    size
        Height and width of what samples hold.
    buildings
        ``{"train": names, "val": names, "test": names}``; :data:`TINY_BUILDINGS` by default. Those that are not there
        are left out.

    Raises
    ------
    FileNotFoundError
        If no building of the training part is there, or a view that has an rgb image lacks another domain; says which.
    ImportError
        If Pillow is not installed: ``pip install 'pymtg[images]'``.
    InvalidArgumentError, InvalidTypeError
        For a bad size, or buildings that are not lists of names by part, each in one part.

    Notes
    -----
    Zamir et al., "Taskonomy", CVPR 2018; the five tasks are those of Standley et al., ICML 2020, and DMTG.
    """
    root = Path(directory)
    if not root.is_dir():
        raise FileNotFoundError(f"there is no directory {root} to read Taskonomy from")
    chosen = _checked_buildings(TINY_BUILDINGS if buildings is None else buildings)
    found = {part: [view for name in names for view in _views(root, name)] for part, names in chosen.items()}
    if not found["train"]:
        names = ", ".join(chosen["train"][:3])
        raise FileNotFoundError(
            f"{root} holds no Taskonomy: no rgb images of a training building ({names}, ...) in BUILDING/rgb or "
            "rgb/BUILDING; the set is to be had from Stanford's Taskonomy project"
        )
    train, val, test = (TaskonomyViews(found[part], size) if found[part] else None for part in _PARTS)
    assert train is not None
    return TaskonomyData(TASKONOMY5, train, val, test)


_PARTS = ("train", "val", "test")


def _views(root: Path, building: str) -> list[dict[str, Path]]:
    """Return the files of a building's views, in the order of their names; none if the building is not there."""
    for folders in (root / building, root):
        name = building if folders is root else ""
        rgb = folders / "rgb" / name
        matches = [_VIEW.fullmatch(entry) for entry in sorted(os.listdir(rgb))] if rgb.is_dir() else []
        views = [match[1] for match in matches if match is not None]
        if views:
            return [_files(folders, name, view) for view in views]
    return []


def _files(folders: Path, name: str, view: str) -> dict[str, Path]:
    domains = ("rgb", *TASKONOMY5.names)
    files = {d: folders / d / name / f"{view}_domain_{_IN_FILE.get(d, d)}.png" for d in domains}
    missing = next((path for path in files.values() if not path.is_file()), None)
    if missing is not None:
        raise FileNotFoundError(f"{missing} is missing; every view needs the domains {', '.join(domains)}")
    return files


def _checked_buildings(buildings: Mapping[str, Sequence[str]]) -> dict[str, tuple[str, ...]]:
    if not isinstance(buildings, Mapping):
        raise InvalidTypeError(f"buildings must be a mapping from parts to names; got {type(buildings).__name__}")
    unknown = next((part for part in buildings if part not in _PARTS), None)
    if unknown is not None or not buildings.get("train"):
        raise InvalidArgumentError(f"buildings must have 'train', and may have 'val' and 'test'; got {list(buildings)}")
    for part, names in buildings.items():
        if isinstance(names, str) or not all(isinstance(name, str) for name in names):
            raise InvalidTypeError(f"buildings[{part!r}] must be a sequence of names; got {names!r}")
    chosen = {part: tuple(buildings.get(part, ())) for part in _PARTS}
    every = [name for names in chosen.values() for name in names]
    twice = next((name for name in every if every.count(name) > 1), None)
    if twice is not None:
        raise InvalidArgumentError(f"buildings must stand in one part each, once; {twice!r} stands twice")
    return chosen


def _scaled(domain: str, values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    shift, scale = _SCALES[domain]
    return (values - shift) / scale


def _as_tensor(values: npt.NDArray[np.float64]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values)).to(torch.get_default_dtype())
