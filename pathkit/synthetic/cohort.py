"""Cohorts: many patients' slides with all their truth, made in parallel, resumed where they stopped.

A plan says what every slide is to be before any is made; from it any slide's architecture can be built again (`truth_of`),
so that concentrations, instances and labels of any region are there on request.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import shapely
from joblib import Parallel, delayed
from joblib.externals.loky import get_reusable_executor
from tqdm.auto import tqdm

from pathkit.annotations import annotation_frame, write_annotations
from pathkit.annotations.rows import Row
from pathkit.files import write_text
from pathkit.geometry import Raster
from pathkit.synthetic.architecture import Architecture
from pathkit.synthetic.artefacts import KINDS, Artefact, artefact_frame, artefact_mask, random_artefacts
from pathkit.synthetic.breast import breast
from pathkit.synthetic.colon import colon
from pathkit.synthetic.lymph import lymph_node
from pathkit.synthetic.markers import MARKERS
from pathkit.synthetic.objects import nuclei
from pathkit.synthetic.prostate import prostate_core
from pathkit.synthetic.pyramid import write_pyramid
from pathkit.synthetic.scanner import SITES, Site, scan
from pathkit.synthetic.tissues import LABELS, MALIGNANT
from pathkit.tables import check_slides, read_table, write_table

__all__ = [
    "GENERATOR_VERSION",
    "Truth",
    "breast_cohort",
    "colorectal_cohort",
    "leak_cohort",
    "lymph_node_cohort",
    "prostate_cohort",
    "slides_of",
    "truth_of",
]

#: Of each kind of cohort; raised when the same seed gives other slides. Part of the cache's key.
GENERATOR_VERSION = {
    "lymph_node_cohort": 4,
    "colorectal_cohort": 4,
    "prostate_cohort": 4,
    "breast_cohort": 4,
    "leak_cohort": 4,
}
#: Kinds of metastases that a node can have.
_KINDS = ("itc", "micro", "macro")
#: Sites that cohorts take by default; the others of `SITES` are there to be strange.
_HOME = ("north", "east", "south")
_ORGANS: dict[str, Callable[..., Architecture]] = {
    "lymph node": lymph_node,
    "colon": colon,
    "prostate": prostate_core,
    "breast": breast,
}
_COLOURS = ("#d55e00", "#0072b2", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#f0e442", "#000000", "#999999")
_PATHS = {
    "path": ".tif",
    "annotations_path": ".geojson",
    "objects_path": ".objects.parquet",
    "glands_path": ".glands.geojson",
    "artefacts_path": ".artefacts.geojson",
}
Spec = dict[str, Any]


@dataclass(frozen=True)
class Truth:
    """All that is known of a synthetic slide: give it to `concentrations`, `instances`, `nuclei` or `scan`."""

    architecture: Architecture
    site: Site
    marker: str | None
    artefacts: tuple[Artefact, ...]
    stain_seed: int | None = None

    def tissue(self, *, mpp: float = 8.0, fat: bool = True) -> Raster:
        """Where there is tissue to be read: not glass, not torn, not under ink; with `fat` False without fat (bool)."""
        labels, step = self.architecture.labels, mpp / self.architecture.map_um
        # The slide's own size in whole pixels, as a mask of the slide has it.
        width, height = (
            int(np.ceil(int(n / self.site.mpp) * self.site.mpp / mpp - 1e-6))
            for n in self.architecture.size_um
        )
        rows, cols = (
            ((np.arange(n) + 0.5) * step).astype(int).clip(0, m - 1)
            for n, m in zip((height, width), labels.shape, strict=True)
        )
        here = labels[np.ix_(rows, cols)]
        found = (here > 0) & (fat | (here != LABELS.index("fat")))
        for artefact in self.artefacts:
            if artefact.kind in ("pen", "tear"):
                found &= ~artefact_mask(artefact, (0, 0), (width, height), mpp)
        return Raster(found, mpp)


# The cohorts -----------------------------------------------------------------------------------------------------


def lymph_node_cohort(
    folder: str | os.PathLike[str],
    *,
    n_patients: int = 20,
    nodes_per_patient: int = 2,
    positive: float = 0.5,
    kinds: tuple[str, ...] = _KINDS,
    size_um: tuple[float, float] = (3200.0, 2600.0),
    sites: tuple[str, ...] = _HOME,
    artefacts: float = 0.0,
    mpp: float | None = None,
    seed: int = 0,
    workers: int = 2,
    progress: bool = True,
) -> pd.DataFrame:
    """Make, or finish making, the slides of a cohort of patients with lymph nodes.

    Parameters
    ----------
    folder : path
        Where slides and truth go.
    n_patients, nodes_per_patient : int
    positive : float
        Share of patients with metastases, 0 to 1. Their first node is positive, each further one with chance 0.5.
    kinds : tuple of {"itc", "micro", "macro"}
        Kinds of metastases, dealt out in turn so that each occurs equally often.
    size_um : (width, height)
        Of each slide.
    sites : tuple of str
        Names of `SITES`, dealt out in turn over positive and negative patients alike.
    artefacts : float
        Share of the slides with one to three artefacts.
    mpp : float, optional
        Of the scans, instead of about 1.
    seed : int
    workers : int
        Processes.

    Returns
    -------
    DataFrame
        Slides: slide_id, patient_id, site, path, mpp, label ("normal" or "tumour"), category, annotations_path,
        objects_path, n_lesions, tumour_um2.

    Raises
    ------
    ValueError
        If a parameter is impossible, the folder holds another cohort, or the disk is too small.
    """
    who = "lymph_node_cohort"
    parameters = _common(who, n_patients, sites, artefacts, mpp, size_um, seed)
    parameters |= {"nodes_per_patient": nodes_per_patient, "positive": positive, "kinds": list(kinds)}
    if nodes_per_patient < 1:
        raise ValueError(f"{who}: at least one node a patient.")
    _check_share(who, positive=positive)
    _check_names(who, "kinds", kinds, _KINDS)
    rng = np.random.default_rng([seed, 3])
    is_positive = np.arange(n_patients) < round(n_patients * positive)
    plan, dealt = [], 0
    for rank, patient in enumerate(rng.permutation(n_patients)):
        for node in range(nodes_per_patient):
            category = "normal"
            if is_positive[rank] and (node == 0 or rng.random() < 0.5):
                category = kinds[dealt % len(kinds)]
                dealt += 1
            plan.append(
                _spec(
                    f"P{patient:03d}-N{node + 1}",
                    f"P{patient:03d}",
                    sites[rank % len(sites)],
                    "lymph node",
                    rng,
                    parameters,
                    {"category": category},
                    label="normal" if category == "normal" else "tumour",
                    category=category,
                )
            )
    return _made(folder, parameters, plan, workers, progress)


def colorectal_cohort(
    folder: str | os.PathLike[str],
    *,
    n_patients: int = 40,
    msi: float = 0.3,
    mutated: float = 0.4,
    confounded: float = 0.0,
    sites: tuple[str, ...] = _HOME,
    size_um: tuple[float, float] = (1600.0, 1400.0),
    artefacts: float = 0.0,
    mpp: float | None = None,
    months: float = 60.0,
    seed: int = 0,
    workers: int = 2,
    progress: bool = True,
) -> pd.DataFrame:
    """Make, or finish making, one slide each of patients with colorectal carcinoma, with their outcome.

    The hazard of death is ``exp(0.65 (stage - 2) + 0.35 (grade - 2) + 0.03 (age - 68) - 0.5 log2(TIL / 150))`` times a
    constant; TIL are the tumour-infiltrating lymphocytes a mm² of tumour. A mutation adds a tenth of mucus and takes some
    lymphocytes away: a weak signal. Observation ends by chance or after `months`.

    Parameters
    ----------
    folder : path
    n_patients : int
    msi, mutated : float
        Shares of patients.
    confounded : float
        0: the site says nothing about msi. 1: all patients with msi come from the first site, all others from the rest.
    sites, size_um, artefacts, mpp, seed, workers
        As `lymph_node_cohort`.
    months : float
        Of observation.

    Returns
    -------
    DataFrame
        Slides: as `lymph_node_cohort`, label ("msi" or "mss"), stage, grade, age, mutation, til_per_mm2, months, death (bool),
        log_hazard. Annotations are the nine classes of NCT-CRC; glands_path outlines the glands.

    Raises
    ------
    ValueError
        If a parameter is impossible, the folder holds another cohort, or the disk is too small.
    """
    who = "colorectal_cohort"
    parameters = _common(who, n_patients, sites, artefacts, mpp, size_um, seed)
    parameters |= {"msi": msi, "mutated": mutated, "confounded": confounded, "months": months}
    _check_share(who, msi=msi, mutated=mutated, confounded=confounded)
    if not months > 0:
        raise ValueError(f"{who}: months must be positive, got {months}.")
    rng = np.random.default_rng([seed, 4])
    unstable = rng.permutation(np.arange(n_patients) < round(n_patients * msi))
    plan = []
    for patient in range(n_patients):
        stage, age = int(rng.integers(1, 4)), float(np.clip(rng.normal(68, 10), 35, 92).round())
        grade = 3 if unstable[patient] else int(rng.choice([1, 2, 3], p=[0.25, 0.55, 0.2]))
        mutation = bool(rng.random() < mutated)
        til = float(rng.lognormal(np.log(130), 0.6)) * (0.8 if mutation else 1.0)
        mucus = (0.25 if unstable[patient] else 0.03) + 0.1 * mutation
        site = sites[patient % len(sites)]
        if rng.random() < confounded and len(sites) > 1:
            site = sites[0] if unstable[patient] else sites[1 + patient % (len(sites) - 1)]
        total = til + 700.0 * unstable[patient]
        hazard = 0.65 * (stage - 2) + 0.35 * (grade - 2) + 0.03 * (age - 68) - 0.5 * np.log2(total / 150)
        dies = rng.exponential(48 / np.exp(hazard))
        ends = min(months, rng.exponential(90))
        how = {
            "grade": grade,
            "stage": stage,
            "msi": bool(unstable[patient]),
            "lymphocytes_per_mm2": til,
            "mucus": mucus,
        }
        plan.append(
            _spec(
                f"C{patient:03d}",
                f"C{patient:03d}",
                site,
                "colon",
                rng,
                parameters,
                how,
                label="msi" if unstable[patient] else "mss",
                stage=stage,
                grade=grade,
                age=age,
                mutation=mutation,
                til_per_mm2=round(total, 1),
                months=round(max(0.1, min(dies, ends)), 2),
                death=bool(dies <= ends),
                log_hazard=round(float(hazard), 4),
            )
        )
    return _made(folder, parameters, plan, workers, progress)


def prostate_cohort(
    folder: str | os.PathLike[str],
    *,
    n_patients: int = 20,
    cores_per_patient: int = 2,
    positive: float = 0.75,
    sites: tuple[str, ...] = _HOME,
    size_um: tuple[float, float] = (3000.0, 800.0),
    artefacts: float = 0.0,
    mpp: float | None = None,
    seed: int = 0,
    workers: int = 2,
    progress: bool = True,
) -> pd.DataFrame:
    """Make, or finish making, needle cores of patients with and without prostate carcinoma.

    Parameters
    ----------
    folder : path
    n_patients, cores_per_patient : int
    positive : float
        Share of patients with carcinoma, whose grade groups are dealt out in turn.
    sites, size_um, artefacts, mpp, seed, workers
        As `lymph_node_cohort`.

    Returns
    -------
    DataFrame
        Slides: as `lymph_node_cohort`, label (the ISUP grade group of the core, "0" to "5"), isup (int), and the shares of the
        core that are pattern_3, pattern_4 and pattern_5. Annotations outline benign tissue and the patterns.

    Raises
    ------
    ValueError
        If a parameter is impossible, the folder holds another cohort, or the disk is too small.
    """
    who = "prostate_cohort"
    parameters = _common(who, n_patients, sites, artefacts, mpp, size_um, seed)
    parameters |= {"cores_per_patient": cores_per_patient, "positive": positive}
    if cores_per_patient < 1:
        raise ValueError(f"{who}: at least one core a patient.")
    _check_share(who, positive=positive)
    rng = np.random.default_rng([seed, 5])
    ill = rng.permutation(np.arange(n_patients) < round(n_patients * positive))
    plan, dealt = [], 0
    for patient in range(n_patients):
        group = 0
        if ill[patient]:
            group, dealt = 1 + dealt % 5, dealt + 1
        for core in range(cores_per_patient):
            shares = _shares_of(rng, group) if core == 0 or rng.random() < 0.6 else {}
            plan.append(
                _spec(
                    f"B{patient:03d}-C{core + 1}",
                    f"B{patient:03d}",
                    sites[patient % len(sites)],
                    "prostate",
                    rng,
                    parameters,
                    {"shares": shares},
                    label="?",
                )
            )
    return _made(folder, parameters, plan, workers, progress)


def _shares_of(rng: np.random.Generator, group: int) -> dict[str, float]:
    """Shares of the core for an ISUP grade group."""
    if group == 0:
        return {}
    of_tumour = {
        1: (1.0, 0.0, 0.0),
        2: (rng.uniform(0.6, 0.85), 0.0, 0.0),
        3: (rng.uniform(0.15, 0.4), 0.0, 0.0),
        4: (0.0, 1.0, 0.0),
        5: (0.0, rng.uniform(0.2, 0.6), 0.0),
    }[group]
    three, four = of_tumour[0], of_tumour[1]
    if group in (2, 3):
        four = 1 - three
    five = 1 - three - four
    whole = rng.uniform(0.35, 0.8)
    names = ("pattern 3", "pattern 4", "pattern 5")
    return {n: round(whole * v, 4) for n, v in zip(names, (three, four, five), strict=True) if v > 1e-6}


def breast_cohort(
    folder: str | os.PathLike[str],
    *,
    n_patients: int = 20,
    kinds: tuple[str, ...] = ("invasive",),
    marker: str | None = None,
    mitoses: float = 1.0,
    sites: tuple[str, ...] = _HOME,
    size_um: tuple[float, float] = (1600.0, 1400.0),
    artefacts: float = 0.0,
    mpp: float | None = None,
    seed: int = 0,
    workers: int = 2,
    progress: bool = True,
) -> pd.DataFrame:
    """Make, or finish making, one slide each of patients with breast lesions.

    Parameters
    ----------
    folder : path
    n_patients : int
    kinds : tuple of {"benign", "in situ", "invasive"}
        Dealt out in turn.
    marker : str, optional
        Immunohistochemistry for this marker instead of haematoxylin and eosin. The patients of a seed are the same with
        and without, and so is their tissue.
    mitoses : float
        How many times more dividing cells than the grade's usual 2, 6 or 16 a mm²: more to learn from on small slides.
    sites, size_um, artefacts, mpp, seed, workers
        As `lymph_node_cohort`.

    Returns
    -------
    DataFrame
        Slides: as `lymph_node_cohort`, label (the kind), grade, mitoses_per_mm2, and what is expressed: ki67, er and pr (shares
        of tumour cells), her2 (0 to 3), pdl1_tumour and pdl1_immune (shares). With a marker the object tables hold its level.

    Raises
    ------
    ValueError
        If a parameter is impossible, the folder holds another cohort, or the disk is too small.
    """
    who = "breast_cohort"
    parameters = _common(who, n_patients, sites, artefacts, mpp, size_um, seed)
    parameters |= {"kinds": list(kinds), "marker": marker}
    if not mitoses >= 0:
        raise ValueError(f"breast_cohort: mitoses is a factor of 0 or more, got {mitoses}.")
    if mitoses != 1:  # said only where it differs, so that cohorts made before stay what they are
        parameters["mitoses"] = float(mitoses)
    _check_names(who, "kinds", kinds, ("benign", "in situ", "invasive"))
    if marker is not None:
        _check_names(who, "marker", (marker,), tuple(MARKERS))
    rng = np.random.default_rng([seed, 6])
    plan = []
    for patient in range(n_patients):
        grade = 1 + int(rng.integers(3))
        luminal = rng.random() < 0.75
        expressed: dict[str, Any] = {
            "Ki-67": round(float(np.clip(rng.beta(1.5, 5) + 0.08 * (grade - 1), 0.02, 0.9)), 3),
            "ER": round(float(rng.uniform(0.3, 0.98)) if luminal else 0.0, 3),
            "PR": round(float(rng.uniform(0.05, 0.9)) if luminal and rng.random() < 0.85 else 0.0, 3),
            "HER2": int(patient % 4),
            "PD-L1": [round(float(rng.beta(0.7, 3)), 3), round(float(rng.beta(1, 4)), 3)],
        }
        kind = kinds[patient % len(kinds)]
        rate = {1: 2.0, 2: 6.0, 3: 16.0}[grade] * mitoses
        how = {"kind": kind, "grade": grade, "markers": expressed}
        if mitoses != 1:
            how["mitoses_per_mm2"] = rate
        plan.append(
            _spec(
                f"M{patient:03d}",
                f"M{patient:03d}",
                sites[patient % len(sites)],
                "breast",
                rng,
                parameters,
                how,
                marker=marker,
                label=kind,
                grade=grade,
                mitoses_per_mm2=rate,
                ki67=expressed["Ki-67"],
                er=expressed["ER"],
                pr=expressed["PR"],
                her2=expressed["HER2"],
                pdl1_tumour=expressed["PD-L1"][0],
                pdl1_immune=expressed["PD-L1"][1],
            )
        )
    return _made(folder, parameters, plan, workers, progress)


def leak_cohort(
    folder: str | os.PathLike[str],
    *,
    n_patients: int = 48,
    slides_per_patient: int = 2,
    shares: tuple[float, ...] = (0.75, 0.375, 0.1875),
    sites: tuple[str, ...] = _HOME,
    size_um: tuple[float, float] = (1000.0, 800.0),
    mpp: float | None = None,
    seed: int = 0,
    workers: int = 2,
    progress: bool = True,
) -> pd.DataFrame:
    """Make, or finish making, slides whose label cannot be seen in them: what a model finds all the same is a leak.

    All slides are normal lymph nodes. The label is dealt out to patients and changes nothing in the tissue. Three things
    can give it away: patches of one slide resemble each other; the slides of a patient were stained on one day; and the
    laboratories differ in their share of positive patients.

    Parameters
    ----------
    folder : path
    n_patients, slides_per_patient : int
    shares : tuple of float
        Share of positive patients at each of `sites`.
    sites, size_um, mpp, seed, workers
        As `lymph_node_cohort`.

    Returns
    -------
    DataFrame
        Slides: slide_id, patient_id, site, paths, mpp, label ("positive" or "negative").

    Raises
    ------
    ValueError
        If a parameter is impossible, the folder holds another cohort, or the disk is too small.
    """
    who = "leak_cohort"
    parameters = _common(who, n_patients, sites, 0.0, mpp, size_um, seed)
    parameters |= {"slides_per_patient": slides_per_patient, "shares": list(shares)}
    if slides_per_patient < 1 or len(shares) != len(sites):
        raise ValueError(
            f"{who}: at least one slide a patient, and a share for each of the {len(sites)} sites."
        )
    _check_share(who, **{f"share of {site}": share for site, share in zip(sites, shares, strict=True)})
    rng = np.random.default_rng([seed, 8])
    plan = []
    for number, (site, share) in enumerate(zip(sites, shares, strict=True)):
        patients = np.arange(number, n_patients, len(sites))
        positive = rng.permutation(np.arange(len(patients)) < round(len(patients) * share))
        for patient, is_positive in zip(patients, positive, strict=True):
            day = int(rng.integers(1, 2**24))
            for part in range(slides_per_patient):
                spec = _spec(
                    f"L{patient:03d}-S{part + 1}",
                    f"L{patient:03d}",
                    site,
                    "lymph node",
                    rng,
                    parameters,
                    {"category": "normal"},
                    label="positive" if is_positive else "negative",
                )
                plan.append(spec | {"stain_seed": day})
    return _made(folder, parameters, plan, workers, progress)


# Reading back ----------------------------------------------------------------------------------------------------


def slides_of(folder: str | os.PathLike[str]) -> pd.DataFrame:
    """The slides table of a finished cohort, with its paths as they are now."""
    folder = Path(folder)
    return check_slides(_with_paths(read_table(folder / "slides.parquet"), folder))


def truth_of(slide: pd.Series | str, folder: str | os.PathLike[str] | None = None) -> Truth:
    """Build the architecture of a slide again.

    Parameters
    ----------
    slide : row of a slides table, or slide_id
    folder : path, optional
        Of the cohort; with a row it is where its file lies.

    Raises
    ------
    ValueError
        If the folder holds no cohort, or no such slide.
    """
    name = slide if isinstance(slide, str) else str(slide["slide_id"])
    if folder is None:
        if isinstance(slide, str):
            raise ValueError("truth_of: with a slide_id, say in which folder: truth_of('P001-N1', folder).")
        folder = Path(str(slide["path"])).parent
    path = Path(folder) / "manifest.json"
    if not path.exists():
        raise ValueError(f"truth_of: {folder} holds no synthetic cohort (no manifest.json).")
    plan = json.loads(path.read_text(encoding="utf-8"))["slides"]
    found = [spec for spec in plan if spec["slide_id"] == name]
    if not found:
        raise ValueError(f"truth_of: the cohort has no slide {name!r}.")
    return _truth(found[0])


# Planning --------------------------------------------------------------------------------------------------------


def _spec(
    slide_id: str,
    patient_id: str,
    site: str,
    organ: str,
    rng: np.random.Generator,
    parameters: dict[str, Any],
    how: dict[str, Any],
    *,
    marker: str | None = None,
    **columns: Any,
) -> Spec:
    """What one slide is to be; `how` are the parameters of its organ, `columns` those of its row."""
    seed, n = int(rng.integers(1, 2**24)), int(rng.integers(1, 4))
    spoilt = rng.random() < parameters["artefacts"]
    return {
        "slide_id": slide_id,
        "patient_id": patient_id,
        "site": site,
        "organ": organ,
        "seed": seed,
        "mpp": parameters["mpp"],
        "marker": marker,
        "artefacts": sorted(rng.choice(KINDS, n, replace=False).tolist()) if spoilt else [],
        "how": how | {"size_um": parameters["size_um"]},
        "columns": columns,
    }


def _common(
    who: str,
    n_patients: int,
    sites: Sequence[str],
    artefacts: float,
    mpp: float | None,
    size_um: tuple[float, float],
    seed: int,
) -> dict[str, Any]:
    """Checked parameters that all cohorts have."""
    if n_patients < 1:
        raise ValueError(f"{who}: at least one patient, got {n_patients}.")
    if mpp is not None and not mpp > 0:
        raise ValueError(f"{who}: mpp must be positive, got {mpp}.")
    _check_share(who, artefacts=artefacts)
    _check_names(who, "sites", sites, tuple(SITES))
    return {
        "generator": GENERATOR_VERSION[who],
        "cohort": who,
        "n_patients": n_patients,
        "sites": list(sites),
        "artefacts": artefacts,
        "mpp": mpp,
        "size_um": [float(v) for v in size_um],
        "seed": seed,
    }


def _check_share(who: str, **shares: float) -> None:
    for name, value in shares.items():
        if not 0 <= value <= 1:
            raise ValueError(f"{who}: {name} is a share from 0 to 1, got {value}.")


def _check_names(who: str, what: str, given: Iterable[str], known: tuple[str, ...]) -> None:
    given = list(given)
    if not given or any(v not in known for v in given):
        raise ValueError(f"{who}: {what} are among {', '.join(known)}, got {given}.")


# Making ----------------------------------------------------------------------------------------------------------


def _made(
    folder: str | os.PathLike[str], parameters: dict[str, Any], plan: list[Spec], workers: int, progress: bool
) -> pd.DataFrame:
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    plan = sorted(plan, key=lambda spec: spec["slide_id"])
    _check_manifest(folder, {"parameters": parameters, "slides": plan})
    todo = [spec for spec in plan if not (folder / f"{spec['slide_id']}.tif").exists()]
    _check_disk(folder, todo)
    _make_all(folder, todo, workers, progress)
    table = pd.DataFrame([_described(folder, spec) for spec in plan])
    write_table(table, folder / "slides.parquet", **parameters)
    return slides_of(folder)


def _make_all(folder: Path, todo: list[Spec], workers: int, progress: bool) -> None:
    with tqdm(total=len(todo), desc="making slides", unit="slide", disable=not progress or not todo) as bar:
        if workers <= 1 or len(todo) <= 1:
            for spec in todo:
                _make_slide(folder, spec)
                bar.update()
            return
        # Fresh processes (torch and OpenMP threads of a notebook do not survive a fork), and loky's, because they do not
        # run a user's script again to start: it needs no `if __name__ == "__main__"`.
        _warm_up(todo[0])
        pool = Parallel(
            min(workers, len(todo)), backend="loky", return_as="generator_unordered", batch_size=1
        )
        try:
            for _ in pool(delayed(_make_slide)(folder, spec) for spec in todo):
                bar.update()
        finally:
            get_reusable_executor().shutdown(
                wait=True, kill_workers=True
            )  # idle workers would keep their memory


def _warm_up(spec: Spec) -> None:
    """Compile once, here, so that the workers find the compiled code on disk instead of each compiling it."""
    small = lymph_node(1, size_um=(400, 400))
    scan(small, SITES[spec["site"]], (0, 0), (16, 16))
    if spec["marker"]:
        scan(small, SITES[spec["site"]], (0, 0), (16, 16), marker=spec["marker"])


def _truth(spec: Spec) -> Truth:
    architecture = _architecture(spec)
    site = SITES[spec["site"]] if spec["mpp"] is None else SITES[spec["site"]].at(spec["mpp"])
    artefacts = random_artefacts(architecture, spec["artefacts"]) if spec["artefacts"] else []
    return Truth(architecture, site, spec["marker"], tuple(artefacts), spec.get("stain_seed"))


def _architecture(spec: Spec) -> Architecture:
    """The tissue of a slide; seeds in which a deposit finds no place are passed over."""
    how = dict(spec["how"])
    how["size_um"] = tuple(how["size_um"])
    if "markers" in how:
        how["markers"] = {k: tuple(v) if isinstance(v, list) else v for k, v in how["markers"].items()}
    for attempt in range(50):
        try:
            return _ORGANS[spec["organ"]](spec["seed"] + attempt, **how)
        except RuntimeError:
            continue
    raise ValueError(f"{spec['slide_id']}: no {spec['organ']} with {how} found a place.")


def _make_slide(folder: Path, spec: Spec) -> None:
    """Truth first, the slide last: where the slide is, all is."""
    truth, name = _truth(spec), spec["slide_id"]
    architecture, site = truth.architecture, truth.site
    write_annotations(annotation_frame(_outlines(architecture, site.mpp)), folder / f"{name}.geojson")
    if len(architecture.glands):
        rows = [
            Row(_to_l0(g.geometry, site.mpp), g[2], f"gland {g.gland_id}", "#009e73")
            for g in architecture.glands.itertuples()
        ]
        write_annotations(annotation_frame(rows), folder / f"{name}.glands.geojson")
    if truth.artefacts:
        write_annotations(artefact_frame(truth.artefacts, site.mpp), folder / f"{name}.artefacts.geojson")
    objects = nuclei(architecture, slide_id=name, marker=truth.marker)
    write_table(objects, folder / f"{name}.objects.parquet", synthetic=True)
    size = tuple(int(n / site.mpp) for n in architecture.size_um)
    facts: dict[str, Any] = {
        "n_lesions": len(architecture.lesions),
        "tumour_um2": float(architecture.lesions["area_um2"].sum()),
        "n_objects": len(objects),
        "tumour_tissue_mm2": architecture.area_mm2(*[t for t in MALIGNANT if t in LABELS]),
    }
    if architecture.organ == "prostate":
        facts["isup"] = architecture.facts["isup"]
        facts["label"] = str(architecture.facts["isup"])
        facts |= {k.replace(" ", "_"): round(float(v), 4) for k, v in architecture.facts["shares"].items()}
    write_text(folder / f"{name}.json", json.dumps(facts))

    def read(location: tuple[int, int], part: tuple[int, int]) -> np.ndarray:
        kept: dict[str, Any] = {
            "marker": truth.marker,
            "artefacts": truth.artefacts,
            "stain_seed": truth.stain_seed,
        }
        return scan(architecture, site, location, part, **kept)

    write_pyramid(read, folder / f"{name}.tif", mpp=site.mpp, size=(size[0], size[1]), quality=site.quality)


def _outlines(architecture: Architecture, mpp: float) -> list[Row]:
    """Deposits of a lymph node; of other organs what a pathologist would outline."""
    if architecture.organ == "lymph node":
        return [
            Row(_to_l0(row.geometry, mpp), "tumour", f"{row.category} {row.lesion_id}", "#d55e00")
            for row in architecture.lesions.itertuples()
        ]
    classes = sorted(set(architecture.regions["class"]))
    return [
        Row(_to_l0(geometry, mpp), name, f"{name} {i}", _COLOURS[classes.index(name) % len(_COLOURS)])
        for i, (name, geometry) in enumerate(
            zip(architecture.regions["class"], architecture.regions["geometry"], strict=True)
        )
    ]


def _to_l0(geometry: shapely.Geometry, mpp: float) -> shapely.Geometry:
    return shapely.transform(geometry, lambda xy: np.round(xy / mpp, 2))


def _described(folder: Path, spec: Spec) -> dict[str, Any]:
    """The row of a slide, from what was written."""
    site = SITES[spec["site"]]
    row = {
        "slide_id": spec["slide_id"],
        "patient_id": spec["patient_id"],
        "site": spec["site"],
        "mpp": site.mpp if spec["mpp"] is None else spec["mpp"],
        **spec["columns"],
        "artefacts": ", ".join(spec["artefacts"]),
    }
    if spec["marker"]:
        row["marker"] = spec["marker"]
    return row | json.loads((folder / f"{spec['slide_id']}.json").read_text(encoding="utf-8"))


def _with_paths(table: pd.DataFrame, folder: Path) -> pd.DataFrame:
    """The columns of files that exist, after the site."""
    at = list(table.columns).index("site") + 1
    for column, suffix in _PATHS.items():
        paths = [folder / f"{slide_id}{suffix}" for slide_id in table["slide_id"]]
        there = [p.exists() for p in paths]
        if all(there):
            table.insert(at, column, [str(p) for p in paths])
            at += 1
        elif any(there):
            table.insert(at, column, [str(p) if e else "" for p, e in zip(paths, there, strict=True)])
            at += 1
    return table


# Checks ----------------------------------------------------------------------------------------------------------


def _check_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    path = folder / "manifest.json"
    text = json.dumps(manifest, indent=1, sort_keys=True)
    if path.exists() and path.read_text(encoding="utf-8") != text:
        raise ValueError(
            f"{folder}: holds a cohort made with other parameters (manifest.json). Choose another folder."
        )
    write_text(path, text)


def _check_disk(folder: Path, todo: list[Spec]) -> None:
    # Bytes: JPEG of stained tissue and the tables, for each pixel and for each square micron.
    area = sum(spec["how"]["size_um"][0] * spec["how"]["size_um"][1] for spec in todo)
    pixels = sum(
        spec["how"]["size_um"][0] * spec["how"]["size_um"][1] / (spec["mpp"] or SITES[spec["site"]].mpp) ** 2
        for spec in todo
    )
    needed, free = 0.45 * pixels + 0.25 * area, shutil.disk_usage(folder).free
    if needed > free:
        raise ValueError(
            f"{folder}: {len(todo)} slides need about {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free."
        )
