"""The doctor knows a healthy slide from a wrong one, and says how to mend what is missing."""

from __future__ import annotations

import numpy as np
import pytest
import tifffile

from pathkit import doctor


def test_the_known_slide_reads_right(tmp_path):
    doctor.write_known_slide(tmp_path / "known.tif")
    assert doctor.wrong_reads(tmp_path / "known.tif") == []


def test_swapped_colours_are_found_at_every_level(tmp_path, monkeypatch):
    doctor.write_known_slide(tmp_path / "known.tif")
    monkeypatch.setattr(
        doctor, "LEVEL_COLOURS", tuple(tuple(c[::-1] for c in q) for q in doctor.LEVEL_COLOURS)
    )
    wrong = doctor.wrong_reads(tmp_path / "known.tif")
    assert {w.split(" at ")[0] for w in wrong} == {"level 0", "level 1", "level 2"}


def test_a_slide_without_levels_or_mpp_is_found(tmp_path):
    tifffile.imwrite(tmp_path / "flat.tif", np.zeros((64, 64, 3), np.uint8), photometric="rgb", tile=(64, 64))
    assert "instead of 0.5 and 3" in doctor.wrong_reads(tmp_path / "flat.tif")[0]


def test_a_missing_package_names_the_command(monkeypatch):
    monkeypatch.setattr(doctor, "REQUIRED", ("numpy", "no-such-package"))
    monkeypatch.setattr(doctor, "OPTIONAL", {"no-such-extra": ("magic", "openvino")})
    findings = list(doctor._packages())
    assert [f.status for f in findings] == ["ok", "bad", "note"]
    assert "pip install -c constraints.txt no-such-package" in findings[1].text
    assert 'pip install "pathkit[openvino]"' in findings[2].text


def test_a_broken_reader_is_reported_and_not_raised(monkeypatch):
    def broken(path):
        raise ImportError("no libopenslide")

    monkeypatch.setattr(doctor, "wrong_reads", broken)
    finding = doctor._known_read()
    assert finding.status == "bad"
    assert "no libopenslide" in finding.text


@pytest.mark.parametrize(("status", "healthy"), [("ok", True), ("note", True), ("bad", False)])
def test_only_bad_findings_make_it_unhealthy(status, healthy):
    report = doctor.Report((doctor.Finding("Thing", status, "text <b>"),))
    assert report.healthy is healthy
    assert ("pathkit is ready" in str(report)) is healthy
    assert "text &lt;b&gt;" in report._repr_html_()


def test_this_installation_is_healthy():
    report = doctor.examine()
    assert report.healthy, str(report)
    assert {"Python", "Machine", "Packages", "Reading a slide", "ImageNet weights", "GPU"} <= {
        f.subject for f in report.findings
    }
