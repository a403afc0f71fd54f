"""Annotations: what other programs wrote is read right, what pathkit writes is read back exactly."""

from __future__ import annotations

import gzip
import json
import xml.etree.ElementTree as ET

import geopandas
import numpy as np
import pandas as pd
import pytest
import shapely
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pathkit.annotations import (
    UNCLASSIFIED,
    AnnotationError,
    annotation_frame,
    label_patches,
    rasterize,
    read_annotations,
    write_annotations,
)
from pathkit.annotations.rows import Row
from pathkit.geometry import Box
from pathkit.slide import open_slide

coordinates = st.floats(-1e6, 1e6, allow_nan=False).map(lambda v: v + 0.0)  # no negative zero
texts = st.text(
    st.characters(codec="utf-8", exclude_categories=("Cc", "Cs")), min_size=1, max_size=12
).filter(lambda s: s.strip() == s and s not in ("None", UNCLASSIFIED, "hole"))
colors = st.none() | st.integers(0, 0xFFFFFF).map(lambda v: f"#{v:06x}")


@st.composite
def polygons(draw):
    """A rectangle with 0 to 2 holes, at any place."""
    x, y = draw(st.floats(-1e5, 1e5)), draw(st.floats(-1e5, 1e5))
    w, h = draw(st.floats(30, 1e4)), draw(st.floats(30, 1e4))
    holes = [
        [(x + w * a, y + h * 0.2), (x + w * (a + 0.2), y + h * 0.2), (x + w * (a + 0.1), y + h * 0.7)]
        for a in draw(st.sampled_from([(), (0.1,), (0.1, 0.6)]))
    ]
    return shapely.Polygon([(x, y), (x + w, y), (x + w, y + h), (x, y + h)], holes)


@st.composite
def frames(draw, lines=True):
    shapes = [polygons(), st.builds(shapely.Point, coordinates, coordinates)]
    shapes.append(st.lists(polygons(), min_size=1, max_size=1).map(shapely.MultiPolygon))
    shapes.append(polygons().map(lambda p: shapely.MultiPolygon([p, shapely.affinity.translate(p, 3e5)])))
    if lines:
        shapes.append(st.just(shapely.LineString([(0, 0), (10.5, 3)])))
    rows = st.builds(Row, st.one_of(shapes), texts | st.just(UNCLASSIFIED), st.none() | texts, colors)
    return annotation_frame(draw(st.lists(rows, min_size=1, max_size=5)))


def assert_same(a, b):
    pd.testing.assert_frame_equal(
        pd.DataFrame(a.drop(columns="geometry")), pd.DataFrame(b.drop(columns="geometry")), check_dtype=False
    )
    assert [g.wkb_hex for g in a.geometry] == [g.wkb_hex for g in b.geometry]


relaxed = settings(
    deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@relaxed
@given(frame=frames())
def test_qupath_round_trip_is_exact(frame, tmp_path):
    assert_same(read_annotations(write_annotations(frame, tmp_path / "a.geojson")), frame)


@relaxed
@given(frame=frames(lines=False))
def test_asap_round_trip_is_exact(frame, tmp_path):
    assert_same(read_annotations(write_annotations(frame, tmp_path / "a.xml")), frame)


def square(x, y, side, **kwargs):
    return Row(shapely.box(x, y, x + side, y + side), **kwargs)


def two_squares():
    return annotation_frame([square(0, 0, 100, class_name="tumour"), square(200, 0, 50, class_name="stroma")])


def test_an_empty_table_goes_there_and_back(tmp_path):
    back = read_annotations(write_annotations(annotation_frame([]), tmp_path / "none.geojson"))
    assert len(back) == 0
    assert list(back.columns) == ["class", "name", "color", "geometry"]


def test_gzipped_geojson_and_one_feature_and_a_bare_list(tmp_path):
    write_annotations(two_squares(), tmp_path / "a.geojson")
    data = json.loads((tmp_path / "a.geojson").read_text())
    (tmp_path / "b.json.gz").write_bytes(gzip.compress(json.dumps(data["features"]).encode()))
    (tmp_path / "c.json").write_text(json.dumps(data["features"][0]))
    assert_same(read_annotations(tmp_path / "b.json.gz"), two_squares())
    assert_same(read_annotations(tmp_path / "c.json"), two_squares().iloc[:1])


def test_older_qupath_colours_and_classes(tmp_path):
    feature = {
        "type": "Feature",
        "geometry": {"type": "Polygon", "coordinates": [[[0, 0], [4, 0], [4, 4], [0, 0]]]},
        "properties": {"classification": {"name": "Tumor", "colorRGB": -3670016}},
    }
    named = {**feature, "properties": {"classification": "Stroma", "color": [1, 2, 255]}}
    derived = {**feature, "properties": {"classification": {"names": ["Tumor", "Positive"]}}}
    (tmp_path / "old.geojson").write_text(json.dumps([feature, named, derived]))
    frame = read_annotations(tmp_path / "old.geojson")
    assert frame["class"].tolist() == ["Tumor", "Stroma", "Tumor/Positive"]
    assert frame["color"].tolist() == ["#c80000", "#0102ff", None]


# Frames ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def bounded_slide():
    slide = open_slide(np.full((400, 600, 3), 255, np.uint8), mpp=0.5)
    slide.bounds = Box(150, 40, 300, 300)
    return slide


def test_outlines_relative_to_bounds_come_back_to_level_0(tmp_path, bounded_slide):
    path = write_annotations(two_squares(), tmp_path / "a.geojson", slide=bounded_slide, relative_to="bounds")
    stored = geopandas.read_file(path)
    assert stored.geometry[0].bounds == (-150, -40, -50, 60)
    assert_same(read_annotations(path, slide=bounded_slide), two_squares())
    with pytest.raises(AnnotationError, match="pass slide="):
        read_annotations(path)


def test_a_foreign_file_can_be_read_relative_to_bounds(tmp_path, bounded_slide):
    path = write_annotations(two_squares(), tmp_path / "a.geojson")
    moved = read_annotations(path, slide=bounded_slide, relative_to="bounds")
    assert moved.geometry[0].bounds == (150, 40, 250, 140)  # the file itself says l0; the caller knows better


def test_outlines_off_the_slide_are_warned_of(tmp_path, bounded_slide):
    path = write_annotations(annotation_frame([square(5000, 5000, 10)]), tmp_path / "far.geojson")
    with pytest.warns(UserWarning, match=r"1 of 1 objects lie outside.*relative_to=\"bounds\""):
        read_annotations(path, slide=bounded_slide)


# Damaged files ---------------------------------------------------------------------------------------------------

POLYGON = '{"type":"Feature","geometry":{"type":"Polygon","coordinates":%s},"properties":{}}'
BOMB = (
    '<?xml version="1.0"?><!DOCTYPE b [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;">]>'
    "<ASAP_Annotations><Annotations>&b;</Annotations></ASAP_Annotations>"
)
OUTSIDE = (
    '<?xml version="1.0"?><!DOCTYPE r [<!ENTITY x SYSTEM "file:///etc/hostname">]>'
    "<ASAP_Annotations><Annotations>&x;</Annotations></ASAP_Annotations>"
)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.geojson", "", "empty"),
        ("cut.geojson", '{"type":"FeatureCollection","features":[{"type":', "not valid JSON"),
        ("other.json", '{"version": "2.0", "item": {}}', "not GeoJSON of QuPath"),
        ("binary.geojson", "\x00\x01\x02", "neither QuPath GeoJSON nor XML"),
        ("list.geojson", "[1, 2]", "object 0 is not a GeoJSON Feature"),
        ("circle.geojson", '[{"type":"Feature","geometry":{"type":"Circle"}}]', "type 'Circle'"),
        ("short.geojson", POLYGON % "[[[0,0],[1,1]]]", "object 0 \\(Polygon\\) has coordinates"),
        ("text.geojson", POLYGON % '[[["a",0],[1,1],[2,0],[0,0]]]', "object 0"),
        ("nan.geojson", POLYGON % "[[[0,0],[NaN,1],[2,0],[0,0]]]", "not a number"),
        ("flat.geojson", POLYGON % "[[[0,0],[1,1],[2,2],[0,0]]]", "encloses no area"),
        ("cut.xml", "<ASAP_Annotations><Annotations><Annot", "not well-formed XML"),
        ("other.xml", "<svg></svg>", "neither QuPath GeoJSON nor XML"),
        ("bomb.xml", BOMB, "refused as unsafe"),
        ("outside.xml", OUTSIDE, "refused as unsafe"),
        (
            "two.xml",
            '<ASAP_Annotations><Annotation Type="Polygon"><Coordinate X="1" Y="2"/></Annotation></ASAP_Annotations>',
            "object 0 \\(Polygon\\) has 1 points",
        ),
        (
            "word.xml",
            '<Annotations><Annotation><Region Type="0"><Vertex X="a" Y="2"/></Region></Annotation></Annotations>',
            "not a number",
        ),
    ],
)
def test_damaged_files_name_file_and_object(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(AnnotationError, match=f"{name}.*{message}"):
        read_annotations(tmp_path / name)


def test_what_is_not_there(tmp_path):
    with pytest.raises(AnnotationError, match="no such file"):
        read_annotations(tmp_path / "absent.geojson")


def test_a_self_crossing_polygon_is_repaired_with_a_warning(tmp_path):
    (tmp_path / "bow.geojson").write_text(f"[{POLYGON % '[[[0,0],[10,10],[10,0],[0,10],[0,0]]]'}]")
    with pytest.warns(UserWarning, match=r"bow\.geojson: 1 polygons crossed themselves.*object 0"):
        frame = read_annotations(tmp_path / "bow.geojson")
    assert frame.geometry[0].is_valid
    assert frame.geometry[0].area == pytest.approx(50)


def test_a_million_vertices(tmp_path):
    angle = np.linspace(0, 2 * np.pi, 1_000_000, endpoint=False)
    circle = shapely.Polygon(20_000 + 10_000 * np.column_stack([np.cos(angle), np.sin(angle)]))
    path = write_annotations(annotation_frame([Row(circle, "tumour")]), tmp_path / "large.geojson")
    frame = read_annotations(path)
    assert len(frame.geometry[0].exterior.coords) == 1_000_001
    label_map = rasterize(frame, mpp=8, slide_mpp=0.25, dimensions=(40_000, 40_000))
    assert label_map.values.sum() * 32**2 == pytest.approx(circle.area, rel=1e-3)


def test_asap_has_no_lines(tmp_path):
    with pytest.raises(AnnotationError, match=r"no LineString.*GeoJSON"):
        write_annotations(annotation_frame([Row(shapely.LineString([(0, 0), (1, 1)]))]), tmp_path / "a.xml")


# Label maps and patch labels -------------------------------------------------------------------------------------


@relaxed
@given(
    seed=st.integers(0, 1000),
    scale=st.sampled_from([0.5, 0.25, 1 / 3]),
    n=st.integers(3, 12),
)
def test_a_pixel_is_painted_when_its_centre_is_inside(seed, scale, n):
    rng = np.random.default_rng(seed)
    outer = shapely.Polygon(rng.uniform(-20, 120, (n, 2))).buffer(0)
    hole = shapely.box(*(rng.uniform(20, 50, 2)), 60.3, 60.7)
    shape = outer.difference(hole)
    if shape.is_empty or shape.geom_type not in ("Polygon", "MultiPolygon"):
        return
    frame = annotation_frame([Row(shape, "tumour")])
    got = rasterize(frame, mpp=0.5 / scale, slide_mpp=0.5, dimensions=(100, 90)).values
    rows, cols = np.indices(got.shape)
    expected = shapely.contains_xy(shape, (cols + 0.5) / scale, (rows + 0.5) / scale)
    assert (got != expected).sum() <= 1  # a centre on the outline may fall either way


def test_later_outlines_paint_over_earlier_ones_and_classes_have_an_order():
    frame = annotation_frame([square(0, 0, 10, class_name="b"), square(5, 0, 10, class_name="a")])
    label_map = rasterize(frame, mpp=1, slide_mpp=1, dimensions=(20, 10))
    assert label_map.attrs["classes"] == ["a", "b"]
    assert label_map.values[0].tolist() == [2] * 5 + [1] * 10 + [0] * 5
    only = rasterize(frame, mpp=1, slide_mpp=1, dimensions=(20, 10), classes=["b"])
    assert only.values[0].tolist() == [1] * 10 + [0] * 10


def patch_rows(xy, size_px=10, mpp=1.0):
    x, y = np.asarray(xy).T
    return pd.DataFrame({"slide_id": "s", "x_l0": x, "y_l0": y, "size_px": size_px, "mpp": mpp})


def test_labels_follow_the_exact_overlap():
    patches = patch_rows([(0, 0), (95, 0), (92, 0), (300, 300), (100, 0)])
    labelled = label_patches(patches, two_squares(), slide_mpp=1.0)
    assert labelled["label"].tolist() == ["tumour", "tumour", "tumour", "normal", "normal"]
    np.testing.assert_allclose(labelled["overlap"], [1, 0.5, 0.8, 0, 0])
    strict = label_patches(patches, two_squares(), slide_mpp=1.0, min_overlap=0.75, background="other")
    assert strict["label"].tolist() == ["tumour", "other", "tumour", "other", "other"]


def test_places_that_two_outlines_share_count_once():
    frame = annotation_frame([square(0, 0, 6, class_name="t"), square(2, 0, 6, class_name="t")])
    labelled = label_patches(patch_rows([(0, 0)]), frame, slide_mpp=1.0)
    assert labelled["overlap"].tolist() == [pytest.approx(8 * 6 / 100)]


@relaxed
@given(dx=st.integers(-500, 500), dy=st.integers(-500, 500), seed=st.integers(0, 100))
def test_moving_slide_and_outlines_together_changes_nothing(dx, dy, seed):
    rng = np.random.default_rng(seed)
    patches = patch_rows(rng.integers(0, 250, (30, 2)))
    frame = two_squares()
    there = frame.copy()
    there["geometry"] = frame.geometry.translate(dx, dy)
    a = label_patches(patches, frame, slide_mpp=0.5)
    b = label_patches(patches.assign(x_l0=patches.x_l0 + dx, y_l0=patches.y_l0 + dy), there, slide_mpp=0.5)
    assert a["label"].tolist() == b["label"].tolist()
    np.testing.assert_allclose(a["overlap"], b["overlap"], atol=1e-9)


@relaxed
@given(loose=st.floats(0.01, 1), strict=st.floats(0.01, 1), seed=st.integers(0, 100))
def test_a_looser_threshold_labels_a_superset(loose, strict, seed):
    loose, strict = sorted([loose, strict])
    patches = patch_rows(np.random.default_rng(seed).integers(-20, 250, (30, 2)))
    few = label_patches(patches, two_squares(), slide_mpp=0.5, min_overlap=strict)["label"] != "normal"
    many = label_patches(patches, two_squares(), slide_mpp=0.5, min_overlap=loose)["label"] != "normal"
    assert (many | ~few).all()


def test_label_patches_says_what_it_needs():
    with pytest.raises(ValueError, match="slide_mpp="):
        label_patches(patch_rows([(0, 0)]), two_squares())
    with pytest.raises(ValueError, match="min_overlap"):
        label_patches(patch_rows([(0, 0)]), two_squares(), slide_mpp=1, min_overlap=0)
    nothing = label_patches(patch_rows([(0, 0)]), annotation_frame([]), slide_mpp=1)
    assert nothing["label"].tolist() == ["normal"]


# Files of other programs -----------------------------------------------------------------------------------------


@pytest.mark.real
def test_qupath_05(real_data):
    path = real_data / "annotations" / "dlup" / "qupath05.geojson"
    frame = read_annotations(path)
    raw = json.loads(path.read_text())["features"]
    assert frame["name"].tolist() == ["UT", "I", "I"]
    assert set(frame["class"]) == {UNCLASSIFIED}
    for geometry, feature in zip(frame.geometry, raw, strict=True):
        assert list(map(list, geometry.exterior.coords)) == feature["geometry"]["coordinates"][0]


@pytest.mark.real
@pytest.mark.parametrize(
    "name",
    [
        "asap_camelyon16/tumor_076.xml",
        "asap_camelyon16/tumor_085.xml",
        "asap_tissue_masks/normal_002.xml",
        "asap_tissue_masks/bench_tumor_021.xml",
        "asap_tissue_masks/TCGA-2H-A9GF_RES.xml",
        "asap_tissue_masks/bench_TCGA-P3-A6T6-01Z-00-DX1.4873798C-A2AD-40D5-B5B3-FCF75735C4F3.xml",
    ],
)
@pytest.mark.filterwarnings("ignore:.*crossed themselves")
def test_asap_files(real_data, name, tmp_path):
    path = real_data / "annotations" / name
    frame = read_annotations(path)
    elements = ET.parse(path).getroot().findall(".//Annotation")
    assert frame["class"].tolist() == [e.get("PartOfGroup") for e in elements]
    for geometry, element in zip(frame.geometry, elements, strict=True):
        xy = np.array([(float(c.get("X")), float(c.get("Y"))) for c in element.iter("Coordinate")])
        shoelace = abs(np.sum(xy[:, 0] * np.roll(xy[:, 1], -1) - xy[:, 1] * np.roll(xy[:, 0], -1))) / 2
        if shapely.Polygon(xy).is_valid:
            assert geometry.area == pytest.approx(shoelace, rel=1e-9)
    assert_same(read_annotations(write_annotations(frame, tmp_path / "again.xml")), frame)
    assert_same(read_annotations(write_annotations(frame, tmp_path / "again.geojson")), frame)


@pytest.mark.real
def test_camelyon_outlines_agree_with_the_same_outlines_as_json(real_data):
    frame = read_annotations(real_data / "annotations" / "asap_camelyon16" / "tumor_085.xml")
    raw = json.loads((real_data / "annotations" / "ncrf_json" / "Tumor_085.json").read_text())
    expected = [shapely.Polygon(p["vertices"]) for p in raw["positive"]]
    assert len(frame) == len(raw["positive"]) + len(raw["negative"])
    areas = np.sort([g.area for g in frame.geometry])[-10:]
    np.testing.assert_allclose(areas, np.sort([g.area for g in expected])[-10:], rtol=0.01)


@pytest.mark.real
def test_imagescope(real_data):
    frame = read_annotations(real_data / "annotations" / "imagescope" / "onesixth_test.xml")
    kinds = [g.geom_type for g in frame.geometry]
    assert kinds == ["Polygon"] * 3 + ["LineString"] * 3 + ["Polygon"]
    assert frame.geometry[0].exterior.coords[0] == (995, 528)
    assert frame["color"].tolist()[0] == "#0000ff"
    ellipse = frame.geometry[6]
    x0, y0, x1, y1 = ellipse.bounds
    assert ellipse.area == pytest.approx(np.pi * (x1 - x0) * (y1 - y0) / 4, rel=0.01)


@pytest.mark.real
@pytest.mark.filterwarnings("ignore:.*crossed themselves")
def test_halo(real_data, tmp_path):
    frame = read_annotations(real_data / "annotations" / "dlup" / "HaloMultilayerTest.annotations")
    root = ET.parse(real_data / "annotations" / "dlup" / "HaloMultilayerTest.annotations").getroot()
    positive = [r for r in root.iter("Region") if r.get("NegativeROA") == "0"]
    assert len(frame) == len(positive)
    assert frame["class"].unique().tolist() == [layer.get("Name") for layer in root]
    assert frame["color"][0] == "#ffff00"
    with_holes = frame[frame.geometry.map(lambda g: g.geom_type == "Polygon" and len(g.interiors) > 0)]
    assert len(with_holes) >= 1
    assert frame.geometry.is_valid.all()
    assert_same(read_annotations(write_annotations(frame, tmp_path / "again.geojson")), frame)


@pytest.mark.real
@pytest.mark.parametrize("name", ["dlup/103S.json", "dlup/raster.json", "ncrf_json/Tumor_076.json"])
def test_other_json_is_refused_by_name(real_data, name):
    with pytest.raises(AnnotationError, match="not GeoJSON of QuPath"):
        read_annotations(real_data / "annotations" / name)


FILES = [
    "asap_camelyon16/tumor_076.xml",
    "asap_camelyon16/tumor_085.xml",
    "asap_tissue_masks/TCGA-2H-A9GF_RES.xml",
    "asap_tissue_masks/bench_TCGA-P3-A6T6-01Z-00-DX1.4873798C-A2AD-40D5-B5B3-FCF75735C4F3.xml",
    "asap_tissue_masks/bench_tumor_021.xml",
    "asap_tissue_masks/normal_002.xml",
    "dlup/HaloMultilayerTest.annotations",
    "dlup/qupath05.geojson",
    "imagescope/onesixth_test.xml",
]


@pytest.mark.real
@pytest.mark.filterwarnings("ignore:.*crossed themselves")
@pytest.mark.parametrize("name", FILES)
def test_real_files_are_drawn_where_they_lie(real_data, name):
    """Outlines brought to the size of a small slide: each leaves its colour in its own box, and none outside all."""
    import io

    from PIL import Image

    from pathkit.view import Polygons, SlideViewer

    frame = read_annotations(real_data / "annotations" / name)
    x0, y0, x1, y1 = frame.total_bounds
    scale = 500 / max(x1 - x0, y1 - y0)
    small = frame.set_geometry(frame.translate(-x0, -y0).scale(scale, scale, origin=(0, 0)).translate(50, 50))
    slide = open_slide(np.full((600, 600, 3), 255, np.uint8), mpp=1.0)
    colours = dict.fromkeys(frame["class"], "#000000")
    with SlideViewer(slide, layers=[Polygons(small, colours=colours)]) as viewer:
        png = viewer.snapshot(width_px=600)
    drawn = np.asarray(Image.open(io.BytesIO(png)).convert("L"))[:600] < 128
    drawn[560:, :200] = False  # the scale bar
    rows, cols = np.nonzero(drawn)
    assert len(rows) > 50
    assert min(rows.min(), cols.min()) >= 45
    assert max(rows.max(), cols.max()) <= 555
    large = small[small.geometry.map(lambda g: max(np.ptp(g.bounds[::2]), np.ptp(g.bounds[1::2])) >= 4)]
    for left, top, right, bottom in large.bounds.to_numpy():
        inside = drawn[int(top) - 2 : int(bottom) + 3, int(left) - 2 : int(right) + 3]
        assert inside.any()


@pytest.mark.real
def test_no_file_of_a_known_format_is_left_out(real_data):
    folder = real_data / "annotations"
    there = [p for p in folder.rglob("*") if p.suffix in (".xml", ".geojson", ".annotations")]
    assert sorted(str(p.relative_to(folder)) for p in there) == sorted(FILES)
