"""Two checkpoints of one model contrasted, as a run: folder, result, page."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from experiments.runs import RunFolder
from mechedit.anatomy.checkpoint_contrast import CheckpointContrast, staged
from mechedit.data.facts import FactEdit
from reports import page

__all__ = ["write_contrast"]


def write_contrast(contrast: CheckpointContrast, fact: FactEdit | None, out: str | Path) -> Path:
    """Writes the run folder `out` with the result and its page; returns the page.

    Raises:
        InputError: `out` holds something else, or a contrast of other checkpoints.
    """
    asked = (
        {}
        if fact is None
        else {key: value for key, value in asdict(fact).items() if isinstance(value, str) and value}
    )
    config = {"contrast": {"model": contrast.base, "edited": contrast.edited, "fact": asked}}
    run = RunFolder.open(out, config, provenance=contrast.provenance)
    run.write_result(contrast, "checkpoints")
    if len(contrast.layers):
        run.write_frame("contrast", staged(contrast.layers))
        run.write_frame("heads", staged(contrast.heads))
    run.write_json("summary", _summary(contrast, fact))
    built = page.build(run.path)
    run.finish({"weights": len(contrast.weights)})
    return built


def _window(contrast: CheckpointContrast) -> list[int] | None:
    """First and last layer that differ, where they are less than half of the model's: the figure shades them."""
    layers = [int(layer) for layer in contrast.weights["layer"] if layer >= 0]
    n_layers = len(contrast.layers["layer"].unique())
    return [min(layers), max(layers)] if layers and 2 * (max(layers) - min(layers) + 1) < n_layers else None


def _summary(contrast: CheckpointContrast, fact: FactEdit | None) -> dict[str, Any]:
    about = "" if fact is None else f"{fact.rewrite_prompt} {fact.target_true} → {fact.target_new}"
    return {
        "title": f"{contrast.edited} against {contrast.base}",
        "subtitle": about or "The weights alone; no fact was given.",
        "model": contrast.base,
        "window": _window(contrast),
        "editors": [],
        "notes": list(contrast.notes),
        "not_done": [
            "Scores are static: each unit is added alone under a frozen norm; ablate them to know.",
            "Which tool made the edit, and on what, is in no checkpoint.",
        ],
    }
