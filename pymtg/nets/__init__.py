"""Networks: a shared backbone with one linear layer for all heads, and factories of them.

Wherever pymtg asks for a *model factory*, any callable ``layout -> torch.nn.Module`` will do whose module returns
logits ``[B, layout.num_logits]``. :func:`mlp`, :func:`convnet` and :class:`MultiHeadSpec` make picklable ones.
"""

from __future__ import annotations

from pymtg.nets.assignment import TaskAssignment
from pymtg.nets.backbones import MLP, ConvNet
from pymtg.nets.branched import BranchedNet, HeadOutputs
from pymtg.nets.dense import DenseDecoder, XceptionBranch, XceptionTrunk
from pymtg.nets.grouped import GroupedNet
from pymtg.nets.grouped_files import load_grouped, save_grouped
from pymtg.nets.multihead import MultiHeadNet, MultiHeadSpec, convnet, count_parameters, mlp
from pymtg.nets.papers import CelebABranch, CelebAStem, ResNet18, SmallCNN
from pymtg.nets.temperature import Temperature

__all__ = [
    "MLP",
    "BranchedNet",
    "CelebABranch",
    "CelebAStem",
    "ConvNet",
    "DenseDecoder",
    "GroupedNet",
    "HeadOutputs",
    "MultiHeadNet",
    "MultiHeadSpec",
    "ResNet18",
    "SmallCNN",
    "TaskAssignment",
    "Temperature",
    "XceptionBranch",
    "XceptionTrunk",
    "convnet",
    "count_parameters",
    "load_grouped",
    "mlp",
    "save_grouped",
]
