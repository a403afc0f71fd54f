"""The command ``pathkit``: check the installation, prepare demo slides, and run the steps on slides without a notebook.

One slide or a folder of slides, one row each in ``<out>/<step>.csv``; a slide that cannot be read becomes a row with its
reason, the others are done all the same, and the exit status is 1. Nothing is done twice: a second run does what failed.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from numpy.typing import NDArray

    from pathkit.geometry import Raster
    from pathkit.slide import Slide

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status (0 done, 1 something failed, 2 wrong usage)."""
    options = _parser().parse_args(arguments)
    try:
        return options.command(options)
    except (ValueError, OSError, ImportError) as error:
        print(f"pathkit: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("pathkit: interrupted; run the same command again to go on.", file=sys.stderr)
        return 130


# Commands --------------------------------------------------------------------------------------------------------


def _doctor(options: argparse.Namespace) -> int:
    from pathkit.doctor import examine

    report = examine()
    print(report)
    return 0 if report.healthy else 1


def _demo(options: argparse.Namespace) -> int:
    from pathkit import datasets

    if options.remove:
        freed = datasets.remove(options.name)
        print(f"{options.name}: removed, {freed / 1e6:.0f} MB freed")
        return 0
    slides = datasets.load(options.name)
    print(f"{options.name}: {len(slides)} slides of {slides['patient_id'].nunique()} patients, ready")
    return 0


def _tissue(options: argparse.Namespace) -> int:
    def work(path: Path) -> dict[str, Any]:
        from pathkit.annotations import write_annotations
        from pathkit.tissue import tissue_polygons

        slide, out = _opened(path, options), Path(options.out)
        mask = _mask(slide, options)
        mask.save(out / f"{path.stem}.tissue.npz")
        polygons = tissue_polygons(mask, slide_mpp=slide.mpp)
        write_annotations(polygons, out / f"{path.stem}.tissue.geojson")
        _draw_over(slide, mask.values, mask, out / f"{path.stem}.tissue.png", outline=True)
        area_mm2 = float(mask.values.sum()) * mask.mpp**2 / 1e6
        return {"mpp": slide.mpp, "tissue_mm2": round(area_mm2, 4), "pieces": len(polygons)}

    return _each(options, "tissue", work, ["mpp", "mask_mpp"])


def _patches(options: argparse.Namespace) -> int:
    def work(path: Path) -> dict[str, Any]:
        from pathkit.patches import write_patches

        slide = _opened(path, options)
        table = _grid(slide, options)
        write_patches(table, Path(options.out) / f"{path.stem}.patches.parquet")
        return {"mpp": slide.mpp, "patches": len(table)}

    return _each(
        options, "patches", work, ["mpp", "mask_mpp", "size_px", "patch_mpp", "overlap_px", "min_tissue"]
    )


def _features(options: argparse.Namespace) -> int:
    from pathkit.encoders import load_encoder
    from pathkit.inference import extract_features

    encoder, target = load_encoder(options.encoder), _target(options)

    def work(path: Path) -> dict[str, Any]:
        import numpy as np

        from pathkit.files import replacing
        from pathkit.patches import write_patches

        slide, out = _opened(path, options), Path(options.out)
        table = _grid(slide, options)
        features = extract_features(slide, table, encoder, stain=target, progress=True)
        if options.clusters:
            table["cluster"] = _clusters(features, options.clusters)
            _draw_clusters(slide, table, out / f"{path.stem}.clusters.png")
        write_patches(table, out / f"{path.stem}.patches.parquet", encoder=options.encoder)
        with replacing(out / f"{path.stem}.features.npy") as partial, partial.open("wb") as file:
            np.save(file, features)
        return {"mpp": slide.mpp, "patches": len(table), "dimensions": features.shape[1]}

    depends = [
        "mpp",
        "mask_mpp",
        "size_px",
        "patch_mpp",
        "overlap_px",
        "min_tissue",
        "encoder",
        "clusters",
        "stain",
    ]
    return _each(options, "features", work, depends)


def _heatmap(options: argparse.Namespace) -> int:
    from pathkit.inference import heatmap, lesions
    from pathkit.models import load_model

    model, target = load_model(options.model), _target(options)

    def work(path: Path) -> dict[str, Any]:
        import numpy as np

        slide, out = _opened(path, options), Path(options.out)
        file = out / f"{path.stem}.heatmap.npz"
        mask = _mask(slide, options)
        raster = heatmap(slide, model, mask=mask, refine=options.refine, stain=target, out=file)
        found = lesions(raster, threshold=options.threshold, slide_id=path.stem)
        found.to_csv(out / f"{path.stem}.lesions.csv", index=False)
        _draw_over(slide, raster.values, raster, out / f"{path.stem}.heatmap.png")
        highest = float(np.nanmax(raster.values)) if np.isfinite(raster.values).any() else float("nan")
        return {"mpp": slide.mpp, "highest": round(highest, 4), "lesions": len(found)}

    model_path = Path(options.model)
    options.model_id = f"{model_path.name}, {model_path.stat().st_mtime_ns}"
    return _each(options, "heatmap", work, ["mpp", "mask_mpp", "model_id", "threshold", "refine", "stain"])


# Steps that commands share ---------------------------------------------------------------------------------------


def _each(options: argparse.Namespace, step: str, work: Any, depends: Sequence[str]) -> int:
    """Run `work` on every slide named, say what failed, and return the exit status."""
    from pathkit import cohort

    table = cohort.run(
        work,
        cohort.find_slides(options.slides),
        out=options.out,
        step=step,
        parameters={name: getattr(options, name) for name in depends},
        force=options.force,
    )
    for row in table[table["status"] == "error"].itertuples():
        print(f"pathkit {step}: {row.error}", file=sys.stderr)
    done = table[table["status"] == "ok"].drop(columns=["path", "status", "error"])
    if len(done):
        print(done.to_string(index=False))
        print(f"{len(done)} of {len(table)} slides done; results and {step}.csv are in {options.out}")
    return 0 if len(done) == len(table) else 1


def _opened(path: Path, options: argparse.Namespace) -> Slide:
    from pathkit.slide import open_slide

    slide = open_slide(path, mpp=options.mpp)
    _ = slide.mpp  # a missing resolution stops here, with the way out, and not half way through
    return slide


def _mask(slide: Slide, options: argparse.Namespace) -> Raster:
    from pathkit.tissue import tissue_mask

    return tissue_mask(slide, mpp=max(options.mask_mpp, slide.mpp))


def _target(options: argparse.Namespace) -> Any:
    """The stain that slides are to be brought to, fitted on the slide named, or None."""
    if options.stain is None:
        return None
    from pathkit import stain

    reference = _opened(Path(options.stain), options)
    return stain.fit(reference, mask=_mask(reference, options))


def _grid(slide: Slide, options: argparse.Namespace) -> pd.DataFrame:
    from pathkit.patches import patch_grid

    return patch_grid(
        slide,
        size_px=options.size_px,
        mpp=options.patch_mpp,
        overlap_px=options.overlap_px,
        mask=_mask(slide, options),
        min_tissue=options.min_tissue,
    )


def _clusters(features: NDArray[np.float32], n: int) -> NDArray[np.int_]:
    """k-means of principal components; the cluster numbers are ordered by size, largest first."""
    import numpy as np
    from sklearn.cluster import KMeans
    from sklearn.decomposition import PCA

    if len(features) < n:
        raise ValueError(
            f"{n} clusters asked for, but there are only {len(features)} patches. Lower --clusters."
        )
    reduced = PCA(min(32, *features.shape), random_state=0).fit_transform(features)
    labels = KMeans(n, n_init=4, random_state=0).fit_predict(reduced)
    return np.argsort(np.argsort(-np.bincount(labels, minlength=n)))[labels]


# Pictures --------------------------------------------------------------------------------------------------------


def _draw_over(
    slide: Slide, values: NDArray[Any], place: Raster, path: Path, *, outline: bool = False
) -> None:
    """The slide with its mask outlined, or with a heatmap over it."""
    import numpy as np

    figure, axes, extent_mm = _slide_axes(slide)
    box = place.extent_um
    shown_mm = (box.x / 1000, box.x1 / 1000, box.y1 / 1000, box.y / 1000)
    if outline:
        line = {"colors": "#0072b2", "linewidths": 1.2, "origin": "upper", "extent": shown_mm}
        if min(values.shape) >= 2:  # matplotlib contours no single row
            axes.contour(values.astype(float), [0.5], **line)
    else:
        drawn = axes.imshow(values, cmap="viridis", vmin=0, vmax=1, alpha=0.55, extent=shown_mm)
        figure.colorbar(drawn, ax=axes, label="Predicted probability", shrink=0.7)
        if not np.isfinite(values).any():
            axes.set_title("No tissue, nothing predicted")
    _finish(figure, axes, extent_mm, path)


def _draw_clusters(slide: Slide, table: pd.DataFrame, path: Path) -> None:
    """The slide with each patch framed in the colour of its cluster."""
    from matplotlib.collections import PatchCollection
    from matplotlib.patches import Rectangle

    figure, axes, extent_mm = _slide_axes(slide)
    side_mm = table["size_px"].iloc[0] * table["mpp"].iloc[0] / 1000
    colours = ["#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#56b4e9", "#f0e442", "#000000"]
    for cluster, rows in table.groupby("cluster"):
        corners = zip(rows["x_l0"] * slide.mpp / 1000, rows["y_l0"] * slide.mpp / 1000, strict=True)
        colour = colours[int(str(cluster)) % len(colours)]
        squares = [Rectangle(corner, side_mm, side_mm) for corner in corners]
        axes.add_collection(
            PatchCollection(squares, facecolor=colour, alpha=0.35, edgecolor=colour, linewidth=0.4)
        )
        axes.plot([], [], "s", color=colour, label=f"cluster {cluster} ({len(rows)})")
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False)
    _finish(figure, axes, extent_mm, path)


def _slide_axes(slide: Slide) -> tuple[Any, Any, tuple[float, float]]:
    from matplotlib.figure import Figure

    width_mm, height_mm = (n * slide.mpp / 1000 for n in slide.dimensions)
    scale = 7 / max(width_mm, height_mm)
    figure = Figure(figsize=(max(3.5, width_mm * scale) + 2, max(3, height_mm * scale)), layout="constrained")
    axes = figure.add_subplot()
    axes.imshow(slide.thumbnail(1400), extent=(0, width_mm, height_mm, 0))
    return figure, axes, (width_mm, height_mm)


def _finish(figure: Any, axes: Any, extent_mm: tuple[float, float], path: Path) -> None:
    axes.set(xlim=(0, extent_mm[0]), ylim=(extent_mm[1], 0), xlabel="mm", ylabel="mm", aspect="equal")
    figure.savefig(path, dpi=130)


# Usage -----------------------------------------------------------------------------------------------------------


def _parser() -> argparse.ArgumentParser:
    from pathkit import __version__

    parser = argparse.ArgumentParser(
        prog="pathkit", description="Machine learning for pathology on whole-slide images."
    )
    parser.add_argument("--version", action="version", version=f"pathkit {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    doctor = commands.add_parser(
        "doctor", help="check the installation, and say what is missing and how to get it"
    )
    doctor.set_defaults(command=_doctor)

    demo = commands.add_parser(
        "demo", help="prepare the synthetic demo slides (once; then they are in the cache)"
    )
    demo.add_argument("name", nargs="?", default="lymph-nodes", help="data set (default: %(default)s)")
    demo.add_argument("--remove", action="store_true", help="remove the slides from the cache")
    demo.set_defaults(command=_demo)

    _step(commands, "tissue", _tissue, "find tissue: a mask, polygons for QuPath, and a picture")
    patches = _step(commands, "patches", _patches, "lay a grid of patches over the tissue: a table")
    features = _step(
        commands, "features", _features, "describe each patch by an encoder, and cluster the patches"
    )
    heatmap = _step(
        commands, "heatmap", _heatmap, "run a trained model over the slide: a heatmap and its lesions"
    )
    for command in (patches, features):
        command.add_argument(
            "--size-px", type=int, default=256, help="patch side in pixels (default: %(default)s)"
        )
        command.add_argument(
            "--patch-mpp", type=float, default=0.5, help="patch resolution, µm/px (default: %(default)s)"
        )
        command.add_argument(
            "--overlap-px", type=int, default=0, help="overlap of neighbours (default: %(default)s)"
        )
        command.add_argument(
            "--min-tissue", type=float, default=0.5, help="least tissue fraction (default: %(default)s)"
        )
    features.add_argument(
        "--encoder", default="efficientnet-lite0", help="which encoder (default: %(default)s)"
    )
    features.add_argument(
        "--clusters", type=int, default=6, help="clusters to draw, 0 for none (default: %(default)s)"
    )
    for command in (features, heatmap):
        command.add_argument(
            "--stain", metavar="SLIDE", help="normalise the stain of each slide to that of this one (Macenko)"
        )
    heatmap.add_argument("--model", required=True, help="a model saved by pathkit (models.save_model)")
    heatmap.add_argument("--threshold", type=float, default=0.5, help="of a lesion (default: %(default)s)")
    heatmap.add_argument(
        "--refine",
        type=float,
        help="look closely only where patches side by side reach this probability (0.05, say)",
    )
    return parser


def _step(commands: Any, name: str, command: Any, help_text: str) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=help_text, description=help_text[0].upper() + help_text[1:] + ".")
    parser.add_argument("slides", nargs="+", help="slide files, or folders of slides")
    parser.add_argument(
        "--out", default=f"pathkit-{name}", help="folder for the results (default: %(default)s)"
    )
    parser.add_argument(
        "--mpp", type=float, help="µm per level-0 pixel, where the file does not say it or says it wrong"
    )
    parser.add_argument(
        "--mask-mpp", type=float, default=8.0, help="resolution of the tissue mask (default: %(default)s)"
    )
    parser.add_argument("--force", action="store_true", help="do again what is done")
    parser.set_defaults(command=command)
    return parser
