"""The attributions of many prompts as one result: a table over all, and each by its index."""

from __future__ import annotations

import dataclasses
import html
import typing
from collections.abc import Sequence
from typing import Any, TypeVar, cast, overload

import pandas as pd

from experiments.runs import RunFolder
from mechedit.attribution.result import Attribution
from reports.codec import decode, encode
from reports.errors import IntegrityError
from reports.readable import SCORE_MEANS, prompt_text
from reports.results import Result
from reports.text import visible

__all__ = ["Attributions", "SavedAttributions", "from_case", "to_case"]

R = TypeVar("R", bound=Result)


class Attributions(Sequence[Attribution]):
    """What `attribute_many` found, in the order of its pairs: a sequence of `Attribution`, and tables over all."""

    def __init__(self, results: Sequence[Attribution]) -> None:
        self._results = results

    def __len__(self) -> int:
        return len(self._results)

    @overload
    def __getitem__(self, index: int) -> Attribution: ...
    @overload
    def __getitem__(self, index: slice) -> Attributions: ...
    def __getitem__(self, index: int | slice) -> Attribution | Attributions:
        results = self._results[index]
        return results if isinstance(results, Attribution) else Attributions(results)

    def to_frame(self) -> pd.DataFrame:
        """All scores in one tidy frame: case (the index of the pair), prompt, target, and `Attribution.to_frame`'s."""
        frames = []
        for case, attr in enumerate(self):
            frame = attr.to_frame()
            frame.insert(0, "case", case)
            frame.insert(1, "prompt", prompt_text(attr.tokens, attr.prompt_length))
            frame.insert(2, "target", attr.target_token)
            frames.append(frame)
        return pd.concat(frames, ignore_index=True).astype({"prompt": "category", "target": "category"})

    def summary(self) -> pd.DataFrame:
        """One row a pair: prompt, target, logp, gap (nats), and the layer, head and FFN neuron that add most.

        Columns: prompt, target, logp, gap, layer ("attn 23"), head ("23.4"), neuron ("24.1005"), promotes (by that
        neuron, as text).
        """
        return pd.DataFrame([_row(attr) for attr in self])

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self)} prompts)"

    def _repr_html_(self) -> str:
        table = self.summary().to_html(escape=True, border=0, float_format=lambda value: f"{value:.4g}")
        return f"<div><p><strong>{html.escape(repr(self))}</strong></p><p>{SCORE_MEANS}</p>{table}</div>"


class SavedAttributions(Attributions):
    """Those in a run folder; each is read when it is indexed."""

    def __init__(self, run: RunFolder, n: int) -> None:
        super().__init__(_Cases(run, n))
        self.run = run

    def __repr__(self) -> str:
        return f"SavedAttributions({str(self.run.path)!r}, n={len(self)})"


class _Cases(Sequence[Attribution]):
    def __init__(self, run: RunFolder, n: int) -> None:
        self.run, self.n = run, n

    def __len__(self) -> int:
        return self.n

    @overload
    def __getitem__(self, index: int) -> Attribution: ...
    @overload
    def __getitem__(self, index: slice) -> list[Attribution]: ...
    def __getitem__(self, index: int | slice) -> Attribution | list[Attribution]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(self.n))]
        place = range(self.n)[index]
        return from_case(Attribution, self.run.read_case(place), where=f"{self.run.path}: case {place}")


def _row(attr: Attribution) -> dict[str, Any]:
    def best(unit: str) -> dict[str, Any]:
        rows: list[dict[str, Any]] = attr.readable(1, unit).to_dict("records")
        return rows[0] if rows else {}

    layer, head, neuron = best("layers"), best("heads"), best("mlp_neurons")
    return {
        "prompt": prompt_text(attr.tokens, attr.prompt_length),
        "target": visible(attr.target_token, spaces=True),
        "logp": attr.logp,
        "gap": attr.completeness_gap,
        "layer": f"{layer['module']} {layer['layer']}",
        "head": f"{head['layer']}.{head['head']}",
        "neuron": f"{neuron['layer']}.{neuron['neuron']}" if neuron else "",
        "promotes": neuron.get("promotes", ""),
    }


def to_case(result: Result) -> dict[str, Any]:
    """A result as plain data.

    Keys: kind, values (the plain fields), frames (by field: columns and dtypes, each by column).
    """
    case: dict[str, Any] = {"kind": result.kind, "values": {}, "frames": {}}
    for field in dataclasses.fields(cast(Any, result)):
        value = getattr(result, field.name)
        if isinstance(value, pd.DataFrame):
            dtypes = {name: str(dtype) for name, dtype in value.dtypes.items()}
            case["frames"][field.name] = {"columns": value.to_dict("list"), "dtypes": dtypes}
        else:
            case["values"][field.name] = encode(value, where=field.name)
    return case


def from_case(cls: type[R], case: dict[str, Any], *, where: str) -> R:
    """The result that `to_case` described.

    Args:
        cls: Its class.
        case: The plain data.
        where: Where they come from, for the error.

    Raises:
        IntegrityError: The data are of another kind or have other fields.
    """
    if case.get("kind") != cls.kind:
        raise IntegrityError(f"{where}: expected kind {cls.kind!r}, found {case.get('kind')!r}")
    hints = typing.get_type_hints(cls)
    try:
        values = {name: decode(value, hints[name]) for name, value in case["values"].items()}
        frames = {name: _frame(**frame) for name, frame in case["frames"].items()}
        return cls(**values, **frames)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise IntegrityError(f"{where}: not the fields of {cls.__name__} ({error})") from error


def _frame(columns: dict[str, list[Any]], dtypes: dict[str, str]) -> pd.DataFrame:
    return pd.DataFrame({name: pd.Series(values, dtype=dtypes[name]) for name, values in columns.items()})
