"""The commands on the papers' data, their networks, and configuration files."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
import typer
from _papers import ATTRIBUTES, write_celeba, write_cifar10, write_cifar100
from _tiny import write_tiny

from pymtg import TaskLayout
from pymtg._cli.app import app
from pymtg._cli.networks import chosen_network
from pymtg.cli import main
from pymtg.data import load
from pymtg.data.celeba import DMTG_ATTRIBUTES
from pymtg.metrics import score
from pymtg.nets import CelebABranch, CelebAStem, ResNet18, SmallCNN, load_grouped

CONFIGS = Path(__file__).resolve().parent.parent / "configs"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A directory with every set in it."""
    root = tmp_path_factory.mktemp("sets")
    write_cifar10(root, train=30, test=20)
    write_cifar100(root, "binary", train=20, test=10)
    write_celeba(root, 8, 4, 6)
    return root


@pytest.fixture(autouse=True)
def _undrawn(monkeypatch):
    """Pictures take longest, and are tried elsewhere."""
    monkeypatch.setattr("pymtg.report.figures.png", lambda *_: b"")
    monkeypatch.setattr("pymtg.report.html.png", lambda *_: b"")


@pytest.fixture
def run(tmp_path, capsys):
    """Run a command to the end; returns what metrics.json holds."""

    def call(command, *words):
        code = main([command, "--out", str(tmp_path), "--quiet", *map(str, words)])
        printed = capsys.readouterr()
        assert (code, printed.err) == (0, "")
        name = "comparison.json" if command == "compare" else "metrics.json"
        return json.loads((tmp_path / name).read_text())

    return call


@pytest.fixture
def fails(tmp_path, capsys):
    """Run a command that fails; returns its one line."""

    def call(*words):
        assert main([*map(str, words)]) == 2
        printed = capsys.readouterr()
        assert (printed.out, printed.err.count("\n")) == ("", 1)
        return printed.err

    return call


# end to end ----------------------------------------------------------------------------------------------------------


def test_stg_on_cifar100(folder, run):
    found = run("stg", "--data", f"cifar100:{folder}", "--epochs", 1, "--groups", 2, "--batch-size", 8)
    assert found["data"]["tasks"] == 100
    assert found["settings"]["network"] == "cnn"
    assert set(found["scores"]) == {"stg_soft", "stg_hard", "mtl"}
    layout = TaskLayout.binary([str(i) for i in range(100)])
    size = sum(p.numel() for p in SmallCNN().parameters()) + 128 * layout.num_logits + 100
    assert found["parameters"] == {"stg": 2 * size, "mtl": size}


def test_dmtg_on_celeba(folder, run, tmp_path):
    words = ["--data", f"celeba:{folder}", "--image-size", 16, "--images", "disk", "--workers", 2, "--keep-best"]
    found = run("dmtg", *words, "--epochs", 1, "--groups", 2, "--data-map")
    assert found["data"]["train_samples"] == 8
    assert list(found["scores"]["dmtg"]["tasks"]) == list(DMTG_ATTRIBUTES)
    assert (found["settings"]["network"], found["settings"]["num_workers"]) == ("celeba", 2)
    assert len(found["stages"][0]["val_score"]) == 1  # on its own validation set
    net = load_grouped(tmp_path / "model.safetensors")
    assert isinstance(net.branches[0], CelebABranch)
    test = load(f"celeba:{folder}", image_size=16).test
    images, targets = test.__getitems__(range(len(test))).columns
    with torch.no_grad():
        again = score(net(images).sigmoid(), targets, net.layout)
    assert again.mean == pytest.approx(found["scores"]["dmtg"]["mean"], abs=1e-5)


def test_the_other_way_round(folder, run):
    found = run("dmtg", "--data", f"cifar10:{folder}", "--epochs", 1, "--groups", 2, "--network", "cnn")
    assert found["data"]["tasks"] == 15
    assert found["settings"]["network"] == "cnn"


def test_stg_on_celebas_other_attributes_from_disk(folder, run):
    words = ["--data", f"celeba:{folder}", "--image-size", 12, "--images", "disk"]
    found = run("stg", *words, "--attributes", "Young, Bald", "--epochs", 1, "--groups", 1)
    assert list(found["scores"]["mtl"]["tasks"]) == ["Young", "Bald"]


def test_compare_on_images(folder, run):
    words = ["--epochs", 1, "--groups", 2, "--seeds", 1, "--views", "fixed", "--methods", "mtl,dmtg"]
    found = run("compare", "--data", f"celeba:{folder}", "--image-size", 8, "--attributes", "all", *words)
    assert found["settings"]["network"] == "cnn"
    assert set(found["views"]["fixed"]["methods"]) == {"mtl", "dmtg"}
    assert len(load(f"celeba:{folder}", attributes="all", image_size=8).layout) == len(ATTRIBUTES)


def test_a_shared_stem_and_falling_rates(folder, run, tmp_path):
    words = ["--data", f"celeba:{folder}", "--image-size", 12, "--trunk", "stem", "--groups", 2, "--epochs", 2]
    found = run("dmtg", *words, "--lr-milestones", "1", "--lr-gamma", "0.25")
    settings = found["settings"]
    assert (settings["trunk"], settings["lr_milestones"], settings["lr_gamma"]) == (["stem"], [1], 0.25)
    net = load_grouped(tmp_path / "model.safetensors")
    assert isinstance(net.trunk, CelebAStem)


def test_milestones_are_those_of_torch(tmp_path, run):
    spec = write_tiny(tmp_path)
    words = ["--data", spec, "--hidden", "4", "--groups", 1, "--epochs", 3]
    plain = run("stg", *words)
    falling = run("stg", *words, "--lr-milestones", "2", "--lr-gamma", "0.1")
    losses = [found["stages"][0]["loss"] for found in (plain, falling)]
    assert losses[0][:2] == losses[1][:2]
    assert losses[0][2] != losses[1][2]


@pytest.mark.parametrize(
    ("command", "more"),
    [
        ("stg", ["--specialised-epochs", 2]),
        ("dmtg", ["--warm-epochs", 2]),
        ("dmtg", ["--finetune-epochs", 2]),
        ("compare", ["--seeds", 1, "--views", "equal", "--methods", "mtl"]),  # (1 + K) epochs
    ],
)
def test_milestones_of_a_longer_stage_are_taken(tmp_path, run, command, more):
    words = ["--data", write_tiny(tmp_path), "--hidden", "4", "--groups", 1, "--epochs", 1, "--lr-milestones", "2"]
    assert run(command, *words, *more)["settings"]["lr_milestones"] == [2]


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_cannot_be_read_ends_the_run_in_one_line(tmp_path, fails, workers):
    write_celeba(tmp_path, 6, 0, 2)
    (tmp_path / "img_align_celeba" / "000004.jpg").write_bytes(b"")
    words = ["--image-size", "8", "--images", "disk", "--workers", workers, "--epochs", "1", "--quiet"]
    line = fails("dmtg", "--data", f"celeba:{tmp_path}", "--out", tmp_path / "out", *words)
    assert re.match(r"pymtg dmtg: \S*000004.jpg is truncated or no image: ", line), line
    assert len(line) < 300


# networks ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("word", ["mlp", "cnn", "celeba", "resnet18"])
def test_every_network_takes_images(folder, word):
    tasks = load(f"cifar10:{folder}")
    net = chosen_network(tasks, word, None, for_images="cnn")
    kind = {"cnn": SmallCNN, "celeba": CelebABranch, "resnet18": ResNet18}.get(word)
    with torch.device("meta"):
        made = net.model(tasks.layout)
    assert made.layout == tasks.layout
    assert kind is None or isinstance(made.backbone, kind)
    assert net.described() == {"network": word, **({"hidden": [128, 128]} if word == "mlp" else {})}


def test_networks_follow_the_data(folder):
    images = load(f"cifar10:{folder}")
    assert chosen_network(load("digits"), "auto", "8", for_images="cnn").described() == {
        "network": "mlp",
        "hidden": [8],
    }
    assert chosen_network(images, "auto", None, for_images="celeba").name == "celeba"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["stg", "--data", "digits", "--network", "cnn"], r"--network cnn is for images; digits has .* \[64\]"),
        (["stg", "--data", "digits", "--network", "vgg"], "--network must be one of auto, mlp.*'vgg'"),
        (["stg", "--data", "cifar10:{}", "--hidden", "8"], "--hidden is for --network mlp; cnn has"),
        (["dmtg", "--data", "celeba:{}", "--trunk", "64"], "--trunk must be 'stem' for --network celeba; got '64'"),
        (["dmtg", "--data", "celeba:{}", "--network", "cnn", "--trunk", "8"], "--trunk is for --network mlp and"),
        (
            ["dmtg", "--data", "celeba:{}", "--network", "cnn", "--trunk", "stem"],
            "--trunk stem is the stem of --network celeba, which is for images; got --network cnn for images",
        ),
        (["dmtg", "--data", "cifar10:{}", "--network", "mlp", "--trunk", "stem"], "got --network mlp for images"),
        (
            ["dmtg", "--data", "digits", "--trunk", "stem"],
            r"--trunk stem is .*--network celeba, .*images; got --network mlp for inputs of shape \[64\]",
        ),
        (["stg", "--data", "digits", "--lr-gamma", "0.5"], "--lr-gamma needs epochs"),
        (["stg", "--data", "digits", "--lr-milestones", "2", "--lr-gamma", "2"], "--lr-gamma must be above 0"),
        (["stg", "--data", "digits", "--lr-milestones", ""], "--lr-milestones must be whole numbers .*got ''"),
        (["stg", "--data", "digits", "--snapshot-epochs", ""], "--snapshot-epochs must be whole numbers .*got ''"),
        (["stg", "--data", "digits", "--lr-milestones", "x"], "--lr-milestones must be whole numbers"),
        (["stg", "--data", "digits", "--epochs", "3", "--lr-milestones", "2,4,9"], r"longest stage \(3\); got 4, 9"),
        (
            ["dmtg", "--data", "digits", "--epochs", "3", "--finetune-epochs", "4", "--lr-milestones", "5"],
            r"--lr-milestones must not go beyond the epochs of the longest stage \(4\); got 5",
        ),
        (["compare", "--data", "digits", "--epochs", "3", "--lr-milestones", "101"], r"longest stage \(100\); got 101"),
        (["stg", "--data", "digits", "--attributes", "all"], "--attributes must be left out for the digits"),
        (["stg", "--data", "cifar10:{}", "--image-size", "8"], "--image-size must be left out for CIFAR-10"),
        (["dmtg", "--data", "celeba:{}", "--attributes", "Nose"], "--attributes must be some of Bald, .*; got 'Nose'"),
        (["dmtg", "--data", "celeba:{}", "--images", "cloud"], "--images must be 'auto'.*'cloud'"),
        (["dmtg", "--data", "celeba:{}/none"], "there is no directory .*none to read CelebA from"),
        (["stg", "--data", "cifar100:{}/img_align_celeba"], "holds no CIFAR-100: unpack cifar-100-python.tar.gz"),
        (["stg", "--data", "cifar100:"], "--data must name a known data set: .*'cifar100:DIR'"),
    ],
)
def test_mistakes_get_one_line(folder, fails, tmp_path, words, message):
    assert re.search(message, fails(*[w.format(folder) for w in words], "--out", tmp_path / "out"))


# --config ------------------------------------------------------------------------------------------------------------


def parsed(command, *words):
    """The values that a command would be called with."""
    group = typer.main.get_command(app)
    return group.commands[command].make_context(command, [str(word) for word in words]).params


def test_a_file_sets_options_and_flags_override_it(tmp_path):
    file = tmp_path / "own.toml"
    file.write_text(
        'epochs = 7\nbatch-size = 16\nsnapshot_epochs = [2, 5]\nlr = 0.25\nkeep-best = true\ndata = "digits"\n'
    )
    found = parsed("stg", "--config", file, "--epochs", 3, "--out", tmp_path)
    expected = {
        "epochs": 3,
        "batch_size": 16,
        "snapshot_epochs": "2,5",
        "lr": 0.25,
        "keep_best": True,
        "data": "digits",
    }
    assert {name: found[name] for name in expected} == expected
    plain = parsed("stg", "--data", "digits", "--out", tmp_path)
    assert {n: v for n, v in found.items() if n not in (*expected, "config")} == {
        n: v for n, v in plain.items() if n not in (*expected, "config")
    }


@pytest.mark.parametrize(
    ("command", "snapshots", "more"),
    [
        ("stg", True, ["--snapshot-epochs", "auto"]),
        ("compare", True, ["--snapshot-epochs", "auto", "--seeds", 1, "--views", "fixed", "--methods", "mtl"]),
        ("dmtg", False, []),
    ],
)
def test_a_shorter_run_takes_back_what_a_file_says_of_epochs(tmp_path, run, command, snapshots, more):
    file = tmp_path / "own.toml"
    falls = "lr-milestones = [30, 60]\nlr-gamma = 0.5\n" + "snapshot-epochs = [50, 100]\n" * snapshots
    file.write_text(f'data = "{write_tiny(tmp_path)}"\ngroups = 1\nhidden = 4\nepochs = 100\n{falls}')
    settings = run(command, "--config", file, "--epochs", 1, "--lr-milestones", "none", *more)["settings"]
    assert not {"lr_milestones", "lr_gamma"} & set(settings)
    assert settings["epochs"] == 1


def test_the_order_of_flags_and_file_does_not_matter(tmp_path):
    file = tmp_path / "own.toml"
    file.write_text("epochs = 7\n")
    words = ["--data", "digits", "--out", tmp_path, "--epochs", 3, "--config", file]
    assert parsed("stg", *words)["epochs"] == 3
    assert parsed("stg", *words[:4], *words[6:])["epochs"] == 7


def test_a_file_with_a_byte_order_mark(tmp_path):
    (tmp_path / "own.toml").write_text("epochs = 7\n", encoding="utf-8-sig")
    assert parsed("stg", "--data", "digits", "--out", tmp_path, "--config", tmp_path / "own.toml")["epochs"] == 7


@pytest.mark.parametrize("command", ["stg", "dmtg", "compare"])
def test_every_switch_of_a_file_is_overridden(tmp_path, command):
    words = [command, "--data", "digits", "--out", tmp_path, "--config", tmp_path / "own.toml"]
    switches = {name: value for name, value in parsed(*words[:5]).items() if isinstance(value, bool)}
    assert switches == dict.fromkeys(switches, False)
    assert {"stg": 3, "dmtg": 7, "compare": 2}[command] == len(switches)
    for name in switches:
        flag = name.replace("_", "-")
        for value in (True, False):
            (tmp_path / "own.toml").write_text(f"{flag} = {str(value).lower()}")
            assert parsed(*words)[name] is value
            assert parsed(*words, f"--{flag}")[name] is True
            assert parsed(*words, f"--no-{flag}")[name] is False
            assert parsed(*words[:5], f"--no-{flag}", *words[5:])[name] is False


def test_a_run_by_a_file(tmp_path, run):
    file = tmp_path / "own.toml"
    file.write_text(f'data = "{write_tiny(tmp_path)}"\ngroups = 2\nepochs = 1\nhidden = [8]\ntemperature = "2:1"\n')
    found = run("dmtg", "--config", file)
    assert (found["settings"]["num_groups"], found["settings"]["hidden"]) == (2, [8])
    assert found["settings"]["temperature"] == "2:1"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epoch = 3", "--config must hold options of pymtg stg; .*own.toml has 'epoch', which is none"),
        ("temperature = 3", "has 'temperature', which is none"),
        ("config = 'x'", "has 'config', which is none"),
        ("help = true", "has 'help', which is none"),
        ("command = 'dmtg'", "--config must be a file for pymtg stg; .* is for 'dmtg'"),
        ("epochs = ", "--config must be a TOML file; .*own.toml: "),
        ("epochs = true", "epochs must be a number, a text or a list of these; .* has True"),
        ("epochs = 'many'", "--epochs"),
        ("epochs = 0", "--epochs"),
        ("epochs = 1.5", "--epochs"),
        ("keep-best = 1", "keep-best must be true or false; .* has 1"),
        ("no-keep-best = true", "has 'no-keep-best', which is none"),
        ("hidden = []", "hidden must be a number, a text or a list"),
        ("hidden = [[1]]", "hidden must be a number, a text or a list"),
        ("batch-size = 3\nbatch_size = 4", "must hold every option once; .* has 'batch_size' twice"),
        ("[training]\nepochs = 3", "has 'training', which is none"),
    ],
)
def test_mistakes_in_a_file_get_one_line(tmp_path, fails, text, message):
    (tmp_path / "own.toml").write_text(text)
    words = ["stg", "--config", tmp_path / "own.toml", "--data", "digits", "--out", tmp_path / "out"]
    line = fails(*words)
    assert re.search(message, line), line
    assert not (tmp_path / "out").exists()


def test_files_that_cannot_be_read(tmp_path, fails):
    words = ["stg", "--data", "digits", "--out", tmp_path / "out", "--config"]
    assert "--config must be a file that can be read" in fails(*words, tmp_path / "none.toml")
    (tmp_path / "b.toml").write_bytes(b"\xff\xfe")
    assert "--config must be a TOML file" in fails(*words, tmp_path / "b.toml")


@pytest.mark.parametrize("name", sorted(path.name for path in CONFIGS.glob("*.toml")))
def test_the_papers_files_are_read_by_what_they_are_for(name, tmp_path, fails):
    command = name.partition("-")[0]
    words = ["--config", CONFIGS / name, "--data", "digits", "--out", tmp_path / "out"]
    if name == "dmtg-taskonomy5.toml":
        assert "is for 'examples/papers/taskonomy.py'" in fails(command, *words)
        return
    found = parsed(command, *words)
    assert found["network"] == {"stg": "cnn", "dmtg": "celeba"}[command]


def test_the_papers_figures():
    words = ["--data", "x", "--out", "y", "--config"]
    dmtg = parsed("dmtg", *words, CONFIGS / "dmtg-celeba9.toml")
    released = {
        "batch_size": 256,
        "epochs": 100,
        "lr": 8e-4,
        "lr_milestones": "15,30,45,60,75,90",
        "temperature": "2.5",
    }
    assert {name: dmtg[name] for name in released} == released
    assert (dmtg["assignment_warmup"], dmtg["balance_weight"], dmtg["keep_branches"]) == (0, 0, True)
    shared = parsed("dmtg", *words, CONFIGS / "dmtg-celeba9-shared.toml")
    assert {n for n in dmtg if dmtg[n] != shared[n]} == {"config", "trunk"}
    assert parsed("stg", *words, CONFIGS / "stg-cifar100.toml")["fuzzifier"] == 1.07
