"""Tissues and cells: what the labels and classes of the synthetic slides mean, and how each is painted.

One row a tissue, one row a cell. Sizes are half axes in microns, concentrations optical densities along unit stain vectors.
They are working values of general histology, chosen to look right and to be of the right order, not measurements: lymphoid
tissue around 10,000 nuclei a mm², tumour 3,000 to 6,000, stroma 500 to 2,500; lymphocyte nuclei 6 to 8 microns across,
tumour nuclei 10 to 20 with a spread that rises with grade (Elston and Ellis, Histopathology 19:403, 1991, grade it so).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "CELLS",
    "CLASSES",
    "DENSITY_PER_MM2",
    "LABELS",
    "MITOSES",
    "NINE_CLASSES",
    "TISSUES",
    "Cell",
    "Tissue",
]

#: How the ground of a tissue is drawn; numbers, because compiled code reads them.
PLAIN, EMPTY, FAT, MUCUS, DEBRIS, GOBLET, EPITHELIUM = range(7)
#: Width of the squares that hold one fat cell each.
FAT_CELL_UM = 70.0
#: Outlines of nuclei.
ELLIPSE, PLATE, TWO_PLATES, FAR_PLATES, CLUMPED, THREE_ARMS, SMOOTH, FRAGMENTS, GRANULES, RED_DISC = range(10)


@dataclass(frozen=True)
class Tissue:
    """One label of the architecture.

    Attributes
    ----------
    name : str
    haematoxylin, eosin : float
        Of what lies between the nuclei.
    fibres, grain : float
        Share of eosin that varies along fibres, and as fine grain.
    fibre_um : (length, width)
    per_mm2 : float
        Nuclei; in tissues with a band, of the band alone.
    cells : mapping
        Share of each class of cell.
    band_um : (from, to), optional
        Of the distance to the basement membrane in which nuclei lie; None: anywhere.
    row_um : float, optional
        Distance at which they stand in a row.
    look : int
        PLAIN, EMPTY, ...
    nine : str
        Which of the nine classes of NCT-CRC (Kather 2019) it belongs to.
    """

    name: str
    haematoxylin: float
    eosin: float
    fibres: float
    grain: float
    per_mm2: float
    cells: Mapping[str, float] = field(default_factory=dict)
    band_um: tuple[float, float] | None = None
    row_um: float | None = None
    fibre_um: tuple[float, float] = (34.0, 3.2)
    look: int = PLAIN
    nine: str = "stroma"


@dataclass(frozen=True)
class Cell:
    """One class of object.

    Attributes
    ----------
    name : str
    radius_um, spread : float
        Geometric mean of the half axes, and its relative standard deviation.
    ratio, haematoxylin : (from, to)
        Long to short axis; concentration.
    body, body_eosin : float
        Radius of the cytoplasm relative to the nucleus, and its eosin.
    along : float
        1: turned anyhow; 0: exactly along the fibres, or the height of the epithelium.
    ragged : float
        Unevenness of the outline, relative to the radius.
    nucleolus : float
        Share of nuclei that show one.
    shape : int
        ELLIPSE, PLATE, ...
    """

    name: str
    radius_um: float
    spread: float
    ratio: tuple[float, float]
    haematoxylin: tuple[float, float]
    body: float
    body_eosin: float
    along: float = 1.0
    ragged: float = 0.06
    nucleolus: float = 0.0
    shape: int = ELLIPSE


CELLS = (
    Cell("lymphocyte", 3.5, 0.10, (1.0, 1.25), (0.75, 1.05), 1.15, 0.05),
    Cell("germinal centre cell", 4.9, 0.18, (1.0, 1.5), (0.45, 0.75), 1.35, 0.12, nucleolus=0.4),
    Cell("histiocyte", 4.4, 0.14, (1.1, 1.7), (0.38, 0.65), 2.10, 0.30, nucleolus=0.1),
    Cell("plasma cell", 3.8, 0.08, (1.0, 1.2), (0.70, 1.00), 1.90, 0.30),
    Cell("fibroblast", 3.0, 0.20, (3.0, 5.5), (0.60, 1.00), 1.05, 0.05, along=0.13),
    Cell("endothelial", 2.9, 0.15, (2.2, 4.0), (0.70, 1.00), 1.10, 0.08, along=0.1),
    Cell("tumour", 5.0, 0.22, (1.0, 1.6), (0.38, 0.80), 1.80, 0.30, ragged=0.16, nucleolus=0.7),
    Cell("epithelial", 4.0, 0.10, (1.4, 2.1), (0.60, 0.90), 1.10, 0.20, along=0.08, ragged=0.08),
    Cell("smooth muscle", 3.9, 0.14, (3.6, 5.5), (0.50, 0.80), 1.05, 0.10, along=0.06),
    Cell("red cell", 3.4, 0.06, (1.0, 1.3), (0.0, 0.0), 1.0, 0.0, shape=RED_DISC),
    Cell("apoptotic", 3.2, 0.15, (1.0, 1.3), (1.00, 1.30), 2.0, 0.50, shape=FRAGMENTS),
    Cell("prophase", 5.6, 0.10, (1.0, 1.3), (0.95, 1.15), 1.7, 0.16, ragged=0.12, shape=CLUMPED),
    Cell("metaphase", 3.0, 0.10, (2.6, 3.6), (1.05, 1.30), 2.3, 0.12, ragged=0.22, shape=PLATE),
    Cell("anaphase", 4.2, 0.10, (1.0, 1.15), (1.05, 1.30), 1.8, 0.12, ragged=0.20, shape=TWO_PLATES),
    Cell("telophase", 5.2, 0.10, (0.70, 0.80), (1.05, 1.30), 1.5, 0.18, ragged=0.15, shape=FAR_PLATES),
    Cell("atypical mitosis", 5.2, 0.12, (1.0, 1.2), (1.05, 1.30), 1.7, 0.14, ragged=0.24, shape=THREE_ARMS),
    Cell("pyknotic", 3.2, 0.14, (1.0, 1.4), (1.05, 1.35), 2.0, 0.52, ragged=0.02, shape=SMOOTH),
    Cell("pigment", 4.0, 0.20, (1.0, 1.6), (0.0, 0.0), 1.0, 0.0, shape=GRANULES),
)
CLASSES = tuple(cell.name for cell in CELLS)
MITOSES = ("prophase", "metaphase", "anaphase", "telophase", "atypical mitosis")
#: NCT-CRC's names for its nine classes.
NINE_CLASSES = (
    "adipose",
    "background",
    "debris",
    "lymphocytes",
    "mucus",
    "smooth muscle",
    "normal mucosa",
    "stroma",
    "tumour",
)

_LYMPHOID = {"lymphocyte": 0.97, "plasma cell": 0.03}
_LAMINA = {"lymphocyte": 0.45, "plasma cell": 0.3, "fibroblast": 0.2, "endothelial": 0.05}
_DESMOPLASTIC = {"fibroblast": 0.75, "lymphocyte": 0.18, "endothelial": 0.07}
_MALIGNANT = {"tumour": 0.95, "lymphocyte": 0.03, "apoptotic": 0.02}

TISSUES = (
    Tissue("glass", 0.000, 0.000, 0.0, 0.0, 0, look=EMPTY, nine="background"),
    Tissue("fat", 0.000, 0.015, 0.0, 0.3, 250, {"fibroblast": 1.0}, look=FAT, nine="adipose"),
    Tissue("capsule", 0.020, 0.420, 0.7, 0.1, 1300, {"fibroblast": 0.95, "lymphocyte": 0.05}),
    Tissue("sinus", 0.015, 0.060, 0.2, 0.5, 3200, {"lymphocyte": 0.7, "histiocyte": 0.3}, nine="lymphocytes"),
    Tissue("paracortex", 0.060, 0.150, 0.1, 0.4, 11500, _LYMPHOID, nine="lymphocytes"),
    Tissue("mantle", 0.070, 0.140, 0.1, 0.4, 13500, {"lymphocyte": 1.0}, nine="lymphocytes"),
    Tissue(
        "germinal centre",
        0.050,
        0.170,
        0.1,
        0.4,
        6200,
        {"germinal centre cell": 0.9, "lymphocyte": 0.1},
        nine="lymphocytes",
    ),
    Tissue(
        "medulla", 0.050, 0.170, 0.2, 0.4, 9000, {"lymphocyte": 0.8, "plasma cell": 0.2}, nine="lymphocytes"
    ),
    Tissue("vessel wall", 0.030, 0.400, 0.5, 0.1, 3500, {"endothelial": 1.0}),
    Tissue("blood", 0.000, 0.040, 0.0, 0.2, 11000, {"red cell": 0.97, "lymphocyte": 0.03}),
    Tissue(
        "histiocytes",
        0.020,
        0.190,
        0.1,
        0.4,
        3800,
        {"histiocyte": 0.85, "lymphocyte": 0.15},
        nine="lymphocytes",
    ),
    Tissue(
        "tumour",
        0.050,
        0.200,
        0.1,
        0.4,
        4200,
        {"tumour": 0.93, "lymphocyte": 0.07},
        look=EPITHELIUM,
        nine="tumour",
    ),
    Tissue("tumour stroma", 0.020, 0.300, 0.7, 0.1, 2200, {"fibroblast": 0.6, "lymphocyte": 0.4}),
    Tissue("lumen", 0.000, 0.010, 0.0, 0.5, 0, look=EMPTY, nine="normal mucosa"),
    Tissue("tumour lumen", 0.000, 0.012, 0.0, 0.5, 0, look=EMPTY, nine="tumour"),
    Tissue("lamina propria", 0.040, 0.200, 0.3, 0.4, 6500, _LAMINA, nine="normal mucosa"),
    Tissue(
        "crypt epithelium",
        0.050,
        0.230,
        0.1,
        0.3,
        11500,
        {"epithelial": 0.97, "lymphocyte": 0.03},
        band_um=(1.0, 12.0),
        row_um=6.0,
        look=GOBLET,
        nine="normal mucosa",
    ),
    Tissue(
        "smooth muscle",
        0.030,
        0.420,
        0.45,
        0.1,
        1300,
        {"smooth muscle": 1.0},
        fibre_um=(70.0, 4.5),
        nine="smooth muscle",
    ),
    Tissue(
        "submucosa", 0.015, 0.260, 0.75, 0.1, 650, {"fibroblast": 0.8, "lymphocyte": 0.1, "endothelial": 0.1}
    ),
    Tissue("cancer stroma", 0.030, 0.330, 0.65, 0.15, 2200, _DESMOPLASTIC),
    Tissue(
        "tumour glands",
        0.060,
        0.230,
        0.1,
        0.4,
        8600,
        _MALIGNANT,
        band_um=(2.0, 26.0),
        look=EPITHELIUM,
        nine="tumour",
    ),
    Tissue("solid tumour", 0.060, 0.220, 0.1, 0.4, 6200, _MALIGNANT, look=EPITHELIUM, nine="tumour"),
    Tissue(
        "necrosis",
        0.050,
        0.330,
        0.1,
        0.6,
        900,
        {"apoptotic": 0.6, "pyknotic": 0.4},
        look=DEBRIS,
        nine="debris",
    ),
    Tissue(
        "mucus",
        0.075,
        0.045,
        0.5,
        0.3,
        120,
        {"tumour": 0.6, "lymphocyte": 0.4},
        fibre_um=(90.0, 7.0),
        look=MUCUS,
        nine="mucus",
    ),
    Tissue("lymphoid aggregate", 0.060, 0.150, 0.1, 0.4, 11000, _LYMPHOID, nine="lymphocytes"),
    Tissue(
        "benign gland",
        0.040,
        0.240,
        0.1,
        0.3,
        10500,
        {"epithelial": 1.0},
        band_um=(1.0, 13.0),
        row_um=7.0,
        look=EPITHELIUM,
        nine="normal mucosa",
    ),
    Tissue(
        "fibromuscular stroma",
        0.020,
        0.340,
        0.6,
        0.1,
        1500,
        {"smooth muscle": 0.6, "fibroblast": 0.35, "endothelial": 0.05},
        fibre_um=(55.0, 4.0),
    ),
    Tissue(
        "pattern 3",
        0.060,
        0.240,
        0.1,
        0.3,
        9500,
        {"tumour": 1.0},
        band_um=(1.0, 11.0),
        row_um=5.5,
        look=EPITHELIUM,
        nine="tumour",
    ),
    Tissue("pattern 4", 0.060, 0.240, 0.1, 0.3, 7200, {"tumour": 1.0}, look=EPITHELIUM, nine="tumour"),
    Tissue("pattern 5", 0.060, 0.230, 0.1, 0.3, 5000, {"tumour": 1.0}, look=EPITHELIUM, nine="tumour"),
    Tissue("breast stroma", 0.012, 0.300, 0.8, 0.1, 500, {"fibroblast": 0.85, "lymphocyte": 0.15}),
    Tissue("in situ tumour", 0.060, 0.220, 0.1, 0.4, 6800, {"tumour": 1.0}, look=EPITHELIUM, nine="tumour"),
)
LABELS = tuple(tissue.name for tissue in TISSUES)
#: Nuclei a mm² of each tissue (of its band, where it has one).
DENSITY_PER_MM2 = {tissue.name: tissue.per_mm2 for tissue in TISSUES}
#: Tissues that are tumour: here mitoses occur, and here markers are expressed.
MALIGNANT = (
    "tumour",
    "tumour glands",
    "solid tumour",
    "pattern 3",
    "pattern 4",
    "pattern 5",
    "in situ tumour",
)


def ground_table() -> NDArray[np.float64]:
    """(labels, 7): haematoxylin, eosin, fibres, grain, fibre length and width, look."""
    return np.array([(t.haematoxylin, t.eosin, t.fibres, t.grain, *t.fibre_um, t.look) for t in TISSUES])


def band_table() -> NDArray[np.float64]:
    """(labels, 3): from and to (microns from the basement membrane), and the row's distance; -1 where there is none."""
    return np.array([(*(t.band_um or (-1.0, -1.0)), -1.0 if t.row_um is None else t.row_um) for t in TISSUES])


def mixture_table(per_mm2: Mapping[str, float] | None = None) -> NDArray[np.float64]:
    """(labels, classes) cumulative shares; `per_mm2` adds rare cells (mitoses, look-alikes) to the malignant tissues."""
    table = np.zeros((len(TISSUES), len(CELLS)))
    for row, tissue in enumerate(TISSUES):
        for name, share in tissue.cells.items():
            table[row, CLASSES.index(name)] = share
        for name, rate in (per_mm2 or {}).items():
            if tissue.name in MALIGNANT:
                table[row, CLASSES.index(name)] += rate / tissue.per_mm2
        if table[row].any():
            table[row] /= table[row].sum()
    return table.cumsum(1)


def look_table(grade: int = 2, *, swelling: float = 1.0) -> NDArray[np.float64]:
    """(classes, 12): radius, spread, ratio from and to, haematoxylin from and to, body, its eosin, along, ragged, nucleolus,
    shape. Tumour nuclei grow and vary with the grade, 1 to 3; all swell in frozen sections."""
    rows = np.array(
        [
            (
                c.radius_um,
                c.spread,
                *c.ratio,
                *c.haematoxylin,
                c.body,
                c.body_eosin,
                c.along,
                c.ragged,
                c.nucleolus,
                c.shape,
            )
            for c in CELLS
        ]
    )
    tumour = CLASSES.index("tumour")
    rows[tumour, 0] *= (0.86, 1.0, 1.12)[grade - 1]
    rows[tumour, 1] *= (0.65, 1.0, 1.45)[grade - 1]
    rows[tumour, 9] *= (0.6, 1.0, 1.3)[grade - 1]
    rows[:, 0] *= swelling
    return rows
