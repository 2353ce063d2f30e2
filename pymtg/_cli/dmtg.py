"""``pymtg dmtg``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pymtg._cli import image_options as img
from pymtg._cli import options as opt
from pymtg._cli import run_options as runs
from pymtg._cli.errors import CommandError, require
from pymtg._counting import counted

if TYPE_CHECKING:
    from pymtg._cli.dmtg_record import DMTGRecord

__all__ = ["dmtg"]


_OF_A_LEARNED_ASSIGNMENT = (
    "sampling",
    "temperature",
    "schedule",
    "assignment_lr",
    "assignment_warmup",
    "assignment_init",
    "entropy_weight",
    "balance_weight",
    "keep_branches",
)


def dmtg(
    context: typer.Context,
    data: opt.Data,
    out: opt.OutDirectory,
    targets: opt.Targets = None,
    groups: Annotated[
        int, typer.Option("--groups", metavar="K", min=1, help="Number of branches, at most as many groups.")
    ] = 3,
    epochs: Annotated[int, typer.Option("--epochs", min=1, help="Epochs in which the assignment is learned.")] = 20,
    warm_epochs: Annotated[
        int, typer.Option("--warm-epochs", min=0, help="Epochs before, of one network from which all branches start.")
    ] = 0,
    finetune_epochs: Annotated[
        int, typer.Option("--finetune-epochs", min=0, help="Epochs after, of the pruned model.")
    ] = 0,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Everything random follows from it.")] = 0,
    assignment: Annotated[
        str,
        typer.Option(
            "--assignment",
            metavar="learned|diagonal|random",
            help="Learned, or fixed for comparison: task t on branch t mod K, or groups drawn by chance. What only a "
            "learned one uses is refused beside a fixed one.",
        ),
    ] = "learned",
    sampling: opt.Sampling = "gumbel",
    temperature: opt.Temperature = "2.5",
    schedule: opt.Schedule = None,
    assignment_lr: opt.AssignmentLearningRate = 1e-2,
    assignment_warmup: opt.AssignmentWarmup = 0.02,
    assignment_init: Annotated[
        str,
        typer.Option("--assignment-init", metavar="ones|diagonal|normal", help="Start of the assignment's logits."),
    ] = "ones",
    entropy_weight: Annotated[
        float, typer.Option("--entropy-weight", help="Weight of the assignment's entropy in the objective.")
    ] = 0.0,
    balance_weight: Annotated[
        float,
        typer.Option(
            "--balance-weight", help="How much the branches are held to equal shares of the tasks; 0 for not."
        ),
    ] = 0.1,
    trunk: Annotated[
        str | None,
        typer.Option(
            "--trunk",
            metavar="N,N,...|stem",
            help="What all branches share: hidden layers of these widths, or the stem of --network celeba (for "
            "images); by default nothing.",
        ),
    ] = None,
    network: img.Network = "auto",
    hidden: opt.Hidden = None,
    freeze_trunk: Annotated[
        bool,
        opt.switch("--freeze-trunk", help="Leave the trunk as it is while the pruned model is fine-tuned."),
    ] = False,
    gradient_scaling: Annotated[
        bool,
        opt.switch(
            "--gradient-scaling",
            help="Scale gradients by 1/sqrt(K) and 1/sqrt(T) where paths join; to Adam the scale is almost all one.",
        ),
    ] = False,
    keep_branches: Annotated[
        bool, opt.switch("--keep-branches", help="Train branches on that no task can choose any more.")
    ] = False,
    data_map: Annotated[
        bool, opt.switch("--data-map", help="Record the tasks' data maps on the way; writes them and their picture.")
    ] = False,
    reference: Annotated[
        str | None,
        typer.Option(
            "--reference",
            metavar="FILE[:METHOD]",
            help="metrics.json of another run on the same data, for the normalized gain over one of its methods.",
        ),
    ] = None,
    lr: opt.LearningRate = 1e-3,
    lr_milestones: opt.Milestones = None,
    lr_gamma: opt.MilestoneFactor = None,
    batch_size: opt.BatchSize = 32,
    attributes: img.Attributes = None,
    image_size: img.ImageSize = None,
    images: img.Images = None,
    workers: img.Workers = 0,
    test_size: opt.TestSize = 1 / 3,
    val_size: opt.ValSize = 0.0,
    keep_best: Annotated[
        bool,
        opt.switch(
            "--keep-best", help="Keep each stage's best epoch on the validation set, by --monitor; needs --val-size."
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
    """Learn groups and networks in one run: K branches, each task finds its own; what no task uses is cut off.

    Writes metrics.json, groups.json, assignment.png, model.safetensors (the pruned model) and report.html; with
    --data-map also data_map.safetensors and data_map.png.
    """
    from pymtg._cli.dmtg_record import DMTGRecord
    from pymtg._cli.long_run import checkpoint_directory, clear_checkpoints, print_profile, stoppable
    from pymtg._cli.networks import chosen_network
    from pymtg._cli.ranks import join_ranks, shown_ranks
    from pymtg._cli.reference import load_reference
    from pymtg._cli.run_setup import (
        check_decay,
        check_monitor,
        check_place,
        decay_of,
        load_data,
        shown_decay,
        shown_monitor,
    )
    from pymtg.trainers import DMTGTrainer

    require("matplotlib", "jinja2", extra="report")
    settings: dict[str, Any] = {
        "num_groups": groups,
        "epochs": epochs,
        "warm_epochs": warm_epochs,
        "finetune_epochs": finetune_epochs,
        "assignment": opt.choice("--assignment", assignment, ("learned", "diagonal", "random")),
        "sampling": opt.choice("--sampling", sampling, opt.SAMPLING),
        "assignment_lr": assignment_lr,
        "assignment_warmup": assignment_warmup,
        "init": opt.choice("--assignment-init", assignment_init, ("ones", "diagonal", "normal")),
        "entropy_weight": entropy_weight,
        "balance_weight": balance_weight,
        "freeze_trunk": freeze_trunk,
        "drop_branches": not keep_branches,
        "lr": lr,
        "batch_size": batch_size,
        "keep_best": keep_best,
        "monitor": opt.monitor_of(monitor),
        "num_threads": threads,
        "num_workers": workers,
        "seed": seed,
    }
    _check_effect(context, assignment)
    if freeze_trunk and trunk is None:
        raise CommandError("--freeze-trunk needs a trunk: give its widths with --trunk")
    if freeze_trunk and not finetune_epochs:
        raise CommandError("--freeze-trunk needs fine-tuning: give its epochs with --finetune-epochs")
    of_the_set = (targets, attributes, image_size, images)
    scheduler = decay_of(lr_milestones, lr_gamma)
    check_decay(scheduler, max(epochs, warm_epochs, finetune_epochs))
    leads = join_ranks(device, rank_timeout)
    checkpoints = checkpoint_directory(out, resume, leads)
    tasks = load_data(data, seed, test_size, val_size, *of_the_set)
    check_monitor(settings["monitor"], tasks)
    net = chosen_network(tasks, network, hidden, for_images="celeba")
    stored = None if reference is None else load_reference(reference, tasks.layout.names)
    trainer = DMTGTrainer(
        net.branched(trunk, groups, gradient_scaling),
        tasks.layout,
        **settings,
        temperature=opt.temperature_of(temperature, schedule),
        record=data_map,
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
        "temperature": temperature,
        "schedule": schedule or ("exponential" if ":" in temperature else "constant"),
        "trunk": net.shown_trunk(trunk),
        **net.described(),
        **shown_decay(scheduler),
        **shown_monitor(settings["monitor"], tasks),
        **shown_ranks(),
        "gradient_scaling": gradient_scaling,
        "test_size": test_size,
        "val_size": val_size,
        "amp": amp,
        "device": str(trainer.config.torch_device),
    }
    with stoppable():
        trainer.fit(tasks.train, tasks.val, resume=resume)
        if not leads:
            return
        record = DMTGRecord.of(trainer, tasks, data, opt.command(sys.argv), shown, stored)
        record.save(out)
    clear_checkpoints(checkpoints)
    print_profile(None if quiet else profile)
    if not quiet:
        _tell(record, out)


def _check_effect(context: typer.Context, assignment: str) -> None:
    """Raise CommandError for options that a fixed assignment leaves without effect."""
    useless = [] if assignment == "learned" else opt.given(context, *_OF_A_LEARNED_ASSIGNMENT)
    if useless:
        verb = "is" if len(useless) == 1 else "are"
        raise CommandError(f"{', '.join(useless)} {verb} for --assignment learned; {assignment} is fixed")


def _tell(record: DMTGRecord, out: Path) -> None:
    from pymtg._cli.tables import print_groups, print_scores

    run = record.run
    print_scores(f"{run.data['name']}: means over {counted(run.data['tasks'], 'task')} of the test set", run.scores)
    print_groups(run.group_table, share="probability")
    for line in record.figures():
        typer.echo(line)
    typer.echo(f"report: {out / 'report.html'}")
