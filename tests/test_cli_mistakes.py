"""The command line: mistakes, each of which gets one line and leaves nothing behind."""

from __future__ import annotations

import os
import re
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
from _cli_runs import STG, assert_one_line, python_m, three_blocks

from pymtg import DataMap, TaskLayout
from pymtg._cli.errors import CommandError, in_flags
from pymtg._cli.run_setup import check_place
from pymtg.cli import main
from pymtg.report import check_writable

GRAM = ["cluster", "{tmp}/g.npy"]
COMPARE = ["compare", "--data", "digits", "--epochs", "1", "--seeds", "1", "--out", "{tmp}/out"]
TRAIN = [*STG, "--out", "{tmp}/out"]
MISTAKES = {  # what is wrong: the words, and what the line must name
    "no such command": (["train"], "train"),
    "no such option": ([*TRAIN, "--frobnicate"], "--frobnicate"),
    "stray word": ([*TRAIN, "digits"], "digits"),
    "no data": (["stg", "--out", "{tmp}/out"], "--data"),
    "no out": (["stg", "--data", "digits"], "--out"),
    "epochs not a number": ([*TRAIN, "--epochs", "many"], "--epochs.*integer"),
    "no epochs": ([*TRAIN, "--epochs", "0"], "--epochs"),
    "groups not a number": ([*TRAIN, "--groups", "few"], "--groups.*'few'"),
    "groups negative": ([*TRAIN, "--groups", "-1"], "--groups.*'-1'"),
    "more groups than tasks": ([*TRAIN, "--groups", "16"], "--groups.*15.*16"),
    "fuzzifier 1": ([*TRAIN, "--fuzzifier", "1"], "--fuzzifier.*1"),
    "unknown mode": ([*TRAIN, "--mode", "fancy"], "--mode.*'fancy'"),
    "unknown init": ([*TRAIN, "--init", "warm"], "--init.*'warm'"),
    "unknown form": ([*TRAIN, "--specialise", "apart"], "--specialise.*'apart'"),
    "lr 0": ([*TRAIN, "--lr", "0"], "--lr.*0"),
    "hidden": ([*TRAIN, "--hidden", "64,x"], "--hidden.*'64,x'"),
    "snapshot beyond": ([*TRAIN, "--snapshot-epochs", "5"], "--snapshot-epochs.*5"),
    "snapshots": ([*TRAIN, "--snapshot-epochs", "1;2"], "--snapshot-epochs.*'1;2'"),
    "amp": ([*TRAIN, "--amp", "int8"], "--amp.*'int8'"),
    "half on cpu": ([*TRAIN, "--amp", "float16", "--device", "cpu"], "float16.*cpu"),
    "unknown device": ([*TRAIN, "--device", "toaster"], "device.*'toaster'"),
    "absent device": ([*TRAIN, "--device", "cuda:99"], "device.*'cuda:99'"),
    "keep best of nothing": ([*TRAIN, "--keep-best"], "--keep-best"),
    "seed": ([*TRAIN, "--seed", "-1"], "--seed"),
    "test size": ([*TRAIN, "--test-size", "1.5"], "--test-size.*1.5"),
    "val size": ([*TRAIN, "--val-size", "nan"], "--val-size.*nan"),
    "val and test sizes": ([*TRAIN, "--val-size", "0.99"], "--val-size must be less than 1 - test_size .*got 0.99"),
    "unknown data": ([*TRAIN, "--data", "mnist"], "'mnist'"),
    "mulan without files": ([*TRAIN, "--data", "mulan:{tmp}/none"], "none"),
    "mulan with bad files": ([*TRAIN, "--data", "mulan:{tmp}/bad"], "bad"),
    "out is empty": ([*STG, "--out", ""], "stg: --out must name a directory; got ''"),
    "dmtg's out is empty": (["dmtg", *STG[1:], "--out", ""], "dmtg: --out must name a directory; got ''"),
    "compare's out is empty": ([*COMPARE[:-1], ""], "compare: --out must name a directory; got ''"),
    "cluster's out is empty": ([*GRAM, "--out", ""], "cluster: --out must name a file; got ''"),
    "log is empty": ([*TRAIN, "--log", ""], "--log must name a file; got ''"),
    "board is empty": ([*TRAIN, "--tensorboard", ""], "--tensorboard must name a directory; got ''"),
    "profile is empty": ([*TRAIN, "--profile="], "--profile must name a directory; got ''"),
    "out below a file": ([*TRAIN, "--out", "{tmp}/file/x"], "--out.*file"),
    "out is a file": ([*TRAIN, "--out", "{tmp}/file"], "--out.*file"),
    "out in /proc": ([*TRAIN, "--out", "/proc/nowhere"], "--out.*/proc/nowhere"),
    "log is a directory": ([*TRAIN, "--log", "{tmp}"], "--log must be a file .*Is a directory"),
    "log below a file": ([*TRAIN, "--log", "{tmp}/file/log.jsonl"], "--log must be a file .*file: Not a directory"),
    "log in /proc": ([*TRAIN, "--log", "/proc/nowhere/log.jsonl"], "--log must be a file .*/proc/nowhere: No such"),
    "board is a file": ([*TRAIN, "--tensorboard", "{tmp}/file"], "--tensorboard must be a directory .*file: Not a dir"),
    "profile is a file": ([*TRAIN, "--profile", "{tmp}/file"], "--profile must be a directory .*file: Not a directory"),
    "profile below a file": ([*TRAIN, "--profile", "{tmp}/file/p"], "--profile must be .*file: Not a directory"),
    "dmtg's log": (["dmtg", *TRAIN[1:], "--log", "{tmp}"], "--log must be a file .*Is a directory"),
    "map missing": (["cluster", "{tmp}/none.safetensors"], "none.safetensors.*No such file"),
    "map is a directory": (["cluster", "{tmp}"], "directory"),
    "map is no map": (["cluster", "{tmp}/file"], "file"),
    "gram truncated": (["cluster", "{tmp}/cut.npy"], "cut.npy"),
    "gram flat": (["cluster", "{tmp}/flat.npy"], r"flat.npy.*\(3,\)"),
    "gram NaN": (["cluster", "{tmp}/nan.npy"], "(?i)nan|finite"),
    "gram of words": (["cluster", "{tmp}/words.npy"], "words.npy"),
    "gram of objects": (["cluster", "{tmp}/objects.npy"], "objects.npy"),
    "names too few": ([*GRAM, "--names", "a,b"], r"--names.*\(9\).*2"),
    "names empty": ([*GRAM, "--names", "a,b,,d,e,f,g,h,i"], "--names must not hold an empty name; got 'a,b,,d"),
    "names twice": ([*GRAM, "--names", ",".join("aacdefghi")], "'a'"),
    "names missing": ([*GRAM, "--names", "@{tmp}/no.txt"], "no.txt"),
    "names not text": ([*GRAM, "--names", "@{tmp}/binary"], "--names.*UTF-8"),
    "too many groups": (
        [*GRAM, "--groups", "10"],
        r"--groups must be at most the number of tasks \(9\), or .*; got 10$",
    ),
    "an empty map": (["cluster", "{tmp}/empty.safetensors"], "cluster: the data map must hold observations"),
    "cluster mode": ([*GRAM, "--mode", "fancy"], "--mode.*'fancy'"),
    "cluster seed": ([*GRAM, "--seed", "4294967296"], r"cluster: --seed must be in 0\.\.2\*\*32-1; got 4294967296"),
    "cluster out": ([*GRAM, "--out", "{tmp}/file/g.json"], "--out.*file"),
    "cluster out is a directory": ([*GRAM, "--out", "{tmp}"], "--out"),
    "no threads": ([*TRAIN, "--threads", "0"], "--threads"),
    "seeds": ([*COMPARE, "--seeds", "0"], "--seeds"),
    "methods": ([*COMPARE, "--methods", "stl,magic"], "'magic'"),
    "compare temperature": ([*COMPARE, "--temperature", "0"], "--temperature"),
    "compare sampling": ([*COMPARE, "--sampling", "dice"], "--sampling.*'dice'"),
    "views": ([*COMPARE, "--views", "wide"], "'wide'"),
    "metric": ([*COMPARE, "--metric", "luck"], "'luck'"),
    "compare out": ([*COMPARE, "--out", "{tmp}/file"], "--out.*file"),
}


@pytest.fixture(scope="module")
def bad_files(tmp_path_factory):
    """A directory of files that are not what they are taken for."""
    tmp = tmp_path_factory.mktemp("bad")
    (tmp / "file").write_text("not a map")
    (tmp / "cut.npy").write_bytes(b"\x93NUMPY\x01\x00")
    np.save(tmp / "flat.npy", np.zeros(3))
    np.save(tmp / "nan.npy", np.full((3, 3), np.nan))
    np.save(tmp / "words.npy", np.array([["a", "b"], ["c", "d"]]))
    np.save(tmp / "objects.npy", np.array([[None]]), allow_pickle=True)
    (tmp / "binary").write_bytes(b"\xff\xfe\x00")
    three_blocks(tmp / "g.npy")
    DataMap(4, TaskLayout.binary(["a", "b", "c"])).save(tmp / "empty.safetensors")
    (tmp / "bad.arff").write_text("nonsense")
    (tmp / "bad.xml").write_text("<labels>")
    return tmp


@pytest.mark.parametrize(("words", "named"), MISTAKES.values(), ids=MISTAKES)
def test_mistakes_get_one_line_and_code_2(bad_files, capsys, words, named):
    assert_one_line(words, named, bad_files, capsys)


def test_a_directory_that_cannot_be_written_is_found_before_training(tmp_path):
    (tmp_path / "file").touch()
    start = time.perf_counter()
    done = python_m("stg", "--data", "digits", "--epochs", 100_000, "--out", tmp_path / "file" / "out")
    assert time.perf_counter() - start < 60
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_mistake_leaves_no_directory_behind(tmp_path):
    assert main([*STG, "--out", str(tmp_path / "out"), "--fuzzifier", "0"]) == 2
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("option", ["--log", "--tensorboard", "--profile", "--out"])
def test_a_place_of_another_kind_leaves_no_directory_behind(tmp_path, capsys, option):
    (tmp_path / "directory").mkdir()
    (tmp_path / "file").touch()
    names = {"--out": "out", "--log": "logs/log.jsonl", "--tensorboard": "board", "--profile": "profile"}
    names[option] = "directory" if option == "--log" else "file"
    assert main([*STG, *[word for o, name in names.items() for word in (o, str(tmp_path / name))]]) == 2
    assert re.match(f"pymtg stg: {option} must be .* that can be written; ", capsys.readouterr().err)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["directory", "file"]


def test_a_log_in_a_directory_that_one_may_not_look_into_is_named(tmp_path):
    check_writable(tmp_path / "out")
    (tmp_path / "locked").mkdir(mode=0)
    root = os.geteuid() == 0  # whom no mode keeps out
    try:
        if root:
            os.seteuid(65534)
        with pytest.raises(CommandError, match=r"^--log must be a file .*; .*locked.*Permission denied"):
            check_place(Path(tempfile.gettempdir()), None, log=tmp_path / "locked" / "log.jsonl")
    finally:
        if root:
            os.seteuid(0)


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("num_groups must be at least 1; got 0", "--groups must be at least 1; got 0"),
        ("test_size must be a share", "--test-size must be a share"),
        ("amp='float16' needs a CUDA device", "--amp='float16' needs a CUDA device"),
        ("test_size=0.9 does not fit 3 rows", "--test-size=0.9 does not fit 3 rows"),
        ("keep_best=True needs a validation set", "--keep-best needs a validation set"),
        ("epochs's last must be", "--epochs's last must be"),
        ("groups 'few' must be", "--groups 'few' must be"),
        ("inputs must be finite", "inputs must be finite"),
        ("epochs of another kind", "epochs of another kind"),
        ("", ""),
    ],
)
def test_messages_name_flags_where_they_start_with_an_argument(message, shown):
    flags = {"groups": "--groups", "test_size": "--test-size", "amp": "--amp", "keep_best": "--keep-best"}
    assert in_flags(message, {**flags, "epochs": "--epochs"}) == shown
