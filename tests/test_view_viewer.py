"""The slide viewer without a browser: layers in their place, selection both ways, drawing, pictures, refusals."""

from __future__ import annotations

import io
import json
import re

import geopandas
import numpy as np
import pandas as pd
import pytest
import shapely
from PIL import Image

from pathkit.annotations import read_annotations
from pathkit.geometry import Box, Raster
from pathkit.slide import MissingMppError, open_slide
from pathkit.view import (
    Attention,
    Detections,
    Heatmap,
    Mask,
    Patches,
    Points,
    Polygons,
    SecondSlide,
    SlideViewer,
    link,
    registry,
)
from pathkit.view.viewer import View

MPP = 0.5
WIDTH, HEIGHT = 2000, 1200


@pytest.fixture(scope="module")
def slide():
    rows, cols = np.mgrid[0:HEIGHT, 0:WIDTH]
    return open_slide(np.stack([cols // 8, rows // 5, (rows + cols) // 16], -1).astype(np.uint8), mpp=MPP)


@pytest.fixture
def patches():
    xs, ys = np.meshgrid(range(0, WIDTH, 200), range(0, HEIGHT, 200))
    return pd.DataFrame(
        {"slide_id": "s", "x_l0": xs.ravel(), "y_l0": ys.ravel(), "size_px": 100, "mpp": 1.0},
        index=range(100, 160),
    )


def objects(n, seed=0):
    rng = np.random.default_rng(seed)
    return pd.DataFrame(
        {
            "x_um": rng.random(n) * WIDTH * MPP,
            "y_um": rng.random(n) * HEIGHT * MPP,
            "class": rng.choice(list("ab"), n),
        }
    )


def frame(*shapes, **columns):
    return geopandas.GeoDataFrame({"class": ["tumour"] * len(shapes), **columns}, geometry=list(shapes))


def say(viewer, **message):
    """What the browser would send."""
    viewer._live.last = -1
    viewer._live._message(json.dumps({"n": 1, **message}))


# Layers in their place


def test_a_raster_lies_where_its_microns_are(slide):
    heat = Heatmap(np.arange(6.0).reshape(2, 3), mpp=100, origin_um=(200, 100), colours="gray")
    viewer = SlideViewer(slide, layers=[heat])
    viewer.widget()
    data = heat._source.data
    assert [data[c][0] for c in ("x", "y", "dw", "dh")] == [400, 200, 600, 400]
    assert data["image"][0].tolist() == heat._codes.tolist()  # row 0 first: y goes down
    assert heat._codes[0, 0] == 1
    assert heat._codes[1, 2] == 255
    viewer.close()


@pytest.mark.parametrize("threshold", [0.0, 0.25, 0.5, 0.75])
def test_the_threshold_shows_the_values_from_it_on(slide, threshold):
    values = np.arange(256.0).reshape(16, 16) / 255
    heat = Heatmap(values, mpp=37.5, threshold=threshold)
    heat.place(slide)
    shown = heat._codes >= heat._cut()[0]
    assert (shown == (values >= threshold)).mean() > 0.99  # a step of the 255 codes
    assert len(heat._cut()[1]) == 256 - heat._cut()[0]


def test_unknown_values_are_not_shown(slide):
    values = np.array([[np.nan, 0.5], [0.0, np.nan]])
    heat = Heatmap(values, mpp=400)
    heat.place(slide)
    assert ((heat._codes == 0) == np.isnan(values)).all()


def test_a_large_raster_is_sent_for_the_view_and_keeps_its_place(slide):
    values = np.random.default_rng(0).random((1200, 2000))
    heat = Heatmap(values, mpp=MPP)
    viewer = SlideViewer(slide, layers=[heat])
    viewer.widget()
    say(viewer, k="view", v=[500, 300, 700, 400], w=800, h=400)
    data = heat._source.data
    assert [data[c][0] for c in ("x", "y", "dw", "dh")] == [500, 300, 200, 100]
    np.testing.assert_array_equal(data["image"][0], heat._codes[300:400, 500:700])
    viewer.close()


def test_attention_is_the_weight_of_the_patch_and_the_mean_where_they_overlap(slide):
    table = pd.DataFrame(
        {"x_l0": [0, 100, 600], "y_l0": [0, 0, 400], "size_px": 100, "mpp": 1.0}
    )  # 200 level-0 px wide
    layer = Attention(table, [0.2, 0.6, 0.1])
    layer.place(slide)
    at = [(50, 50), (150, 50), (250, 50), (650, 450), (450, 450)]
    got = layer.raster.sample(np.array(at) * MPP)
    np.testing.assert_allclose(got, [0.2, 0.4, 0.6, 0.1, np.nan])


def test_points_are_marks_when_few_and_a_picture_when_many(slide):
    table = objects(40_000)
    layer = Points(table)
    viewer = SlideViewer(slide, layers=[layer])
    viewer.widget()
    assert len(layer._picture.data["url"]) == 1
    assert len(layer._marks.data["x"]) == 0
    box = Box(300, 200, 150, 90)
    say(viewer, k="view", v=list(box.bounds), w=800, h=480)
    xy = table[["x_um", "y_um"]].to_numpy() / MPP
    here = box.contains(xy)
    assert len(layer._picture.data["url"]) == 0
    assert sorted(layer._marks.data["x"]) == pytest.approx(sorted(xy[here, 0]))
    viewer.close()


def test_shading_puts_every_point_on_its_pixel(slide):
    table = pd.DataFrame({"x_um": [100.0, 900.0], "y_um": [50.0, 550.0], "class": ["a", "b"]})
    many = pd.concat([table] * 1000, ignore_index=True)
    layer = Points(many)
    layer.place(slide)
    view = View(Box(0, 0, WIDTH, HEIGHT), 500, 300)
    rgba = layer._shaded_frame(view)
    rows, cols = np.nonzero(rgba[..., 3])
    spots = {(round(r / 2) * 2, round(c / 2) * 2) for r, c in zip(rows, cols, strict=True)}
    for _, row in table.iterrows():
        r, c = row["y_um"] / MPP / 4, row["x_um"] / MPP / 4
        assert min(np.hypot(r - a, c - b) for a, b in spots) <= 2
        np.testing.assert_array_equal(rgba[int(r), int(c), :3], layer.palette["ab".index(row["class"])])
    assert all(
        min(np.hypot(r - 25, c - 50), np.hypot(r - 275, c - 450)) < 3 for r, c in zip(rows, cols, strict=True)
    )


def test_rows_near_a_box_are_those_of_a_plain_search(slide):
    table = objects(5000)
    layer = Points(table)
    layer.place(slide)
    for box in (
        Box(0, 0, WIDTH, HEIGHT),
        Box(33, 477, 501, 20),
        Box(-50, -50, 80, 80),
        Box(1990, 1190, 500, 500),
    ):
        np.testing.assert_array_equal(np.sort(layer.near(box)), np.flatnonzero(box.contains(layer.xy_l0)))


def test_detections_are_hits_false_alarms_and_misses():
    found = pd.DataFrame({"slide_id": "s", "x_um": [100.0, 700], "y_um": [100.0, 400], "score": [0.9, 0.5]})
    lesions = pd.DataFrame(
        {
            "slide_id": "s",
            "lesion_id": ["p", "q"],
            "geometry": [shapely.box(50, 50, 150, 150), shapely.box(400, 50, 500, 150)],
        }
    )
    layer = Detections(found, lesions)
    assert layer.table["outcome"].tolist() == ["hit", "false alarm", "missed"]
    assert dict(layer.legend())["hit"] == "#009e73"


def test_a_second_slide_lies_by_microns(slide):
    half = open_slide(np.zeros((HEIGHT // 2, WIDTH // 2, 3), np.uint8), mpp=2 * MPP)
    layer = SecondSlide(half, offset_um=(50, 0))
    layer.place(slide)
    assert (layer.scale, layer.offset_l0) == (2.0, (100.0, 0.0))


# Refusals


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Heatmap(np.zeros((4, 4))), r"Pass mpp=\.\.\."),
        (lambda: Heatmap(np.zeros((4, 4, 3)), mpp=8), r"expected \(H, W\)"),
        (lambda: Heatmap(np.full((4, 4), np.nan), mpp=8), "no value is a number"),
        (lambda: Heatmap(np.zeros((400, 400)), mpp=8), r"Is mpp=8 right.*would have mpp=2\.5"),
        (lambda: Mask(np.ones((9, 9), bool), mpp=8, origin_um=(5000, 0)), "but the slide 1000 x 600 µm"),
        (lambda: frame(shapely.box(5000, 0, 6000, 10)), "lie off the slide"),
        (lambda: frame(), "table is empty"),
        (lambda: frame(shapely.Polygon()), "row 0 .* has no outline"),
        (lambda: frame(shapely.Point(np.nan, 1)), "row 0"),
        (lambda: Points(pd.DataFrame({"x_um": [], "y_um": []})), "table is empty"),
        (
            lambda: Points(pd.DataFrame({"x_um": [1.0, np.nan], "y_um": [1.0, 2]})),
            r"'x_um', row 1 .* is not a number",
        ),
        (lambda: Points(pd.DataFrame({"x": [1.0]})), "no column 'x_l0'"),
        (
            lambda: Points(pd.DataFrame({"x_um": [9e5], "y_um": [1.0]})),
            "none of its 1 rows lies on the slide",
        ),
        (lambda: Patches(pd.DataFrame({"x_l0": [1]})), "no column 'y_l0'"),
        (
            lambda: Attention(pd.DataFrame({"x_l0": [0], "y_l0": [0], "size_px": [9], "mpp": [1.0]}), [1, 2]),
            "2 weights for 1",
        ),
        (lambda: Mask(np.ones((9, 9), bool), mpp=8, opacity=3), "opacity is 0 to 1"),
    ],
)
def test_what_cannot_be_shown_says_the_way_out(slide, make, message):
    with pytest.raises(ValueError, match=message):
        SlideViewer(slide, layers=[make()])


def test_other_refusals(slide, patches):
    with pytest.raises(TypeError, match=r"Heatmap\(array, mpp=\.\.\.\)"):
        SlideViewer(slide, layers=[np.zeros((3, 3))])
    bare = open_slide(np.zeros((600, 800, 3), np.uint8))
    with pytest.raises(MissingMppError, match="Pass open_slide"):
        SlideViewer(bare, layers=[objects(3)])
    viewer = SlideViewer(bare)  # without layers in microns it is shown, in pixels
    assert viewer.snapshot()[:4] == b"\x89PNG"
    with pytest.raises(ValueError, match="no layer has rows"):
        viewer.select([1])
    with pytest.raises(ValueError, match="no second slide"):
        viewer.compare()
    shown = SlideViewer(slide, layers=[patches])
    with pytest.raises(ValueError, match="no row 7 in"):
        shown.select([7])
    with pytest.raises(ValueError, match="one row, got 60"):
        shown.go_to(patches)
    with pytest.raises(KeyError, match="there are 'patches'"):
        _ = shown["heat"]


# Selection


def test_selection_by_rows_mask_and_lasso(slide, patches):
    viewer, seen = SlideViewer(slide, layers=[patches]), []
    viewer.on_select(lambda rows: seen.append(rows.index.tolist()))
    viewer.widget()
    assert len(viewer.selection) == 0
    viewer.select(patches.iloc[[3, 7]])
    viewer.select([103, 107])  # the same again: no call
    viewer.select((patches["x_l0"] == 0).to_numpy() & (patches["y_l0"] < 300).to_numpy())
    say(viewer, k="lasso", g={"type": "poly", "x": [50, 350, 350, 50], "y": [50, 50, 350, 350]})
    say(viewer, k="tap", x=650, y=450, r=5)
    say(viewer, k="lasso", g={"type": "rect", "x0": 5, "y0": 5, "x1": 6, "y1": 6})
    assert seen == [[103, 107], [100, 110], [100, 101, 110, 111], [123], []]
    viewer.select(patches.iloc[[0]])
    assert {c: list(v) for c, v in viewer._live.figure.chosen.data.items()} == {
        "left": [0],
        "top": [0],
        "right": [200],
        "bottom": [200],
    }
    viewer.close()


def test_a_click_picks_the_nearest_point_and_the_smallest_outline(slide):
    points = pd.DataFrame({"x_l0": [100.0, 106], "y_l0": [100.0, 100]})
    viewer = SlideViewer(slide, layers=[Points(points)])
    viewer.widget()
    say(viewer, k="tap", x=105, y=100, r=20)
    assert viewer.selection.index.tolist() == [1]
    outlines = frame(shapely.box(0, 0, 900, 900), shapely.box(100, 100, 300, 300))
    other = SlideViewer(slide, layers=[outlines])
    other.widget()
    say(other, k="tap", x=200, y=200, r=2)
    assert other.selection.index.tolist() == [1]
    viewer.close()
    other.close()


def test_a_chart_and_a_viewer_select_in_each_other(slide, patches):
    from bokeh.plotting import figure

    viewer, chart = SlideViewer(slide, layers=[patches]), figure()
    source = chart.scatter(np.arange(60), np.arange(60)).data_source
    link(viewer, chart)
    source.selected.indices = [5, 2]
    assert viewer.selection.index.tolist() == [102, 105]
    viewer.select([110])
    assert source.selected.indices == [10]
    other = SlideViewer(slide, layers=[patches])
    link(viewer, other.select)
    viewer.select([111, 112])
    assert other.selection.index.tolist() == [111, 112]
    with pytest.raises(ValueError, match="has 60 rows, the chart's sources"):
        link(viewer, _scatter(7))
    with pytest.raises(ValueError, match="cannot link a int"):
        link(viewer, 3)


def _scatter(n):
    from bokeh.plotting import figure

    chart = figure()
    chart.scatter(np.arange(n), np.arange(n))
    return chart


def test_going_somewhere(slide, patches):
    viewer = SlideViewer(slide, layers=[patches])
    for place, middle in [
        (patches.iloc[13], (700, 300)),
        ((123, 456), (123, 456)),
        (Box(0, 0, 10, 20), (5, 10)),
        (shapely.box(0, 0, 30, 10), (15, 5)),
        ({"x_um": 50.0, "y_um": 60.0}, (100, 120)),
    ]:
        viewer.go_to(place, mpp=2.0)
        box = viewer.view.box_l0
        assert (box.x + box.width / 2, box.y + box.height / 2) == pytest.approx(middle)
        assert viewer.view.l0_per_px == pytest.approx(4)


# Drawing


def test_drawings_come_back_and_go_out(slide, tmp_path):
    viewer = SlideViewer(slide, classes=["tumour", "stroma"])
    viewer.widget()
    drawn = {
        "areas": {
            "xs": [[0, 100, 100, 0], [5, 5]],
            "ys": [[0, 0, 80, 80], [5, 5]],
            "class": ["tumour", "tumour"],
        },
        "boxes": {"x": [300.0], "y": [200.0], "width": [40.0], "height": [20.0], "class": ["stroma"]},
        "points": {"x": [7.25], "y": [9.5], "class": ["stroma"]},
    }
    say(viewer, k="drawn", d=drawn)
    got = viewer.drawn
    assert got["class"].tolist() == ["tumour", "stroma", "stroma"]  # what encloses no area is left out
    assert got.geometry.iloc[0].equals(shapely.box(0, 0, 100, 80))
    assert got.geometry.iloc[1].equals(shapely.box(280, 190, 320, 210))
    assert got.geometry.iloc[2].equals(shapely.Point(7.25, 9.5))
    again = read_annotations(viewer.save_drawn(tmp_path / "drawn.geojson"))
    assert again.geometry.geom_equals(got.geometry).all()
    assert again["class"].tolist() == got["class"].tolist()
    viewer.undo()
    assert len(viewer.drawn) == 0
    viewer.drawn = got
    assert viewer.drawn.geometry.iloc[0].equals(got.geometry.iloc[0])
    assert viewer._live.figure.sources["points"].data["x"] == [7.25]
    viewer.close()


def test_a_bow_tie_is_mended(slide):
    viewer = SlideViewer(slide)
    viewer._drawn["areas"] = {"xs": [[0, 10, 0, 10]], "ys": [[0, 10, 10, 0]], "class": ["tumour"]}
    assert viewer.drawn.geometry.is_valid.all()
    assert viewer.drawn.area.sum() == pytest.approx(50)


# Pictures


def test_a_snapshot_is_the_slide_with_its_layers(slide):
    viewer = SlideViewer(slide)
    plain = np.asarray(Image.open(io.BytesIO(viewer.snapshot(width_px=500))).convert("RGB")).astype(int)
    truth = slide.read_region((0, 0), (500, 300), mpp=4 * MPP).astype(int)
    assert plain.shape == truth.shape
    assert np.abs(plain[:240] - truth[:240]).mean() < 2  # the scale bar lies below
    viewer.add(Mask(np.ones((10, 10), bool), mpp=10, origin_um=(500, 100), colour="#ff0000", opacity=1.0))
    marked = np.asarray(Image.open(io.BytesIO(viewer.snapshot(width_px=500))).convert("RGB")).astype(int)[
        :300
    ]
    changed = np.argwhere(np.abs(marked - plain).max(2)[:240] > 40)
    assert changed.min(0) == pytest.approx([50, 250], abs=1)  # 100 µm down, 500 µm across, 2 µm a pixel
    assert changed.max(0) == pytest.approx([99, 299], abs=1)


def test_every_layer_has_a_picture_and_a_widget(slide, patches):
    rng = np.random.default_rng(0)
    layers = [
        SecondSlide(slide, opacity=0.5),
        Raster(rng.random((6, 10)), 100),
        Raster(rng.random((6, 10)) > 0.5, 100, attrs={"a": 1}),
        Polygons(
            frame(
                shapely.box(10, 10, 400, 300).difference(shapely.box(50, 50, 90, 90)), shapely.Point(700, 700)
            )
        ),
        Points(objects(50)),
        Points(objects(9000), name="nuclei"),
        Points(objects(60).assign(area=rng.random(60)), by="area", name="areas"),
        patches,
        Attention(patches, rng.random(60), visible=False),
        Detections(objects(5).assign(outcome="hit")),
    ]
    viewer = SlideViewer(slide, layers=layers)
    viewer.select(patches.iloc[[4]], layer="patches")
    viewer.widget()
    for layer in viewer.layers:
        assert layer.renderers, layer.name
        before = viewer.snapshot(width_px=400)
        layer.visible = not layer.visible
        assert viewer.snapshot(width_px=400) != before, layer.name
    viewer.close()


def test_the_panel_follows_python_and_a_hidden_layer_comes_back_as_the_view_is(slide):
    layer, heat = Points(objects(3000)), Heatmap(np.eye(12, 20, dtype=np.float32), mpp=50.0)
    with SlideViewer(slide, layers=[heat, layer]) as viewer:
        viewer.widget()
        layer.visible, layer.opacity, heat.threshold = False, 0.4, 0.7
        shown, opacity = layer.panel
        assert (shown.value, opacity.value, heat._slider.value) == (False, 0.4, 0.7)
        viewer._seen(View(Box(0, 0, 100, 60), 800, 480))
        layer.visible = True
        assert shown.value
        assert len(layer._marks.data["x"]) == len(layer.near(Box(0, 0, 100, 60)))
        shown.value = False
        assert not layer.visible


def test_what_the_page_says_goes_where_the_page_chose(slide):
    """ipykernel sends it to the thread that spoke last, where its comms have `_reply_subshell_for`."""
    with SlideViewer(slide) as viewer:
        box = viewer.widget()
        seen = [box]
        for widget in seen:
            seen += getattr(widget, "children", ())
        comms = [w.comm for w in seen if w.comm is not None]
        assert viewer._live.pane.comm in comms
        for comm in comms:
            comm._reply_subshell_id = "gone"
            assert comm._reply_subshell_for({"method": "custom"}, None) is None
            assert comm._reply_subshell_for({"method": "custom"}, "asked") == "asked"


def test_static_mode_stores_a_picture_and_nothing_else(slide, monkeypatch):
    shown = []
    monkeypatch.setenv("PATHKIT_STATIC", "1")
    monkeypatch.setattr("IPython.display.display", shown.append)
    viewer = SlideViewer(slide)
    viewer._ipython_display_()
    assert [type(s).__name__ for s in shown] == ["Image"]
    assert viewer._live is None


def test_a_page_holds_its_tiles_within_the_bound_and_no_path(tmp_path, slide, patches):
    source = tmp_path / "secret-place" / "scan.png"
    source.parent.mkdir()
    Image.fromarray(slide.read_region((0, 0), (WIDTH, HEIGHT))).save(source)
    viewer = SlideViewer(open_slide(source, mpp=MPP), layers=[patches])
    sizes = []
    for megabytes in (0.05, 4):
        page = viewer.to_html(tmp_path / "page.html", max_mb=megabytes).read_text()
        assert "secret-place" not in page
        assert not re.search(r"""<(script|link|img)[^>]+(src|href)=["']http""", page)
        sizes.append(page.count("data:image/jpeg"))
    assert sizes[0] < sizes[1]


# Resources


def test_a_viewer_registers_its_file_and_close_forgets_it(tmp_path, monkeypatch, slide):
    folder = registry.make_folder(tmp_path)
    monkeypatch.setenv(registry.FOLDER, str(folder))
    path = tmp_path / "secret-place.png"
    Image.fromarray(slide.read_region((0, 0), (700, 600))).save(path)
    viewer = SlideViewer(open_slide(path, mpp=MPP))
    viewer.widget()
    assert len(list(folder.iterdir())) == 1
    state = json.dumps(viewer._live.pane.get_state()["render_bundle"], default=str)
    assert viewer._live.ids[0] in state
    assert str(tmp_path) not in state
    viewer.close()
    assert list(folder.iterdir()) == []
    array = SlideViewer(slide)
    array.widget()
    assert list(folder.iterdir()) == []
    array.close()


def test_tiles_by_the_kernel(slide):
    viewer = SlideViewer(slide)
    viewer.widget()
    said = []
    viewer._live.say = said.append
    viewer._live._send_tiles(0, ["1/0/1", "0/3/2"])
    assert [list(m["t"]) for m in said] == [["1/0/1"], ["0/3/2"]]
    viewer._live._send_tiles(
        0, ["0/999/0", "0/3/2"]
    )  # what cannot be read is answered too, or the page would wait
    assert [m["t"].get("0/999/0", "") for m in said[2:]] == [None, ""]
    assert "0/999/0" in viewer._live.error.value or "999" in viewer._live.error.value
    viewer.close()


# Panes


def told(pane):
    """What a pane sends, from now on: the attribute changed and its new value, once a change."""
    sent = []
    pane.send = lambda content, buffers=None: sent.append(content["payload"])
    return lambda: [json.loads(p)["events"][0]["new"] for p in sent[2::3]]


def test_what_is_said_before_the_page_is_ready_is_kept_in_order():
    from bokeh.plotting import figure

    from pathkit.view.pane import pane

    plot = figure()
    shown = pane(plot)
    changes = told(shown)
    for title in "ab":
        plot.name = title
    assert changes() == []
    shown._drawn()
    plot.name = "c"
    assert changes() == ["a", "b", "c"]
    before = shown.render_bundle
    shown._drawn()  # a second view, made from the bundle of the beginning: it gets the figure of now
    assert shown.render_bundle != before
    assert '"name":"c"' in json.dumps(shown.render_bundle, default=str).replace('": "', '":"').replace(
        "'", '"'
    )
    plot.name = "d"
    assert changes() == ["a", "b", "c"]
    shown._drawn()
    assert changes() == ["a", "b", "c", "d"]


def test_kept_data_is_the_data_of_its_time():
    from bokeh.models import ColumnDataSource
    from bokeh.plotting import figure

    from pathkit.view.pane import pane

    plot = figure()
    source = plot.scatter("x", "y", source=ColumnDataSource({"x": [], "y": []})).data_source
    shown, sent = pane(plot), []
    shown.send = lambda content, buffers=None: sent.append(content["payload"])
    for value in (1, 2):
        source.data = {"x": [value], "y": [value]}
    shown._drawn()
    columns = [json.loads(p)["events"][0] for p in sent[2::3]]
    assert ["[1]" in json.dumps(c) for c in columns] == [True, False]
    assert ["[2]" in json.dumps(c) for c in columns] == [False, True]


def test_threads_that_speak_at_once_do_not_mix_their_messages():
    import time
    from concurrent.futures import ThreadPoolExecutor

    from bokeh.models import ColumnDataSource
    from bokeh.plotting import figure

    from pathkit.view.pane import pane

    plot = figure()
    sources = [
        plot.scatter("x", "y", source=ColumnDataSource({"x": [], "y": []})).data_source for _ in range(4)
    ]
    shown, sent = pane(plot), []
    shown._drawn()

    def slowly(content, buffers=None):
        time.sleep(0.001)
        sent.append(content["payload"])

    shown.send = slowly
    events = [("patch", i) for i in range(40)]

    def speak(event):
        sources[event[1] % 4].name = f"name {event[1]}"

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(speak, events))
    assert len(sent) == 120
    assert all("msgtype" in header for header in sent[::3])  # header, metadata, content; never mixed
    assert all("events" in content for content in sent[2::3])
