"""FT-L: fine-tuning with a bound on every weight's change.

Source: Zhu et al., "Modifying Memories in Transformer Models" (arXiv 2012.00363), as ROME's baseline: after each step
of FT (`mechedit.editors.weights.ft`) W is put back into the box |W − W0| ≤ epsilon, entry by entry (L∞).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from mechedit.editors.defaults import AUTO, Table
from mechedit.editors.weights.ft import FT

if TYPE_CHECKING:
    pass

__all__ = ["FTL"]


@dataclass(frozen=True)
class FTL(FT):
    """FT within a box; fields as `FT`, `epsilon` is the bound. What is AUTO is chosen by the model (`for_model`).

    >>> import mechedit as me
    >>> model, fact = me.load_model("factworld"), me.factworld.edits(1)[0]
    >>> before = model.W_out(4).clone()
    >>> with FTL(layer=4, epsilon=1e-3).apply(model, fact):
    ...     bool((model.W_out(4) - before).abs().max() <= 1e-3 + 1e-6)
    True
    """

    epsilon: float | None = AUTO
    name: str = "ft_l"

    DEFAULTS: ClassVar[Table] = {
        "gpt2-xl": {"layer": 0, "steps": 25, "lr": 5e-4, "epsilon": 5e-4},
        "llama-2-7b": {"layer": 21, "steps": 25, "lr": 5e-4, "epsilon": 5e-4},
        "factworld": {"layer": 4, "steps": 25, "lr": 2e-2, "epsilon": 6e-2},
        "factworld-llama": {"layer": 2, "steps": 25, "lr": 2e-2, "epsilon": 0.1},
    }
