"""The command line: what trains nothing, pymtg cluster and pymtg env, the version, help."""

from __future__ import annotations

import dataclasses
import json
import re

import numpy as np
from _cli_runs import run, three_blocks

from pymtg.cli import main


def test_cluster_of_a_gram_with_names(tmp_path, capsys):
    gram = three_blocks(tmp_path / "g.npy")
    run("cluster", gram, "--groups", "3", "--names", ",".join("abcdefghi"), "--out", tmp_path / "g.json")
    tasks = json.loads((tmp_path / "g.json").read_text())["tasks"]
    assert list(tasks) == list("abcdefghi")
    labels = [task["label"] for task in tasks.values()]
    assert labels[:3] + labels[3:6] + labels[6:] == [x for x in (labels[0], labels[3], labels[6]) for _ in range(3)]
    assert len(set(labels)) == 3
    assert "a (1.00)" in capsys.readouterr().out


def test_cluster_options_do_something(tmp_path, capsys):
    gram = three_blocks(tmp_path / "g.npy")
    (tmp_path / "names.txt").write_text("\n".join("ABCDEFGHI"))
    (tmp_path / "marked.txt").write_text("\r\n".join("ABCDEFGHI"), encoding="utf-8-sig")

    def groups(*words):
        run("cluster", gram, "--out", tmp_path / "g.json", "--quiet", *words)
        return json.loads((tmp_path / "g.json").read_text())["tasks"]

    plain = groups()
    assert capsys.readouterr().out == ""
    assert groups("--groups", "2") != plain
    assert groups("--groups", "auto") == plain
    assert groups("--fuzzifier", "3") != plain
    assert groups("--mode", "kmeans")["task0"]["memberships"].count(0) == 2
    assert list(groups("--names", f"@{tmp_path / 'names.txt'}")) == list("ABCDEFGHI")
    assert list(groups("--names", f"@{tmp_path / 'marked.txt'}")) == list("ABCDEFGHI")


def test_cluster_seed_and_starts_do_something(tmp_path):
    rng = np.random.default_rng(3)
    points = rng.normal(size=(60, 2))
    np.save(tmp_path / "g.npy", points @ points.T)

    def inertia(*words):
        run("cluster", tmp_path / "g.npy", "--groups", "12", "--out", tmp_path / "g.json", "--quiet", *words)
        return json.loads((tmp_path / "g.json").read_text())["quality"]["inertia"]

    by_seed = [inertia("--seed", str(seed), "--n-init", "1") for seed in range(4)]
    assert len(set(by_seed)) > 1
    assert inertia("--n-init", "200") <= min(by_seed)


def test_env_as_text_and_as_json(capsys):
    run("env")
    text = capsys.readouterr().out
    run("env", "--json")
    found = json.loads(capsys.readouterr().out)
    assert set(found) == {"versions", "machine", "backends"}
    assert "cpp" in found["backends"]["available"]
    assert found["machine"]["instruction_set"] in ("base", "avx2", "avx512")
    assert found["machine"]["devices"][0] == "cpu"
    for part in (found["versions"]["torch"], found["machine"]["instruction_set"], "scikit-learn", "threads"):
        assert part in text


def test_env_checks_the_backends(capsys, monkeypatch):
    from pymtg import _backend
    from pymtg._cli import backend_check

    monkeypatch.setattr(backend_check, "_ROUNDS", 1)
    run("env", "--check", "--json")
    checked = json.loads(capsys.readouterr().out)["check"]
    assert {one["backend"]: one["error"] for one in checked if one["device"] == "cpu"}["cpp"] is None
    assert all(one["seconds"] > 0 for one in checked)

    # One that is off, one that fails: both are shown, and the command says so.
    plain = _backend._BACKENDS["reference"]

    def off(*arguments, **options):
        losses, gradient = plain.cross_entropy(*arguments, **options)
        return losses, gradient * 1.01

    def broken(*arguments, **options):
        raise RuntimeError("no kernel\nfor this device")

    for name, function in (("off", off), ("broken", broken)):
        monkeypatch.setitem(_backend._BACKENDS, name, dataclasses.replace(plain, cross_entropy=function))
    monkeypatch.setattr(_backend, "_AVAILABLE", ("reference", "off", "broken"))
    monkeypatch.setattr(backend_check, "available_backends", lambda: _backend._AVAILABLE)
    assert main(["env", "--check"]) == 1
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line.split()}
    assert lines["reference"].split()[-1] == "agrees"
    assert "gradient: Tensor-likes are not close" in lines["off"]
    assert "RuntimeError: no kernel for this device" in lines["broken"]


def test_version_and_help(capsys):
    run("--version")
    assert re.fullmatch(r"pymtg \d+\.\d+\S*\n", capsys.readouterr().out)
    run("--help")
    assert {"stg", "dmtg", "compare", "cluster", "env"} <= set(capsys.readouterr().out.split())
    run()
    assert "Usage" in capsys.readouterr().out
    for command in ("stg", "dmtg", "compare", "cluster", "env"):
        run(command, "--help")
        assert "--help" in capsys.readouterr().out
