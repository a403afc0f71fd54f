"""Quality: what is wrong with a slide, where, and whether it can be read.

Decisions
---------
* Everything is scored on patches of 128 µm, so that an artefact has a place. Scores of area (pen, fold, bubble, dust,
  scratch, tear, background) are shares of the patch, 0 to 1; focus and stain are numbers.
* The slide is first looked at as a whole, at 8 µm per pixel: the white of the glass, ink, gaps in the tissue, how dense
  tissue is on this slide, the plane of its stains. Patches are then read at 1 µm per pixel, as a stream.
* Two stains span a plane of optical densities. What lies outside of it (dust, the rim of a bubble, a scratch) is grey:
  it absorbs all colours alike. What lies inside of it, far denser than this slide's dense tissue, lies double: a fold.
* Focus is measured on optical density, where ink and shade add a constant and change nothing, and compared with the median
  of the slide, because laboratories, stains and scanners differ more than patches do.
* A verdict follows from shares of the tissue by rules that can be read and changed, and names its reasons.

Sources: Pertuz et al., Pattern Recognition 46:1415 (2013), for the measures of focus; Janowczyk et al., JCO Clinical Cancer
Informatics 3:1 (2019), HistoQC, for scores that explain why a slide is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from tqdm.auto import tqdm

from pathkit.annotations import label_patches
from pathkit.geometry import Raster
from pathkit.metrics import auc
from pathkit.patches import patch_boxes_um, patch_grid
from pathkit.slide import Slide, open_slide
from pathkit.tissue import ink, optical_density, read_whole, tissue_mask, white_point

if TYPE_CHECKING:
    import geopandas

__all__ = [
    "FOCUS",
    "RULES",
    "SCORES",
    "SPOILT",
    "Rule",
    "artefact_auc",
    "artefact_shares",
    "focus",
    "judge",
    "patch_quality",
    "slide_quality",
]

OVERVIEW_MPP, PATCH_MPP, PATCH_PX = 8.0, 1.0, 128
#: Below this optical density there is glass.
GLASS_OD = 0.05
#: Gaps up to this width inside the tissue count as tears.
TEAR_UM = 100.0
#: Patches read at once.
BATCH = 256
#: The artefact that each score is to find, in the words of `synthetic.artefacts`.
SCORES = {
    "out of focus": "blur",
    "pen": "pen",
    "fold": "fold",
    "bubble": "bubble",
    "dust": "dust",
    "scratch": "scratch",
    "tear": "tear",
}
#: From this score on a patch counts as spoilt; shares of the patch, and for blur factors of two of the slide's median.
SPOILT = {
    "blur": 2.0,
    "pen": 0.05,
    "fold": 0.10,
    "bubble": 0.02,
    "dust": 0.004,
    "scratch": 0.03,
    "tear": 0.08,
}


# Focus -----------------------------------------------------------------------------------------------------------


def _laplacian(grey: NDArray[np.float32]) -> float:
    return float(cv2.Laplacian(grey, cv2.CV_32F).var())


def _tenengrad(grey: NDArray[np.float32]) -> float:
    x, y = cv2.Sobel(grey, cv2.CV_32F, 1, 0), cv2.Sobel(grey, cv2.CV_32F, 0, 1)
    return float((x * x + y * y).mean())


def _brenner(grey: NDArray[np.float32]) -> float:
    return float(((grey[:, 2:] - grey[:, :-2]) ** 2).mean() + ((grey[2:] - grey[:-2]) ** 2).mean())


def _fine(grey: NDArray[np.float32]) -> float:
    """Power of detail finer than ten pixels."""
    power, frequency = _spectrum(grey)
    return float(power[frequency > 0.1].sum() / grey.size)


def _share(grey: NDArray[np.float32]) -> float:
    """The same as a share of all detail: needs no other patch to compare with."""
    power, frequency = _spectrum(grey)
    return float(power[frequency > 0.1].sum() / max(power[frequency > 0.01].sum(), 1e-9))


def _spectrum(grey: NDArray[np.float32]) -> tuple[NDArray[Any], NDArray[Any]]:
    window = np.outer(np.hanning(grey.shape[0]), np.hanning(grey.shape[1]))
    power = np.abs(np.fft.fft2((grey - grey.mean()) * window)) ** 2
    return power, np.hypot(np.fft.fftfreq(grey.shape[0])[:, None], np.fft.fftfreq(grey.shape[1]))


#: Measures of focus by name: each takes a (H, W) float32 image and falls when it is blurred.
FOCUS: dict[str, Callable[[NDArray[np.float32]], float]] = {
    "laplacian": _laplacian,
    "tenengrad": _tenengrad,
    "brenner": _brenner,
    "fine detail": _fine,
    "share of fine detail": _share,
}


def focus(
    pixels: NDArray[np.uint8], *, measure: str = "tenengrad", white: ArrayLike = 255.0
) -> NDArray[np.float64]:
    """How sharp patches are; higher is sharper.

    Parameters
    ----------
    pixels : (N, H, W, 3) uint8
    measure : str
        One of `FOCUS`. All but "share of fine detail" grow with the contrast of the tissue: compare within a slide.
    white : float or (3,) array
        Of the glass.

    Returns
    -------
    (N,) float64

    Raises
    ------
    ValueError
        If there is no such measure, or `pixels` are no patches.
    """
    if measure not in FOCUS:
        raise ValueError(f"focus: no measure {measure!r}; there are {', '.join(FOCUS)}.")
    if pixels.ndim != 4 or pixels.shape[3] != 3:
        raise ValueError(
            f"focus: expected (N, H, W, 3) patches, got {pixels.shape}. One patch: pixels[None]."
        )
    table = _density_table(np.broadcast_to(np.asarray(white, float), 3))
    return np.array([FOCUS[measure](100 * _density(patch, table).mean(2)) for patch in pixels])


# Patches ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Overview:
    """What the whole slide tells: masks at 8 µm per pixel, the density from which on tissue is folded, the stains' plane."""

    white: NDArray[np.float64]
    tissue: Raster
    pen: Raster
    gaps: Raster
    folded: float
    outside: NDArray[np.float64]


def _overview(slide: Slide) -> _Overview:
    mpp = max(OVERVIEW_MPP, slide.mpp)
    rgb = read_whole(slide, mpp)
    white = white_point(rgb)
    density = optical_density(rgb, white, OVERVIEW_MPP / mpp)
    pen, tissue = ink(density, 1.0), tissue_mask(slide, mpp=mpp, keep_pen=True)
    size = 2 * max(1, round(TEAR_UM / 2 / mpp)) + 1
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (size, size))
    padded = np.pad((tissue.values & ~pen).astype(np.uint8), size)
    whole = cv2.morphologyEx(padded, cv2.MORPH_CLOSE, kernel)[size:-size, size:-size] > 0
    gaps = whole & (density.mean(2) < GLASS_OD)
    usual = density[tissue.values & ~pen]
    if len(usual) < 50:
        return _Overview(white, tissue, Raster(pen, mpp), Raster(gaps, mpp), np.nan, np.zeros(3))
    middle, high = np.percentile(usual.mean(1), (50, 90))
    _, _, axes = np.linalg.svd(usual[:: max(1, len(usual) // 20_000)], full_matrices=False)
    outside = axes[2] * np.sign(axes[2].sum())  # grey lies on its positive side
    folded = float(max(middle + 3 * (high - middle), 1.6 * middle))
    return _Overview(white, tissue, Raster(pen, mpp), Raster(gaps, mpp), folded, outside)


def patch_quality(
    slide: Slide, patches: pd.DataFrame | None = None, *, slide_id: str | None = None, progress: bool = False
) -> pd.DataFrame:
    """Score the patches of a slide.

    Parameters
    ----------
    slide : Slide
    patches : DataFrame, optional
        Patches of this slide; a grid of 128 µm over all that is not glass, ink included, when not given.
    slide_id : str, optional
        For that grid; the slide's name by default.

    Returns
    -------
    DataFrame
        The patches, with pen, fold, bubble, dust, scratch, tear, background (shares of the patch), stain (mean optical
        density of what is not glass), focus (Tenengrad of the optical density, by the share that is not glass), and blur:
        by how many factors of two the focus lies below the slide's median. Empty where there is neither tissue nor ink.

    Raises
    ------
    MissingMppError
        If the slide's resolution is unknown.
    """
    seen = _overview(slide)
    if patches is None:
        patches = _grid(slide, seen, slide_id)
    boxes = patch_boxes_um(patches, slide_mpp=slide.mpp)
    rows: list[dict[str, float]] = []
    with tqdm(total=len(patches), desc="quality", unit="patch", disable=not progress) as bar:
        for start in range(0, len(patches), BATCH):
            part = patches.iloc[start : start + BATCH]
            pixels = slide.read_patches(part)
            for patch, box, mpp in zip(pixels, boxes[start:], part["mpp"], strict=False):
                rows.append(_scores(patch, box, float(mpp), seen))
            bar.update(len(part))
    names = ("fold", "bubble", "dust", "scratch", "background", "stain", "focus")
    table = patches.reset_index(drop=True).join(pd.DataFrame(rows, columns=names, dtype=float))
    table.insert(len(patches.columns), "pen", seen.pen.mean_in(boxes, outside=0).clip(0, 1))
    table["tear"] = seen.gaps.mean_in(boxes, outside=0).clip(0, 1)
    usual = table.loc[table["pen"] < 0.5, "focus"].median()
    table["blur"] = np.log2(max(usual, 1e-6) / table["focus"].clip(lower=1e-6)) if len(table) else 0.0
    return table


def _grid(slide: Slide, seen: _Overview, slide_id: str | None) -> pd.DataFrame:
    import warnings

    mpp = max(PATCH_MPP, slide.mpp)
    mask = Raster(seen.tissue.values | seen.pen.values, seen.tissue.mpp)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # an empty slide is a finding here
        return patch_grid(
            slide, size_px=round(PATCH_PX / mpp), mpp=mpp, mask=mask, min_tissue=0.3, slide_id=slide_id
        )


def _scores(
    patch: NDArray[np.uint8], box_um: NDArray[np.float64], mpp: float, seen: _Overview
) -> dict[str, float]:
    table = _density_table(seen.white)
    density = _density(patch, table)
    mean, clean = density.mean(2), ~_inked(box_um, patch.shape[0], seen.pen)
    near, around = _smooth(mean, 2.0 / mpp), _smooth(mean, 14.0 / mpp)
    # Light is averaged before the logarithm, as in the overview that this is compared with.
    wide = _density(_smooth(patch, OVERVIEW_MPP / mpp), table).mean(2)
    grey = _smooth(density @ seen.outside.astype(np.float32), 2.0 / mpp)
    tissue = clean & (near > GLASS_OD)
    reach = 2 * round(2 * OVERVIEW_MPP / mpp) + 1  # of the smoothing: beside ink it sees ink
    away = cv2.erode(clean.astype(np.uint8), np.ones((reach, reach), np.uint8)) > 0
    dark, pale = near > around + 0.03, near < around
    return {
        "fold": float((away & (wide > seen.folded) & (grey < 0.12)).mean()),
        "bubble": float((clean & dark & (grey > 0.07) & (grey < 0.15)).mean()),
        "dust": float((clean & (grey > 0.12)).mean()),
        "scratch": float((clean & pale & (grey > 0.03)).mean()),
        "background": float((clean & (near <= GLASS_OD)).mean()),
        "stain": float(mean[tissue].mean()) if tissue.any() else 0.0,
        "focus": _tenengrad(100 * mean) / max(0.05, float((near > GLASS_OD).mean())),
    }


def _inked(box_um: NDArray[np.float64], side: int, pen: Raster) -> NDArray[np.bool_]:
    """(side, side): pixels of a patch that lie under ink."""
    centres = (np.arange(side) + 0.5) / side
    cols = ((box_um[0] + centres * box_um[2]) / pen.mpp).astype(int).clip(0, pen.values.shape[1] - 1)
    rows = ((box_um[1] + centres * box_um[3]) / pen.mpp).astype(int).clip(0, pen.values.shape[0] - 1)
    return np.asarray(pen.values[np.ix_(rows, cols)], bool)


def _density_table(white: NDArray[np.float64]) -> NDArray[np.float32]:
    """(256, 3): the optical density of each grey level."""
    levels = np.arange(256)[:, None]
    return -np.log10(np.clip((levels + 1) / (np.asarray(white) + 1), 1 / 256, 1)).astype(np.float32)


def _density(patch: NDArray[np.uint8], table: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.stack([table[patch[..., c], c] for c in range(3)], axis=2)


def _smooth(values: NDArray[Any], sigma_px: float) -> NDArray[Any]:
    return np.asarray(cv2.GaussianBlur(values, (0, 0), max(sigma_px, 0.3)), values.dtype)


# Slides ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rule:
    """When a slide is not accepted: ``column`` above (or below) ``limit`` gives ``verdict`` with ``reason``.

    Attributes
    ----------
    column : str
        Of `slide_quality`.
    limit : float
    verdict : {"re-scan", "reject"}
    reason : str
        Said with the value; ``{:.0%}`` or the like stands for it.
    below : bool
        The rule holds below the limit.
    """

    column: str
    limit: float
    verdict: str
    reason: str
    below: bool = False

    def holds(self, row: Mapping[str, Any]) -> bool:
        """Whether the rule speaks against a slide; unknown values do not."""
        value = float(row[self.column])
        return value < self.limit if self.below else value > self.limit


#: Cleaning and scanning again mends ink, dust, bubbles and focus; folds, tears, too little or badly stained tissue it does not.
RULES = (
    Rule("tissue_mm2", 0.05, "reject", "{:.2f} mm² of tissue: {what}", below=True),
    Rule("stain", 0.10, "reject", "stained too pale (optical density {:.2f})", below=True),
    Rule("stain", 0.80, "reject", "stained too dark (optical density {:.2f})"),
    Rule("fold", 0.10, "reject", "folds in {:.0%} of the tissue"),
    Rule("tear", 0.20, "reject", "tears or gaps in {:.0%} of the tissue"),
    Rule("blur", 0.05, "re-scan", "out of focus in {:.0%} of the tissue"),
    Rule("sharpness", 0.12, "re-scan", "blurred as a whole (share of fine detail {:.2f})", below=True),
    Rule("pen", 0.05, "re-scan", "ink on {:.0%} of the tissue: wipe the glass"),
    Rule("bubble", 0.05, "re-scan", "air bubbles in {:.0%} of the tissue: mount again"),
    Rule("dust", 0.05, "re-scan", "dust on {:.0%} of the tissue: clean the glass"),
)


def slide_quality(
    slides: pd.DataFrame, *, rules: Sequence[Rule] = RULES, progress: bool = True
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Score and judge the slides of a table.

    Parameters
    ----------
    slides : DataFrame
        slide_id, path; where present mpp, for files that do not say it.
    rules : sequence of Rule

    Returns
    -------
    slides : DataFrame
        The table with tissue_mm2 (without ink), stain (median), sharpness (median share of fine detail), the share of the
        patches that each artefact spoils (pen, fold, bubble, dust, scratch, tear, blur), verdict and reasons.
    patches : DataFrame
        As `patch_quality`, of all slides.
    """
    rows, tables = [], []
    for row in tqdm(slides.to_dict("records"), desc="quality", unit="slide", disable=not progress):
        mpp = row.get("mpp")
        with open_slide(row["path"], mpp=None if pd.isna(mpp) else mpp) as slide:
            table = patch_quality(slide, slide_id=row["slide_id"])
            rows.append(_summary(slide, table))
        tables.append(table)
    summary = pd.DataFrame(rows, index=slides.index)
    found = judge(slides.drop(columns=list(summary), errors="ignore").join(summary), rules=rules)
    return found.drop(columns="what"), pd.concat(tables, ignore_index=True)


def _summary(slide: Slide, patches: pd.DataFrame) -> dict[str, Any]:
    """One slide in numbers, from its patches and its mask."""
    mask = tissue_mask(slide, mpp=max(OVERVIEW_MPP, slide.mpp))
    clean = patches[patches["pen"] < 0.5]
    sharp = clean.iloc[:: max(1, len(clean) // 200)]
    out: dict[str, Any] = {
        "tissue_mm2": round(float(mask.values.sum()) * mask.mpp**2 / 1e6, 3),
        "stain": float(clean["stain"].median()) if len(clean) else np.nan,
        "sharpness": float(np.median(_sharpness(slide, sharp))) if len(clean) else np.nan,
    }
    out |= {score: float((patches[score] > least).mean()) for score, least in SPOILT.items() if len(patches)}
    out |= dict.fromkeys(set(SPOILT) - set(out), 0.0)
    rgb = slide.thumbnail(256)
    dark = float(rgb.mean()) < 40
    out["what"] = (
        "black, no light passed or nothing was scanned"
        if dark
        else "ink and nothing else"
        if len(patches) and out["tissue_mm2"] < 0.05 and (patches["pen"] > 0).mean() > 0.5
        else "empty glass, or tissue too pale to be seen"
    )
    return out


def _sharpness(slide: Slide, patches: pd.DataFrame) -> NDArray[np.float64]:
    return focus(slide.read_patches(patches), measure="share of fine detail")


def judge(slides: pd.DataFrame, *, rules: Sequence[Rule] = RULES) -> pd.DataFrame:
    """Accept, re-scan or reject, with reasons.

    Parameters
    ----------
    slides : DataFrame
        With the columns that the rules name.

    Returns
    -------
    DataFrame
        With verdict ("accept", "re-scan", "reject": the gravest of the rules that hold) and reasons.

    Raises
    ------
    ValueError
        If a rule names a column that is not there.
    """
    missing = [r.column for r in rules if r.column not in slides]
    if missing:
        raise ValueError(f"judge: no column {missing[0]!r}; slide_quality(slides) makes it.")
    verdicts, reasons = [], []
    for row in slides.to_dict("records"):
        held = [r for r in rules if r.holds(row)]
        if len(held) and held[0].column == "tissue_mm2":
            held = held[:1]  # of a slide without tissue there is nothing else to say
        grave = {r.verdict for r in held}
        verdicts.append("reject" if "reject" in grave else "re-scan" if grave else "accept")
        reasons.append(
            "; ".join(r.reason.format(row[r.column], what=row.get("what", "too little")) for r in held)
        )
    return slides.assign(verdict=verdicts, reasons=reasons)


#: Of a patch, for it to count as spoilt by an artefact: a patch has one focus; dust and scratches are thin.
_LEAST_SHARE = {"out of focus": 0.5, "dust": 0.02, "scratch": 0.02}

# Against the truth -----------------------------------------------------------------------------------------------


def artefact_shares(
    patches: pd.DataFrame, artefacts: geopandas.GeoDataFrame | None, *, slide_mpp: float
) -> pd.DataFrame:
    """How much of each patch each artefact covers, from outlines.

    Parameters
    ----------
    patches : DataFrame
        Of one slide.
    artefacts : GeoDataFrame or None
        Outlines in level-0 pixels; class is one of `SCORES`. None: there are none.
    slide_mpp : float

    Returns
    -------
    DataFrame
        A column for each of `SCORES`, 0 to 1, with the patches' index.
    """
    out = pd.DataFrame(0.0, index=patches.index, columns=list(SCORES))
    if artefacts is None:
        return out
    for kind in set(artefacts["class"]) & set(SCORES):
        of_kind = artefacts[artefacts["class"] == kind]
        out[kind] = label_patches(patches, of_kind, slide_mpp=slide_mpp, min_overlap=0.01)["overlap"]
    return out


def artefact_auc(
    patches: pd.DataFrame, shares: pd.DataFrame, *, scores: Mapping[str, str] = SCORES
) -> pd.DataFrame:
    """How well each score finds its artefact.

    Parameters
    ----------
    patches : DataFrame
        As `patch_quality`.
    shares : DataFrame
        As `artefact_shares`, in the same order.
    scores : mapping
        From artefact to the column that is to find it.

    Returns
    -------
    DataFrame
        Index: artefact. patches (with at least a tenth of their area under it; half for focus; a fiftieth for dust and
        scratches, which are thin), auc_clean (against patches without any artefact), auc_others (against patches with other
        artefacts). Patches with less of the artefact count neither way. NaN where there are no patches to compare.
    """
    spoilt, rows = (shares > 0).any(axis=1).to_numpy(), {}
    for kind, column in scores.items():
        share, score = shares[kind].to_numpy(), patches[column].to_numpy(float)
        positive = share >= _LEAST_SHARE.get(kind, 0.1)
        row: dict[str, float] = {"patches": int(positive.sum())}
        for name, negative in (("auc_clean", ~spoilt), ("auc_others", spoilt & (share == 0))):
            used = positive | negative
            both = positive.any() and negative.any()
            row[name] = auc(positive[used], score[used]) if both else np.nan
        rows[kind] = row
    return pd.DataFrame(rows).T.astype({"patches": int})
