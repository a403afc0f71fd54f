"""Splits: no patient on two sides, whatever the table."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pathkit.splits import (
    LeakError,
    check_no_leak,
    check_patients,
    hold_out_site,
    leak_report,
    out_of_fold,
    patient_folds,
    split_patients,
)


def cohort(n_patients=20, seed=0):
    rng = np.random.default_rng(seed)
    rows = [
        {
            "slide_id": f"{p}-{i}",
            "patient_id": f"p{p:02d}",
            "site": "xyz"[p % 3],
            "label": "tumour" if p % 4 == 0 else "normal",
        }
        for p in range(n_patients)
        for i in range(rng.integers(1, 5))
    ]
    return pd.DataFrame(rows)


@given(n=st.integers(3, 60), seed=st.integers(0, 1000))
def test_patients_stay_together_and_no_part_is_empty(n, seed):
    table = split_patients(cohort(n, seed), seed=seed)
    check_no_leak(table)
    assert set(table["split"]) == {"train", "val", "test"}


@given(seed=st.integers(0, 200), order=st.integers(0, 200))
def test_a_split_depends_on_the_seed_and_not_on_the_order_of_rows(seed, order):
    table = cohort()
    split = split_patients(table, stratify="label", seed=seed)
    shuffled = split_patients(table.sample(frac=1, random_state=order), stratify="label", seed=seed)
    pd.testing.assert_frame_equal(split, shuffled.sort_index())


def test_seeds_differ():
    splits = {tuple(split_patients(cohort(), seed=s)["split"]) for s in range(10)}
    assert len(splits) > 5


def test_strata_are_spread_in_proportion():
    table = split_patients(cohort(40), fractions={"train": 0.5, "test": 0.5}, stratify="label", seed=3)
    patients = table.drop_duplicates("patient_id")
    counts = patients.groupby(["split", "label"]).size().unstack()
    assert counts["tumour"].tolist() == [5, 5]
    assert counts["normal"].tolist() == [15, 15]


def test_a_patient_with_one_tumour_slide_counts_as_tumour():
    table = cohort(4).assign(label="normal")
    table.loc[table.index[table["patient_id"] == "p00"][:1], "label"] = "tumour"
    table.loc[table.index[table["patient_id"] == "p01"][:1], "label"] = "tumour"
    split = split_patients(table, fractions={"a": 0.5, "b": 0.5}, stratify="label")
    assert split.groupby("patient_id")["split"].first()[["p00", "p01"]].nunique() == 2


def test_a_leak_is_found_and_named():
    table = pd.DataFrame({"patient_id": ["a", "b", "b", "c"], "split": ["train", "train", "test", "test"]})
    with pytest.raises(
        LeakError, match=r"1 patient_id on more than one side, first 'b' in test and train.*split_patients"
    ):
        check_no_leak(table)
    check_no_leak(table.drop(index=2))


def test_one_file_under_two_ids_is_found():
    table = pd.DataFrame({"patient_id": ["a", "b"], "path": ["1.svs", "1.svs"], "split": ["train", "test"]})
    check_no_leak(table)
    with pytest.raises(LeakError, match=r"1 path.*1\.svs"):
        check_no_leak(table, by=["patient_id", "path"])


def test_a_site_is_held_out_whole():
    split = hold_out_site(cohort(), "y")
    assert set(split.loc[split["split"] == "test", "site"]) == {"y"}
    assert "y" not in set(split.loc[split["split"] == "train", "site"])
    with pytest.raises(ValueError, match="no site 'q'; the table has x, y, z"):
        hold_out_site(cohort(), "q")
    with pytest.raises(ValueError, match="only site"):
        hold_out_site(cohort().assign(site="x"), "x")


def test_a_site_with_one_class_is_warned_of():
    table = cohort().assign(label=lambda t: np.where(t["site"] == "x", "tumour", "normal"))
    with pytest.warns(UserWarning, match=r"one label only"):
        hold_out_site(table, "x")


@given(n=st.integers(2, 8))
def test_folds_divide_patients(n):
    table = patient_folds(cohort(), n)
    assert table.groupby("patient_id")["fold"].nunique().max() == 1
    sizes = table.drop_duplicates("patient_id")["fold"].value_counts()
    assert len(sizes) == n
    assert sizes.max() - sizes.min() <= 1


def test_what_cannot_be_split():
    with pytest.raises(ValueError, match="2 different patient_id cannot fill 3 parts"):
        split_patients(cohort(2))
    with pytest.raises(ValueError, match="sum to 1"):
        split_patients(cohort(), fractions={"train": 0.5, "test": 0.4})
    with pytest.raises(ValueError, match="no column 'patient'"):
        split_patients(cohort(), by="patient")
    with pytest.raises(ValueError, match="row 3"):
        split_patients(cohort().assign(patient_id=lambda t: t["patient_id"].where(t.index != 3)))
    with pytest.raises(ValueError, match="ask for 2 to 20"):
        patient_folds(cohort(), 21)


def test_two_patients_with_one_id_are_told_apart():
    table = cohort()
    check_patients(table)
    twice = pd.concat([table, table[table["patient_id"] == "p01"].assign(site="x")])
    with pytest.raises(
        LeakError, match=r"1 patient_id with more than one site, first 'p01' with x and y.*two patients"
    ):
        check_patients(twice)
    apart = twice.assign(patient_id=twice["site"] + "-" + twice["patient_id"])
    check_patients(apart)
    with pytest.raises(ValueError, match="no column 'sex'"):
        check_patients(table, constant=["site", "sex"])


def test_the_leak_report_by_hand():
    table = pd.DataFrame(
        {
            "slide_id": ["a1", "a2", "b1", "c1", "c1"],
            "patient_id": list("aabcc"),
            "site": ["x", "x", "x", "y", "y"],
            "split": ["train", "test", "test", "test", "train"],
        }
    )
    report = leak_report(table)
    assert report["shared"].to_dict() == {"slide_id": 1, "patient_id": 2, "site": 2}
    assert report["leaked"].round(3).to_dict() == {"slide_id": 0.333, "patient_id": 0.667, "site": 1.0}
    assert report["in_train"].to_dict() == {"slide_id": 2, "patient_id": 2, "site": 2}
    with pytest.raises(ValueError, match="no row in the part 'test'"):
        leak_report(table.assign(split="train"))


@given(seed=st.integers(0, 50))
def test_a_split_by_patients_leaks_no_patient_and_no_slide(seed):
    report = leak_report(split_patients(cohort(20, seed), seed=seed))
    assert report.loc[["slide_id", "patient_id"], "leaked"].tolist() == [0, 0]


def test_out_of_fold_scores_come_from_the_other_folds():
    """A model that remembers can only repeat what it has seen: alone in its fold, a patient's label is not known."""
    from sklearn.model_selection import cross_val_predict
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.tree import DecisionTreeClassifier

    rng = np.random.default_rng(0)
    table = pd.DataFrame({"patient_id": np.repeat(np.arange(12), 5), "label": np.repeat(["n", "p"] * 6, 5)})
    features = np.repeat(rng.normal(size=(12, 3)), 5, 0) + 0.01 * rng.normal(size=(60, 3))
    table["row"] = np.arange(60)
    near = KNeighborsClassifier(3)
    leaky = out_of_fold(patient_folds(table, 5, by="row"), features, near)
    assert (leaky == table["label"]).all()
    honest = patient_folds(table, 4, stratify="label")
    score = out_of_fold(honest, features, near, positive="p")
    folds = [(np.flatnonzero(honest["fold"] != f), np.flatnonzero(honest["fold"] == f)) for f in range(4)]
    expected = cross_val_predict(near, features, table["label"], cv=folds, method="predict_proba")[:, 1]
    np.testing.assert_array_equal(score, expected)
    with pytest.raises(ValueError, match="rows of features"):
        out_of_fold(honest, features[:5], near)
    with pytest.raises(ValueError, match="no label 'q'"):
        out_of_fold(honest, features, near, positive="q")
    site = table.assign(fold=(table["label"] == "p").astype(int))
    with pytest.raises(ValueError, match=r"without fold 0 only the label 'p' is left.*holds a class alone"):
        out_of_fold(site, features, DecisionTreeClassifier())
