"""The pictures of the README, drawn from one run: `python -m reports.gallery RUN FOLDER`.

`layers.png`, `heads.png`, `window.png` are the figures of the run's page, `circuit.svg` its circuit, on white. The same
run gives the same bytes.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pandas as pd

from reports import figures, look
from reports.circuit import draw, read
from reports.circuit_shapes import svg_file
from reports.errors import InputError
from reports.files import write
from reports.page import read_summary
from reports.reading import read_frame

__all__ = ["gallery"]


def gallery(run: str | os.PathLike[str], folder: str | os.PathLike[str]) -> list[Path]:
    """Writes the pictures and returns their paths.

    Raises:
        InputError: The run lacks one of its files.
    """
    source, target = Path(run), Path(folder)
    frames: dict[str, pd.DataFrame] = {}
    for name in ("contrast", "heads", "window"):
        frame = read_frame(source, name)
        if frame is None:
            raise InputError(
                f"run: expected {name}.parquet in {source}, found none; make the run with `mechedit demo`"
            )
        frames[name] = frame
    first, last = read_summary(source)["window"]
    heads = frames["heads"]
    after = heads[heads["stage"] == "after"] if "stage" in heads else heads
    drawn = {
        "layers.png": figures.layer_panels(frames["contrast"], window=(first, last))[0],
        "heads.png": figures.head_heatmap(after),
        "window.png": figures.window_strip(frames["window"], (first, last)),
    }
    target.mkdir(parents=True, exist_ok=True)
    for name, axes in drawn.items():
        look.save(axes, target / name, dpi=160)
    drawing = draw(read(source / "circuit.json"))
    inches = (drawing.width / 96, drawing.height / 96)
    write(target / "circuit.svg", svg_file(drawing.svg, drawing.shapes, inches=inches))
    return [target / name for name in (*drawn, "circuit.svg")]


if __name__ == "__main__":
    gallery(*sys.argv[1:])
