"""The options that several commands share, and the words in them."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pymtg._cli.errors import CommandError

if TYPE_CHECKING:
    from pymtg.nets.temperature import Temperature as TemperatureSchedule

__all__ = [
    "SAMPLING",
    "Amp",
    "AssignmentLearningRate",
    "AssignmentWarmup",
    "BatchSize",
    "Data",
    "Device",
    "Epochs",
    "Fuzzifier",
    "Groups",
    "Hidden",
    "Init",
    "LearningRate",
    "MilestoneFactor",
    "Milestones",
    "Mode",
    "Monitor",
    "OutDirectory",
    "Quiet",
    "Sampling",
    "Schedule",
    "SnapshotEpochs",
    "Snapshots",
    "Specialise",
    "SpecialisedEpochs",
    "Targets",
    "Temperature",
    "TestSize",
    "Threads",
    "ValSize",
    "choice",
    "command",
    "given",
    "group_count",
    "monitor_of",
    "place",
    "precision",
    "snapshot_epochs_of",
    "switch",
    "temperature_of",
    "whole_numbers",
]

MODES = ("kmeans-fuzzified", "fuzzy-cmeans", "kmeans", "points")
SAMPLING = ("gumbel", "hard", "softmax", "per_sample")
SCHEDULES = ("constant", "linear", "exponential", "cosine")


def place(option: str, kind: str) -> Callable[[str], Path]:
    """Return the reader of an option that names a file or a directory: an empty name would be the current directory."""

    def path(words: str) -> Path:
        if not words:
            raise CommandError(f"{option} must name a {kind}; got ''")
        return Path(words)

    return path


def switch(name: str, help: str) -> Any:
    """Return the option of a switch, with the form that takes back what a --config file says."""
    return typer.Option(f"{name}/--no-{name[2:]}", show_default=False, help=help)


Data = Annotated[
    str,
    typer.Option(
        "--data",
        metavar="NAME",
        help="'digits' (built in); 'mulan:DIR/STEM' for DIR/STEM.xml with DIR/STEM-train.arff and "
        "DIR/STEM-test.arff, or with DIR/STEM.arff; 'cifar10:DIR', 'cifar100:DIR' or 'celeba:DIR' as distributed.",
    ),
]
Groups = Annotated[
    str, typer.Option("--groups", metavar="K|auto", help="Number of groups; 'auto' chooses it by silhouette.")
]
Epochs = Annotated[int, typer.Option("--epochs", min=1, help="Epochs of each network.")]
OutDirectory = Annotated[
    Path,
    typer.Option(
        "--out",
        metavar="DIR",
        parser=place("--out", "directory"),
        help="Directory for the results; made if missing, and tried out before training starts. Files of an earlier "
        "run there are replaced at the end, all together; if one cannot be written, those that are complete stay in "
        "DIR/unfinished-...",
    ),
]
Init = Annotated[
    str,
    typer.Option(
        "--init", metavar="fresh|joint", help="Start of the specialised networks: fresh, or the joint network."
    ),
]
Mode = Annotated[str, typer.Option("--mode", metavar="|".join(MODES), help="How tasks are clustered.")]
Fuzzifier = Annotated[
    float, typer.Option("--fuzzifier", help="Above 1; near 1 memberships are almost hard, larger ones blur the groups.")
]
LearningRate = Annotated[float, typer.Option("--lr", help="Learning rate of Adam.")]
Milestones = Annotated[
    str | None,
    typer.Option(
        "--lr-milestones",
        metavar="E,E,...|none",
        help="Epochs of a network after which its learning rate falls, up to the longest stage's last; 'none' for a "
        "constant rate where a --config file has some, whatever --lr-gamma is.",
    ),
]
MilestoneFactor = Annotated[
    float | None,
    typer.Option("--lr-gamma", show_default="0.5", help="What it is multiplied by at each of --lr-milestones."),
]
BatchSize = Annotated[int, typer.Option("--batch-size", min=1, help="Rows in a batch.")]
Hidden = Annotated[
    str | None,
    typer.Option(
        "--hidden",
        metavar="N,N,...",
        show_default="128,128",
        help="Widths of an MLP's hidden layers; in dmtg those of each branch.",
    ),
]
SnapshotEpochs = Annotated[
    str | None,
    typer.Option(
        "--snapshot-epochs",
        metavar="E,E,...|auto",
        help="Epochs of the joint network whose data maps are clustered; by default, and with 'auto' where a --config "
        "file has others, each quarter's last.",
    ),
]
Snapshots = Annotated[
    str,
    typer.Option(
        "--snapshots",
        metavar="auto|memory|gram|disk|host",
        help="Where those data maps are kept: in memory, in a temporary file, or nowhere but for the tasks' inner "
        "products, which need neither (not for --mode points). By default in memory up to 1 GiB, on disk beyond.",
    ),
]
Specialise = Annotated[
    str,
    typer.Option(
        "--specialise",
        metavar="auto|together|one-by-one|spread",
        help="Whether the groups' networks are trained at once, as one network of stacked weights: the same results "
        "to rounding. By default where layers are so small that it is faster. 'spread', the default on several ranks: "
        "each network whole by one of them.",
    ),
]
SpecialisedEpochs = Annotated[
    int | None,
    typer.Option(
        "--specialised-epochs",
        min=1,
        help="Epochs of each group's network; by default --epochs, or half of it with --init joint.",
    ),
]
Sampling = Annotated[
    str,
    typer.Option("--sampling", metavar="|".join(SAMPLING), help="How DMTG's assignment is drawn in training."),
]
Temperature = Annotated[
    str,
    typer.Option(
        "--temperature",
        metavar="START[:END]",
        help="Of the assignment's draws: near 0 almost one branch alone, large almost all alike.",
    ),
]
Schedule = Annotated[
    str | None,
    typer.Option(
        "--schedule",
        metavar="|".join(SCHEDULES),
        help="How the temperature goes from START to END; exponential if there is an END.",
    ),
]
AssignmentLearningRate = Annotated[
    float, typer.Option("--assignment-lr", help="Learning rate of the assignment's logits.")
]
AssignmentWarmup = Annotated[
    float,
    typer.Option("--assignment-warmup", help="Share of the steps, from the first, in which the assignment rests."),
]
Monitor = Annotated[
    str,
    typer.Option(
        "--monitor",
        metavar="NAME|auto",
        help="Score of the validation set, by which the best epoch is chosen: accuracy, balanced_accuracy, f1, "
        "roc_auc, average_precision, r2, rmse, or loss. By default balanced_accuracy, of regression tasks r2.",
    ),
]
Device = Annotated[
    str | None,
    typer.Option("--device", help="Where to train, such as cpu or cuda:0; by default CUDA where there is one."),
]
Amp = Annotated[
    str | None,
    typer.Option("--amp", metavar="bfloat16|float16", help="Train with mixed precision; float16 on CUDA only."),
]
Threads = Annotated[
    int,
    typer.Option(
        "--threads",
        min=1,
        help="Threads of the CPU. One is fastest for small networks; more pay from some hundred units.",
    ),
]
TestSize = Annotated[
    float,
    typer.Option(
        "--test-size", show_default="one third", help="Share of the rows to test on, where the set has no test file."
    ),
]
Targets = Annotated[
    int | None,
    typer.Option(
        "--targets",
        min=1,
        metavar="N",
        help="For a Mulan regression set, DIR/STEM.arff without an XML file: its last N columns are the targets.",
    ),
]
ValSize = Annotated[
    float,
    typer.Option("--val-size", help="Share of the rows to validate on; CelebA has a validation set of its own."),
]
Quiet = Annotated[
    bool, switch("--quiet", help="No progress and no tables: write the files, report errors and warnings only.")
]


def given(context: typer.Context, *names: str) -> list[str]:
    """Return the flags of those of a command's parameters that are on its line, a switch if it is on."""
    options = {option.name: option for option in context.command.params}
    sources = {name: context.get_parameter_source(name) for name in names}
    return [
        options[name].opts[0]
        for name, source in sources.items()
        if source is not None and source.name == "COMMANDLINE" and context.params[name] is not False
    ]


def group_count(word: str) -> int | str:
    """Return the number in ``--groups``, or ``"auto"``."""
    if word == "auto":
        return word
    count = _whole(word)
    if count is None or count < 1:
        raise CommandError(f"--groups must be a whole number from 1, or 'auto'; got {word!r}")
    return count


def whole_numbers(option: str, words: str) -> tuple[int, ...]:
    """Return the numbers of a list such as ``64,64``."""
    numbers = [_whole(word.strip()) for word in words.split(",")]
    found = tuple(number for number in numbers if number is not None and number >= 1)
    if len(found) != len(numbers):
        raise CommandError(f"{option} must be whole numbers from 1 with commas between; got {words!r}")
    return found


def snapshot_epochs_of(words: str | None) -> tuple[int, ...] | None:
    """Return the numbers of ``--snapshot-epochs``; None for the default ones."""
    return None if words in (None, "auto") else whole_numbers("--snapshot-epochs", words)


def choice(option: str, word: str, known: tuple[str, ...]) -> str:
    """Return `word` if it is one of the known ones."""
    if word not in known:
        raise CommandError(f"{option} must be one of {', '.join(known)}; got {word!r}")
    return word


def precision(word: str | None) -> bool | str:
    """Return what trainers take as `amp`."""
    return False if word is None else choice("--amp", word, ("bfloat16", "float16"))


def monitor_of(word: str) -> str | None:
    """Return what trainers take as `monitor`; whether it suits the tasks, they see themselves."""
    from pymtg.trainers.config import MONITORS

    return None if word == "auto" else choice("--monitor", word, ("auto", *MONITORS))


def temperature_of(words: str, schedule: str | None) -> TemperatureSchedule:
    """Return the temperature that ``--temperature START[:END]`` and ``--schedule`` give."""
    from pymtg.nets.temperature import Temperature as TemperatureSchedule

    if schedule is not None:
        choice("--schedule", schedule, SCHEDULES)
    start, colon, end = words.partition(":")
    try:
        first, last = float(start), float(end) if colon else None
    except ValueError:
        raise CommandError(f"--temperature must be a number, or two with a colon between; got {words!r}") from None
    if last is None and schedule not in (None, "constant"):
        raise CommandError(f"--schedule {schedule} needs a temperature to end at: --temperature {start}:END")
    return TemperatureSchedule(first, last, schedule)


def command(words: Sequence[str]) -> str:
    """Return the words of this process as one would type them."""
    return " ".join(["pymtg", *map(shlex.quote, words[1:])])


def _whole(word: str) -> int | None:
    return int(word) if word.isascii() and word.isdigit() else None
