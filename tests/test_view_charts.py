"""Charts that select: a threshold or a bin is exactly its rows, here and in what is linked, and every row has its mark."""

from __future__ import annotations

import io

import numpy as np
import pandas as pd
import pytest
import shapely
from PIL import Image

from pathkit.slide import open_slide
from pathkit.view import FrocChart, Gallery, Histogram, Patches, RocChart, SlideViewer, link


@pytest.fixture(scope="module")
def slides():
    pixels = np.random.default_rng(0).integers(0, 255, (400, 600, 3), dtype=np.uint8)
    return {name: open_slide(pixels, mpp=0.5) for name in "ab"}


@pytest.fixture
def table():
    rng = np.random.default_rng(1)
    places = rng.integers(0, 300, (40, 2))
    return pd.DataFrame(
        {
            "slide_id": ["a"] * 25 + ["b"] * 15,
            "x_l0": places[:, 0],
            "y_l0": places[:, 1],
            "size_px": 32,
            "mpp": 0.5,
            "label": rng.choice(["normal", "tumour"], 40),
            "score": rng.integers(0, 20, 40) / 20,  # with ties
        },
        index=np.arange(100, 140),
    )


@pytest.fixture
def viewer(table, slides):
    return SlideViewer(slides["a"], layers=[Patches(table[table["slide_id"] == "a"])])


@pytest.mark.parametrize("threshold", [0.0, 0.31, 0.5, 0.95, 2.0])
def test_a_threshold_on_the_roc_curve_is_its_rows_and_its_point(table, threshold):
    chart, told = RocChart(table, label="label", score="score", positive="tumour"), []
    chart.on_select(told.append)
    chart.threshold = threshold
    called, truth = table["score"] >= threshold, table["label"] == "tumour"
    assert chart.selection.index.tolist() == table.index[called].tolist()
    assert len(told) == int(called.any())
    assert chart.operating_point == pytest.approx((called[~truth].mean(), called[truth].mean()))


def test_a_row_selected_elsewhere_is_marked_where_it_begins_to_be_called(table):
    chart = RocChart(table, label="label", score="score", positive="tumour")
    for row in (103, 131):
        chart.threshold = table.loc[row, "score"]
        point = chart.operating_point
        chart.select([row])
        np.testing.assert_allclose(chart._marks(), [point])


def test_a_threshold_on_the_froc_curve_is_its_detections():
    detections = pd.DataFrame(
        {
            "slide_id": ["a", "a", "a", "b", "b"],
            "x_um": [10, 60, 200, 10, 300],
            "y_um": [10, 10, 200, 10, 300],
            "score": [0.9, 0.6, 0.7, 0.4, 0.2],
        },
        index=list("pqrst"),
    )
    boxes = [shapely.box(0, 0, 20, 20), shapely.box(50, 0, 70, 20), shapely.box(0, 0, 20, 20)]
    lesions = pd.DataFrame({"slide_id": ["a", "a", "b"], "lesion_id": [1, 2, 3], "geometry": boxes})
    chart = FrocChart(detections, lesions, 4)
    by_hand = {
        1.0: ("", 0, 0),
        0.9: ("p", 0, 1 / 3),
        0.65: ("pr", 1 / 4, 1 / 3),
        0.5: ("pqr", 1 / 4, 2 / 3),
        0.1: ("pqrst", 2 / 4, 1),
    }
    for threshold, (rows, false_alarms, sensitivity) in by_hand.items():
        chart.threshold = threshold
        assert "".join(chart.selection.index) == rows
        assert chart.operating_point == pytest.approx((false_alarms, sensitivity))


def test_bins_are_their_rows_and_a_row_without_a_number_is_in_none(table):
    table.loc[[105, 106], "score"] = np.nan, np.inf
    chart = Histogram(table, by="score", bins=7)
    bins = pd.cut(table["score"].replace(np.inf, np.nan), chart.edges, right=False, labels=False)
    bins = bins.mask(table["score"] == chart.edges[-1], 6)  # the last bin has both its ends
    for b in range(7):
        assert chart.pick([b]).index.tolist() == table.index[bins == b].tolist()
        assert len(chart.selection) == chart.counts[b] == chart.chosen_counts.sum()
    assert len(chart.pick(range(7))) == 38
    chart.select([105, 107])
    assert chart.chosen_counts.sum() == 1


def test_charts_and_a_slide_select_in_each_other_and_rows_of_other_slides_stay(table, viewer):
    roc = RocChart(table, label="label", score="score", positive="tumour")
    histogram = Histogram(table, by="score", bins=5)
    for chart in (roc, histogram):
        link(viewer, chart)
    here = table["slide_id"] == "a"
    roc.threshold = 0.7
    called = table["score"] >= 0.7
    assert viewer.selection.index.tolist() == table.index[called & here].tolist()
    assert roc.selection.index.tolist() == table.index[called].tolist()
    assert histogram.selection.index.tolist() == table.index[called & here].tolist()
    viewer.select([101, 102])
    assert roc.selection.index.tolist() == [101, 102, *table.index[called & ~here]]
    rows = histogram.pick([0])
    assert len(rows) > len(rows[rows["slide_id"] == "a"]) > 0
    assert viewer.selection.index.tolist() == rows.index[rows["slide_id"] == "a"].tolist()
    assert histogram.selection.index.tolist() == rows.index.tolist()


def test_a_gallery_of_many_slides_is_linked_to_one(table, slides, viewer):
    gallery = Gallery(table, slides)
    link(viewer, gallery)
    gallery.select([110, 130])
    assert viewer.selection.index.tolist() == [110]
    viewer.select([111])
    assert gallery.selection.index.tolist() == [111, 130]


def test_rows_of_another_layer_are_not_taken_for_rows_of_the_linked_one(table, viewer):
    chart = Histogram(table, by="score")
    link(viewer, chart, layer=viewer.layers[0])
    viewer.select([101])
    other = viewer.add(pd.DataFrame({"x_l0": [5.0], "y_l0": [5.0]}, index=[102]))
    viewer.select([102], layer=other)
    assert chart.selection.empty


def test_clicks_and_sliders_do_what_python_does(table, viewer):
    roc = RocChart(table, label="label", score="score", positive="tumour")
    histogram = Histogram(table, by="score", bins=5)
    link(viewer, roc)
    for chart in (roc, histogram):
        chart.widget()
    roc._curve.selected.indices = [2]
    strict = np.unique(table["score"])[::-1][2]
    assert roc.threshold == roc._slider.value == strict
    assert viewer.selection["score"].min() >= strict
    assert roc._curve.selected.indices == []
    roc._slider.value = 0.5
    assert roc.selection.index.tolist() == table.index[table["score"] >= 0.5].tolist()
    assert roc._point.data["y"][0] == pytest.approx(roc.operating_point[1])
    histogram._bars.selected.indices = [1, 2]
    assert len(histogram.selection) == histogram.counts[1:3].sum()
    assert histogram._parts.data["top"].tolist() == [0, *histogram.counts[1:3], 0, 0]
    histogram.select([101])
    assert histogram.selection.index.tolist() == [101]  # and the bars are free to be clicked again
    assert histogram._bars.selected.indices == []
    histogram._bars.selected.indices = [1]
    histogram._bars.selected.indices = []
    assert histogram.selection.empty


def test_a_chart_has_its_picture(table):
    roc = RocChart(table, label="label", score="score", positive="tumour")
    histogram = Histogram(table, by="score")
    for chart, choose in (
        (roc, lambda: setattr(roc, "threshold", 0.5)),
        (histogram, lambda: histogram.pick([3])),
    ):
        before = np.asarray(Image.open(io.BytesIO(chart.snapshot())))
        choose()
        after = np.asarray(Image.open(io.BytesIO(chart.snapshot())))
        assert (before != after).any()
        assert len(np.unique(after)) > 50


def test_what_cannot_be_drawn_says_why(table):
    with pytest.raises(ValueError, match="RocChart: no column 'truth'; the table has slide_id"):
        RocChart(table, label="truth", score="score")
    with pytest.raises(ValueError, match="one class"):
        RocChart(table, label="label", score="score", positive="stroma")
    with pytest.raises(ValueError, match="Histogram: column 'score' holds no number"):
        Histogram(table.assign(score=np.nan), by="score")
    chart = RocChart(table, label="label", score="score", positive="tumour")
    with pytest.raises(ValueError, match="threshold is a number, got nan"):
        chart.threshold = float("nan")
