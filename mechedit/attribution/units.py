"""The frames of a result: which columns name a unit, in what order they stand, how two are joined."""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from reports.errors import InputError
from reports.text import visible

__all__ = [
    "CONTRASTED",
    "UNITS",
    "as_code",
    "by_size",
    "check_exact",
    "check_top",
    "in_order",
    "joined",
    "tidy",
]

#: The frames with a score, and the columns that name their units.
UNITS: dict[str, tuple[str, ...]] = {
    "layers": ("layer", "module"),
    "heads": ("layer", "head"),
    "head_positions": ("layer", "head", "pos"),
    "mlp_neurons": ("layer", "neuron"),
    "attn_neurons": ("layer", "head", "dim", "pos"),
    "query_neurons": ("layer", "neuron"),
    "mlp_query_neurons": ("layer", "neuron"),
    "query_layers": ("layer", "module"),
    "mlp_query_layers": ("layer", "module"),
}
#: The frames of a difference.
CONTRASTED = ("layers", "heads", "head_positions", "mlp_neurons", "attn_neurons")
_MODULES = ("attn", "steer", "mlp", "steer_mlp")
_TIDY = ("layer", "module", "head", "neuron", "dim", "pos")


def tidy(frames: Mapping[str, pd.DataFrame], *, scores: Sequence[str]) -> pd.DataFrame:
    """Frames by unit as one: unit, the columns that name a unit (missing: NA), then the `scores` columns."""
    columns = ["unit", *_TIDY, *scores]
    types = dict.fromkeys(_TIDY, "Int64") | {"module": "string"} | dict.fromkeys(scores, "float64")
    parts = [frame.assign(unit=unit).reindex(columns=columns).astype(types) for unit, frame in frames.items()]
    return pd.concat(parts, ignore_index=True)


def check_top(k: object, unit: str, units: Iterable[str]) -> None:
    """Checks how many rows of which frame are to be shown.

    Raises:
        InputError: `unit` is none of `units`, or `k` no integer of at least 1.
    """
    if unit not in units:
        raise InputError(f"unit: expected one of {', '.join(units)}, found {unit!r}")
    if isinstance(k, bool) or not isinstance(k, int) or k < 1:
        raise InputError(f"k: expected an integer of at least 1, found {k!r}")


def check_exact(certificates: Mapping[str, Mapping[str, Any]]) -> None:
    """Checks the certificates of results, by the results' names: earlier versions saved results with intervals too.

    Raises:
        InputError: A result's scores are intervals.
    """
    for name, certificate in certificates.items():
        if not certificate["exact"]:
            raise InputError(f"{name}: expected exact scores, found intervals; attribute again")


def as_code(text: str) -> str:
    """A token or a prompt for a page, escaped."""
    return f"<code>{html.escape(visible(text))}</code>"


def joined(a: pd.DataFrame, b: pd.DataFrame, unit: str) -> pd.DataFrame:
    """Two frames of `unit` as one, outer: the columns that name a unit, a, b and score = a − b, `in_order`."""
    keys = list(UNITS[unit])
    sides = [frame[[*keys, "score"]].rename(columns={"score": name}) for name, frame in (("a", a), ("b", b))]
    frame = sides[0].merge(sides[1], on=keys, how="outer", validate="one_to_one")
    if unit == "layers":
        steering = frame["module"].str.startswith("steer")
        frame.loc[steering, ["a", "b"]] = frame.loc[steering, ["a", "b"]].fillna(0.0)
    return in_order(frame.assign(score=frame["a"] - frame["b"]), unit)


def in_order(frame: pd.DataFrame, unit: str, *, by: str = "score") -> pd.DataFrame:
    """Layers in the order of the computation, heads by place, neurons by the size of `by`, largest first."""
    keys = list(UNITS[unit])
    if unit == "layers":
        ordered = frame.assign(order=frame["module"].map(_MODULES.index))
        return ordered.sort_values(["layer", "order"], ignore_index=True).drop(columns="order")
    if unit.endswith("neurons"):
        return by_size(frame, unit, by=by)
    return frame.sort_values(keys, ignore_index=True)


def by_size(frame: pd.DataFrame, unit: str, *, by: str = "score") -> pd.DataFrame:
    """The rows in the order of the size of `by`, largest first, ties by place; what is not known comes last."""
    order = frame.sort_values(list(UNITS[unit]))[by].abs().sort_values(ascending=False, kind="stable")
    return frame.loc[order.index].reset_index(drop=True)
