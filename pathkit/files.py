"""Files: written whole or not at all."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

__all__ = ["check_same", "replacing", "write_text"]


def check_same(what: str, path: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Refuse to go on with, or to give back, what was made with other settings.

    Raises
    ------
    ValueError
        Naming the first setting of `now` that `path` (which holds `what`, made as `before` says) does not share.
    """
    changed = [k for k, v in now.items() if before.get(k) != v]
    if changed:
        k = changed[0]
        raise ValueError(
            f"{path.name}: holds {what} with {k} = {before.get(k)}, asked for {k} = {now[k]}. Remove it, or give another"
            " out=..."
        )


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
