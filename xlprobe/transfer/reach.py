"""Objectives that reach unlike parts of the encoder, compared where all of them reach.

`sentence` and `token` move the layers up to the one they look at, `mlm` and `tlm` all of them. The cosine of each with
the task over its own part (scope "encoder") is its own figure; which of two is the closer to the task can be said over
the same parameters alone. These are the blocks up to the last one that every objective reaches (scope "through"), so
the comparison has an interval and yardsticks of its own.
"""

from __future__ import annotations

import pandas as pd

__all__ = ["KEYS", "common_rows", "depth_of", "whole_rows"]

KEYS = ("pair", "objective", "task")


def common_rows(gradients: pd.DataFrame) -> tuple[pd.DataFrame, int]:
    """The row of each pair, objective and task over the blocks that all objectives reach, and the last such block.

    Frames of earlier versions have no such rows: theirs are those of the encoder, and the block is 0.

    Args:
        gradients: Frame of `Study.gradients`.
    """
    if "through" not in set(gradients["scope"]):
        return gradients[gradients["scope"] == "encoder"], 0
    keys = [key for key in KEYS if key in gradients]
    depth = min(depth_of(rows) for _, rows in gradients.groupby(keys, sort=False))
    return gradients[(gradients["scope"] == "through") & (gradients["layer"] == depth)], depth


def depth_of(rows: pd.DataFrame) -> int:
    """The last block up to which every block is reached by both losses; 0 where the first is not.

    >>> frame = pd.DataFrame({"scope": "layer", "layer": [0, 1, 2, 3], "task_reach": 1.0})
    >>> depth_of(frame.assign(align_reach=[1.0, 1.0, 1.0, 0.0]))
    2
    """
    layers = rows[(rows["scope"] == "layer") & (rows["layer"] > 0)].sort_values("layer")
    reached = (layers["task_reach"] > 0) & (layers["align_reach"] > 0)
    return int(reached.cummin().sum())


def whole_rows(gradients: pd.DataFrame) -> pd.DataFrame:
    """The row of each pair, objective and task over all blocks, reached or not."""
    return gradients[(gradients["scope"] == "whole") & (gradients["group"] == "all")]
