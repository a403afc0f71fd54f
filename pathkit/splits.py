"""Honest splits: what belongs to one patient stays on one side.

The unit of a split is the patient, since slides of one patient share tissue, staining day and scanner. Patients are
shuffled within strata from a seed, after sorting by id, so that a split depends neither on the order of rows nor on how
many slides a patient has.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

__all__ = [
    "LeakError",
    "check_no_leak",
    "check_patients",
    "hold_out_site",
    "leak_report",
    "out_of_fold",
    "patient_folds",
    "split_patients",
]

FRACTIONS = {"train": 0.6, "val": 0.2, "test": 0.2}


class LeakError(ValueError):
    """The same patient, slide or file stands on two sides of a split."""


def split_patients(
    table: pd.DataFrame,
    *,
    fractions: Mapping[str, float] | None = None,
    by: str = "patient_id",
    stratify: str | None = None,
    seed: int = 0,
) -> pd.DataFrame:
    """Assign every patient, with all their rows, to one part.

    Parameters
    ----------
    table : DataFrame
        Slides, patches, or any table with a column `by`.
    fractions : mapping, optional
        Name of each part and its share of the patients; train 0.6, val 0.2, test 0.2 by default. Shares sum to 1.
    by : str
        The column whose values must not be divided.
    stratify : str, optional
        Balance this column over the parts. A patient with several values counts under the one that sorts last (so
        0/1 and normal/tumour count a patient with one tumour slide as tumour).
    seed : int

    Returns
    -------
    DataFrame
        A copy with the column ``split``.

    Raises
    ------
    ValueError
        If shares do not sum to 1, a column is missing or has missing values, or there are too few patients to give
        every part one.
    """
    shares = dict(FRACTIONS if fractions is None else fractions)
    if not shares or any(s <= 0 for s in shares.values()) or abs(sum(shares.values()) - 1) > 1e-6:
        raise ValueError(f"split_patients: shares must be positive and sum to 1, got {shares}.")
    _need(table, by, *([stratify] if stratify else []))
    strata = _strata(table, by, stratify)
    if len(strata) < len(shares):
        raise ValueError(
            f"split_patients: {len(strata)} different {by} cannot fill {len(shares)} parts ({', '.join(shares)}). Add"
            " patients, or ask for fewer parts."
        )
    assigned = _assign(strata, shares, np.random.default_rng(seed))
    return table.assign(split=table[by].map(assigned))


def hold_out_site(
    table: pd.DataFrame, site: str, *, label: str | None = "label", column: str = "site"
) -> pd.DataFrame:
    """All rows of one site are the test part, the others are for training.

    Parameters
    ----------
    table : DataFrame
        With a column `column`.
    site : str
        The site to hold out.
    label : str, optional
        Warn where one of the sides has a single value in this column, since no AUC can be computed on it.

    Returns
    -------
    DataFrame
        A copy with the column ``split`` ("train" or "test").

    Raises
    ------
    ValueError
        If there is no such site, or no other.
    """
    _need(table, column)
    sites = sorted(table[column].unique())
    if site not in sites:
        raise ValueError(f"hold_out_site: no site {site!r}; the table has {', '.join(map(str, sites))}.")
    if len(sites) == 1:
        raise ValueError(f"hold_out_site: {site!r} is the only site, nothing would be left to train on.")
    split = table.assign(split=np.where(table[column] == site, "test", "train"))
    if label and label in split:
        for part, rows in split.groupby("split"):
            if rows[label].nunique() == 1:
                only = rows[label].iloc[0]
                message = f"hold_out_site: the {part} part has one {label} only ({only!r}): no AUC can be computed on it."
                warnings.warn(message, stacklevel=2)
    return split


def patient_folds(
    table: pd.DataFrame, n: int = 5, *, by: str = "patient_id", stratify: str | None = None, seed: int = 0
) -> pd.DataFrame:
    """Number patients into `n` folds for cross-validation.

    Returns
    -------
    DataFrame
        A copy with the column ``fold``, 0 to n - 1; a patient's rows share one fold.

    Raises
    ------
    ValueError
        If there are fewer patients than folds.
    """
    _need(table, by, *([stratify] if stratify else []))
    strata = _strata(table, by, stratify)
    if not 2 <= n <= len(strata):
        raise ValueError(
            f"patient_folds: {n} folds of {len(strata)} different {by}; ask for 2 to {len(strata)}."
        )
    order = _shuffled(strata, np.random.default_rng(seed))
    fold = {patient: i % n for i, patient in enumerate(order)}
    return table.assign(fold=table[by].map(fold))


def check_no_leak(
    table: pd.DataFrame, *, by: str | Sequence[str] = "patient_id", split: str = "split"
) -> pd.DataFrame:
    """Make sure that no patient (or slide, or file) stands on two sides.

    Parameters
    ----------
    table : DataFrame
        With the column `split` and each column of `by`.
    by : str or sequence of str
        Columns whose values must not be shared between parts. Add ``"path"`` or a hash of the file to catch one
        slide under two ids.

    Returns
    -------
    DataFrame
        `table` itself.

    Raises
    ------
    LeakError
        Naming what is shared, by which parts, and the way out.
    """
    columns = [by] if isinstance(by, str) else list(by)
    _need(table, split, *columns)
    for column in columns:
        parts = table.groupby(column, observed=True)[split].nunique()
        shared = parts.index[parts > 1]
        if len(shared):
            example = shared[0]
            sides = sorted(table.loc[table[column] == example, split].unique())
            raise LeakError(
                f"{len(shared)} {column} on more than one side, first {example!r} in {' and '.join(map(str, sides))}. The"
                f" score would be inflated: split again with split_patients(table, by={column!r})."
            )
    return table


def check_patients(table: pd.DataFrame, *, constant: str | Sequence[str] = "site") -> pd.DataFrame:
    """Make sure that no two patients share an id: what belongs to a person is the same on all their rows.

    Hospitals number their patients alike, so that patient 17 of one and patient 17 of another become one when tables are
    joined. A split then moves both together, which loses data, or counts their slides as one patient's, which falsifies
    every interval.

    Parameters
    ----------
    table : DataFrame
        With patient_id and each column of `constant`.
    constant : str or sequence of str
        What a person has one of: the hospital, the sex, the year of birth.

    Returns
    -------
    DataFrame
        `table` itself.

    Raises
    ------
    LeakError
        Naming a patient_id with two values, and the way out.
    """
    columns = [constant] if isinstance(constant, str) else list(constant)
    _need(table, "patient_id", *columns)
    for column in columns:
        values = table.groupby("patient_id", observed=True)[column].unique()
        several = values[values.map(len) > 1]
        if len(several):
            found = " and ".join(map(str, sorted(several.iloc[0], key=str)))
            raise LeakError(
                f"{len(several)} patient_id with more than one {column}, first {several.index[0]!r} with {found}: two"
                f" patients with one id? Tell them apart: table['patient_id'] = table[{column!r}] + '-' + table['patient_id']."
            )
    return table


def leak_report(
    table: pd.DataFrame,
    *,
    units: Sequence[str] = ("slide_id", "patient_id", "site"),
    train: str = "train",
    test: str = "test",
    split: str = "split",
) -> pd.DataFrame:
    """How much of the test part is known from training, by slide, by patient, by site.

    Parameters
    ----------
    table : DataFrame
        Slides or patches, with the column `split` and each column of `units`.
    units : sequence of str
    train, test : str
        Names of the two parts.

    Returns
    -------
    DataFrame
        One row a unit: in_train, in_test and shared (their numbers), and leaked, the share of the test rows whose unit is
        in training too. A shared site is no error where the model will be used at these sites only.

    Raises
    ------
    ValueError
        If a column is missing, or one of the parts is empty.
    """
    _need(table, split, *units)
    parts = {name: table[table[split] == name] for name in (train, test)}
    for name, rows in parts.items():
        if not len(rows):
            raise ValueError(
                f"leak_report: no row in the part {name!r}; there are {sorted(table[split].unique())}."
            )
    report = []
    for unit in units:
        known = parts[test][unit].isin(parts[train][unit])
        report.append(
            {
                "unit": unit,
                "in_train": parts[train][unit].nunique(),
                "in_test": parts[test][unit].nunique(),
                "shared": parts[test].loc[known, unit].nunique(),
                "leaked": float(known.mean()),
            }
        )
    return pd.DataFrame(report).set_index("unit")


def out_of_fold(
    table: pd.DataFrame,
    features: ArrayLike,
    model: Any,
    *,
    label: str = "label",
    positive: str | None = None,
    fold: str = "fold",
) -> NDArray[Any]:
    """What a model says of every row when it learns from the other folds.

    Parameters
    ----------
    table : DataFrame
        With the columns `label` and `fold` (`patient_folds`).
    features : (N, D)
        One row for each of the table.
    model : scikit-learn classifier
        A fresh copy is fitted for each fold.
    positive : str, optional
        Give the probability of this class; else the predicted class.

    Returns
    -------
    (N,) float64, or labels

    Raises
    ------
    ValueError
        If the features do not fit the table, there is no such class, or all that a fold may learn from is of one class.
    """
    from sklearn.base import clone

    _need(table, label, fold)
    x, y, folds = np.asarray(features), table[label].to_numpy(), table[fold].to_numpy()
    if len(x) != len(table):
        raise ValueError(f"out_of_fold: {len(x)} rows of features for a table of {len(table)}.")
    if positive is not None and positive not in y:
        raise ValueError(
            f"out_of_fold: no {label} {positive!r}; there are {', '.join(map(str, sorted(set(y))))}."
        )
    said = np.empty(len(table), float if positive is not None else object)
    for number in np.unique(folds):
        inside = folds == number
        if len(set(y[~inside])) < 2:
            raise ValueError(
                f"out_of_fold: without fold {number} only the {label} {y[~inside][0]!r} is left to learn from. A site (or"
                " patient) holds a class alone: join it with others, or leave the class out."
                if (~inside).any()
                else "out_of_fold: one fold only; there is nothing else to learn from."
            )
        fitted = clone(model).fit(x[~inside], y[~inside])
        if positive is None:
            said[inside] = fitted.predict(x[inside])
        else:
            said[inside] = fitted.predict_proba(x[inside])[:, list(fitted.classes_).index(positive)]
    return said


def _need(table: pd.DataFrame, *columns: str) -> None:
    for column in columns:
        if column not in table:
            raise ValueError(
                f"no column {column!r} to split by; the table has {', '.join(map(str, table.columns))}."
            )
        missing = table[column].isna().to_numpy()
        if missing.any():
            row = int(missing.argmax())
            raise ValueError(
                f"column {column!r}, row {row} (index {table.index[row]!r}) is missing; fill or drop it."
            )


def _strata(table: pd.DataFrame, by: str, stratify: str | None) -> pd.Series:
    """One row a patient, sorted by id: the stratum it counts under."""
    if stratify is None:
        return pd.Series("all", index=pd.Index(sorted(table[by].unique()), name=by))
    return table.groupby(by, observed=True)[stratify].max().sort_index()


def _shuffled(strata: pd.Series, rng: np.random.Generator) -> list:
    """Patients stratum after stratum, shuffled within each."""
    return [
        p for _, rows in strata.groupby(strata, observed=True) for p in rng.permutation(rows.index.to_numpy())
    ]


def _assign(strata: pd.Series, shares: Mapping[str, float], rng: np.random.Generator) -> dict:
    """Deal patients to parts, so that each prefix of the dealing keeps the shares as near as whole patients allow.

    Going through the strata one after the other, every stratum is spread over the parts, and no part stays empty
    while there are as many patients as parts.
    """
    names, wanted = list(shares), np.array(list(shares.values()))
    counts = np.zeros(len(names))
    dealt = []
    order = _shuffled(strata, rng)
    for i in range(len(order)):
        part = int(np.argmax(wanted * (i + 1) - counts))
        counts[part] += 1
        dealt.append(part)
    for empty in np.flatnonzero(counts == 0):
        donor = int(np.argmax(counts))
        last = max(i for i, part in enumerate(dealt) if part == donor)
        dealt[last] = int(empty)
        counts[donor] -= 1
        counts[empty] += 1
    return {patient: names[part] for patient, part in zip(order, dealt, strict=True)}
