"""Several ranks against one process: the same networks, maps and groups; and what one rank meets, all do."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from _ranks_run import CLASSES, PAIRS, RANKS, RUNS, counted_loss, dmtg, launch, learned, left_behind, make, observations
from _settings import new_seed
from _tiny import write_tiny
from torch.utils.data import DistributedSampler, SequentialSampler

from pymtg import DataMap, TaskLayout, cluster_tasks, record
from pymtg._cli.warning_lines import warning_lines
from pymtg.cli import main
from pymtg.errors import InvalidArgumentError, InvalidTypeError
from pymtg.ranks import own_samples, sum_gram
from pymtg.trainers import CheckpointWarning

LAYOUT_OF_ONE = TaskLayout(["species"], [3])
LONG = bool(os.environ.get("PYMTG_TEST_LONG"))
pytestmark = [
    pytest.mark.skipif(
        not (torch.distributed.is_available() and torch.distributed.is_gloo_available()), reason="torch without gloo"
    ),
    pytest.mark.timeout(600),  # ten processes in all: on cores that others use, it takes them long to start
]


@pytest.fixture
def doubles():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


@pytest.fixture(scope="module", params=range(4 if LONG else 1))
def four(request, tmp_path_factory):
    """What four ranks have found, the seed, and their directory."""
    folder, seed = tmp_path_factory.mktemp("ranks"), new_seed() + request.param
    print(f"PYMTG_TEST_SEED={seed}")
    codes, said = launch("all_of_it,killed", RANKS, seed, folder)
    assert codes == [0, -9, 0, 0], "\n".join(said)
    return left_behind("all_of_it", RANKS, folder), seed, folder


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.usefixtures("doubles")
def test_one_rank_and_four_agree(four, name):
    ranks, seed, _ = four
    one = learned(RUNS[name](seed))
    for found in ranks:
        assert found[name].keys() == one.keys()
        for key, value in one.items():
            # what a map holds has a spacing of 1e-7; a Gram matrix sums such numbers up
            close = 1e-6 if key.startswith("map.") else 1e-9
            torch.testing.assert_close(
                found[name][key].double(), value.double(), rtol=close, atol=close, msg=lambda m, k=key: f"{k}: {m}"
            )
            assert torch.equal(found[name][key], ranks[0][name][key])  # on every rank, bit for bit
        assert torch.equal(found[name]["labels"], one["labels"])
        soft = [cluster_tasks(told["map.gram"], 2, random_state=0) for told in (found[name], one)]
        torch.testing.assert_close(*(torch.from_numpy(np.array(s.memberships)) for s in soft), rtol=0, atol=1e-5)
        assert torch.equal(found[name]["map.count"], one["map.count"])
        assert torch.equal(found[name]["map.correctness"], one["map.correctness"])


@pytest.mark.parametrize("missing", [True, False])
@pytest.mark.usefixtures("doubles")
def test_maps_merge_to_the_map_of_all_observations(four, missing):
    ranks, seed, _ = four
    whole = DataMap(25, CLASSES, missing=missing)
    for rank in range(RANKS):
        p, ids, valid = observations(seed, rank, missing=missing)
        whole.update(p, ids, valid=valid)
    assert whole.num_rejected > 0
    parts = [found["maps"][f"part {missing}"] for found in ranks]
    assert [rows for rows, _, _ in parts] == [range(7), range(7, 13), range(13, 19), range(19, 25)]
    assert sum(int(state["rejected"]) for _, state, _ in parts) == whole.num_rejected
    for (rows, state, gram), found in zip(parts, ranks, strict=True):
        merged = DataMap(25, CLASSES, missing=missing)
        merged.load_state_dict(found["maps"][f"whole {missing}"])
        part = DataMap(len(rows), CLASSES, missing=missing)
        part.load_state_dict(state)
        assert merged.num_rejected == whole.num_rejected
        for name in ("mean", "std", "correctness", "count"):
            expected = getattr(whole, name)
            torch.testing.assert_close(getattr(merged, name), expected, rtol=0, atol=1e-6)
            torch.testing.assert_close(getattr(part, name), expected[rows.start : rows.stop], rtol=0, atol=1e-6)
        torch.testing.assert_close(gram, whole.gram(), rtol=0, atol=1e-5)
        assert torch.equal(gram, parts[0][2])


@pytest.mark.usefixtures("doubles")
def test_a_samplers_padding_is_not_recorded(four):
    ranks, seed, _ = four
    valid = make(seed, CLASSES, 29).targets != -100
    for found in ranks:
        state, drawn = found["padding"]
        assert drawn == 8  # 32 in all, of 29 samples
        data_map = DataMap(29, CLASSES, missing=True)
        data_map.load_state_dict(state)
        assert torch.equal(data_map.count, 3 * valid.int())


@pytest.mark.parametrize("method", ["stg", "dmtg"])
@pytest.mark.usefixtures("doubles")
def test_a_signal_to_one_rank_ends_all_and_the_run_goes_on(four, method):
    ranks, _, folder = four
    for found in ranks:
        ended, resumed, never_stopped = found[f"stopped {method}"]
        assert ended == (15, str(folder / method))
        assert resumed.keys() == never_stopped.keys()
        for key, value in never_stopped.items():
            close = 1e-6 if key.startswith("map.") else 1e-9  # sums of ranks are rounded in another order
            torch.testing.assert_close(resumed[key].double(), value.double(), rtol=close, atol=close)
    lines = [json.loads(line) for line in (folder / f"{method}.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [*range(1, 4), 1, 1] if method == "stg" else [1, *range(1, 4), 1]


@pytest.mark.usefixtures("doubles")
def test_a_run_of_four_ranks_goes_on_in_one_process(four):
    ranks, seed, folder = four
    losses = {"x": counted_loss(lambda: None)}
    with pytest.warns(CheckpointWarning, match="written by a run of ranks: 4, this has 1"):
        trainer = dmtg(seed, make(seed), losses=losses, checkpoint_dir=folder / "dmtg-stopped", resume=True)
    expected = ranks[0]["stopped dmtg"][2]
    for key, value in learned(trainer).items():
        close = 1e-6 if key.startswith("map.") else 1e-9
        torch.testing.assert_close(value.double(), expected[key].double(), rtol=close, atol=close)


def test_mistakes_are_errors_on_every_rank(four):
    ranks, _, _ = four
    for rank, found in enumerate(ranks):
        told = found["mistakes"]
        assert told["other data"][0] == told["other options"][0] == told["maps"][0] == "RankError"
        assert "rank 1 differs from rank 0 in data train inputs" in told["other data"][1]
        assert "rank 3 differs from rank 0 in options epochs (2 on rank 0, 3 on rank 3)" in told["other options"][1]
        assert told["too few samples"] == (
            "InvalidArgumentError",
            "train must hold a sample for each of the 4 ranks; got 3",
        )
        kind, message = told["a rank without rows"]
        assert kind == "InvalidArgumentError"
        assert message.startswith(
            "batch_size must leave every one of the 4 ranks a row where the network has SyncBatch"
        )
        kinds = ("FileExistsError", "InvalidArgumentError") if rank == 0 else ("RankError", "RankError")
        names = ("no place for checkpoints", "more groups than tasks that differ")
        assert tuple(told[name][0] for name in names) == kinds
        assert all("rank 0 failed" in told[name][1] for name in names) or rank == 0


def check_killed(found):
    assert found[1] is None
    for rank, told in enumerate(found):
        if told is not None:
            kind, message, cause, seconds = told
            assert kind == "RankError"
            assert cause in ("RuntimeError", "DistBackendError")
            start = f"rank {rank} of {len(found)} has lost another rank, which has ended or did not answer in time: "
            assert message.startswith(start)
            assert seconds < 30


def test_a_killed_rank_ends_the_others(four):
    check_killed(left_behind("killed", RANKS, four[2]))


@pytest.mark.slow
@pytest.mark.skipif(not LONG, reason="takes a minute: set PYMTG_TEST_LONG, or make test-long")
@pytest.mark.parametrize("turn", range(6))
def test_a_rank_killed_at_any_moment_ends_the_others(tmp_path, turn):
    ranks = 2 + turn % 2
    codes, said = launch("killed", ranks, new_seed() + turn, tmp_path)
    assert codes == [0, -9, 0][:ranks], "\n".join(said)
    check_killed(left_behind("killed", ranks, tmp_path))


def port() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


def commands(world, words):
    """Start a command on so many ranks, with the variables that torchrun sets; return codes and stderr."""
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port(), "WORLD_SIZE": str(world)}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-m", "pymtg", *words],
            env=os.environ | place | {"RANK": str(rank), "LOCAL_RANK": str(rank), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(world)
    ]
    said = [rank.communicate(timeout=500) for rank in ranks]
    return [rank.returncode for rank in ranks], said


@pytest.mark.skipif(torch.__version__ >= "2.8", reason="torch ends a group without Python's lock since 2.8")
def test_ranks_can_leave_right_after_a_collective(tmp_path):
    run = subprocess.run(
        [sys.executable, "-c", "import _ranks_run; _ranks_run.leave_in_pairs()", str(tmp_path)],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parent), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert run.stdout.splitlines() == ["[0, 0]"] * PAIRS, run.stderr


LEAVING = """
import sys
import torch
from torch.nn.parallel import DistributedDataParallel
from pymtg._ranks import leave
torch.distributed.init_process_group("gloo", init_method="file://" + sys.argv[1], rank=int(sys.argv[2]), world_size=2)
DistributedDataParallel(torch.nn.Linear(5, 3))  # keeps the group alive
torch.distributed.all_reduce(torch.ones(100))  # gloo's thread lets go of the tensor
leave()
"""


@pytest.mark.skipif(not LONG, reason="takes a minute: set PYMTG_TEST_LONG, or make test-long")
def test_ranks_can_end_right_after_a_collective(tmp_path):
    for number in range(15):  # without waiting, one in eight aborted
        words = [sys.executable, "-c", LEAVING, str(tmp_path / str(number))]
        ranks = [subprocess.Popen([*words, str(rank)], stderr=subprocess.PIPE, text=True) for rank in range(2)]
        said = [rank.communicate(timeout=100)[1] for rank in ranks]
        assert [rank.returncode for rank in ranks] == [0, 0], said


def test_the_command_on_two_ranks_is_the_command_on_one(tmp_path):
    data = write_tiny(tmp_path)
    words = ["--data", data, "--epochs", "2", "--groups", "2", "--hidden", "8", "--val-size", "0.2"]
    words += ["--device", "cpu"]
    own = ["--out", str(tmp_path / "two"), "--log", str(tmp_path / "log"), "--profile", str(tmp_path / "profile")]
    codes, said = commands(2, ["stg", *words, *own])
    assert codes == [0, 0], said
    assert "report:" in said[0][0]
    assert said[1] == ("", "")
    assert main(["stg", *words, "--quiet", "--out", str(tmp_path / "one")]) == 0
    two, one = (json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("two", "one"))
    assert sorted(os.listdir(tmp_path / "two")) == sorted(os.listdir(tmp_path / "one"))
    for stage, other in zip(two["stages"], one["stages"], strict=True):
        assert stage["name"] == other["name"]
        assert stage.get("loss", []) == pytest.approx(other.get("loss", []), rel=1e-4)
    groups = [json.loads((tmp_path / name / "groups.json").read_text())["tasks"] for name in ("two", "one")]
    assert {t: g["label"] for t, g in groups[0].items()} == {t: g["label"] for t, g in groups[1].items()}
    assert [run["settings"].get("ranks") for run in (two, one)] == [2, None]
    assert [run["settings"]["specialise"] for run in (two, one)] == ["spread", "together"]
    assert len((tmp_path / "log").read_text().splitlines()) == 6
    assert sorted(path.parent.name for path in (tmp_path / "profile").rglob("profile.txt")) == ["rank0", "rank1"]


def test_the_command_tells_what_is_wrong(tmp_path, monkeypatch, capsys):
    for name, value in (("RANK", "1"), ("WORLD_SIZE", "4"), ("MASTER_ADDR", "127.0.0.1"), ("MASTER_PORT", port())):
        monkeypatch.setenv(name, value)
    assert main(["compare", "--data", "digits", "--out", str(tmp_path)]) == 2
    told = capsys.readouterr().err
    assert told.startswith("pymtg compare (rank 1): compare runs in one process, and torchrun has started 4")
    assert main(["stg", "--data", "digits", "--out", str(tmp_path), "--rank-timeout", "5 parsecs"]) == 2
    assert "--rank-timeout must be a time such as 30s, 10min or 2h; got '5 parsecs'" in capsys.readouterr().err
    assert main(["dmtg", "--data", "digits", "--out", str(tmp_path), "--rank-timeout", "1s"]) == 1  # nobody is there
    assert "pymtg dmtg (rank 1): rank 1 could not meet the others within 1s" in capsys.readouterr().err
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert main(["compare", "--data", "nothing", "--out", str(tmp_path)]) == 2  # one rank is as none
    assert "compare runs in one process" not in capsys.readouterr().err


@pytest.mark.parametrize(("rank", "name"), [("0", "pymtg"), ("1", "pymtg (rank 1)")])
def test_a_warning_names_the_rank_it_comes_from(rank, name, monkeypatch, capsys):
    for variable, value in (("RANK", rank), ("WORLD_SIZE", "2"), ("MASTER_ADDR", "127.0.0.1"), ("MASTER_PORT", "1")):
        monkeypatch.setenv(variable, value)
    with warning_lines(dict):
        warnings.simplefilter("always")
        warnings.warn("odd", CheckpointWarning, stacklevel=1)
    assert capsys.readouterr().err == f"{name}: warning: odd\n"


def test_repeats_are_left_out_of_a_batch():
    data_map, loss = DataMap(5, LAYOUT_OF_ONE), torch.nn.CrossEntropyLoss()
    with record(loss, LAYOUT_OF_ONE, data_map=data_map) as recorder:
        for ids, repeats in (([0, 1, 2], 0), ([3, 4, 0], 1), ([1, 2], 2)):
            recorder.ids(ids, repeats=repeats)
            loss(torch.randn(len(ids), 3, requires_grad=True), torch.zeros(len(ids), dtype=torch.long))
        with pytest.raises(InvalidArgumentError, match="repeats must be 0 to the number of ids, 2; got 3"):
            recorder.ids([0, 1], repeats=3)
    assert data_map.count.flatten().tolist() == [1] * 5


def test_own_samples():
    for rows in (1, 3, 8, 10, 13):
        for drop_last in (False, True):
            seen = []
            for rank in range(4):
                sampler = DistributedSampler(range(rows), 4, rank, shuffle=False, drop_last=drop_last)
                seen += list(sampler)[: own_samples(sampler)]
            assert len(seen) == len(set(seen)) == (rows // 4 * 4 if drop_last else rows)
    assert own_samples(SequentialSampler(range(5))) == 5
    with pytest.raises(InvalidArgumentError, match="sampler must have a length; got generator"):
        own_samples(i for i in range(3))


def test_without_a_process_group_the_map_is_the_whole_map():
    data_map = DataMap(4, CLASSES)
    data_map.update(torch.rand(4, 4), torch.arange(4))
    before = data_map.mean
    owned, part = data_map.reduce_scatter()
    assert owned == range(4)
    assert torch.equal(part.mean, before)
    assert torch.equal(data_map.all_reduce_().mean, before)
    assert torch.equal(sum_gram(part.gram()), data_map.gram())
    part.reset()
    assert torch.equal(data_map.mean, before)
    with pytest.raises(InvalidTypeError, match=r"gram must be a float64 tensor; got torch\.float32"):
        sum_gram(torch.zeros(2, 2))
