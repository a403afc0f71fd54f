import pytest

from pathkit.files import replacing, write_text


def test_the_name_appears_when_the_block_ends(tmp_path):
    path = tmp_path / "a.txt"
    with replacing(path) as partial:
        partial.write_text("new")
        assert not path.exists()
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_a_failure_keeps_what_was_there_and_leaves_no_partial_file(tmp_path):
    path = tmp_path / "a.txt"
    write_text(path, "old µm")
    with pytest.raises(OSError, match="full"), replacing(path) as partial:  # noqa: PT012
        partial.write_text("half")
        raise OSError("the disk is full")
    assert path.read_text(encoding="utf-8") == "old µm"
    assert list(tmp_path.iterdir()) == [path]
