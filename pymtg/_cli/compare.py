"""``pymtg compare``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pymtg._cli import image_options as img
from pymtg._cli import options as opt
from pymtg._cli import run_options as runs
from pymtg._cli.errors import CommandError

if TYPE_CHECKING:
    from pymtg.trainers import Comparison

__all__ = ["compare"]

_ALL = "all"


def compare(
    data: opt.Data,
    out: opt.OutDirectory,
    targets: opt.Targets = None,
    groups: opt.Groups = "3",
    epochs: opt.Epochs = 20,
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="How many seeds: 0, 1, 2, ...")] = 5,
    methods: Annotated[
        str,
        typer.Option(
            "--methods",
            metavar="M,M,...",
            help="Some of stg_soft, stg_hard, stg_joint, dmtg, dmtg_warm (from the joint network), mtl, ensemble, "
            "random_groups, stl, which are all; and of dmtg_diagonal, dmtg_random (fixed assignments).",
        ),
    ] = _ALL,
    views: Annotated[
        str,
        typer.Option(
            "--views",
            metavar="V,V,...",
            help="Some of fixed (--epochs a network), best (each network's best epoch by --monitor, within "
            "--max-epochs), equal (as many epochs in all for every method).",
        ),
    ] = _ALL,
    max_epochs: Annotated[
        int, typer.Option("--max-epochs", min=1, help="Epochs of a network in the view 'best'.")
    ] = 100,
    metric: Annotated[
        str | None,
        typer.Option(
            "--metric",
            show_default="balanced_accuracy, or r2 for regression",
            help="The figure that leads the tables of comparison.md.",
        ),
    ] = None,
    mode: opt.Mode = "kmeans-fuzzified",
    fuzzifier: opt.Fuzzifier = 1.07,
    snapshot_epochs: opt.SnapshotEpochs = None,
    sampling: opt.Sampling = "gumbel",
    temperature: opt.Temperature = "2.5",
    schedule: opt.Schedule = None,
    assignment_lr: opt.AssignmentLearningRate = 1e-2,
    assignment_warmup: opt.AssignmentWarmup = 0.02,
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
    monitor: opt.Monitor = "auto",
    device: opt.Device = None,
    amp: opt.Amp = None,
    threads: opt.Threads = 1,
    checkpoint_every: runs.CheckpointEvery = "10min",
    resume: runs.Resume = False,
    quiet: opt.Quiet = False,
    config: img.Config = None,
) -> None:
    """Compare STG and DMTG with one network, an ensemble, random groups and single-task networks, over seeds.

    Writes comparison.json and comparison.md. Without --val-size the view 'best' holds out a fifth of the training rows.
    """
    from pymtg._cli.long_run import checkpoint_directory, clear_checkpoints, stoppable
    from pymtg._cli.networks import chosen_network
    from pymtg._cli.ranks import refuse_ranks
    from pymtg._cli.run_setup import check_decay, check_place, decay_of, load_data, shown_decay
    from pymtg.metrics import METRICS, REGRESSION_METRICS, default_metric, metrics_of
    from pymtg.trainers import ABLATIONS, METHODS, VIEWS, TrainConfig
    from pymtg.trainers import compare as run_comparison
    from pymtg.trainers.compare import longest_stage

    refuse_ranks("compare")
    options: dict[str, Any] = {
        "methods": METHODS if methods == _ALL else _names("--methods", methods, METHODS + ABLATIONS),
        "views": VIEWS if views == _ALL else _names("--views", views, VIEWS),
        "num_groups": opt.group_count(groups),
        "max_epochs": max_epochs,
        "mode": opt.choice("--mode", mode, opt.MODES),
        "fuzzifier": fuzzifier,
        "snapshot_epochs": opt.snapshot_epochs_of(snapshot_epochs),
        "dmtg_options": {
            "sampling": opt.choice("--sampling", sampling, opt.SAMPLING),
            "temperature": opt.temperature_of(temperature, schedule),
            "assignment_lr": assignment_lr,
            "assignment_warmup": assignment_warmup,
        },
    }
    if metric is not None:
        opt.choice("--metric", metric, METRICS + REGRESSION_METRICS)
    scheduler = decay_of(lr_milestones, lr_gamma)
    training = TrainConfig(
        epochs=epochs,
        batch_size=batch_size,
        lr=lr,
        scheduler=scheduler,
        num_workers=workers,
        device=device,
        amp=opt.precision(amp),
        monitor=opt.monitor_of(monitor),
        num_threads=threads,
    )
    if training.monitor is not None and "best" not in options["views"]:
        raise CommandError("--monitor needs the view 'best', in which it chooses epochs; --views leaves it out")
    checkpoints = checkpoint_directory(out, resume, leads=True)
    of_the_set = (targets, attributes, image_size, images)
    first = load_data(data, 0, test_size, val_size, *of_the_set)
    check_decay(
        scheduler,
        longest_stage(
            options["methods"], options["views"], epochs, max_epochs, options["num_groups"], first.layout.num_tasks
        ),
    )
    net = chosen_network(first, network, hidden, for_images="cnn")
    metric = default_metric(first.layout) if metric is None else metric
    opt.choice("--metric", metric, metrics_of(first.layout))
    check_place(out, device)
    asked = {
        **net.described(),
        **shown_decay(scheduler),
        "test_size": test_size,
        "val_size": val_size,
        "amp": amp,
        "num_threads": training.num_threads,
    }
    with stoppable():
        comparison = run_comparison(
            lambda seed: first if seed == 0 else load_data(data, seed, test_size, val_size, *of_the_set),
            net.model,
            seeds=range(seeds),
            config=training,
            progress=False if quiet else None,
            checkpoint_dir=checkpoints,
            checkpoint_every=checkpoint_every,
            resume=resume,
            **options,
        )
        _finish(comparison, out, metric, {**asked, "device": str(training.torch_device)}, quiet)
    clear_checkpoints(checkpoints)


def _names(option: str, words: str, known: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(opt.choice(option, word.strip(), known) for word in words.split(","))


def _finish(comparison: Comparison, out: Path, metric: str, asked: dict[str, Any], quiet: bool) -> None:
    from pymtg._cli.environment import machine, versions
    from pymtg._cli.tables import print_comparison
    from pymtg.report import save_json, save_text

    found = comparison.to_dict()
    found["settings"] = {**found["settings"], **asked}
    described = {"command": opt.command(sys.argv), **found, "versions": versions(), "machine": machine()}
    save_json(out / "comparison.json", described)
    save_text(out / "comparison.md", comparison.to_markdown(metric))
    if not quiet:
        print_comparison(comparison, metric)
        typer.echo(f"tables: {out / 'comparison.md'}")
