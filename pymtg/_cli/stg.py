"""``pymtg stg``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pymtg._cli import image_options as img
from pymtg._cli import options as opt
from pymtg._cli import run_options as runs
from pymtg._cli.errors import require
from pymtg._counting import counted

if TYPE_CHECKING:
    from pymtg.data import TaskData
    from pymtg.trainers import STGTrainer

__all__ = ["stg"]


def stg(
    data: opt.Data,
    out: opt.OutDirectory,
    targets: opt.Targets = None,
    groups: opt.Groups = "3",
    epochs: opt.Epochs = 20,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Everything random follows from it.")] = 0,
    init: opt.Init = "fresh",
    mode: opt.Mode = "kmeans-fuzzified",
    fuzzifier: opt.Fuzzifier = 1.07,
    snapshot_epochs: opt.SnapshotEpochs = None,
    snapshots: opt.Snapshots = "auto",
    specialised_epochs: opt.SpecialisedEpochs = None,
    specialise: opt.Specialise = "auto",
    lr: opt.LearningRate = 1e-3,
    lr_milestones: opt.Milestones = None,
    lr_gamma: opt.MilestoneFactor = None,
    batch_size: opt.BatchSize = 32,
    network: img.Network = "auto",
    hidden: opt.Hidden = None,
    attributes: img.Attributes = None,
    image_size: img.ImageSize = None,
    images: img.Images = None,
    workers: img.Workers = 0,
    test_size: opt.TestSize = 1 / 3,
    val_size: opt.ValSize = 0.0,
    keep_best: Annotated[
        bool,
        opt.switch(
            "--keep-best", help="Keep each network's best epoch on the validation set, by --monitor; needs --val-size."
        ),
    ] = False,
    monitor: opt.Monitor = "auto",
    device: opt.Device = None,
    amp: opt.Amp = None,
    threads: opt.Threads = 1,
    checkpoint_every: runs.CheckpointEvery = "10min",
    resume: runs.Resume = False,
    log: runs.Log = None,
    tensorboard: runs.TensorBoard = None,
    profile: runs.Profile = None,
    rank_timeout: runs.RankTimeout = "10min",
    quiet: opt.Quiet = False,
    config: img.Config = None,
) -> None:
    """Train jointly, group the tasks by their data maps, train a network per group, and report.

    Writes metrics.json, groups.json, model.safetensors (of each group its network with the heads of its tasks),
    data_map.safetensors, data_map.png, memberships.png and report.html.
    """
    from pymtg._cli.long_run import checkpoint_directory, clear_checkpoints, print_profile, stoppable
    from pymtg._cli.networks import chosen_network
    from pymtg._cli.ranks import join_ranks, shown_ranks
    from pymtg._cli.run_setup import (
        check_decay,
        check_monitor,
        check_place,
        decay_of,
        load_data,
        shown_decay,
        shown_monitor,
    )
    from pymtg.trainers import STGTrainer

    require("matplotlib", "jinja2", extra="report")
    settings: dict[str, Any] = {
        "num_groups": opt.group_count(groups),
        "epochs": epochs,
        "snapshot_epochs": opt.snapshot_epochs_of(snapshot_epochs),
        "snapshots": snapshots,
        "specialised_epochs": specialised_epochs,
        "specialise": specialise,
        "init": init,
        "mode": mode,
        "fuzzifier": fuzzifier,
        "lr": lr,
        "batch_size": batch_size,
        "keep_best": keep_best,
        "monitor": opt.monitor_of(monitor),
        "num_threads": threads,
        "num_workers": workers,
        "seed": seed,
    }
    of_the_set = (targets, attributes, image_size, images)
    scheduler = decay_of(lr_milestones, lr_gamma)
    check_decay(scheduler, max(epochs, specialised_epochs or 0))
    leads = join_ranks(device, rank_timeout)
    checkpoints = checkpoint_directory(out, resume, leads)
    tasks = load_data(data, seed, test_size, val_size, *of_the_set)
    check_monitor(settings["monitor"], tasks)
    net = chosen_network(tasks, network, hidden, for_images="cnn")
    trainer = STGTrainer(
        net.model,
        tasks.layout,
        **settings,
        scheduler=scheduler,
        device=device,
        amp=opt.precision(amp),
        progress=False if quiet else None,
        checkpoint_dir=checkpoints,
        checkpoint_every=checkpoint_every,
        log=log,
        tensorboard=tensorboard,
        profile=profile,
    )
    check_place(out, device, leads, log=log, tensorboard=tensorboard, profile=profile)
    shown = {
        **settings,
        **net.described(),
        **shown_decay(scheduler),
        **shown_monitor(settings["monitor"], tasks),
        **shown_ranks(),
        "test_size": test_size,
        "val_size": val_size,
        "amp": amp,
    }
    with stoppable():
        trainer.fit(tasks.train, tasks.val, resume=resume)
        if leads:
            _finish(trainer, tasks, data, out, {**shown, "device": str(trainer.config.torch_device)}, quiet)
    if leads:
        clear_checkpoints(checkpoints)
        print_profile(None if quiet else profile)


def _finish(trainer: STGTrainer, tasks: TaskData, data: str, out: Path, settings: dict[str, Any], quiet: bool) -> None:
    from pymtg._cli.stg_record import STGRecord
    from pymtg._cli.tables import print_groups, print_scores

    record = STGRecord.of(trainer, tasks, data, opt.command(sys.argv), settings)
    record.save(out)
    if quiet:
        return
    print_scores(f"{tasks.name}: means over {counted(tasks.num_tasks, 'task')} of the test set", record.run.scores)
    print_groups(record.run.group_table)
    typer.echo(f"report: {out / 'report.html'}")
