"""The threshold view: what it counts, headless."""

from __future__ import annotations

import io

import numpy as np
import pandas as pd
import pytest
import shapely
from PIL import Image

from pathkit.geometry import Raster
from pathkit.view import ThresholdExplorer


@pytest.fixture
def explorer():
    slides = pd.DataFrame({"slide_id": ["a", "b"], "label": ["tumour", "normal"], "score": [0.9, 0.4]})
    places = {i: Raster(np.full((20, 30, 3), 200, np.uint8), 8.0) for i in "ab"}
    heat = {i: Raster(np.random.default_rng(0).random((10, 15)).astype(np.float32), 16.0) for i in "ab"}
    found = pd.DataFrame(
        {"slide_id": list("aab"), "x_um": [30.0, 150, 50], "y_um": [30.0, 100, 50], "score": [0.9, 0.6, 0.4]}
    )
    lesions = pd.DataFrame(
        {
            "slide_id": ["a", "a"],
            "lesion_id": ["a-0", "a-1"],
            "geometry": [shapely.box(10, 10, 60, 60), shapely.box(200, 100, 230, 150)],
        }
    )
    readers = pd.DataFrame({"name": ["reader"], "auc": [0.9]})
    return ThresholdExplorer(slides, places, heat, found, lesions, references=readers)


def test_selection_follows_the_threshold_and_the_slide(explorer):
    assert explorer.selection["outcome"].tolist() == ["hit", "false alarm"]
    assert explorer.missed["lesion_id"].tolist() == ["a-1"]
    explorer.threshold = 0.7
    assert explorer.selection["outcome"].tolist() == ["hit"]
    explorer.threshold = 0.95
    assert len(explorer.selection) == 0
    assert explorer.missed["lesion_id"].tolist() == ["a-0", "a-1"]
    explorer.slide_id = "b"
    explorer.threshold = 0.3
    assert explorer.selection["outcome"].tolist() == ["false alarm"]


def test_the_operating_point_by_hand(explorer):
    assert explorer.operating_point == {
        "lesion_sensitivity": 0.5,
        "false_alarms_per_slide": 0.5,
        "slide_sensitivity": 1.0,
        "slide_specificity": 1.0,
    }
    explorer.threshold = 0.2
    assert explorer.operating_point["false_alarms_per_slide"] == 1.0
    assert explorer.operating_point["slide_specificity"] == 0.0


def test_callbacks_get_the_rows(explorer):
    seen = []
    explorer.on_select(lambda rows: seen.append(len(rows)))
    explorer.threshold = 0.7
    explorer.threshold = 0.5
    assert seen == [1, 2]


def test_the_widgets_follow_and_lead(explorer):
    explorer.widget()
    marks = explorer.viewer["candidates"].source
    assert marks.data["outcome"] == ["hit", "false alarm", "missed"]
    assert [layer.name for layer in explorer.viewer.layers] == ["probability", "truth", "candidates"]
    explorer._slider.value = 0.7
    assert explorer.threshold == explorer.viewer["probability"].threshold == 0.7
    assert marks.data["outcome"] == ["hit", "missed"]
    assert marks.data["y"][0] == 30.0 / 8.0  # level-0 pixels of the thumbnail, which is the slide here
    explorer._slide.value = "b"
    assert explorer.slide_id == "b"
    assert [layer.name for layer in explorer.viewer.layers] == ["probability", "candidates"]
    assert "b at threshold 0.70" in explorer._line.value
    explorer.close()


def test_the_slide_itself_is_shown_where_its_path_is_known(explorer, tmp_path):
    path = tmp_path / "a.png"
    Image.new("RGB", (480, 320), "pink").save(path)
    slides = explorer.slides.assign(path=str(path), mpp=0.5)
    parts = explorer.thumbnails, explorer.heatmaps, explorer.candidates, explorer.lesions
    explorer = ThresholdExplorer(slides, *parts)
    explorer.widget()
    assert explorer.viewer.slide.dimensions == (480, 320)
    assert explorer.viewer["candidates"].source.data["x"][0] == 30.0 / 0.5
    outline = explorer.viewer["truth"].shapes[0]
    assert outline.bounds == pytest.approx((20, 20, 120, 120))
    explorer.close()


def test_a_snapshot_is_a_picture_and_static_mode_stores_nothing_else(explorer, monkeypatch):
    with Image.open(io.BytesIO(explorer.snapshot())) as picture:
        assert picture.width > 800
        assert np.asarray(picture.convert("RGB")).std() > 10
    shown = []
    monkeypatch.setenv("PATHKIT_STATIC", "1")
    monkeypatch.setattr("IPython.display.display", shown.append)
    explorer._ipython_display_()
    assert [type(s).__name__ for s in shown] == ["Image"]
    assert explorer._widget is None


def test_what_cannot_be_shown(explorer):
    with pytest.raises(ValueError, match="probability from 0 to 1"):
        explorer.threshold = 2
    with pytest.raises(ValueError, match="no slide 'z'"):
        explorer.slide_id = "z"
    with pytest.raises(ValueError, match="no thumbnail or heatmap for slide 'b'"):
        ThresholdExplorer(
            explorer.slides,
            {"a": explorer.thumbnails["a"]},
            explorer.heatmaps,
            explorer.candidates,
            explorer.lesions,
        )
