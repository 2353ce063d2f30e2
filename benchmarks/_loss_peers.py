"""What a user would write instead of the fused loss: each form returns the per-task losses of one batch.

Shapes as in pymtg: logits [B, num_logits], targets [B, T] int64, complete labels. With `ids`, each form also keeps a
data map up to date (mean and sum of squared deviations by Welford's update; duplicate ids overwrite each other in all
of them, as indexed assignment does).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from pymtg import TaskLayout


class ReleasedLoop:
    """As STG-MTL's released training loop: a criterion call per task, then a second softmax per task for the map.

    The map is [T, M], one row a task; count, mean and M2 in float32.
    """

    def __init__(self, layout: TaskLayout, num_samples: int) -> None:
        self.layout = layout
        shape = (layout.num_tasks, num_samples)
        self.count, self.mean, self.m2 = torch.zeros(shape), torch.zeros(shape), torch.zeros(shape)

    def __call__(self, logits, targets, ids=None):
        losses, start = [], 0
        for t, classes in enumerate(self.layout.num_classes):
            part = logits[:, start : start + classes]
            start += classes
            if classes == 1:
                losses.append(F.binary_cross_entropy_with_logits(part[:, 0], targets[:, t].float()))
            else:
                losses.append(F.cross_entropy(part, targets[:, t]))
        if ids is not None:
            with torch.no_grad():
                self.update(self.confidence(logits, targets), ids)
        return torch.stack(losses)

    def confidence(self, logits, targets):
        columns, start = [], 0
        for t, classes in enumerate(self.layout.num_classes):
            part = logits[:, start : start + classes]
            start += classes
            if classes == 1:
                p = torch.sigmoid(part[:, 0])
                columns.append(torch.where(targets[:, t] == 1, p, 1 - p))
            else:
                columns.append(torch.softmax(part, 1).gather(1, targets[:, t : t + 1])[:, 0])
        return torch.stack(columns, 1)

    def update(self, confidence, ids):
        confidence = confidence.T
        self.count[:, ids] = self.count[:, ids] + 1
        delta = confidence - self.mean[:, ids]
        self.mean[:, ids] += delta / self.count[:, ids]
        self.m2[:, ids] += delta * (confidence - self.mean[:, ids])


class Vectorised:
    """The best plain-torch forms: all tasks in a few calls, the gold probability taken from the loss as exp(-loss).

    The map is sample-major, [M, T], so that a batch row touches adjacent memory.
    """

    def __init__(self, layout: TaskLayout, num_samples: int, form: str) -> None:
        self.layout, self.form = layout, form
        shape = (num_samples, layout.num_tasks)
        self.count = torch.zeros(num_samples, 1)
        self.mean, self.m2 = torch.zeros(shape), torch.zeros(shape)
        classes = torch.tensor(layout.num_classes)
        self.first = torch.tensor(layout.offsets[:-1])
        self.task = torch.repeat_interleave(torch.arange(layout.num_tasks), classes)
        widest = int(classes.max())
        self.columns = (self.first[:, None] + torch.arange(widest)).clamp(max=layout.num_logits - 1)
        self.padding = torch.arange(widest) >= classes[:, None]

    def __call__(self, logits, targets, ids=None):
        losses = getattr(self, self.form)(logits, targets)
        if ids is not None:
            self.update(torch.exp(-losses.detach()), ids)
        return losses.mean(0)

    def update(self, gold, ids):
        count = self.count[ids] + 1
        mean = self.mean[ids]
        delta = gold - mean
        new_mean = mean + delta / count
        self.count[ids] = count
        self.mean[ids] = new_mean
        self.m2[ids] += delta * (gold - new_mean)

    # Forms: [B, T] losses

    def logistic(self, logits, targets):
        return F.binary_cross_entropy_with_logits(logits, targets.to(logits.dtype), reduction="none")

    def flattened(self, logits, targets):
        rows, tasks = targets.shape
        return F.cross_entropy(logits.view(rows * tasks, -1), targets.view(-1), reduction="none").view(rows, tasks)

    def transposed(self, logits, targets):
        rows, tasks = targets.shape
        return F.cross_entropy(logits.view(rows, tasks, -1).transpose(1, 2), targets, reduction="none")

    def difference(self, logits, targets):
        """Two classes: the logistic loss of the difference of the logits."""
        pairs = logits.view(targets.shape[0], targets.shape[1], 2)
        difference = pairs[..., 1] - pairs[..., 0]
        return F.binary_cross_entropy_with_logits(difference, targets.to(logits.dtype), reduction="none")

    def padded(self, logits, targets):
        """Different class counts: padded to the widest task."""
        rows, tasks = targets.shape
        wide = logits[:, self.columns].masked_fill(self.padding, -torch.inf)
        return F.cross_entropy(wide.view(rows * tasks, -1), targets.view(-1), reduction="none").view(rows, tasks)

    def segmented(self, logits, targets):
        """Different class counts: log-sum-exp over segments."""
        rows = targets.shape[0]
        task = self.task.expand(rows, -1)
        top = logits.new_full(targets.shape, -torch.inf).scatter_reduce(1, task, logits.detach(), "amax")
        total = logits.new_zeros(targets.shape).scatter_add(1, task, (logits - top[:, self.task]).exp())
        return total.log() + top - logits.gather(1, self.first + targets)


def forms_for(layout: TaskLayout) -> list[str]:
    """Return the vectorised forms that fit a layout."""
    classes = set(layout.num_classes)
    if classes == {1}:
        return ["logistic"]
    if classes == {2}:
        return ["difference", "flattened", "transposed"]
    return ["flattened", "transposed"] if len(classes) == 1 else ["padded", "segmented"]
