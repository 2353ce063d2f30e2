"""TensorBoard's files, read back by TensorBoard."""

from __future__ import annotations

import json
import sys
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from _resume_run import LAYOUT, Bomb, Countdown, dmtg, make, stg
from _tiny import write_tiny
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.tensorboard import SummaryWriter

from pymtg import DataMap, STGTrainer, TaskGroups, TaskLayout
from pymtg.cli import main
from pymtg.errors import InvalidArgumentError, InvalidTypeError
from pymtg.integrations import tensorboard as integration
from pymtg.integrations.tensorboard import add_data_map, add_groups
from pymtg.nets import mlp


def read(directory):
    found = EventAccumulator(str(directory), {"scalars": 0, "images": 0, "histograms": 0, "tensors": 0})
    return found.Reload()


def curve(accumulator, tag):
    return [(event.step, event.value) for event in accumulator.Scalars(tag)]


def single(values):
    return [float(np.float32(value)) for value in values]


def test_scalars_are_those_of_the_result(seed, tmp_path):
    trainer = dmtg(seed, tensorboard=tmp_path / "new" / "board").fit(make(seed), make(seed + 1))
    folders = sorted(path.name for path in (tmp_path / "new" / "board").iterdir())
    assert folders == ["dmtg", "fine-tuning", "groups", "warm-start"]
    for stage in trainer.result_.stages:
        found = read(tmp_path / "new" / "board" / stage.name.replace(" ", "-"))
        steps = list(range(1, stage.epochs + 1))
        for tag, values in {
            "loss": [r.loss for r in stage.history],
            "val_score": [r.val_score for r in stage.history],
            "seconds": [r.seconds for r in stage.history],
            "task_losses/c": [r.task_losses[2] for r in stage.history],
            "val_task_scores/e": [r.val_task_scores[4] for r in stage.history],
        }.items():
            assert curve(found, tag) == list(zip(steps, single(values), strict=True))
    grouped = read(tmp_path / "new" / "board" / "dmtg")
    assert [v for _, v in curve(grouped, "entropy")] == single(trainer.result_.entropies[1:])
    assert [v for _, v in curve(grouped, "temperature")] == single(trainer.result_.temperatures[1:])
    assert [v for _, v in curve(grouped, "moved")] == single(trainer.result_.moved[1:])
    found = read(tmp_path / "new" / "board" / "groups")
    assert set(found.Tags()["images"]) == {"data_map", "memberships"}


def test_a_resumed_run_has_every_epoch_once_and_a_new_one_none_of_the_old(seed, tmp_path):
    data, board = (make(seed), make(seed + 1)), tmp_path / "board"
    options = {"tensorboard": board, "specialise": "one-by-one"}
    stg(seed + 1, epochs=9, specialised_epochs=6, **options).fit(*data)  # another run's
    with pytest.raises(Bomb):  # in the sixth epoch of the second group's network
        stg(seed, Countdown(10 * 5 + 10 * 3 + 25), checkpoint_dir=tmp_path / "kept", **options).fit(*data)
    newest = max((tmp_path / "kept").glob("at-*"))
    newest.unlink()  # so that an epoch which the board knows is trained again
    trainer = stg(seed, checkpoint_dir=tmp_path / "kept", **options).fit(*data, resume=True)
    for stage in trainer.result_.stages:
        found = curve(read(board / stage.name.replace(" ", "-")), "loss")
        assert found == list(zip(range(1, stage.epochs + 1), single(r.loss for r in stage.history), strict=True))
    assert read(board / "groups").Images("memberships")[-1].step == 0
    assert len(read(board / "groups").Images("memberships")) == 1


def test_networks_that_are_trained_together_have_a_curve_each(seed, tmp_path):
    layout = LAYOUT
    options = {"num_groups": 2, "epochs": 2, "seed": seed, "num_threads": 1, "progress": False}
    trainer = STGTrainer(mlp(6, (8,)), layout, specialise="together", tensorboard=tmp_path, **options).fit(make(seed))
    for stage in trainer.result_.specialised:
        folder = tmp_path / stage.name.replace(" ", "-")
        assert len(list(folder.iterdir())) == 1
        assert [v for _, v in curve(read(folder), "loss")] == single(r.loss for r in stage.history)


def test_many_tasks_get_no_curves_of_their_own(seed, tmp_path, monkeypatch):
    from pymtg.trainers import _board

    monkeypatch.setattr(_board, "MOST_TASKS", 4)
    stg(seed, tensorboard=tmp_path, epochs=1, specialised_epochs=1, keep_best=False).fit(make(seed))
    assert read(tmp_path / "joint").Tags()["scalars"] == ["loss", "seconds"]


def some_map(generator, layout=LAYOUT, rows=40):
    data_map = DataMap(rows, layout, missing=True)
    for _ in range(3):
        p = torch.rand(rows, layout.num_tasks, generator=generator)
        valid = torch.rand(p.shape, generator=generator) < 0.8
        valid[:, 1] = False  # a task without any label
        data_map.update(p, torch.arange(rows), valid=valid)
    return data_map


def some_groups(layout=LAYOUT, k=2):
    rng = np.random.default_rng(0)
    memberships = rng.dirichlet(np.ones(k), layout.num_tasks)
    return TaskGroups(layout.names, memberships, memberships.argmax(1), {})


def test_a_data_map_as_picture_and_histograms(generator, tmp_path):
    data_map = some_map(generator)
    with SummaryWriter(str(tmp_path)) as writer:
        add_data_map(writer, data_map, some_groups(), step=3)
        add_data_map(writer, data_map, tag="plain")
    found = read(tmp_path)
    assert set(found.Tags()["images"]) == {"data_map", "plain"}
    (picture,) = found.Images("data_map")
    assert (picture.step, picture.width > 300, picture.encoded_image_string[:4]) == (3, True, b"\x89PNG")
    tags = {f"data_map/{plane}" for plane in ("mean", "std", "correctness")}
    tags |= {f"{tag}/{name}" for tag in tags for name in LAYOUT.names if name != LAYOUT.names[1]}
    assert {tag for tag in found.Tags()["histograms"] if tag.startswith("data_map")} == tags
    known = data_map.mean[data_map.count[:, 0] > 0, 0].double()
    (event,) = found.Histograms(f"data_map/mean/{LAYOUT.names[0]}")
    value = event.histogram_value
    assert (event.step, value.num) == (3, len(known))
    assert value.sum == pytest.approx(known.sum().item(), rel=1e-5)
    assert (value.min, value.max) == pytest.approx((known.min().item(), known.max().item()), rel=1e-6)


def test_memberships_as_picture_and_text(tmp_path):
    groups = some_groups()
    with SummaryWriter(str(tmp_path)) as writer:
        add_groups(writer, groups, step=2)
    found = read(tmp_path)
    assert [(image.step, image.height > 100) for image in found.Images("memberships")] == [(2, True)]
    (event,) = found.Tensors("memberships/groups/text_summary")
    text = event.tensor_proto.string_val[0].decode()
    for name, label, row in zip(groups.names, groups.labels, groups.memberships, strict=True):
        line = next(line for line in text.splitlines() if line.startswith(f"| {label} |"))
        assert f"{name} ({row[label]:.2f})" in line


def test_mistakes_are_said(generator, tmp_path, monkeypatch):
    with pytest.raises(InvalidTypeError, match=r"writer must be a torch\.utils\.tensorboard\.SummaryWriter; got str"):
        add_groups(str(tmp_path), some_groups())
    with SummaryWriter(str(tmp_path)) as writer:
        for add, argument in ((add_data_map, "data_map must be a DataMap"), (add_groups, "groups must be TaskGroups")):
            with pytest.raises(InvalidTypeError, match=f"{argument}; got str"):
                add(writer, "x")
    with SummaryWriter(str(tmp_path)) as writer, pytest.raises(InvalidArgumentError, match="groups must be of the"):
        add_data_map(writer, some_map(generator), some_groups(TaskLayout.binary(["x", "y", "z", "u", "v"])))
    with pytest.raises(InvalidTypeError, match="tensorboard must be a path or None; got 3"):
        stg(0, tensorboard=3)
    monkeypatch.setattr(integration, "find_spec", lambda name: None if name == "tensorboard" else find_spec(name))
    with pytest.raises(
        InvalidArgumentError, match=r"tensorboard needs tensorboard, .*pip install 'pymtg\[tensorboard\]'"
    ):
        stg(0, tensorboard=tmp_path)


def test_the_command_names_its_flag_and_writes(tmp_path, monkeypatch, capsys):
    arguments = ["stg", "--data", write_tiny(tmp_path), "--epochs", "2", "--groups", "2", "--hidden", "8", "--quiet"]
    arguments += ["--out", str(tmp_path / "out"), "--tensorboard", str(tmp_path / "board")]
    assert main(arguments) == 0
    losses = [v for _, v in curve(read(tmp_path / "board" / "joint"), "loss")]
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text(encoding="utf-8"))
    assert losses == single(metrics["stages"][0]["loss"])
    monkeypatch.setattr(integration, "find_spec", lambda name: None)
    assert main(arguments) == 2
    assert capsys.readouterr().err.startswith(
        "pymtg stg: --tensorboard needs tensorboard and matplotlib, not installed"
    )
    assert "torch.utils.tensorboard" in sys.modules
