"""What `evaluate` costs a fact under each editor, and `anatomy` a fact, against the passes that they cannot do without.

The floor is that of `tests.benchmarks.choose`: every distinct prompt that the call runs, run once, unhooked. What an
editor runs to find its edit (FT's steps, MEGA's fit) is part of the call, and its distinct prompts of the floor.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import mechedit as me
from mechedit.editors import FT, MEGA, Editor, by_name
from tests.benchmarks.choose import facts_of, measured
from tests.benchmarks.shapes import about

__all__ = ["bench_measure"]

#: Facts by which MEGA is chosen.
CHOOSE = 8


def bench_measure(*, model: str = "factworld", facts: int = 4) -> dict[str, Any]:
    """The benchmark as one dict: for each editor, and for anatomy, seconds a fact and their ratio to the floor."""
    loaded = me.load_model(model)
    known, middle = facts_of(loaded, model, facts + CHOOSE), loaded.shape.n_layers // 2
    chosen, others = known[:facts], known[facts:]
    mega = MEGA().select(loaded, others)
    editors: dict[str, Editor] = {
        "no_edit": by_name("no_edit"),
        "ike": by_name("ike"),
        "ft": FT(layer=middle, steps=5),
        "mega": mega,
        "mega_ungated": replace(mega, gate="always"),
    }
    calls: dict[str, Callable[[], object]] = {
        name: partial(me.evaluate, loaded, editor, chosen, progress=False) for name, editor in editors.items()
    }
    calls["anatomy"] = partial(me.anatomy, loaded, chosen, editors=[editors["ft"]], top_k=10, progress=False)
    result: dict[str, Any] = {}
    for name, call in calls.items():
        cost = measured(loaded, call)
        result[f"{name}_ratio"] = cost["seconds"] / cost["floor_seconds"]
        result[f"{name}_seconds_a_fact"] = cost["seconds"] / len(chosen)
        result[f"{name}_prompts"] = cost["prompts"]
    return {**result, "facts": len(chosen), **about(loaded)}
