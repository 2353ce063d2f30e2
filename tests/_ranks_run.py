"""Runs on several ranks for test_ranks.py: what they train, one rank of it as a process of its own, and their start."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler

from pymtg import DataMap, DMTGTrainer, MultiTaskLoss, STGTrainer, TaskLayout, record
from pymtg._ranks import Ranks, leave
from pymtg.data import from_arrays, with_ids
from pymtg.errors import PymtgError
from pymtg.nets import MLP, BranchedNet, mlp
from pymtg.ranks import sum_gram
from pymtg.trainers import _mail
from pymtg.trainers._stopping import StopRequest, on_signals

KINDS = ["classification", "classification", "regression", "classification", "classification"]
LAYOUT = TaskLayout(["a", "b", "x", "c", "d"], [1, 3, 1, 2, 1], kinds=KINDS)
CLASSES = TaskLayout(["a", "b", "c", "d"], [1, 3, 2, 1])
SAME = TaskLayout.binary(["one", "two"])
FAST = {"batch_size": 20, "device": "cpu", "num_threads": 1, "progress": False, "lr": 1e-2}
RANKS, ROWS = 4, 83
PAIRS = 30


def make(seed, layout=LAYOUT, rows=ROWS, missing=True):
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(rows, 6, generator=generator)
    scores = inputs @ torch.randn(6, layout.num_tasks, generator=generator)
    counts = torch.tensor([max(2, c) for c in layout.num_classes])
    targets = (torch.sigmoid(scores) * counts).long().clamp(max=counts - 1).to(scores)
    if layout.has_regression:
        targets[:, 2] = scores[:, 2]
    if missing:
        targets[torch.rand(targets.shape, generator=generator) < 0.25] = torch.nan
    return from_arrays(inputs, targets if layout.has_regression else targets.nan_to_num(-100).long(), layout)


def same_tasks(seed):
    """Two tasks that every sample has the same probabilities in."""
    data = make(seed, CLASSES, 20, False)
    return from_arrays(data.inputs, data.targets[:, :1].repeat(1, 2), SAME)


class Awkward(nn.Module):
    """Has a parameter that nothing depends on; may count its forwards, and draw from torch's generator."""

    def __init__(self, layout, dropout=0.0, countdown=lambda: None):
        super().__init__()
        self.body, self.dropout = nn.Sequential(nn.Linear(6, 8), nn.Tanh()), nn.Dropout(dropout)
        self.head, self.idle = nn.Linear(8, layout.num_logits), nn.Parameter(torch.ones(2))
        self.countdown = countdown

    def forward(self, inputs):
        if self.training:
            self.countdown()
        return self.head(self.dropout(self.body(inputs)))


class Same(nn.Module):
    """One output for all tasks."""

    def __init__(self, layout):
        super().__init__()
        self.layer, self.tasks = nn.Linear(6, 1), layout.num_logits

    def forward(self, inputs):
        return self.layer(inputs).expand(-1, self.tasks)


def stg(seed, data, val=None, net=Awkward, layout=LAYOUT, resume=False, **options):
    # hard memberships: soft ones hang on the last digits of the map, and a network's weights on them
    plan = {"num_groups": 2, "epochs": 3, "specialised_epochs": 1, "mode": "kmeans", "seed": seed, **options}
    return STGTrainer(net, layout, **{**FAST, **plan}).fit(data, val, resume=resume)


def dmtg(seed, data, val=None, resume=False, **options):
    def net(layout):
        return BranchedNet(lambda: MLP(6, (6,)), 4, layout)

    plan = {"epochs": 3, "warm_epochs": 1, "finetune_epochs": 1, "record": True, "seed": seed}
    # Adam makes whole steps of theta's smallest gradients, and so of rounding: theta waits until there is more of them.
    quick = {"assignment_lr": 0.3, "temperature": 0.5, "assignment_warmup": 0.3}
    return DMTGTrainer(net, LAYOUT, **{**FAST, **plan, **quick, **options}).fit(data, val, resume=resume)


def learned(trainer):
    """All tensors of a fitted trainer, and its figures."""
    names = ("joint_model_", "net_", "model_", "assignment_")
    networks = [getattr(trainer, name, None) for name in names] + list(getattr(trainer, "models_", []))
    found = {f"{i}.{k}": v for i, net in enumerate(networks) if net is not None for k, v in net.state_dict().items()}
    for name in ("mean", "std", "count", "correctness"):
        found[f"map.{name}"] = getattr(trainer.data_map_, name)
    found["map.gram"] = trainer.data_map_.gram()
    found["memberships"] = torch.tensor(trainer.groups_.memberships)
    found["labels"] = torch.tensor(trainer.groups_.labels)
    result = trainer.result_
    stages = result.stages if hasattr(result, "num_branches") else (result.joint, *result.specialised)
    history = [record for stage in stages for record in stage.history]
    found["losses"] = torch.tensor([[record.loss, *record.task_losses] for record in history])
    found["scores"] = torch.tensor([record.val_score or 0.0 for record in history]).nan_to_num(nan=-9.0)
    found["best"] = torch.tensor([stage.best_epoch or 0 for stage in stages])
    if hasattr(trainer, "assignment_history_"):
        found["history"] = torch.from_numpy(trainer.assignment_history_)
    return {name: value.detach().clone() for name, value in found.items()}


# What every rank, and one process alone, are asked to train; the results have to agree.


def plain(layout):
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, layout.num_logits))


def synced(layout):
    return nn.Sequential(nn.Linear(6, 8), nn.SyncBatchNorm(8), nn.Linear(8, layout.num_logits))


def decayed(parameters):
    """A parameter that nothing depends on must have no gradient, or it would decay."""
    return torch.optim.AdamW(parameters, lr=1e-2, weight_decay=0.1)


RUNS = {
    "stg": lambda seed: stg(seed, make(seed), make(seed + 1), keep_best=True, optimizer=decayed),
    "one by one": lambda seed: stg(seed, make(seed), specialise="one-by-one", epochs=1, num_groups=3),
    "together": lambda seed: stg(seed, make(seed), make(seed + 1), net=plain, specialise="together", keep_best=True),
    "five groups on four ranks": lambda seed: stg(seed, make(seed), net=plain, num_groups=5, epochs=1),
    # batches of fewer rows than ranks, complete labels, the last batch of a row or two
    "few rows": lambda seed: stg(
        seed, make(seed, CLASSES, 11, False), layout=CLASSES, batch_size=2, snapshots="gram", epochs=2
    ),
    "dataset": lambda seed: stg(
        seed, list(make(seed, rows=14)), list(make(seed + 1, rows=3)), batch_size=3, snapshots="disk", epochs=2
    ),
    "dmtg": lambda seed: dmtg(seed, make(seed), make(seed + 1), entropy_weight=0.01),
    "dmtg, a draw per row": lambda seed: dmtg(seed, make(seed, rows=23), sampling="per_sample", batch_size=3, epochs=2),
}


# What only ranks can do


def observations(seed, rank, layout=CLASSES, missing=True):
    """What a rank records: some samples often, some never."""
    generator = torch.Generator().manual_seed(seed + rank)
    rows = 60 + 10 * rank
    p = torch.rand(rows, layout.num_tasks, generator=generator)
    ids = (torch.rand(rows, generator=generator) * 20).long() + rank
    valid = torch.rand(p.shape, generator=generator) < 0.7 if missing else torch.ones_like(p, dtype=torch.bool)
    p[0, 0] = torch.nan  # a row to reject: its label must be there
    valid[0, 0] = True
    return p, ids, valid


def merged_maps(seed, rank):
    found = {}
    for missing in (True, False):
        data_map = DataMap(25, CLASSES, missing=missing)
        p, ids, valid = observations(seed, rank, missing=missing)
        data_map.update(p, ids, valid=valid)
        before = data_map.state_dict()["words"].clone()
        owned, part = data_map.reduce_scatter()
        assert torch.equal(before, data_map.state_dict()["words"])
        found[f"part {missing}"] = (owned, part.state_dict(), sum_gram(part.gram()))
        assert data_map.all_reduce_() is data_map
        found[f"whole {missing}"] = data_map.state_dict()
    return found


def padded_loop(seed, epochs=3):
    """A loop of somebody's own under a DistributedSampler, whose padding must not be recorded."""
    data = make(seed, CLASSES, 29)
    sampler = DistributedSampler(data, shuffle=True, seed=seed)
    model, loss = mlp(6, (4,))(CLASSES), MultiTaskLoss(CLASSES)
    with record(loss, CLASSES, num_samples=len(data), missing=True) as recorder:
        for epoch in range(epochs):
            sampler.set_epoch(epoch)
            for inputs, targets in recorder.batches(DataLoader(with_ids(data), batch_size=4, sampler=sampler)):
                loss(model(inputs), targets)
    return recorder.data_map.all_reduce_().state_dict(), Counter(list(sampler)).total()


def stopped(seed, rank, folder, method):
    """Stop a run by a signal to one rank, go on with it; and the run that was never stopped."""

    def net(layout, countdown=lambda: None):
        return Awkward(layout, 0.3, countdown)

    # 15 batches of the joint training and 5 of the groups'; or 15 of the grouped training, each of 4 branches' losses
    left = [3 + seed % 16 if method == "stg" else 4 * (2 + seed % 12)]

    def countdown():
        left[0] -= 1
        if left[0] == 0 and rank == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    def train(countdown, **places):
        if method == "stg":
            options = {"net": lambda layout: net(layout, countdown), "snapshots": "gram" if seed % 2 else "memory"}
            return stg(seed, make(seed), make(seed + 1), keep_best=True, **options, **places)
        return dmtg(seed, make(seed), losses={"x": counted_loss(countdown)}, **places)

    ended, _mail._SECONDS = None, 0.0  # a signal is known after the batch, not half a second later
    try:
        with on_signals():
            train(countdown, checkpoint_dir=folder, log=f"{folder}.jsonl")
    except StopRequest as stop:
        ended = (stop.number, stop.saved)
    if rank == 0:
        shutil.copytree(folder, f"{folder}-stopped")
    resumed = train(lambda: None, checkpoint_dir=folder, log=f"{folder}.jsonl", resume=True)
    return ended, learned(resumed), learned(train(lambda: None))


def counted_loss(countdown):
    def loss(outputs, targets):
        countdown()
        there = ~targets.isnan()
        return ((outputs.squeeze(-1) - targets.nan_to_num()).square() * there).sum() / there.sum().clamp(min=1)

    return loss


def mistakes(seed, rank, folder):
    """What must be an error on every rank, not a rank that waits for the others."""
    found = {}
    tries = {
        "other data": lambda: stg(seed, make(seed + (rank == 1))),
        "other options": lambda: stg(seed, make(seed), epochs=2 + (rank == 3)),
        "too few samples": lambda: stg(seed, make(seed, rows=3)),
        "no place for checkpoints": lambda: stg(seed, make(seed), checkpoint_dir=__file__),
        "more groups than tasks that differ": lambda: stg(seed, same_tasks(seed), net=Same, layout=SAME, epochs=1),
        "a rank without rows": lambda: stg(seed, make(seed), net=synced, batch_size=2),
        "maps": lambda: DataMap(10 + rank, CLASSES).all_reduce_(),
    }
    for name, attempt in tries.items():
        try:
            attempt()
        except (PymtgError, OSError) as error:
            found[name] = (type(error).__name__, str(error))
    return found


def all_of_it(seed, rank, folder):
    found = {name: learned(run(seed)) for name, run in RUNS.items()}
    found["maps"] = merged_maps(seed, rank)
    found["padding"] = padded_loop(seed)
    for method in ("stg", "dmtg"):
        found[f"stopped {method}"] = stopped(seed, rank, f"{folder}/{method}", method)
    found["mistakes"] = mistakes(seed, rank, folder)
    return found


def killed(seed, rank, folder):
    """One rank is killed in the midst of its batches; the others have to say so."""
    left, last = [20 + seed % 30], [0.0]

    def countdown():
        left[0] -= 1
        last[0] = time.monotonic()
        if left[0] == 0 and rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)

    try:
        stg(seed, make(seed), net=lambda layout: Awkward(layout, countdown=countdown), epochs=1000)
    except PymtgError as error:
        return type(error).__name__, str(error), type(error.__cause__).__name__, time.monotonic() - last[0]
    return None


JOBS = {job.__name__: job for job in (all_of_it, killed)}


def launch(job, world, seed, folder, seconds=550):
    """Run jobs, with commas between, on so many ranks; return exit codes and what each has said."""
    words = [str(folder / "meeting"), str(world), str(seed), job, str(folder)]
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", "import _ranks_run; _ranks_run.main()", str(rank), *words],
            env=os.environ | {"PYTHONPATH": str(Path(__file__).parent), "OMP_NUM_THREADS": "1"},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(world)
    ]
    try:
        said = [rank.communicate(timeout=seconds)[1] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    return [rank.returncode for rank in ranks], said


def left_behind(job, world, folder):
    """Return what a job has returned on every rank; None where it was killed."""
    outs = [folder / f"{job}-{rank}.pt" for rank in range(world)]
    return [torch.load(out, weights_only=False) if out.exists() else None for out in outs]


def main():
    rank, meeting, world, seed, job, folder = (int(word) if word.isdigit() else word for word in sys.argv[1:])
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    place = {"init_method": f"file://{meeting}", "rank": rank, "world_size": world}
    dist.init_process_group("gloo", **place, timeout=timedelta(seconds=120))
    for one in job.split(","):
        torch.save(JOBS[one](seed, rank, folder), f"{folder}/{one}-{rank}.pt")


def leaving(rank, meeting):
    """Leave right after a collective on a tensor that nobody else holds."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
    Ranks.here().text("goodbye")
    leave()


def leave_in_pairs():
    """Let one pair of ranks after the other leave; print how each ended, None where it did not."""
    forking = multiprocessing.get_context("fork")  # everything is imported once
    for number in range(PAIRS):
        pair = [forking.Process(target=leaving, args=(rank, f"{sys.argv[1]}/{number}")) for rank in range(2)]
        for process in pair:
            process.start()
        for process in pair:
            process.join(60)
        codes = [process.exitcode for process in pair]
        print(codes, flush=True)
        for process in pair:
            process.kill()
        if codes != [0, 0]:
            break
