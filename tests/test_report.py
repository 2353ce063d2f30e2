"""Pictures, page and files made from synthetic results."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from pymtg import DataMap, TaskLayout, cluster_tasks
from pymtg.errors import InvalidArgumentError
from pymtg.metrics import Scores
from pymtg.report import (
    DMTG_WORDING,
    Curve,
    GroupTable,
    Report,
    Stage,
    check_writable,
    json_ready,
    render_html,
    save_assignment,
    save_bytes,
    save_data_map,
    save_html,
    save_json,
    save_memberships,
)
from pymtg.report.curves import learning_curves_figure, silhouette_figure
from pymtg.report.data_maps import choose_panels, data_map_figure
from pymtg.report.figures import png
from pymtg.report.heatmap import memberships_figure
from pymtg.report.html import duration

EVIL = "<script>alert('$x_1$')</script> & \"tasks\""


def make_map(samples=50, tasks=6, names=None):
    draws = torch.Generator().manual_seed(tasks)
    mean = torch.rand(samples, tasks, generator=draws)
    std = (mean * (1 - mean)).sqrt() * torch.rand(samples, tasks, generator=draws)
    names = names or [f"task{t}" for t in range(tasks)]
    return SimpleNamespace(
        mean=mean,
        std=std,
        correctness=mean.round(decimals=1),
        count=torch.ones_like(mean),
        layout=SimpleNamespace(names=names),
    )


def make_groups(tasks=6, groups=2, names=None, **more):
    memberships = np.random.default_rng(tasks).dirichlet(np.full(groups, 0.4), tasks)
    names = names or [f"task{t}" for t in range(tasks)]
    return GroupTable(names, memberships, memberships.argmax(1).tolist(), **more)


def make_report(groups, curves=(), **more):
    def scores(high):
        tasks = {name: {"balanced_accuracy": high, "roc_auc": math.nan} for name in groups.names}
        return Scores({"balanced_accuracy": high, "roc_auc": math.nan}, tasks, {})

    return Report(
        title="STG on digits",
        command="pymtg stg --data digits",
        settings={"epochs": 20, "lr": 1e-3, "hidden": "64, 64", "snapshot_epochs": None},
        data={"name": "digits"},
        versions={"torch": "2.13.0"},
        machine={"threads": 2},
        scores={"stg_soft": scores(0.91), "stg_hard": scores(0.92), "mtl": scores(0.9)},
        groups=groups,
        stages=[Stage("joint", 1.5, 1234), Stage("grouping", 0.01), Stage("group 0", 61.0, 1234)],
        curves=curves,
        **more,
    )


# files ---------------------------------------------------------------------------------------------------------------


def test_json_has_null_where_a_figure_is_not_finite(tmp_path):
    content = {"a": math.nan, "b": [np.float64("inf"), np.int64(3), torch.tensor([1.0, math.nan])], 4: tmp_path}
    path = save_json(tmp_path / "x.json", content)
    read = json.loads(path.read_text(), parse_constant=pytest.fail)
    assert read == {"a": None, "b": [None, 3, [1.0, None]], "4": str(tmp_path)}


def test_json_of_a_dataclass_and_of_text_beyond_ascii(tmp_path):
    path = save_json(tmp_path / "x.json", Stage("Stufe ä", 1.0))
    assert "ä" in path.read_text(encoding="utf-8")
    assert json.loads(path.read_text(encoding="utf-8")) == {"name": "Stufe ä", "seconds": 1.0, "parameters": None}


def test_json_ready_leaves_booleans_alone():
    assert json_ready({"a": True, "b": (1, None)}) == {"a": True, "b": [1, None]}


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = save_bytes(tmp_path / "x.bin", b"old")

    def no_space(_handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(OSError, match="No space left"):
        save_bytes(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["x.bin"]


def test_files_get_the_mode_that_open_would_give(tmp_path):
    (tmp_path / "plain").write_bytes(b"")
    assert save_bytes(tmp_path / "ours", b"").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_check_writable_makes_the_directory_and_leaves_it_empty(tmp_path):
    directory = check_writable(tmp_path / "a" / "b")
    assert directory.is_dir()
    assert not os.listdir(directory)


def test_check_writable_refuses_what_is_no_directory(tmp_path):
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "below", "/proc/nowhere"):
        with pytest.raises(OSError, match=r"."):
            check_writable(path)


# groups --------------------------------------------------------------------------------------------------------------


def test_groups_are_ordered_by_group_then_by_strength():
    groups = GroupTable("abcd", np.array([[0.3, 0.7], [0.6, 0.4], [0.1, 0.9], [0.8, 0.2]]), [1, 0, 1, 0])
    assert groups.order() == [3, 1, 2, 0]
    assert groups.members(1) == [2, 0]
    assert groups.strength(2) == 0.9
    assert groups.num_groups == 2


def test_groups_of_wrong_shape_are_refused():
    with pytest.raises(InvalidArgumentError, match=r"memberships must be \[tasks, groups\].*2 names.*\(3, 2\)"):
        GroupTable("ab", np.zeros((3, 2)), [0, 0])


# data map ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tasks", [1, 2, 6, 15, 36])
def test_every_task_gets_a_panel(tasks):
    figure = data_map_figure(make_map(20, tasks), make_groups(tasks, min(3, tasks)))
    panels = [axes for axes in figure.axes if axes.get_visible() and axes.get_title(loc="left")]
    assert len(panels) == tasks
    assert f"{tasks} task" in figure.get_suptitle()


def test_axes_show_mean_against_std_coloured_by_correctness():
    data_map = make_map(30, 2)
    axes = data_map_figure(data_map).axes[1]
    points = axes.collections[0]
    drawn = np.column_stack([points.get_offsets(), points.get_array()])
    truth = np.column_stack([data_map.std[:, 1], data_map.mean[:, 1], data_map.correctness[:, 1]])
    np.testing.assert_allclose(drawn[np.lexsort(drawn.T)], truth[np.lexsort(truth.T)], rtol=1e-6)
    assert points.get_clim() == (0, 1)


def test_samples_without_a_label_are_not_drawn():
    data_map = make_map(30, 2)
    data_map.mean[:7, 0] = data_map.std[:7, 0] = data_map.correctness[:7, 0] = math.nan
    first, second = data_map_figure(data_map).axes[:2]
    assert len(first.collections[0].get_offsets()) == 23
    assert len(second.collections[0].get_offsets()) == 30


def test_a_map_without_any_observation_can_be_drawn(tmp_path):
    data_map = make_map(5, 2)
    for values in (data_map.mean, data_map.std, data_map.correctness):
        values.fill_(math.nan)
    assert save_data_map(tmp_path / "x.png", data_map).stat().st_size > 1000


def test_many_tasks_are_selected_from_every_group_and_the_title_says_so():
    names = [f"task{t}" for t in range(100)]
    labels = [0] * 90 + [1] * 9 + [2]
    groups = GroupTable(names, np.eye(3)[labels], labels)
    chosen = choose_panels(groups, 100)
    assert len(set(chosen)) == len(chosen) == 36
    assert np.bincount([labels[t] for t in chosen]).tolist() == [31, 4, 1]
    title = data_map_figure(make_map(5, 100), groups, most=12).get_suptitle()
    assert title.startswith("Data map: 12 of 100 tasks, every group in proportion")


def test_selection_copes_with_more_groups_than_panels_and_with_no_groups():
    groups = GroupTable([str(t) for t in range(50)], np.eye(50), list(range(50)))
    assert len(set(choose_panels(groups, 50, 36))) == 36
    assert choose_panels(None, 10, 4) == [0, 3, 6, 9]


def test_many_samples_are_drawn_in_part_and_the_title_says_so():
    figure = data_map_figure(make_map(5000, 1))
    assert len(figure.axes[0].collections[0].get_offsets()) == 4000
    assert figure.get_suptitle() == "Data map: 1 task; 4,000 of 5,000 samples drawn"


# pictures ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("tasks", "groups"), [(1, 1), (6, 2), (15, 3), (41, 5), (300, 30)])
def test_memberships_picture_is_a_sane_png(tmp_path, tasks, groups):
    with Image.open(save_memberships(tmp_path / "m.png", make_groups(tasks, groups))) as image:
        image.verify()
        width, height = image.size
    assert 300 <= width <= 3000
    assert 200 <= height <= 1500


def test_memberships_have_numbers_when_few_and_stand_in_order():
    groups = make_groups(6, 2)
    axes = memberships_figure(groups).axes[0]
    assert [text.get_text() for text in axes.get_yticklabels()] == [groups.names[t] for t in groups.order()]
    assert len(axes.texts) == 12
    np.testing.assert_array_equal(axes.images[0].get_array(), groups.memberships[groups.order()])
    assert not memberships_figure(make_groups(6, 13)).axes[0].texts


def test_very_many_tasks_show_groups_instead_of_names():
    figure = memberships_figure(make_groups(300, 4))
    assert {text.get_text() for text in figure.axes[0].get_yticklabels()} == {f"group {k}" for k in range(4)}
    assert "groups.json" in figure.get_suptitle()


def test_words_beside_small_groups_do_not_lie_on_one_another():
    labels = [0] * 900 + [k for k in range(1, 30) for _ in range(3)]
    table = GroupTable([f"t{t}" for t in range(len(labels))], np.eye(30)[labels], labels)
    assert [text.get_text() for text in memberships_figure(table).axes[0].get_yticklabels()] == ["group 0"]


def test_an_rmse_of_targets_that_nobody_standardised():
    scores = {"mtl": Scores({"rmse": 3.5}, {f"task{t}": {"rmse": 3.5} for t in range(6)}, {})}
    page = render_html(dataclasses.replace(make_report(make_groups()), scores=scores))
    assert "The lower an RMSE, the better.</p>" in page


def test_odd_names_are_drawn_as_they_are(tmp_path):
    names = [EVIL, "$\\frac{", "任务", "a\nb", "x" * 200, "^_{}"]
    save_data_map(tmp_path / "d.png", make_map(5, 6, names), make_groups(6, 2, names))
    save_memberships(tmp_path / "m.png", make_groups(6, 2, names))
    assert all((tmp_path / name).read_bytes().startswith(b"\x89PNG") for name in ("d.png", "m.png"))


def test_same_data_same_bytes():
    assert png(memberships_figure(make_groups())) == png(memberships_figure(make_groups()))


def test_curves_have_a_panel_each_and_count_epochs_from_one():
    figure = learning_curves_figure(
        [Curve("loss", "joint", [3, 2, 1]), Curve("loss", "group 0", [2]), Curve("val", "", [1])]
    )
    loss, val = figure.axes
    assert [line.get_xdata().tolist() for line in loss.lines] == [[1, 2, 3], [1]]
    assert loss.get_title(loc="left") == "loss"
    assert len(val.lines) == 1


def test_silhouette_curve_marks_the_chosen_count():
    line, chosen = silhouette_figure({2: 0.1, 3: 0.4, 4: 0.2}, 3).axes[0].lines
    assert line.get_ydata().tolist() == [0.1, 0.4, 0.2]
    assert chosen.get_xdata().tolist() == [3]


def test_matplotlib_state_of_the_user_stays(tmp_path):
    code = (
        "import matplotlib, sys, numpy as np\n"
        "matplotlib.use('svg'); before = dict(matplotlib.rcParams)\n"
        "from pymtg.report import GroupTable, save_memberships\n"
        f"save_memberships({str(tmp_path / 'm.png')!r}, GroupTable('ab', np.eye(2), [0, 1]))\n"
        "assert dict(matplotlib.rcParams) == before\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)


# page ----------------------------------------------------------------------------------------------------------------


class Page(HTMLParser):
    """Collects references and checks that tags close in order."""

    VOID = frozenset({"meta", "img", "br", "link", "input", "hr"})

    def __init__(self, text):
        super().__init__()
        self.references, self.tags, self.open = [], [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.references += [value for key, value in attrs if key in ("src", "href", "srcset", "action", "data")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def full_page(tmp_path, groups):
    pictures = {
        "data_map": save_data_map(tmp_path / "d.png", make_map(9, len(groups.names), list(groups.names)), groups),
        "memberships": save_memberships(tmp_path / "m.png", groups),
    }
    return render_html(make_report(groups, [Curve("loss", "joint", [2, 1])], **pictures))


def test_page_stands_alone_and_is_well_formed(tmp_path):
    groups = make_groups(quality={"silhouette": 0.5, "inertia": 12.0}, silhouettes={2: 0.5, 3: 0.4})
    text = full_page(tmp_path, groups)
    page = Page(text)
    assert page.tags.count("img") == 4
    assert all(re.match(r"data:image/png;base64,|#\w", reference) for reference in page.references)
    assert {"link", "script", "iframe"}.isdisjoint(page.tags)
    assert not re.search(r"https?://|@import|url\(", text)
    for part in (
        "pymtg stg --data digits",
        "2.13.0",
        "balanced accuracy",
        "1 min 01 s",
        "1,234",
        "silhouette",
        ">0.5<",
        ">0.001<",
    ):
        assert part in text
    assert not re.search(r"\bnan\b", re.sub(r"base64,[^\"]*", "", text))


def test_page_escapes_names(tmp_path):
    names = [EVIL, "b"]
    text = full_page(tmp_path, make_groups(2, 1, names))
    assert "<script" not in text
    assert "&lt;script&gt;alert(&#39;$x_1$&#39;)&lt;/script&gt; &amp; &#34;tasks&#34;" in text
    Page(text)


def test_page_marks_the_best_method_and_the_gain_over_the_baseline():
    text = render_html(make_report(make_groups(2, 1)))
    assert '<td class="n best">0.9200</td>' in text
    assert '<td class="n up">+0.010</td>' in text
    assert "stg_soft \N{MINUS SIGN} mtl" in text


def test_page_without_pictures_quality_or_baseline():
    report = make_report(make_groups(3, 2))
    only = {"stg_soft": report.scores["stg_soft"]}
    page = Page(render_html(Report(**{**vars(report), "scores": only})))
    assert "img" not in page.tags


def test_page_with_many_groups_names_the_strongest_three():
    text = render_html(make_report(make_groups(40, 20)))
    assert "strongest" in text
    Page(text)


@pytest.mark.parametrize(("tasks", "groups", "title"), [(1, 1, "1 task in 1 group"), (6, 2, "6 tasks in 2 groups")])
def test_one_task_or_group_is_said_in_the_singular(tasks, groups, title):
    table = make_groups(tasks, groups)
    assert memberships_figure(table).get_suptitle().startswith(f"Memberships: {title}")
    assert f"Means over the {title.partition(' in')[0]};" in render_html(make_report(table))


def test_save_html_is_utf8(tmp_path):
    path = save_html(tmp_path / "r.html", make_report(make_groups(2, 1, ["größe", "任务"])))
    assert "größe" in path.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.123, "0.12 s"), (12.34, "12.3 s"), (59.99, "60.0 s"), (185, "3 min 05 s"), (7260, "2 h 01 min")],
)
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_page_of_another_method_says_nothing_of_the_first(tmp_path):
    groups = make_groups(6, 3)
    history = np.stack([np.full((6, 3), 1 / 3), groups.memberships])
    picture = save_assignment(tmp_path / "a.png", history, groups.names, groups.labels)
    report = make_report(groups, [Curve("entropy", "all", [1.0, 0.5], first=0), Curve("temperature", "all", [2.5])])
    more = {"assignment": picture, "model": {"parameters": 4321}, "wording": DMTG_WORDING, "baseline": "none"}
    scores = {"dmtg": report.scores["stg_soft"]}
    text = render_html(Report(**{**vars(report), "title": "DMTG", "command": "", "scores": scores, **more}))
    assert Page(text).tags.count("img") == 2
    for part in (
        "chose the same branch",
        "Probabilities as a table",
        "members (probability)",
        "4,321",
        'id="assignment"',
    ):
        assert part in text
    without_pictures = re.sub(r"base64,[^\"]*", "", text)
    for part in ("stg_soft", "membership", "Memberships", "Data map", "data map", "Silhouette"):
        assert part not in without_pictures, part


def test_curves_can_start_before_the_first_epoch_and_stand_in_rows():
    curves = [Curve(name, "", [1, 2], first=0) for name in "abcde"]
    figure = learning_curves_figure(curves)
    panels = [axes for axes in figure.axes if axes.get_visible()]
    assert [axes.get_title(loc="left") for axes in panels] == list("abcde")
    assert panels[0].lines[0].get_xdata().tolist() == [0, 1]
    assert figure.get_figwidth() < 14


def test_what_was_not_observed_is_not_drawn():
    """A map holds 0 there: it would be a sample that is hard and always wrong."""
    data_map = DataMap(100, TaskLayout.binary(["a", "b"]), missing=True)
    valid = torch.ones(100, 2, dtype=torch.bool)
    valid[20:, 1] = False
    data_map.update(0.5 + 0.4 * torch.rand(100, 2), torch.arange(100), valid=valid)
    figure = data_map_figure(data_map)
    drawn = [axes.collections[0].get_offsets() for axes in figure.axes[:2]]
    assert [len(points) for points in drawn] == [100, 20]
    assert float(drawn[1][:, 1].min()) > 0.4


def test_pictures_take_task_groups(tmp_path):
    data_map = DataMap(30, TaskLayout.binary(["a", "b", "c"]))
    data_map.update(torch.rand(30, 3), torch.arange(30))
    groups = cluster_tasks(data_map, 2, random_state=0)
    assert save_data_map(tmp_path / "map.png", data_map, groups).stat().st_size > 0
    assert save_memberships(tmp_path / "memberships.png", groups).stat().st_size > 0
    other = cluster_tasks(torch.eye(3), 2, random_state=0)
    with pytest.raises(InvalidArgumentError, match="groups must be those of the data map's tasks"):
        data_map_figure(data_map, other)
