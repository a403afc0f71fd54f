"""Boards: what is selected in one part is selected in the others, and every part has its picture."""

from __future__ import annotations

import io

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from pathkit.annotations import annotation_frame
from pathkit.annotations.rows import Row
from pathkit.geometry import Raster
from pathkit.slide import open_slide
from pathkit.view import CaseBoard, EmbeddingExplorer, ErrorAtlas, Gallery, TrainingMonitor, compare, tune


@pytest.fixture(scope="module")
def slides():
    """Two slides whose pixels say where they are: red is the column, green the row, blue the slide."""
    out = {}
    for number, name in enumerate(("a", "b")):
        pixels = np.zeros((400, 600, 3), np.uint8)
        pixels[..., 0] = np.arange(600)[None] * 255 // 600
        pixels[..., 1] = np.arange(400)[:, None] * 255 // 400
        pixels[..., 2] = 100 * number + 50
        out[name] = open_slide(pixels, mpp=0.5)
    return out


@pytest.fixture
def table():
    rng = np.random.default_rng(0)
    n = 40
    return pd.DataFrame(
        {
            "slide_id": ["a"] * 25 + ["b"] * 15,
            "x_l0": rng.integers(0, 500, n),
            "y_l0": rng.integers(0, 300, n),
            "size_px": 32,
            "mpp": 0.5,
            "label": rng.choice(["normal", "tumour"], n),
            "predicted": rng.choice(["normal", "tumour"], n),
            "loss": rng.random(n),
        },
        index=np.arange(100, 100 + n),
    )


def picture(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


def test_a_gallery_reads_the_patches_of_its_page_in_order(table, slides):
    gallery = Gallery(table, slides, by="loss", n_cols=4, n_rows=3)
    assert gallery.rows["loss"].is_monotonic_decreasing
    seen = [gallery.shown]
    for pixels, (_, row) in zip(gallery.pixels(), gallery.shown.iterrows(), strict=True):
        np.testing.assert_array_equal(
            pixels, slides[row.slide_id].read_region((row.x_l0, row.y_l0), (32, 32), mpp=0.5)
        )
    for page in (1, 2, 3):
        gallery.turn(page)
        seen.append(gallery.shown)
    assert pd.concat(seen).index.equals(gallery.rows.index), "the pages together are the table"
    gallery.turn(99)
    assert gallery.page == 3
    assert picture(gallery.snapshot()).std() > 10


def test_a_gallery_selects_and_says_so(table, slides):
    gallery, told = Gallery(table, slides), []
    gallery.on_select(lambda rows: told.append(list(rows.index)))
    gallery.select([103, 101])
    gallery.select(table.loc[[101, 103]])  # the same: not said twice
    gallery.select((table["label"] == "tumour").to_numpy())
    assert told == [[101, 103], list(table.index[table["label"] == "tumour"])]
    gallery.widget()
    gallery._tapped("indices", [], [2])
    assert list(gallery.selection.index) == [102]
    gallery.select([105])
    assert gallery._frames.selected.indices == [5]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.iloc[:0], "no rows"),
        (lambda t: t.set_axis([1] * len(t)), "not unique"),
        (lambda t: t.drop(columns="mpp"), "no column 'mpp'"),
        (lambda t: t.assign(slide_id="z"), "'z'"),
    ],
)
def test_galleries_refuse_what_they_cannot_show(table, slides, change, message):
    with pytest.raises(ValueError, match=message):
        Gallery(change(table), slides)


def test_captions_of_neighbours_do_not_touch(table, slides):
    whole = "smooth\u00a0muscle → normal\u00a0mucosa"
    figure = Gallery(table, slides, caption=lambda row: whole, n_cols=3, n_rows=1)._drawn()
    figure.canvas.draw()
    boxes = [axis.title.get_window_extent() for axis in figure.axes[:3]]
    assert figure.axes[0].get_title().split("\n") == ["smooth\u00a0muscle →", "normal\u00a0mucosa"]
    assert boxes[0].x1 < boxes[1].x0 < boxes[1].x1 < boxes[2].x0


def test_captions_are_measured_once(table, slides):
    calls = []
    gallery = Gallery(table, slides, caption=lambda row: calls.append(1) or "short", n_cols=2, n_rows=1)
    gallery._drawn()
    first = len(calls)
    gallery.turn(1)
    gallery._drawn()
    assert len(calls) - first <= 4  # those of the page


def test_lassoed_points_fill_the_gallery_and_are_outlined_on_the_slide_and_back(table, slides):
    xy = np.random.default_rng(1).random((len(table), 2))
    explorer = EmbeddingExplorer(table, xy, slides, colour="label")
    explorer.widget()
    wanted = [0, 3, 30]  # rows 100 and 103 of slide a, 130 of slide b
    explorer._points.selected.indices = wanted
    assert list(explorer.selection.index) == [100, 103, 130]
    assert list(explorer.gallery.rows.index) == [100, 103, 130]
    explorer.gallery.select([103])  # a click: the slide opens at the place, with the same rows outlined
    assert explorer.slide_id == "a"
    middle = explorer.viewer.view.box_l0.polygon().centroid
    assert (middle.x, middle.y) == pytest.approx((table.x_l0[103] + 16, table.y_l0[103] + 16))
    explorer.select([100, 103, 130])
    explorer.viewer.select([105, 106])  # a lasso on the slide: rows of other slides stay
    assert sorted(explorer.selection.index) == [105, 106, 130]
    assert sorted(explorer._points.selected.indices) == [5, 6, 30]
    assert picture(explorer.snapshot()).std() > 10
    explorer.close()


def test_an_embedding_that_does_not_fit_is_refused(table, slides):
    with pytest.raises(ValueError, match=r"xy must be \(40, 2\)"):
        EmbeddingExplorer(table, np.zeros((3, 2)), slides)
    with pytest.raises(ValueError, match="NaN"):
        EmbeddingExplorer(table, np.full((40, 2), np.nan), slides)


def test_more_points_than_can_be_drawn_are_sampled_and_it_says_so(slides, table, monkeypatch):
    monkeypatch.setattr("pathkit.view.boards.MOST_POINTS", 10)
    explorer = EmbeddingExplorer(table, np.zeros((40, 2)), slides)
    assert len(explorer._drawn_rows) == 10
    assert explorer._title() == "10 of 40 patches, at random"


def test_a_cell_of_the_matrix_fills_the_gallery_worst_first_and_can_be_relabelled(table, slides):
    atlas = ErrorAtlas(table, slides, loss="loss")
    assert atlas.matrix.to_numpy().sum() == len(table)
    rows = table[(table["label"] == "normal") & (table["predicted"] == "tumour")]
    assert atlas.matrix.loc["normal", "tumour"] == len(rows)
    atlas.widget()
    cell = [i for i, (a, b) in enumerate(zip(atlas._cells.data["label"], atlas._cells.data["predicted"], strict=True))
            if (a, b) == ("normal", "tumour")]  # fmt: skip
    atlas._cell_tapped("indices", [], cell)
    assert list(atlas.gallery.rows.index) == list(rows.sort_values("loss", ascending=False).index)
    before = table.copy()
    atlas.relabel(atlas.gallery.rows.iloc[:2], "tumour")
    assert atlas.matrix.loc["normal", "tumour"] == len(rows) - 2
    assert (atlas.relabelled["label"] != table["label"]).sum() == 2
    pd.testing.assert_frame_equal(table, before)
    with pytest.raises(ValueError, match="no class 'benign'"):
        atlas.relabel(rows, "benign")
    with pytest.raises(ValueError, match="no column 'nothing'"):
        ErrorAtlas(table, slides, loss="nothing")
    assert picture(atlas.snapshot()).std() > 10


def bright(slide, least):
    pixels = slide.read_region((0, 0), (60, 40), mpp=5.0)
    return Raster(pixels[..., 0] >= least, 5.0)


def test_a_tuner_shows_what_the_function_gives_and_refuses_what_it_does_not_know(slides):
    tuner = tune(bright, slides["a"], least=(0, 255, 128), score=lambda mask: f"{mask.values.mean():.2f}")
    half = tuner.result.values.mean()
    assert half == pytest.approx(0.5, abs=0.02)
    assert tuner.set(least=0).values.all()
    assert tuner.line == "1.00"
    assert len(tuner.viewer.layers) == 1
    np.testing.assert_array_equal(tuner.viewer.layers[0].raster.values, tuner.result.values)
    tuner.widget()
    with pytest.raises(ValueError, match="no slider 'most'"):
        tuner.set(most=3)
    with pytest.raises(ValueError, match="low < high"):
        tune(bright, slides["a"], least=(3, 1))
    tuner.close()


def test_a_tuner_of_outlines(slides):
    import shapely

    def box(slide, side):
        return annotation_frame([Row(shapely.box(10, 10, 10 + side, 10 + side), "tumour")])

    with_outlines = tune(box, slides["a"], side=(10, 100, 50))
    assert with_outlines.set(side=80).area.iloc[0] == 6400
    assert len(with_outlines.viewer.layers) == 1


def test_two_slides_are_compared_in_one_place(slides):
    viewer = compare(slides["a"], slides["b"])
    with pytest.raises(ValueError, match="swipe, blink or fade"):
        viewer.compare("stripes")
    viewer.close()


def test_training_is_watched_paused_and_stopped_while_other_work_goes_on(slides):
    calls = []

    def predict(model):
        return Raster(np.full((40, 60), model, np.float32), 5.0)

    monitor = TrainingMonitor(slides["a"], predict)
    monitor.widget()

    def train():
        for epoch in range(50):
            said = monitor(epoch / 50, {"epoch": epoch, "train_loss": 1 / (epoch + 1), "val_loss": 1.0})
            calls.append(said)
            if said["stop"]:
                return "stopped"
        return "done"

    monitor.pause()
    monitor.run(train)
    with pytest.raises(RuntimeError, match="runs already"):
        monitor.run(train)
    with pytest.raises(TimeoutError, match="still training"):
        monitor.result(timeout=0.5)
    assert calls == []
    assert len(monitor.history) == 1, "paused after the first epoch"
    monitor.rate = 0.1
    monitor._stop = True
    monitor.resume()
    assert monitor.result(timeout=10) == "stopped"
    assert calls[0] == {"lr_factor": 0.1, "stop": True}
    assert monitor.viewer["prediction"].raster.values.max() == 0
    assert monitor.run(lambda: 1 / 0) is monitor
    with pytest.raises(ZeroDivisionError):
        monitor.result()
    assert picture(monitor.snapshot()).std() > 5
    monitor.close()


def test_a_case_board_holds_views_tables_and_text(slides, table):
    board = CaseBoard(
        {"patches": Gallery(table, slides), "numbers": table.head(), "words": "A synthetic case."},
        title="Case",
    )
    assert picture(board.snapshot()).shape[1] > 1000
    assert len(board.widget().children[1].children) == 3
    with pytest.raises(ValueError, match="neither a view"):
        CaseBoard({"what": 3})
    with pytest.raises(ValueError, match="no panes"):
        CaseBoard({})
