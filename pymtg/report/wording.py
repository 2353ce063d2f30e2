"""What the page says about a method: how its groups came about and what their shares mean."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = ["DMTG_WORDING", "STG_WORDING", "Wording"]


@dataclass(frozen=True)
class Wording:
    """The sentences of a page that depend on the method.

    `methods` says what the rows of the scores are; `groups` stands above the groups; `share` is the word for what a
    task has in a group, `shares` the heading of all of them; `quality` and `curves` explain figures and pictures.
    """

    methods: Mapping[str, str] = field(default_factory=dict)
    groups: str = ""
    share: str = "membership"
    shares: str = "Memberships"
    quality: str = ""
    curves: str = ""
    data_map: str = ""


_DATA_MAP = (
    "Each point is one training sample in one task. Height: the mean probability that the network gave the right "
    "class, over the epochs that were recorded. To the right: how much that probability varied. Colour: in which "
    "share of the epochs the right class came out on top."
)

STG_WORDING = Wording(
    methods={
        "stg_soft": "averages the groups' networks, weighted by a task's memberships",
        "stg_hard": "takes each task from the network of its own group",
        "mtl": "is the one network trained on all tasks",
    },
    groups="Tasks whose data maps look alike share a group. A task's memberships say how far it belongs to each and "
    "add up to one; they are the task weights with which each group's network was trained.",
    quality="Silhouette: 1 where every task sits far from the other groups, 0 where groups touch, negative where tasks "
    "sit in the wrong one. Inertia: summed squared distances of the tasks to their groups' centres; it can only be "
    "compared between runs on the same map. Partition coefficient: 1 where every task belongs to one group alone, one "
    "over the number of groups where to all alike.",
    curves="The groups' losses are weighted by their memberships, so their heights differ; compare their shapes.",
    data_map=_DATA_MAP,
)

DMTG_WORDING = Wording(
    methods={"dmtg": "takes each task from the branch that it chose; the other branches' heads are cut off"},
    groups="Tasks that chose the same branch share a group. The choice was learned together with the weights: in "
    "training every task draws from all branches, with probabilities that were learned too; in the end it keeps the "
    "likeliest. A probability near one is a clear choice, one near that of the other branches is close to a coin toss.",
    share="probability",
    shares="Probabilities",
    quality="Entropy: that of the tasks' choices, 0 where every task is certain of its branch. Partition coefficient: "
    "1 where every task is, one over the number of branches where none prefers any. Branches used: those that a task "
    "chose; the others are not in the pruned model. Least sure choice: the lowest probability of a task's own branch.",
    curves="While the assignment is learned (stage dmtg), the training loss is that of all branches, weighted by what "
    "was drawn; a warm start before and fine-tuning after have one network's, so compare shapes, not heights. Groups "
    "are settled where no task changes its likeliest branch any more and the entropy has fallen.",
    data_map=_DATA_MAP + " Here the network of a task is the branch that was its likeliest at the time.",
)
