# SPDX-License-Identifier: Apache-2.0
"""Pictures of a category: what is drawn is what scikit-learn says."""

import cv2
import numpy as np
import pytest
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from sklearn import metrics as sklearn_metrics

from anomalib_uniad.metrics.curves import draw_category, thin
from anomalib_uniad.metrics.functional import Ranking, precision_recall_curve, rank, roc_curve

NOTHING = np.empty(0)
INF = float("inf")


def ranking_of(normal, defective) -> Ranking:
    return rank(np.array(defective, dtype=float), np.array(normal, dtype=float))


def draw(normal, defective, pixel=None, thresholds=None, category="bottle") -> Figure:
    normal, defective = np.array(normal, dtype=float), np.array(defective, dtype=float)
    figure = draw_category(category, ranking_of(normal, defective), pixel, normal, defective, thresholds or {})
    figure.canvas.draw()  # warnings come only now
    return figure


def line_of(axes: Axes, start: str):
    return next(line for line in axes.lines if str(line.get_label()).startswith(start))


def legend_of(axes: Axes) -> list[str]:
    return [text.get_text() for text in axes.get_legend().get_texts()]


def are_points_of(x, y, known_x, known_y) -> bool:
    return bool(np.isin((x + 1j * y).round(9), (known_x + 1j * known_y).round(9)).all())


def generated(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.normal(0, 1, count), rng.normal(1.5, 1, count)


@pytest.mark.parametrize("count", [1, 2, 30, 100_000])
def test_lines_are_those_of_sklearn(count):
    normal, defective = generated(count)
    pixel_normal, pixel_defective = (values.round(1) for values in generated(count, seed=1))
    figure = draw(normal, defective, ranking_of(pixel_normal, pixel_defective))
    roc, precision_recall, _ = figure.axes
    for level, high, low in (("image", defective, normal), ("pixel", pixel_defective, pixel_normal)):
        scores, targets = np.concatenate([high, low]), np.repeat([1, 0], [len(high), len(low)])
        false, true = line_of(roc, level).get_data()
        expected = sklearn_metrics.roc_curve(targets, scores, drop_intermediate=False)
        assert are_points_of(false, true, *expected[:2])
        assert (false[0], true[0], false[-1], true[-1]) == (0, 0, 1, 1)
        auroc = sklearn_metrics.roc_auc_score(targets, scores)
        assert sklearn_metrics.auc(false, true) == pytest.approx(auroc, abs=1e-3)
        assert f"{level}, AUROC {auroc:.4f}" in legend_of(roc)

        line = line_of(precision_recall, level)
        recall, precision = line.get_data()
        assert line.get_drawstyle() == "steps-pre"
        expected = sklearn_metrics.precision_recall_curve(targets, scores)
        assert are_points_of(recall[1:], precision[1:], expected[1], expected[0])
        ap = sklearn_metrics.average_precision_score(targets, scores)
        assert np.dot(np.diff(recall), precision[1:]) == pytest.approx(ap, abs=1e-3)
        f1 = 2 * expected[0] * expected[1] / np.maximum(expected[0] + expected[1], 1e-300)
        assert f"{level}, AP {ap:.4f}, F1max {f1.max():.4f} (dot)" in legend_of(precision_recall)
        dot = next(
            other
            for other in precision_recall.lines
            if other.get_marker() == "o" and other.get_color() == line.get_color()
        )
        (x,), (y,) = dot.get_data()
        assert 2 * x * y / (x + y) == pytest.approx(f1.max())
        assert len(false) <= 2000
        assert len(recall) <= 2000


SHAPES = {
    "nearly perfect": (8.0, 1.0, 1_000_000),
    "good": (2.0, 1.0, 1_000_000),
    "chance": (0.0, 1.0, 200_000),
    "worse than chance": (-1.0, 1.0, 200_000),
    "two slopes": (1.0, 8.0, 200_000),
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("positives", [60, 2000, 1.0])
def test_thinned_curves_keep_their_area(shape, positives):
    shift, width, count = SHAPES[shape]
    rng = np.random.default_rng(2)
    positives = count if positives == 1.0 else positives
    ranking = rank(rng.normal(shift, width, positives), rng.normal(0, 1, count))
    false, true = roc_curve(ranking)
    x, y = thin(false, true)
    assert len(x) <= 2000
    assert (x[0], y[0], x[-1], y[-1]) == (0, 0, 1, 1)
    assert sklearn_metrics.auc(x, y) == pytest.approx(sklearn_metrics.auc(false, true), abs=1e-3)
    grid = np.linspace(0, 1, 5001)
    assert np.abs(np.interp(grid, x, y) - np.interp(grid, false, true))[grid > 0].max() < 0.01
    precision, recall = precision_recall_curve(ranking)
    x, y = thin(recall, precision)
    assert len(x) <= 2000
    assert np.dot(np.diff(x, prepend=0), y) == pytest.approx(np.dot(np.diff(recall, prepend=0), precision), abs=1e-3)


def test_thinning_keeps_corners():
    # A million points along two sides of a square, and one side that is a single step.
    side = np.linspace(0, 1, 500_001)
    x = np.concatenate([np.zeros(500_001), 0.5 * side, [1.0]])
    y = np.concatenate([0.9 * side, np.full(500_001, 0.9), [1.0]])
    thin_x, thin_y = thin(x, y)
    assert len(thin_x) <= 1001
    drawn = np.stack([thin_x, thin_y], axis=1)
    for corner in ((0, 0), (0, 0.9), (0.5, 0.9), (1, 1)):
        assert np.abs(drawn - corner).max(axis=1).min() < 2e-3, corner
    assert (drawn[-2:] == [(0.5, 0.9), (1, 1)]).all()
    assert (np.diff(thin_x) >= 0).all()


def test_few_points_stay():
    x = np.linspace(0, 1, 1000)
    assert thin(x, x)[0] is x
    same = np.full(5000, 0.5)
    assert thin(same, same)[0].tolist() == [0.5, 0.5]


@pytest.mark.parametrize(
    ("normal", "defective", "pixel", "remarks"),
    [
        ([1, 2], [], None, ["image: no defective images", "pixel: not evaluated"]),
        ([], [1, 2], ranking_of([1, 2], []), ["image: no normal images", "pixel: no defective pixels"]),
        ([], [], ranking_of([], [1]), ["image: no images", "pixel: no normal pixels"]),
        ([], [], ranking_of([], []), ["image: no images", "pixel: no pixels"]),
    ],
)
def test_undefined_curves_are_left_out(normal, defective, pixel, remarks):
    figure = draw(normal, defective, pixel)
    for axes in figure.axes[:2]:
        assert legend_of(axes) == remarks
        assert all(line.get_linestyle() == "None" for line in axes.lines if line.get_label() in remarks)
        assert all(len(line.get_xdata()) == 0 for line in axes.lines if line.get_label() in remarks)
    kinds = {"normal": normal, "defective": defective}
    expected = [f"{kind} ({len(scores)})" if scores else f"no {kind} images" for kind, scores in kinds.items()]
    assert sorted(legend_of(figure.axes[2])) == sorted(expected)


def test_one_level_of_two():
    figure = draw_category("x", None, ranking_of([0, 1], [1, 2]), NOTHING, NOTHING, {})
    assert legend_of(figure.axes[0]) == ["image: not evaluated", "pixel, AUROC 0.8750"]


def test_histogram():
    figure = draw([0.0, 1.0, 1.0, 2.0], [2.0, 4.1], thresholds={"global": 1.5, "category": 9.0})
    axes = figure.axes[2]
    filled = [patch for patch in axes.patches if patch.get_label() and patch.get_fill()]
    normal, defective = (patch.get_data() for patch in filled)
    np.testing.assert_array_equal(normal.edges, np.linspace(0, 4.1, 42))
    np.testing.assert_array_equal(normal.edges, defective.edges)
    assert normal.values[[0, 10, 20]].tolist() == [0.25, 0.5, 0.25]
    assert defective.values[[20, 40]].tolist() == [0.5, 0.5]
    assert normal.values.sum() == defective.values.sum() == 1
    assert all(0 < patch.get_alpha() < 1 for patch in filled)  # both are seen where they overlap
    assert filled[0].get_hatch() != filled[1].get_hatch()
    lines = {line.get_label(): line for line in axes.lines}
    assert lines["threshold, global: 1.5"].get_xdata() == [1.5, 1.5]
    assert lines["threshold, category: 9"].get_xdata() == [9.0, 9.0]
    assert len({line.get_linestyle() for line in lines.values()}) == 2
    assert axes.get_xlim()[0] < 0
    assert axes.get_xlim()[1] > 9
    assert set(legend_of(axes)) == {"normal (4)", "defective (2)", *lines}


@pytest.mark.parametrize(
    ("normal", "defective"),
    [
        ([3.0], [3.0]),
        ([0.0], [-0.0]),
        ([1.0, np.nextafter(1, 2)], [1.0]),
        ([1e20] * 2, [1e20] * 2),
        ([-3e38, 3e38], [1e38]),
        ([1e-40, 2e-40], [5e-324]),
        ([1e-310], [2e-310]),
        ([0.0, INF], [INF]),
        ([-INF], [INF]),
        ([-1.7e308], [1.7e308]),
    ],
)
def test_odd_scores(normal, defective):
    figure = draw(normal, defective, thresholds={"a": 0.5, "b": INF, "c": float("nan"), "d": 1e308, "e": -1e-320})
    legend = legend_of(figure.axes[2])
    for kind, scores in (("normal", normal), ("defective", defective)):
        assert f"{kind} ({len(scores)})" in legend
        far = sum(abs(score) > 1e100 for score in scores)
        assert (f"{far} {kind} out of range" in legend) == bool(far)
    for name, drawn in (("a", True), ("b", False), ("c", False), ("d", False), ("e", True)):
        line = line_of(figure.axes[2], f"threshold, {name}")
        assert (line.get_linestyle() != "None") == drawn


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("metal_nut", "metal_nut"),
        ("$x^2_1$ \\frac{1", "$x^2_1$ \\frac{1"),
        ("_", "_"),
        ("瓶子", "\\u74f6\\u5b50"),
        ("two\nlines\t\0", "two\\nlines\\t\\x00"),
        ("\udcff", "\\udcff"),
        ("", ""),
        ("a" * 70 + "b" * 70, "a" * 50 + " ... " + "b" * 34),
    ],
)
def test_names(name, shown):
    scores = generated(5)
    figure = draw(*scores, category=name, thresholds={name: 0.5})
    assert figure.get_suptitle() == shown
    assert f"threshold, {shown}: 0.5" in legend_of(figure.axes[2])
    texts = [*figure.texts, *figure.axes[2].get_legend().get_texts()]
    assert not any(text.get_parse_math() for text in texts)


def test_picture(tmp_path):
    before = pyplot.get_fignums()
    normal, defective = generated(40)
    thresholds = {"global": 0.5}
    path = tmp_path / "bottle.png"
    draw_category("bottle", ranking_of(normal, defective), None, normal, defective, thresholds).savefig(path)
    picture = cv2.imread(str(path))
    assert picture.shape == (500, 1500, 3)
    blue, sky, vermillion = (0xB2, 0x72, 0), (0xE9, 0xB4, 0x56), (0, 0x5E, 0xD5)  # BGR
    for panel, color in ((0, blue), (1, blue), (2, sky), (2, vermillion)):
        part = np.split(picture.astype(int), 3, axis=1)[panel]
        assert (np.abs(part - color).max(axis=2) < 40).sum() > 200, color
    assert pyplot.get_fignums() == before
    assert normal.tolist() == generated(40)[0].tolist()
