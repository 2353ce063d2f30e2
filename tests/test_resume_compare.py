"""Comparisons that are killed, stopped, damaged and gone on with end as if nothing had been."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
import warnings

import pytest
import torch
from _resume_run import Bomb, Countdown, Counting, without_seconds
from _tiny import write_tiny

from pymtg import STGTrainer, TaskLayout
from pymtg.cli import main
from pymtg.data import TaskData, from_arrays
from pymtg.errors import FileFormatError, InvalidArgumentError, InvalidTypeError
from pymtg.nets import MultiHeadNet, mlp
from pymtg.trainers import CheckpointWarning, TrainConfig, compare

LAYOUT = TaskLayout(["a", "b", "c", "d"], [1, 3, 1, 2])
OPTIONS = {"seeds": (0, 3), "num_groups": 2, "max_epochs": 3, "progress": False}
OFTEN = {"checkpoint_every": "1,0.001s"}  # at almost every batch
MODEL = mlp(6, (8,))


def config(**options):
    return TrainConfig(**{"epochs": 2, "batch_size": 16, "lr": 1e-2, "device": "cpu", "num_threads": 1, **options})


def part(rows, seed):
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(rows, 6, generator=generator)
    weights = torch.randn(6, 4, generator=torch.Generator().manual_seed(9))
    counts = torch.tensor([max(2, c) for c in LAYOUT.num_classes])
    return from_arrays(inputs, (torch.sigmoid(inputs @ weights) * counts).long().clamp(max=counts - 1), LAYOUT)


def make(seed):
    return TaskData("toy", LAYOUT, part(50, seed), part(40, seed + 100))


def counting(countdown):
    return lambda layout: MultiHeadNet(layout, Counting(countdown), 8)


def watched(countdown):
    """Return a factory of plain networks whose training calls a countdown."""

    def build(layout):
        network = MODEL(layout)
        network.register_forward_pre_hook(lambda module, _: countdown() if module.training else None)
        return network

    return build


def compared(comparison):
    """All that a comparison holds but the seconds, the histories of its networks included."""
    stages = {
        f"{view} {name}": [result.to_dict() for result in summary.results]
        for view, content in comparison.views.items()
        for name, summary in content.methods.items()
    }
    return json.dumps(without_seconds([comparison.to_dict(), stages]), sort_keys=True)


def test_a_comparison_that_is_stopped_at_random_batches_ends_the_same(seed, tmp_path):
    countdown = Countdown()
    whole = compared(compare(make, counting(countdown), config=config(), **OPTIONS))
    rng, kept, stops = random.Random(seed), tmp_path / "new" / "kept", 5
    for _ in range(stops):
        many = Countdown(rng.randint(2, countdown.calls // (stops + 1)))
        with pytest.raises(Bomb):
            compare(make, counting(many), config=config(), checkpoint_dir=kept, resume=True, **OFTEN, **OPTIONS)
    rest = Countdown()
    found = compare(make, counting(rest), config=config(), checkpoint_dir=kept, resume=True, **OFTEN, **OPTIONS)
    assert compared(found) == whole
    assert sorted(os.listdir(kept)) == ["stage-000.safetensors", "stage-001.safetensors"]
    again = Countdown()
    found = compare(make, counting(again), config=config(), checkpoint_dir=kept, resume=True, **OPTIONS)
    assert compared(found) == whole
    assert again.calls == 0  # nothing is trained any more


def test_groups_to_be_chosen_scheduler_and_networks_that_several_methods_share(seed, tmp_path):
    options = {**OPTIONS, "num_groups": "auto", "methods": ["random_groups", "stg_soft", "mtl", "dmtg_warm"]}
    options["config"] = config(scheduler=lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5))
    whole = compare(make, MODEL, **options)
    more = {"checkpoint_dir": tmp_path / "kept", "resume": True, **options}
    for calls in (random.Random(seed).randint(2, 40), 50):
        with pytest.raises(Bomb):
            compare(make, watched(Countdown(calls)), **more)
    found = compare(make, watched(Countdown()), **more)
    assert compared(found) == compared(whole)
    results = [found.views["fixed"].methods[method].results[0] for method in ("stg_soft", "mtl")]
    assert results[0].stages[0] is results[1].stages[0]


@pytest.fixture
def stopped(tmp_path):
    """A comparison that was stopped in its second seed; the call that goes on with it."""
    done = []

    def stop(stage, record):
        done.append(stage)
        if len(done) == 14:
            raise Bomb

    options = {**OPTIONS, "methods": ["stg_soft", "mtl", "dmtg"], "views": ["fixed"]}
    with pytest.raises(Bomb):
        compare(make, MODEL, config=config(on_epoch_end=stop), checkpoint_dir=tmp_path, **options)
    assert sorted(os.listdir(tmp_path)) == ["run-001", "stage-000.safetensors"]
    assert len(os.listdir(tmp_path / "run-001")) >= 3

    def go_on(data=make, model=MODEL, resume=True, **more):
        own = {name: more.pop(name) for name in ("lr", "monitor", "on_epoch_end") if name in more}
        return compare(data, model, config=config(**own), checkpoint_dir=tmp_path, resume=resume, **{**options, **more})

    go_on.directory = tmp_path
    go_on.whole = compared(compare(make, MODEL, config=config(), **options))
    return go_on


def test_finished_seeds_are_not_trained_again(stopped):
    seen = []
    assert compared(stopped(on_epoch_end=lambda stage, record: seen.append(stage))) == stopped.whole
    assert seen == ["group 1", "dmtg", "dmtg"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lr": 0.5}, r"options lr \(0.01 there, 0.5 here\)"),
        ({"monitor": "loss"}, r"options monitor \(None there, 'loss' here\)"),
        ({"methods": ["mtl"]}, r"options methods \(\['stg_soft', 'mtl', 'dmtg'\] there, \['mtl'\] here\)"),
        ({"seeds": (0, 4)}, r"options seeds \(\[0, 3\] there, \[0, 4\] here\)"),
        ({"num_groups": 3}, r"options num_groups \(2 there, 3 here\)"),
        ({"max_epochs": 9}, r"options max_epochs \(3 there, 9 here\)"),
        ({"dmtg_options": {"temperature": 1.0}}, r"options dmtg_options temperature start \(2.5 there, 1.0 here\)"),
        ({"model": mlp(6, (9,))}, r"network backbone.*Linear\(in_features=6, out_features=8.* 9"),
        ({"data": lambda seed: TaskData("toy", LAYOUT, part(50, 1), part(40, seed + 100))}, r"data train inputs \("),
        ({"data": lambda seed: TaskData("toy", LAYOUT, part(50, seed), part(40, 9))}, r"data test inputs \("),
    ],
)
def test_another_comparison_is_refused(stopped, change, message):
    with pytest.raises(
        InvalidArgumentError, match=r"resume must continue the same run; .*stage-000.* differs in .*" + message
    ):
        stopped(**change)
    assert compared(stopped()) == stopped.whole


def test_other_data_of_the_seed_at_work_are_refused(stopped):
    with pytest.raises(InvalidArgumentError, match=r"run-001.* differs in data train inputs"):
        stopped(data=lambda seed: make(0) if seed == 0 else TaskData("toy", LAYOUT, part(50, 1), part(40, 103)))


def test_checkpoints_are_not_passed_over(stopped, tmp_path):
    held = sum(1 for _ in stopped.directory.rglob("*.safetensors"))
    said = f"checkpoint_dir must hold no checkpoints unless resume=True .* with {held}$"
    with pytest.raises(InvalidArgumentError, match=said):
        stopped(resume=False)
    with pytest.raises(InvalidArgumentError, match="resume needs a checkpoint_dir"):
        compare(make, MODEL, resume=True)
    with pytest.raises(InvalidTypeError, match="resume must be True or False"):
        compare(make, MODEL, checkpoint_dir=tmp_path / "new", resume=1)
    with pytest.raises(InvalidArgumentError, match="checkpoint_every must be a number of epochs"):
        compare(make, MODEL, checkpoint_dir=tmp_path / "new", checkpoint_every="often")


def test_those_of_a_trainer_are_told_from_those_of_a_comparison(stopped, tmp_path):
    options = {"num_groups": 2, "epochs": 2, "progress": False, "device": "cpu"}
    with pytest.raises(InvalidArgumentError, match=r"resume must continue the same run; .* of a comparison"):
        STGTrainer(MODEL, LAYOUT, checkpoint_dir=stopped.directory, **options).fit(make(0).train, resume=True)
    (tmp_path / "stg" / "run-000").mkdir(parents=True)  # holds no checkpoints, and is somebody's own
    STGTrainer(MODEL, LAYOUT, checkpoint_dir=tmp_path / "stg", **options).fit(make(0).train)
    (tmp_path / "stg" / "run-000").rmdir()
    for path in sorted((tmp_path / "stg").iterdir(), reverse=True):
        with pytest.raises(InvalidArgumentError, match=r"differs in .*method \('stg' there, 'compare' here\)"):
            compare(make, MODEL, checkpoint_dir=tmp_path / "stg", resume=True, config=config(), **OPTIONS)
        path.unlink()


@pytest.mark.parametrize("how", ["cut", "flipped"])
def test_a_damaged_seed_is_trained_again(stopped, how):
    path = stopped.directory / "stage-000.safetensors"
    content = bytearray(path.read_bytes())
    content[-3] ^= 255
    path.write_bytes(content[:-1] if how == "cut" else content)
    with pytest.warns(CheckpointWarning, match=r"stage-000.* damaged.*; training this seed again"):
        assert compared(stopped()) == stopped.whole
    assert (stopped.directory / "stage-000.safetensors.damaged").exists()


def test_a_damaged_network_is_passed_over_for_those_before(stopped):
    newest = max((stopped.directory / "run-001").glob("stage-*"))
    newest.write_bytes(newest.read_bytes()[:-1])
    with pytest.warns(CheckpointWarning, match="; going on from "):
        assert compared(stopped()) == stopped.whole


def test_where_nothing_of_a_seed_is_good(stopped):
    for path in (stopped.directory / "run-001").iterdir():
        path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(FileFormatError, match="run-001 holds no good checkpoint"):
        stopped()


# the command ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_tiny(tmp_path_factory.mktemp("mulan"))


def words(data, out, *more):
    few = ["--seeds", "2", "--methods", "stg_soft,dmtg,mtl,stl", "--epochs", "2", "--max-epochs", "3", "--groups", "2"]
    sizes = ["--hidden", "8", "--batch-size", "8", "--checkpoint-every", "1", "--quiet"]
    return ["compare", "--data", data, *few, *sizes, "--out", str(out), *more]


def written(out):
    found = without_seconds(json.loads((out / "comparison.json").read_text(encoding="utf-8")))
    return {name: value for name, value in found.items() if name not in ("command", "machine")}


def test_a_signal_saves_and_says_where(data, tmp_path, capsys):
    kept = tmp_path / "out" / "checkpoints"

    def watch():
        while not any(kept.rglob("*.safetensors")):
            time.sleep(0.0005)
        os.kill(os.getpid(), signal.SIGTERM)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    assert main(words(data, tmp_path / "out")) == 143
    watcher.join(60)
    said = f"pymtg compare: terminated; saved in {kept}: the same command with --resume goes on from there\n"
    assert capsys.readouterr() == ("", said)
    assert main(words(data, tmp_path / "out", "--resume")) == 0


def killed(arguments, kept, wait):
    """Run a command and kill it a while after it has begun to keep something."""
    with subprocess.Popen([sys.executable, "-m", "pymtg", *arguments], stderr=subprocess.PIPE, text=True) as process:
        try:
            before = set(kept.rglob("*.safetensors"))
            while set(kept.rglob("*.safetensors")) <= before and process.poll() is None:
                time.sleep(0.002)
            time.sleep(wait)
        finally:
            process.kill()
        return process.wait(60), process.stderr.read()


def test_a_command_that_is_killed_goes_on(data, tmp_path, seed, capsys):
    rng, out = random.Random(seed), tmp_path / "out"
    kept = out / "checkpoints"
    for _ in range(2):
        code, errors = killed(words(data, out, "--resume"), kept, rng.uniform(0, 0.4))
        assert (code, errors) in ((-9, ""), (0, ""))
    if kept.exists():  # not on a machine that was done before
        assert main(words(data, out)) == 2
        assert capsys.readouterr().err.endswith("go on with --resume, or remove the directory\n")
        assert main(words(data, out, "--resume", "--lr", "0.5")) == 2
        message = capsys.readouterr().err
        assert message.startswith("pymtg compare: --resume must continue the same run; ")
        assert "options lr (0.001 there, 0.5 here)" in message
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert main(words(data, out, "--resume")) == 0
        assert main(words(data, tmp_path / "whole")) == 0
    assert written(out) == written(tmp_path / "whole")
    assert sorted(os.listdir(out)) == ["comparison.json", "comparison.md"]
    assert capsys.readouterr().err == ""
