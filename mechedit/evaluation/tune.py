"""Choosing an editor's hyper-parameters: a grid, scored on facts that are never evaluated.

How the defaults of the embedded models were found: `mechedit tune --editor rome --grid 'layer=2;3;4' 'clamp=2.0;4.0'`
scores each combination by S, the harmonic mean of ES, PS and NS (`mechedit.evaluation.evaluate`), on
`factworld.edits(n, seed=1, skip=edits(200))`: no subject of the 200 facts of the evaluation split is among them.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from experiments.progress import track
from mechedit.data.facts import FactEdit
from mechedit.editors.base import Editor
from mechedit.editors.fields import with_fields
from mechedit.editors.registry import by_name, select
from mechedit.evaluation.evaluate import baseline, evaluate
from mechedit.factworld import edits
from mechedit.models.hooked import HookedModel

__all__ = ["EVALUATED", "selection_split", "tune"]

EVALUATED = 200  # facts of the evaluation split: no subject of theirs is used to choose by
SCORES = ("S", "ES", "PS", "NS", "Acc", "Gen", "Spec")


def selection_split(n: int) -> list[FactEdit]:
    """`n` facts of the embedded world to choose by.

    >>> from mechedit.factworld import edits
    >>> {fact.subject for fact in selection_split(3)} & {fact.subject for fact in edits(EVALUATED)}
    set()
    """
    return edits(n, seed=1, skip=edits(EVALUATED))


def tune(
    model: HookedModel,
    editor: str,
    grid: Mapping[str, Sequence[Any]],
    *,
    facts: Sequence[FactEdit],
    progress: bool = True,
) -> pd.DataFrame:
    """Scores every combination of settings. Errors of the editor pass through.

    Args:
        model: The unedited model.
        editor: The name of the editor.
        grid: The values to try, by field of the editor.
        facts: The facts to score on; what an editor chooses by itself it chooses on them too.
        progress: Whether a bar is shown.

    Returns:
        One row a combination, best S first: the fields, S, ES, PS, NS, Acc, Gen, Spec.

    Raises:
        InputError: The editor or a field is unknown.

    >>> import mechedit as me
    >>> model = me.load_model("factworld")
    >>> table = tune(model, "ft", {"steps": [1, 10]}, facts=selection_split(2), progress=False)
    >>> table["steps"].tolist()
    [10, 1]
    """
    unedited, rows = baseline(model, facts), []
    combinations = list(itertools.product(*grid.values()))
    for values in track(combinations, label=f"tune {editor}", progress=progress, unit="setting"):
        settings = dict(zip(grid, values, strict=True))
        ready = select(with_fields(by_name(editor), settings), model, facts)
        rows.append({**settings, **_scores(model, ready, facts, unedited)})
    return pd.DataFrame(rows).sort_values("S", ascending=False, kind="stable", ignore_index=True)


def _scores(model: HookedModel, editor: Editor, facts: Sequence[FactEdit], unedited: Any) -> dict[str, float]:
    result = evaluate(model, editor, facts, progress=False, unedited=unedited)
    values = result.summary().set_index("metric")["value"]
    return {name: float(values[name]) for name in SCORES}
