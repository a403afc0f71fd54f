"""Stages follow the published rules, on cases worked out by hand."""

from __future__ import annotations

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pathkit.staging import (
    CATEGORIES,
    STAGES,
    deposit_category,
    node_category,
    patient_stage,
    patient_stages,
)


def test_the_limits_belong_to_the_smaller_category():
    lengths = [1, 200, 200.1, 2000, 2000.1]
    assert deposit_category(lengths).tolist() == ["itc", "itc", "micro", "micro", "macro"]


def test_no_deposit_has_no_size():
    for bad in (0, -3, float("nan")):
        with pytest.raises(ValueError, match="microns above 0"):
            deposit_category([10, bad])


def test_a_node_is_named_by_its_largest_deposit():
    assert node_category([]) == "normal"
    assert node_category(["itc", "micro", "itc"]) == "micro"
    with pytest.raises(ValueError, match="no category 'large'"):
        node_category(["large"])


@pytest.mark.parametrize(
    ("nodes", "stage"),
    [
        (["normal"] * 5, "pN0"),
        (["itc", "itc", "normal"], "pN0(i+)"),
        (["itc", "micro", "micro", "micro", "micro"], "pN1mi"),  # many, but none above 2 mm
        (["macro", "normal"], "pN1"),
        (["macro", "micro", "micro", "itc"], "pN1"),  # isolated cells do not make a fourth
        (["macro", "micro", "micro", "micro"], "pN2"),
    ],
)
def test_patients_on_paper(nodes, stage):
    assert patient_stage(nodes) == stage


@given(st.lists(st.sampled_from(CATEGORIES), min_size=1, max_size=5), st.integers(0, 4), st.randoms())
def test_more_tumour_never_lowers_the_stage_and_order_does_not_matter(nodes, which, random):
    before = STAGES.index(patient_stage(nodes))
    worse = list(nodes)
    worse[which % len(nodes)] = CATEGORIES[min(3, CATEGORIES.index(nodes[which % len(nodes)]) + 1)]
    random.shuffle(worse)
    assert STAGES.index(patient_stage(worse)) >= before
    assert patient_stage([*nodes, "normal"]) == patient_stage(nodes)


def test_a_table_gives_one_row_a_patient_in_order():
    nodes = pd.DataFrame({"patient_id": ["b", "a", "a"], "category": ["itc", "macro", "normal"]})
    stages = patient_stages(nodes)
    assert stages.to_dict() == {"a": "pN1", "b": "pN0(i+)"}
    assert stages["a"] > stages["b"]


def test_what_the_rules_do_not_cover_is_refused():
    with pytest.raises(ValueError, match="no node"):
        patient_stage([])
    with pytest.raises(ValueError, match="end at nine"):
        patient_stage(["macro"] * 10)
