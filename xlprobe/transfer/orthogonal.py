"""Orthogonal to what? The cosine of task and alignment beside those that two *useful* gradients make.

In millions of dimensions all that is noisy is nearly orthogonal to everything, so a cosine of 0.05 may be small or may
be as much as the task has with itself. [choice] The yardsticks are two gradients that are both of use to the task:

- `task_halves`: the task's loss on two halves of its batches;
- `source_target`: the task's loss in the source against the target language.

`useful` is the smaller of them that is known, and a cosine is small against it up to a third (`SHARE`). The noise of
the task's own batches is in all of them alike, so a row's answer may be read where the task is noisy; where the
*alignment's* halves are below 0.5, its noise alone would make the cosine small, and the answer is "noise". Otherwise,
by the cosine's whole interval: "orthogonal" within ±`bound`, "with" above it, "against" below it, "open" else.
"""

from __future__ import annotations

import math
from typing import Any

import pandas as pd

from xlprobe.transfer.reach import KEYS
from xlprobe.transfer.verdict import NOISE, decide

__all__ = ["SHARE", "angles", "useful"]

SHARE = 1 / 3
YARDSTICKS = ("task_halves", "source_target")
_SHOWN = ("cosine", "low", "high", *YARDSTICKS, "shuffled", "align_halves", "random_sd")


def useful(row: Any) -> float:
    """The smallest cosine of two useful gradients that is known of a row; nan where none is.

    >>> useful({"task_halves": 0.8, "source_target": 0.5})
    0.5
    """
    known = [float(row.get(name, math.nan)) for name in YARDSTICKS]
    return min((value for value in known if not math.isnan(value)), default=math.nan)


def angles(gradients: pd.DataFrame) -> pd.DataFrame:
    """Frame pair, objective, task, layer, the cosine with its yardsticks, useful, bound and answer, a row each layer.

    Layer 0 is the embeddings, −1 the encoder's blocks together; layers that the objective does not reach have no row.

    Args:
        gradients: Frame of `Study.gradients`.

    >>> row = {"pair": "a-b", "objective": "hictl", "task": "pos", "scope": "layer", "layer": 1}
    >>> row |= {"cosine": 0.05, "low": 0.02, "high": 0.08, "task_halves": 0.9, "source_target": 0.6}
    >>> row |= {"shuffled": 0.0, "align_halves": 0.9, "random_sd": 0.01}
    >>> angles(pd.DataFrame([row]))[["useful", "bound", "answer"]].round(2).to_dict("records")
    [{'useful': 0.6, 'bound': 0.2, 'answer': 'orthogonal'}]
    """
    rows = gradients[gradients["scope"].isin(["layer", "encoder"])].dropna(subset=["cosine"])
    frame = rows[[*KEYS, "layer", *_SHOWN]].reset_index(drop=True)
    frame["useful"] = [useful(row) for row in frame.to_dict("records")]
    frame["bound"] = SHARE * frame["useful"].clip(lower=0)
    frame["answer"] = [_answer(row) for row in frame.to_dict("records")]
    return frame


def _answer(row: dict[Any, Any]) -> str:
    """See the module."""
    if not row["align_halves"] >= NOISE:
        return "noise"
    bound = float(row["bound"])
    known = {"orthogonal": (-bound, bound), "with": (bound, 1.0), "against": (-1.0, -bound)}
    return decide(row["low"], row["high"], **known).replace("not shown", "open")
