"""The cohort whose label cannot be seen: what is shared, and what is not."""

from __future__ import annotations

import numpy as np
import pytest

from pathkit.slide import open_slide
from pathkit.synthetic import SITES, leak_cohort, scan, slide_stains, truth_of


@pytest.fixture(scope="module")
def slides(tmp_path_factory):
    return leak_cohort(
        tmp_path_factory.mktemp("leak"), n_patients=4, shares=(1.0, 0.5), sites=("north", "south"),
        size_um=(420, 400), workers=1, progress=False,
    )  # fmt: skip


def test_slides_of_a_patient_are_stained_alike_and_differ_in_tissue(slides):
    truths = {row["slide_id"]: truth_of(row) for row in slides.to_dict("records")}
    stains = {i: slide_stains(t.site, t.stain_seed) for i, t in truths.items()}
    for patient, rows in slides.groupby("patient_id"):
        one, other = (stains[i] for i in rows["slide_id"])
        np.testing.assert_array_equal(one, other, err_msg=str(patient))
    a, b = slides[slides["site"] == "north"]["slide_id"].iloc[[0, 2]]
    assert np.abs(stains[a] - stains[b]).max() > 0.01
    pictures = [open_slide(p).thumbnail(100).tobytes() for p in slides["path"]]
    assert len(set(pictures)) == len(slides)


def test_the_files_are_what_their_truth_says(slides):
    row = slides.iloc[0]
    truth = truth_of(row)
    expected = scan(truth.architecture, truth.site, (100, 100), (128, 128), stain_seed=truth.stain_seed)
    with open_slide(row["path"]) as slide:
        stored = slide.read_region((100, 100), (128, 128), mpp=slide.mpp)
    assert np.abs(stored.astype(float).mean((0, 1)) - expected.mean((0, 1))).max() < 1.5


def test_labels_are_dealt_by_site_to_patients(slides):
    assert slides.groupby("patient_id")["label"].nunique().max() == 1
    share = slides.groupby("site")["label"].apply(lambda v: (v == "positive").mean())
    assert share.to_dict() == {"north": 1.0, "south": 0.5}
    assert set(slides["site"]) <= set(SITES)


def test_what_cannot_be_made(tmp_path):
    with pytest.raises(ValueError, match="a share for each of the 3 sites"):
        leak_cohort(tmp_path, shares=(0.5, 0.5))
    with pytest.raises(ValueError, match="from 0 to 1"):
        leak_cohort(tmp_path, shares=(0.5, 0.5, 2))
