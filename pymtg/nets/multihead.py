"""One network for all tasks: a shared backbone and a head per task."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from pymtg.errors import InvalidArgumentError, InvalidTypeError
from pymtg.nets.backbones import MLP, ConvNet, checked_dropout, checked_size, checked_sizes
from pymtg.tasks import TaskLayout

__all__ = ["MultiHeadNet", "MultiHeadSpec", "convnet", "count_parameters", "mlp"]


class MultiHeadNet(nn.Module):
    """A backbone shared by all tasks and a linear head per task.

    The heads stand side by side in one linear layer: one matrix product whatever the number of tasks, and the logits
    come out as :class:`pymtg.TaskLayout` wants them.

    Parameters
    ----------
    layout
        The tasks.
    backbone
        A module from inputs ``[B, ...]`` to features ``[B, features]``.
    features
        Width of the backbone's output; taken from its attribute `out_features` if not given.

    Attributes
    ----------
    backbone, head, layout
        The two modules and the tasks.

    Raises
    ------
    InvalidArgumentError
        If the width is not given and the backbone does not tell it, or is below 1.
    InvalidTypeError
        If the layout is not a :class:`pymtg.TaskLayout` or the backbone not a module.
    """

    def __init__(self, layout: TaskLayout, backbone: nn.Module, features: int | None = None) -> None:
        super().__init__()
        if not isinstance(layout, TaskLayout):
            raise InvalidTypeError(f"layout must be a TaskLayout; got {type(layout).__name__}")
        if not isinstance(backbone, nn.Module):
            raise InvalidTypeError(f"backbone must be a torch.nn.Module; got {type(backbone).__name__}")
        if features is None:
            features = getattr(backbone, "out_features", None)
        if features is None:
            raise InvalidArgumentError(
                f"features must be given: {type(backbone).__name__} has no attribute out_features to tell its width"
            )
        self.layout = layout
        self.backbone = backbone
        self.head = nn.Linear(checked_size(features, "features"), layout.num_logits)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return logits ``[B, layout.num_logits]``; InvalidArgumentError if the features are of another width."""
        features = self.backbone(inputs)
        if features.ndim != 2 or features.shape[1] != self.head.in_features:
            raise InvalidArgumentError(
                f"backbone must return [batch, {self.head.in_features}] features; got {tuple(features.shape)}"
            )
        logits: Tensor = self.head(features)
        return logits

    def extra_repr(self) -> str:
        """Name the size of the problem in ``repr``."""
        return f"{self.layout.num_tasks} tasks, {self.layout.num_logits} logits"


class MultiHeadSpec:
    """A recipe for :class:`MultiHeadNet`: a frozen, picklable callable ``layout -> MultiHeadNet``.

    Every call makes a new network with new random weights, drawn from torch's global generator.

    Parameters
    ----------
    backbone
        A callable that makes the backbone: a module class or a function. It must stand at the top level of a module
        for the recipe to be picklable.
    features
        Width of the backbone's output; taken from its attribute `out_features` if not given.
    **options
        What `backbone` is called with.

    Raises
    ------
    InvalidTypeError
        If the backbone cannot be called, or is a ready module (every network needs one of its own).

    Examples
    --------
    >>> spec = MultiHeadSpec(MLP, in_features=64, hidden=(32,))
    >>> spec(TaskLayout.binary(["odd", "loop"])).head
    Linear(in_features=32, out_features=2, bias=True)
    """

    __slots__ = ("backbone", "features", "options")

    backbone: Callable[..., nn.Module]
    features: int | None
    options: tuple[tuple[str, Any], ...]

    def __init__(self, backbone: Callable[..., nn.Module], features: int | None = None, **options: Any) -> None:
        if isinstance(backbone, nn.Module):
            raise InvalidTypeError(
                f"backbone must make a module (a class or a function); got a ready {type(backbone).__name__}"
            )
        if not callable(backbone):
            raise InvalidTypeError(f"backbone must be callable; got {type(backbone).__name__}")
        set_field = object.__setattr__  # frozen: the only place where fields are set
        set_field(self, "backbone", backbone)
        set_field(self, "features", None if features is None else checked_size(features, "features"))
        set_field(self, "options", tuple(options.items()))

    def __call__(self, layout: TaskLayout) -> MultiHeadNet:
        """Make a network for the tasks of `layout`."""
        return MultiHeadNet(layout, self.backbone(**dict(self.options)), self.features)

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"MultiHeadSpec is frozen; cannot set {name!r}")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"MultiHeadSpec is frozen; cannot delete {name!r}")

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuilt, (self.backbone, self.features, self.options)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, MultiHeadSpec):
            return NotImplemented
        mine, theirs = (self.backbone, self.features), (other.backbone, other.features)
        return mine == theirs and dict(self.options) == dict(other.options)

    def __hash__(self) -> int:
        return hash((self.backbone, self.features, frozenset(self.options)))

    def __repr__(self) -> str:
        name = getattr(self.backbone, "__name__", repr(self.backbone))
        width = [] if self.features is None else [f"features={self.features}"]
        return f"MultiHeadSpec({', '.join([name, *width, *(f'{key}={value!r}' for key, value in self.options)])})"


def _rebuilt(
    backbone: Callable[..., nn.Module], features: int | None, options: tuple[tuple[str, Any], ...]
) -> MultiHeadSpec:
    return MultiHeadSpec(backbone, features, **dict(options))


def mlp(in_features: int, hidden: Sequence[int] = (64, 64), dropout: float = 0.0) -> MultiHeadSpec:
    """Return a recipe for a :class:`MultiHeadNet` on an :class:`MLP` of these options, checked here already.

    Examples
    --------
    >>> import torch
    >>> mlp(64)(TaskLayout.binary(["odd"]))(torch.zeros(5, 64)).shape
    torch.Size([5, 1])
    """
    return MultiHeadSpec(
        MLP,
        in_features=checked_size(in_features, "in_features"),
        hidden=checked_sizes(hidden, "hidden"),
        dropout=checked_dropout(dropout),
    )


def convnet(in_channels: int, channels: Sequence[int] = (32, 64, 128), dropout: float = 0.0) -> MultiHeadSpec:
    """Return a recipe for a :class:`MultiHeadNet` on a :class:`ConvNet` of these options, checked here already."""
    return MultiHeadSpec(
        ConvNet,
        in_channels=checked_size(in_channels, "in_channels"),
        channels=checked_sizes(channels, "channels"),
        dropout=checked_dropout(dropout),
    )


def count_parameters(module: nn.Module, *, trainable: bool = False) -> int:
    """Return how many numbers a module's parameters hold, shared ones counted once; the trainable ones if asked."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad or not trainable)
