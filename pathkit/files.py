"""Files: written whole or not at all."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["replacing", "write_text"]


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Give the place to write at; it takes the name of `path` when the block ends without an error.

    A run that is killed leaves ``NAME.partial``; one that fails leaves nothing. The file of that name is never half a file.
    """
    path = Path(path)
    partial = path.with_name(path.name + ".partial")
    try:
        yield partial
    except Exception:
        partial.unlink(missing_ok=True)
        raise
    partial.replace(path)


def write_text(path: str | Path, text: str) -> None:
    """Write UTF-8 text, whole or not at all."""
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")
