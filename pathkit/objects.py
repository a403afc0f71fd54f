"""Objects: instances in label maps, how two maps agree, what each object looks like, and a baseline without learning.

Decisions
---------
* All agreement follows from one sparse table of shared pixels (`overlap`), so that a map with 10,000 nuclei costs a second.
* Metrics are pooled: `counts` gives sums for one image, `instance_scores` the metrics of any number of such rows. A
  bootstrap by patient then resamples rows, and images with few objects do not weigh as much as those with many.
* Objects match at IoU above 0.5, where at most one partner is possible (Kirillov 2019). Where there is neither truth nor
  prediction, a metric is NaN: there was nothing to find, which is no success.
* Touching objects are parted by climbing: each pixel steps to the highest neighbour of the depth map until it stands on a
  summit. What a pixel becomes depends on its surroundings alone, hence on no tile's border.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import geopandas
import numpy as np
import pandas as pd
import shapely
from numpy.typing import NDArray
from scipy import ndimage, sparse
from scipy.optimize import linear_sum_assignment
from scipy.sparse import csgraph

from pathkit.annotations import annotation_frame, rasterize
from pathkit.annotations.rows import Row
from pathkit.slide import Slide
from pathkit.stain import separate

__all__ = [
    "Overlap",
    "class_counts",
    "climb",
    "counts",
    "errors",
    "instance_scores",
    "labels_of",
    "match",
    "mean_pq",
    "morphology",
    "otsu_nuclei",
    "outlines",
    "overlap",
    "panoptic_quality",
]

Labels = NDArray[np.integer[Any]]


# Agreement -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Overlap:
    """Which objects share pixels: k pairs of n true and m found objects.

    Attributes
    ----------
    truth, found : (n,), (m,) int
        Their labels.
    truth_px, found_px : (n,), (m,) int
        Their areas.
    i, j : (k,) int
        Positions of the pairs in `truth` and `found`.
    shared_px : (k,) int
    """

    truth: NDArray[np.int64]
    found: NDArray[np.int64]
    truth_px: NDArray[np.int64]
    found_px: NDArray[np.int64]
    i: NDArray[np.int64]
    j: NDArray[np.int64]
    shared_px: NDArray[np.int64]

    @property
    def union_px(self) -> NDArray[np.int64]:
        """(k,) pixels of either object of each pair."""
        return self.truth_px[self.i] + self.found_px[self.j] - self.shared_px

    @property
    def iou(self) -> NDArray[np.float64]:
        """(k,) intersection over union."""
        return self.shared_px / self.union_px


def overlap(truth: Labels, found: Labels) -> Overlap:
    """The table of shared pixels of two label maps; 0 is background, labels need not be consecutive.

    Raises
    ------
    ValueError
        If the shapes differ, or the maps are not whole numbers.
    """
    truth, found = np.asarray(truth), np.asarray(found)
    if truth.shape != found.shape:
        raise ValueError(f"overlap: label maps of one size, got {truth.shape} and {found.shape}.")
    if truth.dtype.kind not in "iu" or found.dtype.kind not in "iu":
        raise ValueError(
            f"overlap: label maps hold whole numbers, got {truth.dtype} and {found.dtype}. Of a mask make instances first:"
            " skimage.measure.label(mask)."
        )
    (i, truth_ids), (j, found_ids) = _numbered(truth), _numbered(found)
    used = (i > 0) | (j > 0)
    i, j = i[used], j[used]
    shape = len(truth_ids) + 1, len(found_ids) + 1
    table = sparse.coo_matrix((np.ones(len(i), np.int64), (i, j)), shape).tocsr()
    pairs = table[1:, 1:].tocoo()
    return Overlap(
        truth_ids,
        found_ids,
        np.bincount(i, minlength=shape[0])[1:],
        np.bincount(j, minlength=shape[1])[1:],
        pairs.row.astype(np.int64),
        pairs.col.astype(np.int64),
        pairs.data,
    )


def _numbered(labels: Labels) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(pixels,) 0 for background and 1 to n for objects, and their labels in ascending order."""
    flat = labels.ravel()
    there = flat != 0
    codes, ids = pd.factorize(flat[there], sort=True)
    out = np.zeros(len(flat), np.int64)
    out[there] = codes + 1
    return out, np.asarray(ids, np.int64)


def match(pairs: Overlap, *, iou: float = 0.5) -> pd.DataFrame:
    """Partners, one to one: columns truth, found (labels) and iou, of all pairs whose IoU is above `iou`.

    Above 0.5 no object can have two partners. Below, the assignment with the greatest sum of IoU is taken.

    Raises
    ------
    ValueError
        If `iou` is not in [0, 1).
    """
    i, j, value = _partners(pairs, iou)
    return pd.DataFrame({"truth": pairs.truth[i], "found": pairs.found[j], "iou": value})


def _partners(pairs: Overlap, iou: float) -> tuple[NDArray[Any], NDArray[Any], NDArray[np.float64]]:
    if not 0 <= iou < 1:
        raise ValueError(f"match: iou is from 0 to below 1, got {iou}.")
    value = pairs.iou
    kept = value > iou
    i, j, value = pairs.i[kept], pairs.j[kept], value[kept]
    if iou >= 0.5 or not len(i):
        return i, j, value
    rows, cols = np.unique(i), np.unique(j)
    gain = np.zeros((len(rows), len(cols)))
    gain[np.searchsorted(rows, i), np.searchsorted(cols, j)] = value
    a, b = linear_sum_assignment(-gain)
    a, b = a[gain[a, b] > 0], b[gain[a, b] > 0]
    return rows[a], cols[b], gain[a, b]


def counts(truth: Labels, found: Labels) -> dict[str, float]:
    """The sums from which all instance metrics of one image follow; give rows of them to `instance_scores`.

    Returns
    -------
    dict
        tp, fp, fn (IoU above 0.5), iou_sum (of the matched), both_px, truth_px, found_px (of the masks), dice_truth,
        dice_found (areas times Dice with the greatest overlap), aji_both, aji_union (each true object with the found one
        of greatest IoU, which may serve twice), plus_both, plus_union (one to one).
    """
    return _counted(overlap(truth, found))


def _counted(pairs: Overlap) -> dict[str, float]:
    n, m = len(pairs.truth), len(pairs.found)
    _, _, matched = _partners(pairs, 0.5)
    shared, union = pairs.shared_px, pairs.union_px
    dice = 2 * shared / (pairs.truth_px[pairs.i] + pairs.found_px[pairs.j])
    of_truth = _best(pairs.i, shared, n)  # the pair of greatest overlap of each object, -1 for none
    of_found = _best(pairs.j, shared, m)
    nearest = _best(pairs.i, pairs.iou, n)
    nearest = nearest[nearest >= 0]
    i, j, _ = _partners(pairs, 0.0)
    one_to_one = np.flatnonzero(np.isin(pairs.i * max(m, 1) + pairs.j, i * max(m, 1) + j))
    out: dict[str, float] = {
        "tp": len(matched),
        "fp": m - len(matched),
        "fn": n - len(matched),
        "iou_sum": matched.sum(),
        "both_px": shared.sum(),
        "truth_px": pairs.truth_px.sum(),
        "found_px": pairs.found_px.sum(),
        "dice_truth": (pairs.truth_px * np.where(of_truth >= 0, np.append(dice, 0)[of_truth], 0)).sum(),
        "dice_found": (pairs.found_px * np.where(of_found >= 0, np.append(dice, 0)[of_found], 0)).sum(),
    }
    for name, rows in (("aji", nearest), ("plus", one_to_one)):
        alone_truth = np.delete(pairs.truth_px, pairs.i[rows]).sum()
        alone_found = np.delete(pairs.found_px, np.unique(pairs.j[rows])).sum()
        out[f"{name}_both"] = shared[rows].sum()
        out[f"{name}_union"] = union[rows].sum() + alone_truth + alone_found
    return {k: float(v) for k, v in out.items()}


def _best(group: NDArray[np.int64], value: NDArray[Any], n: int) -> NDArray[np.int64]:
    """Of each of n groups the position of its greatest value, the first of equals; -1 for empty groups."""
    order = np.lexsort((-np.arange(len(value)), value, group))
    best = np.full(n, -1)
    best[group[order]] = order  # the last written is the greatest
    return best


def instance_scores(rows: pd.DataFrame | Mapping[str, float]) -> dict[str, float]:
    """Metrics of the `counts` of one image, or pooled over a table of them.

    Returns
    -------
    dict
        dice (of the masks), f1 (objects at IoU 0.5), object_dice [1]_, aji [2]_, aji_plus (one to one [3]_), pq, dq, sq
        [4]_. A metric without anything to find or found is NaN; sq is NaN where nothing matched.

    Notes
    -----
    AJI lets one found object serve several true ones, and counts found objects that nobody chose as error; a merged pair
    is therefore punished twice in the union. PQ gives a merged pair of equal nuclei no true positive at all.

    References
    ----------
    .. [1] Sirinukunwattana et al., "Gland segmentation in colon histology images: the GlaS challenge", MedIA 2017.
    .. [2] Kumar et al., "A dataset and a technique for generalized nuclear segmentation", IEEE TMI 2017.
    .. [3] Graham et al., "HoVer-Net", MedIA 2019.
    .. [4] Kirillov et al., "Panoptic segmentation", CVPR 2019.
    """
    frame = pd.DataFrame([rows]) if isinstance(rows, Mapping) else rows
    s = frame.sum(numeric_only=True)
    objects = s["tp"] + (s["fp"] + s["fn"]) / 2
    f1 = _ratio(s["tp"], objects)
    halves = [_ratio(s[f"dice_{k}"], s[f"{k}_px"]) for k in ("truth", "found")]
    return {
        "dice": _ratio(2 * s["both_px"], s["truth_px"] + s["found_px"]),
        "f1": f1,
        "object_dice": float("nan")
        if np.isnan(halves).all()
        else float(np.mean([0 if np.isnan(h) else h for h in halves])),
        "aji": _ratio(s["aji_both"], s["aji_union"]),
        "aji_plus": _ratio(s["plus_both"], s["plus_union"]),
        "pq": _ratio(s["iou_sum"], objects),
        "dq": f1,
        "sq": _ratio(s["iou_sum"], s["tp"]),
    }


def panoptic_quality(truth: Labels, found: Labels) -> float:
    """Panoptic quality of one image; NaN where both maps are empty. See `instance_scores`."""
    return instance_scores(counts(truth, found))["pq"]


def class_counts(
    truth: Labels,
    found: Labels,
    truth_class: Mapping[int, str],
    found_class: Mapping[int, str],
    classes: Sequence[str],
) -> pd.DataFrame:
    """`counts` of each class alone, one row a class: an object found in its place with another class is an error in both.

    Parameters
    ----------
    truth_class, found_class : mapping
        From label to class.

    Raises
    ------
    ValueError
        If an object has no class, or one that is not among `classes`.
    """
    pairs = overlap(truth, found)
    kinds = [
        np.array([_class_of(k, of, classes, what) for k in ids], object)
        for ids, of, what in ((pairs.truth, truth_class, "true"), (pairs.found, found_class, "found"))
    ]
    return pd.DataFrame(
        [{"class": name, **_counted(_only(pairs, kinds[0] == name, kinds[1] == name))} for name in classes]
    )


def _class_of(label: int, of: Mapping[int, str], classes: Sequence[str], what: str) -> str:
    name = of.get(int(label))
    if name not in classes:
        raise ValueError(
            f"class_counts: the {what} object {label} has class {name!r}; expected one of {', '.join(classes)}."
        )
    return str(name)


def _only(pairs: Overlap, truth: NDArray[np.bool_], found: NDArray[np.bool_]) -> Overlap:
    """The table of some of the objects."""
    kept = truth[pairs.i] & found[pairs.j] if len(pairs.i) else np.zeros(0, bool)
    at_truth, at_found = np.cumsum(truth) - 1, np.cumsum(found) - 1
    return Overlap(
        pairs.truth[truth],
        pairs.found[found],
        pairs.truth_px[truth],
        pairs.found_px[found],
        at_truth[pairs.i[kept]],
        at_found[pairs.j[kept]],
        pairs.shared_px[kept],
    )


def mean_pq(rows: pd.DataFrame) -> float:
    """mPQ: the mean over classes of the PQ pooled over the images (mPQ+ of the CoNIC challenge).

    A class that occurs neither in truth nor in prediction is left out; one that is only predicted counts as 0.

    Parameters
    ----------
    rows : DataFrame
        Of `class_counts`, of one image or many.
    """
    values = [instance_scores(part)["pq"] for _, part in rows.groupby("class", sort=False)]
    known = [v for v in values if not np.isnan(v)]
    return float(np.mean(known)) if known else float("nan")


def _ratio(a: float, b: float) -> float:
    return float(a / b) if b else float("nan")


def errors(
    truth: Labels,
    found: Labels,
    *,
    mpp: float = 1.0,
    origin_um: tuple[float, float] = (0.0, 0.0),
) -> pd.DataFrame:
    """What went wrong, one row an object that has no partner at IoU 0.5.

    Returns
    -------
    DataFrame
        kind, truth and found (labels, 0 for none), iou (with the nearest), x_um, y_um (its middle), area_um2; largest
        first. Kinds: ``merged`` (a true object of which half lies in a found one that so holds two or more), ``split`` (a
        true object that holds two or more found ones by half), ``poor outline`` (something was found there), ``missed``
        (nothing was, or next to nothing), ``extra`` (a found object that touches no true one by half).
    """
    pairs = overlap(truth, found)
    n, m = len(pairs.truth), len(pairs.found)
    i, j, _ = _partners(pairs, 0.5)
    has_partner, is_partner = np.isin(np.arange(n), i), np.isin(np.arange(m), j)
    inside_found = pairs.shared_px >= 0.5 * pairs.truth_px[pairs.i]
    inside_truth = pairs.shared_px >= 0.5 * pairs.found_px[pairs.j]
    holds = np.bincount(pairs.j[inside_found], minlength=m)
    merged = np.zeros(n, bool)
    merged[pairs.i[inside_found & (holds[pairs.j] >= 2)]] = True
    split = np.bincount(pairs.i[inside_truth], minlength=n) >= 2
    best = _best(pairs.i, pairs.iou, n)
    iou = np.where(best >= 0, np.append(pairs.iou, 0)[best], 0)
    kind = np.select([merged, split, iou > 0.1], ["merged", "split", "poor outline"], "missed")
    nearest = np.where(best >= 0, np.append(pairs.j, 0)[best], -1)
    extra = ~is_partner & (np.bincount(pairs.j[inside_truth], minlength=m) == 0)
    extra &= ~np.isin(np.arange(m), pairs.j[inside_found])
    lost = np.flatnonzero(~has_partner)
    places = [_middles(lab, ids) for lab, ids in ((truth, pairs.truth), (found, pairs.found))]
    rows = pd.DataFrame(
        {
            "kind": np.concatenate([kind[lost], np.full(extra.sum(), "extra")]),
            "truth": np.concatenate([pairs.truth[lost], np.zeros(extra.sum(), np.int64)]),
            "found": np.concatenate(
                [
                    np.where(nearest[lost] >= 0, np.append(pairs.found, 0)[nearest[lost]], 0),
                    pairs.found[extra],
                ]
            ),
            "iou": np.concatenate([iou[lost], np.zeros(extra.sum())]),
            "x_um": origin_um[0] + mpp * np.concatenate([places[0][lost, 0], places[1][extra, 0]]),
            "y_um": origin_um[1] + mpp * np.concatenate([places[0][lost, 1], places[1][extra, 1]]),
            "area_um2": mpp**2 * np.concatenate([pairs.truth_px[lost], pairs.found_px[extra]]),
        }
    )
    return rows.sort_values("area_um2", ascending=False, kind="stable").reset_index(drop=True)


def _middles(labels: Labels, ids: NDArray[np.int64]) -> NDArray[np.float64]:
    """(n, 2) x, y of the middle of each object, in pixels from the corner of the map."""
    codes, _ = _numbered(np.asarray(labels))
    at = np.flatnonzero(codes)
    area = np.bincount(codes[at], minlength=len(ids) + 1)[1:]
    y, x = np.divmod(at, np.shape(labels)[1])
    return np.stack([np.bincount(codes[at], v + 0.5, len(ids) + 1)[1:] / area for v in (x, y)], 1)


# Instances from maps ---------------------------------------------------------------------------------------------


def climb(
    depth: NDArray[Any], mask: NDArray[np.bool_], *, reach_px: int = 2, least_drop: float = 0.0
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Part touching objects: each pixel of the mask steps to the highest pixel within reach until it stands on a summit.

    Parameters
    ----------
    depth : (H, W) array
        Higher towards the middle of an object. Of equals the one further down, then further right, is the higher, so that
        the result does not depend on where a window begins.
    mask : (H, W) bool
        Pixels of objects; steps stay in it.
    reach_px : int
        Longest step, across and down: summits nearer than this are one.
    least_drop : float
        Neighbours are one object when the way from one summit to the other descends by less than this from the lower.

    Returns
    -------
    labels : (H, W) int64
        1 to n in the order of the summits, 0 outside the mask.
    summits : (n, 2) int64
        Row and column of each.

    Raises
    ------
    ValueError
        If the shapes differ or `reach_px` is less than 1.
    """
    if depth.shape != mask.shape or reach_px < 1:
        raise ValueError(f"climb: depth {depth.shape} and mask {mask.shape} of one size, reach at least 1.")
    level = np.where(mask, np.asarray(depth, np.float64), -np.inf)
    parent = _higher_neighbour(level, reach_px)
    at = np.flatnonzero(mask)
    while True:
        further = parent[parent[at]]
        if np.array_equal(further, parent[at]):
            break
        parent[at] = further
    tops = np.unique(parent[at])
    labels = np.zeros(mask.size, np.int64)
    labels[at] = np.searchsorted(tops, parent[at]) + 1
    if least_drop > 0 and len(tops) > 1:
        tops, new = _joined(labels.reshape(mask.shape), level, tops, least_drop)
        labels[at] = new[labels[at] - 1] + 1
    return labels.reshape(mask.shape), np.stack(np.divmod(tops, mask.shape[1]), 1)


def _higher_neighbour(level: NDArray[np.float64], reach_px: int) -> NDArray[np.int64]:
    """(pixels,) place of the highest pixel within reach of each pixel."""
    height, width = level.shape
    places = np.arange(height * width).reshape(height, width)
    best, parent = level.copy(), places.copy()
    for dr in range(-reach_px, reach_px + 1):
        for dc in range(-reach_px, reach_px + 1):
            here = (slice(max(0, -dr), height - max(0, dr)), slice(max(0, -dc), width - max(0, dc)))
            there = (slice(max(0, dr), height + min(0, dr)), slice(max(0, dc), width + min(0, dc)))
            value, place = level[there], places[there]
            higher = (value > best[here]) | ((value == best[here]) & (place > parent[here]))
            best[here] = np.where(higher, value, best[here])
            parent[here] = np.where(higher, place, parent[here])
    return parent.ravel()


def _joined(
    labels: NDArray[np.int64], level: NDArray[np.float64], tops: NDArray[np.int64], least_drop: float
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Summits that remain, and of each former label its new number."""
    passes = []
    for a, b in ((np.s_[:, :-1], np.s_[:, 1:]), (np.s_[:-1], np.s_[1:])):
        border = (labels[a] != labels[b]) & (labels[a] > 0) & (labels[b] > 0)
        pair = np.sort(np.stack([labels[a][border], labels[b][border]], 1), 1) - 1
        passes.append((pair, np.minimum(level[a][border], level[b][border])))
    pairs, heights = (np.concatenate(v) for v in zip(*passes, strict=True))
    n = len(tops)
    keys, where = np.unique(pairs[:, 0] * n + pairs[:, 1], return_inverse=True)
    saddle = np.full(len(keys), -np.inf)
    np.maximum.at(saddle, where, heights)
    i, j = np.divmod(keys, n)
    peak = level.ravel()[tops]
    shallow = np.minimum(peak[i], peak[j]) - saddle < least_drop
    graph = sparse.coo_matrix((np.ones(shallow.sum()), (i[shallow], j[shallow])), (n, n))
    _, group = csgraph.connected_components(graph, directed=False)
    order = np.lexsort((tops, peak, group))
    highest = np.zeros(group.max() + 1, np.int64)
    highest[group[order]] = tops[order]
    return np.sort(highest), np.argsort(np.argsort(highest))[group]


def otsu_nuclei(
    rgb: NDArray[np.uint8],
    *,
    mpp: float,
    radius_um: float = 3.0,
    least_um2: float = 8.0,
    density: NDArray[Any] | None = None,
    threshold: float | None = None,
) -> NDArray[np.int64]:
    """Nuclei without learning: haematoxylin, Otsu's threshold, and a watershed of the distance to the edge.

    Parameters
    ----------
    rgb : (H, W, 3) uint8
    mpp : float
    radius_um : float
        Middles of nuclei are at least so far apart.
    least_um2 : float
        Smaller pieces are dropped.
    density : (H, W) array, optional
        What is dark in nuclei, instead of haematoxylin.
    threshold : float, optional
        Of the density, instead of Otsu's.

    Returns
    -------
    (H, W) int64
        1 to n, 0 between them; all 0 where the field holds one colour.
    """
    from skimage import feature, filters, morphology, segmentation

    stain = ndimage.gaussian_filter(separate(rgb)[..., 0] if density is None else density, 0.4 / mpp)
    if not np.ptp(stain) > 1e-6:
        return np.zeros(stain.shape, np.int64)
    mask = stain > (filters.threshold_otsu(stain) if threshold is None else threshold)
    mask = morphology.remove_small_objects(mask, max_size=int(least_um2 / mpp**2))
    mask = ndimage.binary_fill_holes(mask)
    depth = ndimage.gaussian_filter(ndimage.distance_transform_edt(mask), 0.5 / mpp)
    apart = max(1, round(radius_um / mpp))
    places = feature.peak_local_max(depth, min_distance=apart, labels=mask.astype(int), exclude_border=False)
    markers = np.zeros(mask.shape, np.int64)
    markers[tuple(places.T)] = np.arange(1, len(places) + 1)
    return segmentation.watershed(-depth, markers, mask=mask).astype(np.int64)


def labels_of(annotations: geopandas.GeoDataFrame, *, slide: Slide, mpp: float) -> NDArray[np.int64]:
    """Label map of a whole slide from outlines in level-0 pixels: row k of the table becomes k + 1; `outlines` is the reverse.

    Raises
    ------
    ValueError
        If there is no outline.
    """
    if not len(annotations):
        raise ValueError("labels_of: the annotations are empty: nothing to draw.")
    names = [str(k) for k in range(len(annotations))]
    drawn = rasterize(annotations.assign(**{"class": names}), mpp=mpp, slide=slide, classes=names)
    return np.asarray(drawn.values, np.int64)


# What objects look like ------------------------------------------------------------------------------------------


def morphology(
    labels: Labels,
    rgb: NDArray[np.uint8] | None = None,
    *,
    mpp: float,
    slide_id: str = "slide",
    origin_um: tuple[float, float] = (0.0, 0.0),
    classes: Mapping[int, str] | str = "nucleus",
    stains: NDArray[Any] | None = None,
) -> pd.DataFrame:
    """One row an object, in the format of `tables.check_objects`.

    Parameters
    ----------
    labels : (H, W) int
    rgb : (H, W, 3) uint8, optional
        For the columns on colour.
    mpp : float
    slide_id : str
    origin_um : (x, y)
        Where the map begins on the slide.
    classes : mapping or str
        From label to class, or one class for all.
    stains : (H, W, 3) array, optional
        Concentrations of haematoxylin, eosin and diaminobenzidine, instead of those of `stain.separate`.

    Returns
    -------
    DataFrame
        slide_id, x_um, y_um, class, area_um2, label, major_um, minor_um (axes of the ellipse of the same moments),
        eccentricity (0 a circle), orientation (degrees of the long axis from the x axis, counterclockwise as seen, -90 to
        90); with a picture: intensity (mean grey, 0 to 255), haematoxylin, eosin, dab (means), haematoxylin_sd, texture
        (mean gradient of haematoxylin, a micron). No rows where there are no objects.

    Raises
    ------
    ValueError
        If the shapes differ, mpp is not positive, or an object has no class.
    """
    labels = np.asarray(labels)
    if not mpp > 0 or (rgb is not None and rgb.shape[:2] != labels.shape):
        raise ValueError(
            f"morphology: mpp above 0 and a picture of the map's size, got {mpp}, {labels.shape} and"
            f" {None if rgb is None else rgb.shape}."
        )
    codes, ids = _numbered(labels)
    at, n = np.flatnonzero(codes), len(ids)
    code = codes[at] - 1
    y, x = np.divmod(at, labels.shape[1])

    def mean(values: NDArray[Any]) -> NDArray[np.float64]:
        return np.bincount(code, values, n) / area

    area = np.bincount(code, minlength=n)
    middle_x, middle_y = mean(x), mean(y)
    dx, dy = x - middle_x[code], y - middle_y[code]
    xx, yy, xy = (mean(v).round(9) for v in (dx * dx, dy * dy, dx * dy))  # the same wherever the map begins
    spread = np.sqrt((xx - yy) ** 2 + 4 * xy**2)
    long, short = (xx + yy + spread) / 2, np.maximum((xx + yy - spread) / 2, 0)
    table = pd.DataFrame(
        {
            "slide_id": pd.Series([slide_id] * n, dtype="str"),
            "x_um": origin_um[0] + (middle_x + 0.5) * mpp,
            "y_um": origin_um[1] + (middle_y + 0.5) * mpp,
            "class": _named(ids, classes),
            "area_um2": area * mpp**2,
            "label": ids,
            "major_um": 4 * np.sqrt(long) * mpp,
            "minor_um": 4 * np.sqrt(short) * mpp,
            "eccentricity": np.sqrt(1 - short / np.maximum(long, 1e-12)) * (long > 0),
            "orientation": np.degrees(0.5 * np.arctan2(0.0 - 2 * xy, xx - yy)),
        }
    )
    if rgb is None:
        return table
    if not n:  # most tiles of a slide: a corner gives the columns
        rgb, stains = rgb[:2, :2], None
    stain = separate(rgb) if stains is None else np.asarray(stains)
    slope = np.hypot(*np.gradient(ndimage.gaussian_filter(stain[..., 0], 0.7))) / mpp
    flat = {name: stain[..., k].ravel()[at] for k, name in enumerate(("haematoxylin", "eosin", "dab"))}
    table["intensity"] = mean(
        cv2.cvtColor(np.ascontiguousarray(rgb[..., :3]), cv2.COLOR_RGB2GRAY).ravel()[at]
    )
    for name, values in flat.items():
        table[name] = mean(values)
    variance = mean(flat["haematoxylin"].astype(float) ** 2) - table["haematoxylin"] ** 2
    table["haematoxylin_sd"] = np.sqrt(np.maximum(variance, 0))
    table["texture"] = mean(slope.ravel()[at])
    return table


def _named(ids: NDArray[np.int64], classes: Mapping[int, str] | str) -> pd.Series:
    if isinstance(classes, str):
        return pd.Series([classes] * len(ids), dtype="str")
    missing = [k for k in ids if int(k) not in classes]
    if missing:
        raise ValueError(f"morphology: object {missing[0]} has no class; give one for every label.")
    return pd.Series([classes[int(k)] for k in ids], dtype="str")


def outlines(
    labels: Labels,
    *,
    scale: float = 1.0,
    origin_l0: tuple[float, float] = (0.0, 0.0),
    classes: Mapping[int, str] | str = "nucleus",
    colours: Mapping[str, str] | None = None,
) -> geopandas.GeoDataFrame:
    """Polygons of the objects, as annotations: for the viewer, and `write_annotations` gives them to QuPath.

    Parameters
    ----------
    labels : (H, W) int
    scale : float
        Level-0 pixels per pixel of the map.
    origin_l0 : (x, y)
        Level-0 pixels at which the map begins.
    classes : mapping or str
        As in `morphology`.
    colours : mapping, optional
        From class to "#rrggbb".

    Returns
    -------
    GeoDataFrame
        class, name (the label), color, geometry. Of an object in pieces the largest is kept, without holes.
    """
    codes, ids = _numbered(np.asarray(labels))
    codes = codes.reshape(np.shape(labels))
    names = _named(ids, classes)
    rows = []
    for k, where in enumerate(ndimage.find_objects(codes)):
        part = (codes[where] == k + 1).astype(np.uint8)
        part = part.repeat(2, 0).repeat(2, 1)  # twice as large, so that one pixel has an area
        rings, _ = cv2.findContours(np.pad(part, 1), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
        ring = max(rings, key=cv2.contourArea)[:, 0] - 0.5
        corner = np.array([where[1].start, where[0].start])
        whole = shapely.make_valid(
            shapely.Polygon(corner + ring / 2), method="structure", keep_collapsed=False
        )
        # The ring runs through the middles of the half pixels at the edge.
        grown = shapely.buffer(whole, 0.25, join_style="mitre")
        shape = max(shapely.get_parts(grown), key=lambda p: p.area)
        shape = shapely.transform(shape, lambda xy: xy * scale + origin_l0)
        rows.append(Row(shape, names[k], str(ids[k]), (colours or {}).get(names[k])))
    return annotation_frame(rows)
