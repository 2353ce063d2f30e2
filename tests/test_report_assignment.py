"""The picture of an assignment: shapes from one task to a thousand, made-up histories."""

from __future__ import annotations

import numpy as np
import pytest
from _settings import new_seed
from matplotlib.colors import to_rgb
from PIL import Image

from pymtg.errors import InvalidArgumentError
from pymtg.report import save_assignment
from pymtg.report.assignment import MAX_PANELS, assignment_figure
from pymtg.report.figures import group_colour, png


def history_of(epochs, tasks, branches, dropped=None):
    """Random walks of theta as probabilities, and the labels; with `dropped` (branch, epoch) a branch that ends."""
    rng = np.random.default_rng(new_seed())
    theta = 1 + np.cumsum(rng.normal(size=(epochs + 1, tasks, branches)), axis=0)
    if dropped is not None:
        theta[dropped[1] :, :, dropped[0]] = -np.inf
    shares = np.exp(theta - theta.max(axis=2, keepdims=True))
    shares /= shares.sum(axis=2, keepdims=True)
    return shares, shares[-1].argmax(axis=1).tolist()


def names_of(tasks):
    return [f"task{t}" for t in range(tasks)]


def panels_of(figure):
    return [axes for axes in figure.axes if axes.get_visible()]


@pytest.mark.parametrize(
    ("epochs", "tasks", "branches", "dropped"),
    [
        (20, 15, 3, None),
        (1, 1, 1, None),
        (0, 6, 3, None),
        (1, 16, 2, (0, 1)),
        (5, 4, 9, (8, 2)),
        (20, 17, 1, None),
        (0, 41, 5, None),
        (100, 159, 5, (2, 50)),
        (3, 241, 30, (0, 1)),
        (20, 1000, 5, None),
    ],
)
def test_the_picture_is_a_png_of_a_sane_size(tmp_path, epochs, tasks, branches, dropped):
    history, labels = history_of(epochs, tasks, branches, dropped)
    path = save_assignment(tmp_path / "a.png", history, names_of(tasks), labels, temperatures=[2.5] * epochs)
    with Image.open(path) as image:
        image.verify()
        width, height = image.size
    assert 500 <= width <= 2600
    assert 250 <= height <= 1300


def test_few_tasks_get_a_panel_each_whose_areas_are_the_probabilities():
    history, labels = history_of(7, 6, 3)
    figure = assignment_figure(history, names_of(6), labels)
    panels = panels_of(figure)
    assert len(panels) == 6
    order = sorted(range(6), key=lambda t: (labels[t], -history[-1, t, labels[t]], t))
    assert [axes.get_title(loc="left") for axes in panels] == [f"task{t}" for t in order]
    assert [axes.get_title(loc="right") for axes in panels] == [f"group {labels[t]}" for t in order]
    for axes, t in zip(panels, order, strict=True):
        edges = np.array([line.get_ydata() for line in axes.lines])
        np.testing.assert_allclose(edges, np.cumsum(history[:, t], axis=1).T[:-1], rtol=1e-12)
        colours = [area.get_facecolor()[0, :3] for area in axes.collections]
        np.testing.assert_allclose(colours, [to_rgb(group_colour(k)) for k in range(3)])


def test_many_tasks_get_a_strip_each_in_the_order_of_the_groups():
    history, labels = history_of(5, MAX_PANELS + 1, 3)
    (axes,) = panels_of(assignment_figure(history, names_of(MAX_PANELS + 1), labels))
    shown = [text.get_text() for text in axes.get_yticklabels()]
    groups = [labels[int(name.removeprefix("task"))] for name in shown]
    assert groups == sorted(labels)
    assert axes.images[0].get_array().shape == (MAX_PANELS + 1, 6, 3)
    assert [text.get_text() for text in axes.texts] == [str(k) for k in sorted(set(labels))]


def test_a_strip_is_white_where_nothing_is_decided_and_full_where_all_is():
    history = np.full((2, 20, 4), 0.25)
    history[1] = np.eye(4)[[3] * 20]
    (axes,) = panels_of(assignment_figure(history, names_of(20), [3] * 20))
    strips = np.asarray(axes.images[0].get_array())
    np.testing.assert_allclose(strips[:, 0], 1)
    np.testing.assert_allclose(strips[:, 1], np.broadcast_to(to_rgb(group_colour(3)), (20, 3)))


def test_a_thousand_tasks_are_not_named_but_their_groups_are_counted():
    history, labels = history_of(2, 1000, 3)
    (axes,) = panels_of(assignment_figure(history, names_of(1000), labels))
    counted = [f"group {k}: {labels.count(k)} tasks" for k in sorted(set(labels)) if labels.count(k) >= 18]
    assert [text.get_text() for text in axes.get_yticklabels()] == counted


def test_the_title_tells_the_temperatures():
    history, labels = history_of(3, 2, 2)

    def title(temperatures):
        return assignment_figure(history, names_of(2), labels, temperatures=temperatures).get_suptitle()

    assert title([2.5, 2.5, 2.5]) == "Assignment: 2 tasks, 2 branches, 3 epochs, temperature 2.5"
    assert title(np.array([2.5, 1, 0.3])).endswith("temperature 2.5 to 0.3")
    assert title(None).endswith("3 epochs")


def test_same_history_same_bytes():
    history, labels = history_of(3, 2, 2)
    assert png(assignment_figure(history, "ab", labels)) == png(assignment_figure(history, "ab", labels))


@pytest.mark.parametrize(
    ("history", "labels", "message"),
    [
        (np.ones((2, 3)), [0, 0], r"\[epochs \+ 1, tasks, branches\].*\(2, 3\)"),
        (np.ones((2, 3, 1)), [0, 0], "2 names"),
        (np.ones((2, 2, 1)), [0], "1 labels"),
        (np.ones((0, 2, 1)), [0, 0], r"\(0, 2, 1\)"),
        (np.full((2, 2, 2), np.nan), [0, 0], "probabilities; got nan"),
        (np.full((2, 2, 2), 1.5), [0, 0], "probabilities; got 1.5"),
        (np.full((2, 2, 2), 0.5), [0, 2], "labels must be 0 to 1"),
        (np.full((2, 2, 2), 0.5), [-1, 0], "labels must be 0 to 1"),
    ],
)
def test_what_is_no_history_is_refused(history, labels, message):
    with pytest.raises(InvalidArgumentError, match=message):
        assignment_figure(history, "ab", labels)
