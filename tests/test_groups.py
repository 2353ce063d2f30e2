"""TaskGroups and cluster_tasks."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from pymtg import DataMap, FuzzyKMeans, TaskGroups, TaskLayout, cluster_tasks
from pymtg._gram import gram_add, new_gram
from pymtg.errors import FileFormatError, InvalidArgumentError, InvalidTypeError


class FakeMap:
    """What cluster_tasks needs of a data map: three kinds of tasks, two snapshots."""

    def __init__(self, snapshots=2, tasks=7):
        rng = np.random.default_rng(0)
        self.layout = SimpleNamespace(names=tuple("abcdefghij"[:tasks]))
        kinds = np.array([0, 0, 1, 1, 2, 2, 2])[:tasks] * 0.3
        maps = [
            SimpleNamespace(
                mean=torch.tensor(kinds + 0.1 + 0.02 * rng.random((50, tasks)), dtype=torch.float32),
                std=torch.tensor(kinds / 2 + 0.01 * rng.random((50, tasks)), dtype=torch.float32),
                count=torch.ones(50, tasks),
            )
            for _ in range(max(snapshots, 1))
        ]
        self.snapshots = tuple(maps) if snapshots else ()
        self.mean, self.std, self.count = maps[0].mean, maps[0].std, maps[0].count

    def gram(self):
        gram = new_gram(len(self.layout.names))
        for snapshot in self.snapshots or [self]:
            gram_add(gram, snapshot.mean)
            gram_add(gram, snapshot.std)
        return torch.from_numpy(gram)


GROUPS = [["a", "b"], ["c", "d"], ["e", "f", "g"]]


@pytest.mark.parametrize("mode", ["kmeans-fuzzified", "fuzzy-cmeans", "kmeans", "points"])
@pytest.mark.parametrize("snapshots", [0, 2])
def test_data_map_is_grouped_in_every_mode_under_every_seed(mode, snapshots):
    for seed in range(3):
        groups = cluster_tasks(FakeMap(snapshots), 3, mode=mode, random_state=seed)
        assert groups.groups == GROUPS
        assert groups.names == tuple("abcdefg")
        np.testing.assert_allclose(groups.memberships.sum(axis=1), 1)


def test_gram_array_tensor_and_auto():
    gram = FakeMap().gram()
    by_tensor = cluster_tasks(gram, "auto", random_state=0, cluster_range=(2, 5))
    assert by_tensor.names[:2] == ("task0", "task1")
    assert by_tensor.num_groups == 3
    assert by_tensor.quality["silhouette"] == by_tensor.quality["silhouette_scores"][3]
    assert cluster_tasks(gram.numpy(), "auto", random_state=0, cluster_range=(2, 5)) == by_tensor


def test_gram_as_a_data_frame():
    pandas = pytest.importorskip("pandas")
    gram = FakeMap().gram().numpy()
    named = pandas.DataFrame(gram, columns=list("abcdefg"), index=list("abcdefg"))
    assert cluster_tasks(named, 3, random_state=0).groups == GROUPS
    assert cluster_tasks(named, 3, list("tuvwxyz"), random_state=0).names == tuple("tuvwxyz")
    assert cluster_tasks(pandas.DataFrame(gram), 3, random_state=0).names == tuple(f"task{t}" for t in range(7))
    with pytest.raises(
        InvalidArgumentError, match="data_map_or_gram must have the tasks as columns in the order of ta"
    ):
        cluster_tasks(named, 3, list("bacdefg"))
    by_array = FuzzyKMeans(3, random_state=0).fit_gram(gram)
    np.testing.assert_array_equal(FuzzyKMeans(3, random_state=0).fit_gram(named).labels_, by_array.labels_)
    with pytest.raises(InvalidTypeError, match="real numbers; got dtype object"):
        cluster_tasks(named.astype(object), 3)


def test_real_data_map():
    data_map = DataMap(20, TaskLayout.binary(["a", "b", "c"]))
    rng = torch.Generator().manual_seed(0)
    for epoch in range(3):
        p = torch.rand(20, 3, generator=rng)
        p[:, 1] = p[:, 0]
        data_map.update(p, torch.arange(20))
        data_map.snapshot(epoch)
    for mode in ("kmeans-fuzzified", "points"):
        groups = cluster_tasks(data_map, 2, mode=mode, random_state=0)
        np.testing.assert_allclose(groups.memberships[0], groups.memberships[1], atol=1e-12)
    assert cluster_tasks(data_map, 2, random_state=0).groups == [["a", "b"], ["c"]]


def test_json_round_trip(tmp_path):
    groups = cluster_tasks(FakeMap(), "auto", random_state=0, cluster_range=(2, 5))
    path = tmp_path / "groups.json"
    path.write_text("an old file")
    groups.to_json(path)
    again = TaskGroups.from_json(path)
    assert again == groups
    np.testing.assert_array_equal(again.memberships, groups.memberships)
    written = json.loads(path.read_text())
    assert written["tasks"]["a"] == {"memberships": groups.memberships[0].tolist(), "label": 0}
    assert [entry.name for entry in tmp_path.iterdir()] == ["groups.json"]
    assert "group 2 (3 tasks)" in str(groups)
    assert repr(groups).startswith("TaskGroups(7 tasks in 3 groups")
    alone = TaskGroups(("a",), np.ones((1, 1)), np.zeros(1, dtype=np.int64))
    assert repr(alone) == "TaskGroups(1 task in 1 group: [['a']])"
    assert str(alone).splitlines()[:2] == ["1 task in 1 group", "group 0 (1 task)"]


def test_malformed_files(tmp_path):
    path = tmp_path / "groups.json"
    groups = cluster_tasks(FakeMap(), 3, random_state=0)
    groups.to_json(path)
    whole = path.read_text()
    good = groups.to_dict()
    bad_label = {**good, "tasks": {**good["tasks"], "a": {**good["tasks"]["a"], "label": 9}}}
    no_label = {**good, "tasks": {**good["tasks"], "a": {"memberships": [1, 0, 0]}}}
    cases = [whole[: len(whole) // 2], "", "[]", "{}", json.dumps({**good, "version": 2})]
    no_name = {**good, "tasks": {"": good["tasks"]["a"], **{name: good["tasks"][name] for name in "bcdefg"}}}
    cases += [json.dumps(case) for case in (bad_label, no_label, no_name, {**good, "tasks": []})]
    for text in cases:
        path.write_text(text)
        with pytest.raises(FileFormatError):
            TaskGroups.from_json(path)
    path.write_text(whole, encoding="utf-8-sig")  # as some editors save it
    assert TaskGroups.from_json(path) == groups
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(FileFormatError):
        TaskGroups.from_json(path)


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        (
            (np.eye(3), 4),
            InvalidArgumentError,
            r"n_clusters must be at most the number of tasks \(3\), or 'auto'; got 4$",
        ),
        ((FakeMap(), 8, None), InvalidArgumentError, r"n_clusters must be at most the number of tasks \(7\)"),
        ((np.ones((4, 4)), 2), InvalidArgumentError, r"number of tasks that differ \(1 of 4\); got 2$"),
        (
            (np.ones((4, 4)), "auto"),
            InvalidArgumentError,
            "'auto' needs more tasks that differ than .*, 2; got 1 of 4$",
        ),
        ((np.eye(3), 2, ["a", "b"]), InvalidArgumentError, "task_names must have one entry per task"),
        ((np.eye(3), 2, ["a", "b", "b"]), InvalidArgumentError, "task_names must be unique; 'b' stands twice"),
        ((np.eye(3), 2, ["a", "", "c"]), InvalidArgumentError, "task_names must not be empty strings"),
        ((np.eye(3), 2, [["a"], "b", "c"]), InvalidTypeError, "task_names must be strings"),
        ((np.eye(3), 2, "abc"), InvalidTypeError, "task_names must be a sequence of strings"),
        ((np.eye(3), 2, 7), InvalidTypeError, "task_names must be a sequence; got 7"),
        ((np.full((3, 3), np.nan), 2), InvalidArgumentError, "finite"),
        (("map", 2), InvalidTypeError, "numbers"),
        ((7, 2), InvalidTypeError, "DataMap"),
        ((np.eye(3), "some"), InvalidArgumentError, "'auto'"),
    ],
)
def test_bad_input(arguments, error, match):
    with pytest.raises(error, match=match):
        cluster_tasks(*arguments)


@pytest.mark.parametrize(
    ("random_state", "error"),
    [(-1, InvalidArgumentError), (2**32, InvalidArgumentError), (np.random.default_rng(0), InvalidTypeError)],
)
def test_random_states_that_there_are_not(random_state, error):
    with pytest.raises(error, match="random_state must be"):
        cluster_tasks(np.eye(3), 2, random_state=random_state)


@pytest.mark.parametrize("mode", ["kmeans", "points"])
@pytest.mark.parametrize("snapshots", ["memory", "gram"])
def test_a_map_in_which_nothing_is_recorded(mode, snapshots):
    data_map = DataMap(6, TaskLayout.binary(["a", "b", "c"]), snapshots=snapshots)
    for number in (1, 2, "auto"):
        with pytest.raises(InvalidArgumentError, match=r"must hold observations .*; nothing is recorded in it$"):
            cluster_tasks(data_map, number, mode=mode)
    if (mode, snapshots) == ("kmeans", "memory"):
        data_map.snapshot(3)
        data_map.update(torch.rand(6, 3), torch.arange(6))  # after the snapshot, which is what counts
        with pytest.raises(InvalidArgumentError, match=r"nothing is recorded up to its last snapshot \(epoch 3\)$"):
            cluster_tasks(data_map, 2)


def test_a_map_whose_tasks_do_not_differ():
    data_map = DataMap(6, TaskLayout.binary(["a", "b", "c"]))
    data_map.update(torch.full((6, 3), 0.25), torch.arange(6))
    assert cluster_tasks(data_map, 1).num_groups == 1
    with pytest.raises(InvalidArgumentError, match=r"n_clusters must be at most .* that differ \(1 of 3\); got 2$"):
        cluster_tasks(data_map, 2)
    with pytest.raises(InvalidArgumentError, match=r"number of \(mean, std\) points that differ \(1\); got 2$"):
        cluster_tasks(data_map, 2, mode="points")


@pytest.mark.parametrize("hits", [0.0, 1.0])
def test_regression_tasks_without_anything_in_between_get_a_hint(hits):
    data_map = DataMap(6, TaskLayout.regression(["a", "b", "c"]))
    data_map.update(torch.full((6, 3), hits), torch.arange(6))
    with pytest.raises(
        InvalidArgumentError, match=r"every probability of the regression tasks is 0 or 1, .*standardised"
    ):
        cluster_tasks(data_map, 2)
    data_map.update(torch.full((6, 3), 0.5), torch.arange(6))
    with pytest.raises(InvalidArgumentError, match=r"\(1 of 3\); got 2$"):
        cluster_tasks(data_map, 2)


def test_bad_groups():
    with pytest.raises(InvalidArgumentError, match="names must not be empty strings"):
        TaskGroups(("a", ""), np.ones((2, 1)), np.array([0, 0]))
    with pytest.raises(InvalidArgumentError, match="sum to 1"):
        TaskGroups(("a",), np.array([[0.5, 0.2]]), np.array([0]))
    with pytest.raises(InvalidArgumentError, match="labels must be"):
        TaskGroups(("a",), np.array([[0.5, 0.5]]), np.array([2]))
    with pytest.raises(InvalidArgumentError, match="memberships must be"):
        TaskGroups(("a", "b"), np.array([[0.5, 0.5]]), np.array([0, 0]))


@pytest.mark.parametrize("missing", [False, True])
def test_points_that_were_not_observed_play_no_part(missing: bool) -> None:
    """Labels that are missing, or samples that were never drawn: a map holds (0, 0) there."""
    data_map = DataMap(500, TaskLayout.binary(["easy", "sparse", "hard", "hard too"]), missing=missing)
    rows = 500 if missing else 100
    valid = torch.ones(rows, 4, dtype=torch.bool)
    valid[100:, 1] = False
    for _ in range(3):
        p = torch.tensor([0.9, 0.9, 0.1, 0.1]) + 0.05 * torch.rand(rows, 4)
        data_map.update(p, torch.arange(rows), valid=valid if missing else None)
    groups = cluster_tasks(data_map, 2, mode="points", random_state=0)
    assert groups.groups == [["easy", "sparse"], ["hard", "hard too"]]
    assert groups.memberships.max(axis=1).tolist() == [1.0] * 4


def test_a_task_without_a_point_is_named() -> None:
    data_map, valid = DataMap(10, TaskLayout.binary(["a", "b", "c"]), missing=True), torch.ones(10, 3, dtype=torch.bool)
    valid[:, 1] = False
    data_map.update(torch.rand(10, 3), torch.arange(10), valid=valid)
    with pytest.raises(InvalidArgumentError, match="a point of every task in mode 'points'; 'b' has none"):
        cluster_tasks(data_map, 2, mode="points", random_state=0)
