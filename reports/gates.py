"""How well gates tell an edit's own prompts from foreign ones: the ROC figure and its section of the page."""

from __future__ import annotations

from typing import Any

import pandas as pd
from markupsafe import Markup
from matplotlib.axes import Axes

from reports.colours import LIGHT
from reports.inline import fragment
from reports.look import check, row, style
from reports.text import clip, visible

__all__ = ["FRAMES", "gates", "roc_curve"]

FRAMES = ("curves", "areas")
# Lines differ in dash and colour: one of them alone must do.
_LINES = (("pos", "-"), ("neg", "--"), ("new", "-."), ("old", ":"), ("ink", (0, (5, 1, 1, 1, 1, 1))))


def roc_curve(frame: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Draws true against false openings, a line a gate; the diagonal is a gate that knows nothing.

    Args:
        frame: gate, true_rate, false_rate (fractions), in the order of the threshold.
        ax: The axes to draw into; None makes a figure.

    >>> frame = pd.DataFrame({"gate": "hidden", "true_rate": [0.0, 1.0, 1.0], "false_rate": [0.0, 0.0, 1.0]})
    >>> [line.get_label() for line in roc_curve(frame).get_lines()][1:]
    ['hidden']
    """
    check(frame, ("gate", "true_rate", "false_rate"))
    with style():
        axes = row(1, width=4.4, height=3.6)[0] if ax is None else ax
        axes.plot([0, 1], [0, 1], color=LIGHT["muted"], linewidth=0.8, label="chance")
        for (name, points), (colour, dash) in zip(
            frame.groupby("gate", sort=False), _LINES * 3, strict=False
        ):
            label = clip(visible(str(name)), 30)
            axes.plot(
                points["false_rate"], points["true_rate"], color=LIGHT[colour], linestyle=dash, label=label
            )
        axes.set(
            xlabel="share of foreign prompts", ylabel="share of own prompts", xlim=(-0.02, 1), ylim=(0, 1.02)
        )
        axes.legend(loc="lower right")
    return axes


def gates(frames: dict[str, pd.DataFrame]) -> dict[str, Any]:
    """Returns the figure and the table of areas of the page's section.

    Args:
        frames: curves and areas of a saved `GateROC`.
    """
    areas = frames["areas"]
    best = areas.loc[areas["area"].idxmax()]
    sentence = (
        f"Largest area: {visible(str(best['gate']))}, {best['area']:.3f}, on {best['n_own']} own prompts."
    )
    figure = fragment(
        roc_curve(frames["curves"]), prefix="roc", title="Gates: own against foreign", description=sentence
    )
    rows = [
        {
            "gate": visible(str(record["gate"])),
            "layer": int(record["layer"]),
            "area": f"{record['area']:.3f}",
            "errors": f"{100 * record['errors']:.1f}",
            "own": int(record["n_own"]),
            "foreign": int(record["n_foreign"]),
        }
        for record in areas.to_dict("records")
    ]
    return {"svg": Markup(figure), "said": sentence, "rows": rows}
