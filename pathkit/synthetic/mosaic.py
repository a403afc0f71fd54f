"""Mosaic: one big slide of many sections, made band by band in little memory.

Real slides hold several sections side by side; so does this one. A section's architecture is built when a band first
reaches it and forgotten when the last has passed, and pixels go straight to the file.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import shapely
from numpy.typing import NDArray

from pathkit.annotations import annotation_frame, write_annotations
from pathkit.annotations.rows import Row
from pathkit.files import replacing
from pathkit.synthetic.architecture import Architecture
from pathkit.synthetic.breast import breast
from pathkit.synthetic.colon import colon
from pathkit.synthetic.lymph import lymph_node
from pathkit.synthetic.objects import nuclei
from pathkit.synthetic.pyramid import write_pyramid
from pathkit.synthetic.scanner import SITES, Site, scan

__all__ = ["Mosaic", "write_big_slide"]

_ORGANS: dict[str, Callable[..., Architecture]] = {"colon": colon, "breast": breast, "lymph node": lymph_node}
_CHUNK_PX = 2048
#: Largest side of a slide.
MOST_PX = 100_000


class Mosaic:
    """A grid of sections of one organ.

    Parameters
    ----------
    size_px : (width, height)
        Up to 100,000 each.
    mpp : float
    organ : {"colon", "breast", "lymph node"}
    site : str
        Name of one of `SITES`.
    piece_um : (width, height)
        Of a section with the glass around it.
    seed : int
    workers : int
        Threads that paint.

    Raises
    ------
    ValueError
        If a size or mpp is out of range, or organ or site unknown.
    """

    def __init__(
        self,
        size_px: tuple[int, int],
        *,
        mpp: float = 0.25,
        organ: str = "colon",
        site: str = "north",
        piece_um: tuple[float, float] = (4000.0, 3200.0),
        seed: int = 0,
        workers: int = 2,
    ):
        if not mpp > 0 or not 1 <= min(size_px) <= max(size_px) <= MOST_PX:
            raise ValueError(
                f"Mosaic: mpp must be positive and sides 1 to {MOST_PX:,}, got {mpp} and {size_px}."
            )
        if organ not in _ORGANS or site not in SITES:
            raise ValueError(
                f"Mosaic: organs are {', '.join(_ORGANS)}, sites {', '.join(SITES)}; got {organ!r}, {site!r}."
            )
        self.size_px, self.mpp, self.organ, self.seed, self.workers = size_px, mpp, organ, seed, workers
        self.site: Site = SITES[site].at(mpp)
        self.piece_px = (round(piece_um[0] / mpp), round(piece_um[1] / mpp))
        self.piece_um = (self.piece_px[0] * mpp, self.piece_px[1] * mpp)
        self.across = -(-size_px[0] // self.piece_px[0])
        self.down = -(-size_px[1] // self.piece_px[1])
        self._kept: OrderedDict[tuple[int, int], Architecture] = OrderedDict()
        self._lock = threading.Lock()

    def piece(self, column: int, row: int) -> Architecture:
        """The section at a place of the grid; about one row of them is kept in memory."""
        with self._lock:
            if (column, row) in self._kept:
                self._kept.move_to_end((column, row))
            else:
                number = self.seed * 10_007 + row * self.across + column
                self._kept[column, row] = _ORGANS[self.organ](number, size_um=self.piece_um)
                while len(self._kept) > self.across + 1:
                    self._kept.popitem(last=False)
            return self._kept[column, row]

    def read(self, location: tuple[int, int], size: tuple[int, int]) -> NDArray[np.uint8]:
        """Pixels of a region, (height, width, 3) uint8."""
        out = np.empty((size[1], size[0], 3), np.uint8)
        parts = list(self._parts(location, size))
        for column, row in dict.fromkeys((c, r) for c, r, *_ in parts):
            self.piece(column, row)

        def paint(part: tuple[int, int, int, int, int, int]) -> None:
            column, row, x, y, width, height = part
            inside = (x - column * self.piece_px[0], y - row * self.piece_px[1])
            target = out[
                y - location[1] : y - location[1] + height, x - location[0] : x - location[0] + width
            ]
            target[:] = scan(
                self.piece(column, row), self.site, inside, (width, height), stain_seed=self.seed
            )

        if self.workers > 1:
            with ThreadPoolExecutor(self.workers) as pool:
                list(pool.map(paint, parts))
        else:
            for part in parts:
                paint(part)
        return out

    def _parts(self, location: tuple[int, int], size: tuple[int, int]) -> Any:
        """Column and row of the piece, and x, y, width, height of each part of a region that lies in one piece."""
        for y0, y1, row in _cuts(location[1], size[1], self.piece_px[1]):
            for x0, x1, column in _cuts(location[0], size[0], self.piece_px[0]):
                for x in range(x0, x1, _CHUNK_PX):
                    yield column, row, x, y0, min(_CHUNK_PX, x1 - x), y1 - y0


def _cuts(start: int, length: int, step: int) -> Any:
    at = start
    while at < start + length:
        number = at // step
        end = min(start + length, (number + 1) * step)
        yield at, end, number
        at = end


def write_big_slide(
    path: str | os.PathLike[str], mosaic: Mosaic, *, objects: bool = True, progress: bool = True
) -> Path:
    """Write a mosaic as a slide, with outlines (``.geojson``) and, unless told not to, cells (``.objects.parquet``) beside it.

    Parameters
    ----------
    path : path
        ``.tif``.
    mosaic : Mosaic
    objects : bool
        Also write the object table, section by section.

    Raises
    ------
    ValueError
        If the disk is too small.
    """
    import shutil

    path = Path(path)
    pixels = mosaic.size_px[0] * mosaic.size_px[1]
    free = shutil.disk_usage(path.parent).free
    if 0.6 * pixels > free:
        raise ValueError(
            f"{path.name}: needs about {0.6 * pixels / 1e9:.0f} GB, {free / 1e9:.1f} GB are free."
        )
    _write_truth(path, mosaic, objects)
    return write_pyramid(
        mosaic.read, path, mpp=mosaic.mpp, size=mosaic.size_px, quality=mosaic.site.quality, progress=progress
    )


def _write_truth(path: Path, mosaic: Mosaic, objects: bool) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    frame = shapely.box(0, 0, *mosaic.size_px)
    rows, writer = [], None
    with replacing(path.with_suffix(".objects.parquet")) as unfinished:
        try:
            for row in range(mosaic.down):
                for column in range(mosaic.across):
                    piece = mosaic.piece(column, row)
                    origin = np.array([column * mosaic.piece_px[0], row * mosaic.piece_px[1]])
                    moved = shapely.transform(
                        piece.lesions["geometry"].to_numpy(),
                        partial(_placed, mosaic.mpp, origin),
                    )
                    for lesion, geometry in zip(piece.lesions.itertuples(), moved, strict=True):
                        kept = geometry.intersection(frame)
                        if not kept.is_empty:
                            rows.append(
                                Row(kept, lesion.category, f"{column}-{row}-{lesion.lesion_id}", "#d55e00")
                            )
                    if objects:
                        table = pa.Table.from_pandas(
                            _moved(nuclei(piece, slide_id=path.stem), mosaic, column, row)
                        )
                        writer = writer or pq.ParquetWriter(unfinished, table.schema)
                        writer.write_table(table)
        finally:
            if writer is not None:
                writer.close()
        if writer is None:
            unfinished.touch()
    if not objects:
        path.with_suffix(".objects.parquet").unlink()
    write_annotations(annotation_frame(rows), path.with_suffix(".geojson"))


def _placed(mpp: float, origin: NDArray[Any], xy_um: NDArray[Any]) -> NDArray[Any]:
    """Microns of a section to level-0 pixels of the slide."""
    return np.asarray(np.round(xy_um / mpp + origin, 2))


def _moved(table: pd.DataFrame, mosaic: Mosaic, column: int, row: int) -> pd.DataFrame:
    """Cells of a section in the frame of the slide, with numbers that no other section has."""
    table["x_um"] += column * mosaic.piece_um[0]
    table["y_um"] += row * mosaic.piece_um[1]
    table["object_id"] += (row * mosaic.across + column) << 42
    inside = (table["x_um"] < mosaic.size_px[0] * mosaic.mpp) & (
        table["y_um"] < mosaic.size_px[1] * mosaic.mpp
    )
    return table[inside].reset_index(drop=True)
