"""Which slides Jupyter Server may serve: one small file a slide, readable by its user alone.

The server extension makes a private folder and hands its name to kernels through the environment. A kernel writes a file
there for each slide that it shows, named by a secret; the browser sees that secret and nothing else. A registration ends
when the viewer removes it, or when the process that wrote it is gone.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import stat
from dataclasses import dataclass
from pathlib import Path

import psutil

__all__ = ["FOLDER", "Registered", "available", "make_folder", "register", "registered", "unregister"]

#: The environment variable through which the server tells its kernels the folder.
FOLDER = "PATHKIT_TILE_REGISTRY"
_ID = re.compile(r"[A-Za-z0-9_-]{22}")


@dataclass(frozen=True)
class Registered:
    """A slide file and the process that shows it."""

    path: str
    pid: int
    started: float

    def alive(self) -> bool:
        """Whether that very process still runs (numbers are used again)."""
        try:
            process = psutil.Process(self.pid)
            return process.create_time() == self.started and process.status() != psutil.STATUS_ZOMBIE
        except psutil.Error:
            return False


def make_folder(parent: str | os.PathLike[str]) -> Path:
    """A new folder, readable by this user alone."""
    folder = Path(parent) / f"pathkit-{secrets.token_hex(8)}"
    folder.mkdir(mode=0o700, parents=True)
    return folder


def available() -> bool:
    """Whether a server with the extension started this process (and ``PATHKIT_TILES=kernel`` does not forbid its use)."""
    folder = os.environ.get(FOLDER)
    return bool(folder) and os.environ.get("PATHKIT_TILES") != "kernel" and Path(str(folder)).is_dir()


def register(path: str | os.PathLike[str]) -> str | None:
    """Register a slide file for this process.

    Returns
    -------
    str or None
        The id under which the server serves it; None where no server with the extension started this process.
    """
    if not available():
        return None
    folder = Path(os.environ[FOLDER])
    slide_id = secrets.token_urlsafe(16)
    record = {
        "path": str(Path(path).resolve()),
        "pid": os.getpid(),
        "started": psutil.Process().create_time(),
    }
    partial = folder / f"{slide_id}.partial"
    with open(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        json.dump(record, file)
    partial.rename(folder / f"{slide_id}.json")
    return slide_id


def unregister(slide_id: str) -> None:
    """End a registration; nothing happens where there is none."""
    if os.environ.get(FOLDER) and _ID.fullmatch(slide_id):
        (Path(os.environ[FOLDER]) / f"{slide_id}.json").unlink(missing_ok=True)


def registered(folder: Path, slide_id: str) -> Registered | None:
    """What an id stands for, or None: not an id, not registered, not private to this user, or its process is gone."""
    if not _ID.fullmatch(slide_id):
        return None
    file = folder / f"{slide_id}.json"
    try:
        found = file.lstat()
        private = os.name != "posix" or (found.st_uid == os.getuid() and not found.st_mode & 0o077)
        if not stat.S_ISREG(found.st_mode) or not private:
            return None
        slide = Registered(**json.loads(file.read_text()))
    except (OSError, ValueError, TypeError):
        return None
    if not slide.alive():
        file.unlink(missing_ok=True)
        return None
    return slide
