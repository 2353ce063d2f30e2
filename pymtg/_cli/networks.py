"""The networks that the training commands build, by the words on the command line."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pymtg._cli import options as opt
from pymtg._cli.errors import CommandError
from pymtg._cli.image_options import NETWORKS

if TYPE_CHECKING:
    from torch import nn

    from pymtg.data import TaskData
    from pymtg.nets import BranchedNet, MultiHeadNet
    from pymtg.tasks import TaskLayout

__all__ = ["Network", "chosen_network"]

_WIDTHS = "128,128"
_STEM = "stem"


@dataclass(frozen=True)
class Network:
    """What ``--network`` and the options that go with it ask for, for inputs of one shape."""

    name: str
    shape: tuple[int, ...]
    hidden: tuple[int, ...]

    def model(self, layout: TaskLayout) -> MultiHeadNet:
        """Return a new network for all tasks."""
        from pymtg.nets import MultiHeadNet

        return MultiHeadNet(layout, self.branch(self.shape))

    def branched(self, trunk: str | None, branches: int, gradient_scaling: bool) -> Callable[[TaskLayout], BranchedNet]:
        """Return a factory of networks of so many branches, behind a trunk where one is asked for."""
        shared, width = self._trunk(trunk)

        def build(layout: TaskLayout) -> BranchedNet:
            from pymtg.nets import BranchedNet

            return BranchedNet(
                lambda: self.branch(width, stem=shared is None),
                branches,
                layout,
                trunk=None if shared is None else shared(),
                gradient_scaling=gradient_scaling,
            )

        return build

    def branch(self, shape: tuple[int, ...], stem: bool = True) -> nn.Module:
        """Return a new backbone for inputs of a shape; without the stem, for what the stem returns of them."""
        from pymtg.nets import MLP, CelebABranch, ResNet18, SmallCNN

        if self.name == "mlp":
            return MLP(math.prod(shape), self.hidden)
        if self.name == "cnn":
            return SmallCNN(shape[0], shape[1])
        if self.name == "celeba":
            return CelebABranch(shape[0], shape[1], stem=stem)
        return ResNet18(shape[0])

    def described(self) -> dict[str, Any]:
        """Return what a run's settings hold of it."""
        return {"network": self.name, **({"hidden": list(self.hidden)} if self.name == "mlp" else {})}

    def shown_trunk(self, words: str | None) -> list[int | str]:
        """Return what a run's settings hold of a trunk."""
        if words is None:
            return []
        return [*opt.whole_numbers("--trunk", words)] if self.name == "mlp" else [words]

    def _trunk(self, words: str | None) -> tuple[Callable[[], nn.Module] | None, tuple[int, ...]]:
        """Return what makes the trunk, and the shape that a branch is built for."""
        from pymtg.nets import MLP, CelebAStem

        if words is None:
            return None, self.shape
        if self.name == "celeba":
            if words != _STEM:
                raise CommandError(f"--trunk must be '{_STEM}' for --network celeba; got {words!r}")
            return lambda: CelebAStem(self.shape[0]), self.shape
        if words == _STEM:
            inputs = "images" if len(self.shape) == 3 else f"inputs of shape {list(self.shape)}"
            raise CommandError(
                f"--trunk {_STEM} is the stem of --network celeba, which is for images; "
                f"got --network {self.name} for {inputs}"
            )
        if self.name != "mlp":
            raise CommandError(f"--trunk is for --network mlp and celeba; {self.name} has none to share")
        widths = opt.whole_numbers("--trunk", words)
        return lambda: MLP(math.prod(self.shape), widths), widths[-1:]


def chosen_network(tasks: TaskData, word: str, hidden: str | None, for_images: str) -> Network:
    """Return the network asked for: an MLP for rows and `for_images` for images where the word is ``auto``.

    Raises CommandError for a network that does not take such inputs, or widths beside one that has its own.
    """
    shape = tasks.input_shape
    is_image = len(shape) == 3
    name = opt.choice("--network", word, NETWORKS)
    if name == "auto":
        name = for_images if is_image else "mlp"
    if name != "mlp" and not is_image:
        raise CommandError(f"--network {name} is for images; {tasks.name} has inputs of shape {list(shape)}")
    if name != "mlp" and hidden is not None:
        raise CommandError(f"--hidden is for --network mlp; {name} has widths of its own")
    return Network(name, shape, opt.whole_numbers("--hidden", _WIDTHS if hidden is None else hidden))
