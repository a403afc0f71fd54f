"""Many slides: one bad slide costs one row, and what was done is not done again."""

from __future__ import annotations

import json

import pandas as pd
import pytest

from pathkit import cohort
from pathkit.slide import SlideError


@pytest.fixture
def slides(tmp_path):
    folder = tmp_path / "slides"
    folder.mkdir()
    for name in ["b.svs", "a.svs", "c.tif", "notes.txt"]:
        (folder / name).write_text(name)
    return folder


class Work:
    """Counts its calls and refuses the slides named bad."""

    def __init__(self, bad=(), stop_at=None):
        self.bad, self.stop_at, self.calls = set(bad), stop_at, []

    def __call__(self, path):
        self.calls.append(path.stem)
        if path.stem == self.stop_at:
            raise KeyboardInterrupt
        if path.stem in self.bad:
            raise SlideError(f"{path.name}: damaged\nbadly")
        return {"length": len(path.read_text())}


def test_folders_give_their_slides_in_order_and_files_are_taken_as_named(slides):
    found = cohort.find_slides([slides, slides / "notes.txt"])
    assert [p.name for p in found] == ["a.svs", "b.svs", "c.tif", "notes.txt"]


def test_no_slides_says_so(tmp_path):
    with pytest.raises(SlideError, match="no slides in this folder"):
        cohort.find_slides([tmp_path])
    with pytest.raises(SlideError, match="No slide given"):
        cohort.find_slides([])


def test_a_bad_slide_is_a_row_and_the_others_are_done(slides, tmp_path):
    table = cohort.run(
        Work(bad=["b"]), cohort.find_slides([slides]), out=tmp_path / "out", step="t", progress=False
    )
    assert table["status"].tolist() == ["ok", "error", "ok"]
    assert table.loc[1, "error"] == "b.svs: damaged badly"
    assert table.loc[[0, 2], "length"].tolist() == [5, 5]
    on_disk = pd.read_csv(tmp_path / "out" / "t.csv", keep_default_na=False)
    assert on_disk["status"].tolist() == ["ok", "error", "ok"]


def test_an_interrupted_run_resumes_with_what_is_left(slides, tmp_path):
    paths = cohort.find_slides([slides])
    with pytest.raises(KeyboardInterrupt):
        cohort.run(Work(stop_at="c"), paths, out=tmp_path, step="t", progress=False)
    again = Work()
    table = cohort.run(again, paths, out=tmp_path, step="t", progress=False)
    assert again.calls == ["c"]
    assert table["slide_id"].tolist() == ["a", "b", "c"]
    assert (table["status"] == "ok").all()


def test_a_second_interruption_loses_no_row(slides, tmp_path):
    paths = cohort.find_slides([slides])
    cohort.run(Work(bad=["a"]), paths, out=tmp_path, step="t", progress=False)
    with pytest.raises(KeyboardInterrupt):
        cohort.run(Work(stop_at="a"), paths, out=tmp_path, step="t", progress=False)
    last = Work()
    cohort.run(last, paths, out=tmp_path, step="t", progress=False)
    assert last.calls == ["a"]


def test_errors_are_tried_again_and_successes_are_not(slides, tmp_path):
    paths = cohort.find_slides([slides])
    cohort.run(Work(bad=["a"]), paths, out=tmp_path, step="t", progress=False)
    again = Work()
    cohort.run(again, paths, out=tmp_path, step="t", progress=False)
    assert again.calls == ["a"]


def test_other_parameters_make_every_row_again(slides, tmp_path):
    paths = cohort.find_slides([slides])
    cohort.run(Work(), paths, out=tmp_path, step="t", parameters={"mpp": 8}, progress=False)
    unchanged, changed, forced = Work(), Work(), Work()
    cohort.run(unchanged, paths, out=tmp_path, step="t", parameters={"mpp": 8}, progress=False)
    cohort.run(changed, paths, out=tmp_path, step="t", parameters={"mpp": 4}, progress=False)
    cohort.run(forced, paths, out=tmp_path, step="t", parameters={"mpp": 4}, force=True, progress=False)
    assert (unchanged.calls, changed.calls, forced.calls) == ([], ["a", "b", "c"], ["a", "b", "c"])
    assert json.loads((tmp_path / "t.json").read_text()) == {"mpp": 4}


def test_slides_of_another_call_keep_their_rows(slides, tmp_path):
    first, *others = cohort.find_slides([slides])
    cohort.run(Work(), [first], out=tmp_path, step="t", progress=False)
    table = cohort.run(Work(), others, out=tmp_path, step="t", progress=False)
    assert table["slide_id"].tolist() == ["b", "c"]
    assert pd.read_csv(tmp_path / "t.csv")["slide_id"].tolist() == ["a", "b", "c"]


def test_a_fault_in_the_code_is_not_hidden_in_a_row(slides, tmp_path):
    def faulty(path):
        if path.stem == "a":
            raise TypeError("a bug")
        return {"length": 1}

    with pytest.raises(TypeError, match="a bug"):
        cohort.run(faulty, cohort.find_slides([slides]), out=tmp_path, step="t", progress=False)
    on_disk = pd.read_csv(tmp_path / "t.csv", keep_default_na=False).set_index("slide_id")
    assert on_disk["status"].to_dict() == {"a": "error", "b": "ok", "c": "ok"}
    assert "TypeError: a bug" in on_disk.loc["a", "error"]


def test_two_slides_of_one_name_are_refused(slides, tmp_path):
    (tmp_path / "a.svs").touch()
    with pytest.raises(SlideError, match="share the name 'a'"):
        cohort.run(Work(), [slides / "a.svs", tmp_path / "a.svs"], out=tmp_path, step="t", progress=False)
