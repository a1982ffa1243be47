"""Success against failure of any attributions that have been made: of edited models, or of what an edit changed.

1. Each result is a column, each unit (layer and module, head, FFN neuron) a row; joined by the columns that name it. A
   steering term that is not there has added nothing: 0.
2. A unit whose score is not known in some result (it is no row of that top k, where it scores less than the last) has
   no mean over the results, and is left out and counted: attribute with top_k="all", or `also=`, to keep it.
3. difference = mean of the successes − mean of the failures, with the interval of `anatomy.contrast`: a bootstrap over
   facts.

Attention value neurons are keyed by source position, which means nothing across prompts: they have no contrast here.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from mechedit.anatomy.success_contrast import contrast, interval
from mechedit.attribution.result import Attribution, AttributionContrast
from mechedit.attribution.units import UNITS, in_order
from reports.anatomy_figures import difference_curve
from reports.errors import InputError
from reports.results import Result

__all__ = ["OutcomeContrast", "outcome_contrast"]

#: The frames of an outcome contrast.
COMPARED = ("layers", "heads", "mlp_neurons")
Results = Sequence[Attribution] | Sequence[AttributionContrast]


@dataclass(frozen=True, eq=False, repr=False)
class OutcomeContrast(Result):
    """What results that are successes score, unit by unit, and failures do not.

    Frames: `layers` (layer, module), `heads` (layer, head), `mlp_neurons` (layer, neuron), each with success, failure
    (means), difference, low, high (nats, 95 % bootstrap interval over facts). Neurons are sorted by |difference|.
    `left_out`: units of each frame that are not known in all results. n_success, n_failure: results of each kind, of
    facts_success and facts_failure facts.
    """

    kind: ClassVar[str] = "outcome_contrast"
    layers: pd.DataFrame
    heads: pd.DataFrame
    mlp_neurons: pd.DataFrame
    left_out: dict[str, int]
    n_success: int
    n_failure: int
    facts_success: int
    facts_failure: int
    provenance: dict[str, Any] = field(default_factory=dict)

    def plot(self, ax: Axes | None = None) -> Axes:
        """Success − failure by layer, one line a module, with its interval; drawn from the stored numbers alone."""
        return difference_curve(self.layers, ax)


def outcome_contrast(
    results: Results, success: Sequence[bool], *, facts: Sequence[Hashable] | None = None, seed: int = 0
) -> OutcomeContrast:
    """Success − failure of `results`: attributions, or differences of them (`edit_contrast`), one a run.

    success: of each. facts: which fact each is about (None: each its own); runs of one fact are drawn together.

    Errors: `InputError` where success or facts has another length, results are of several types, conventions or
    models, all succeed or all fail.

    >>> import mechedit as me
    >>> model, facts = me.load_model("factworld"), me.factworld.edits(4)
    >>> pairs = [(fact.rewrite_prompt, said) for fact in facts for said in (fact.target_true, fact.target_new)]
    >>> found = [me.attribute(model, *pair, top_k=5) for pair in pairs]
    >>> outcome_contrast(found, [attr.logp > -0.5 for attr in found]).layers.columns.tolist()
    ['layer', 'module', 'success', 'failure', 'difference', 'low', 'high']
    """
    named = list(range(len(results))) if facts is None else list(facts)
    outcome = _checked(results, success, named)
    places = {fact: i for i, fact in enumerate(dict.fromkeys(named))}
    fact = np.array([places[name] for name in named])
    frames, left_out = {}, {}
    for unit in COMPARED:
        table = _table(results, unit)
        known = table.dropna()
        left_out[unit] = len(table) - len(known)
        found = contrast(known.to_numpy().T, outcome, fact, n_facts=len(places), seed=seed)
        low, high = interval(found.drawn)
        columns = {"success": found.success, "failure": found.failure, "difference": found.difference}
        frame = known.index.to_frame(index=False).assign(**columns, low=low, high=high)
        frames[unit] = in_order(frame, unit, by="difference")
    return OutcomeContrast(
        **frames,
        left_out=left_out,
        n_success=found.n_success,
        n_failure=found.n_failure,
        facts_success=found.facts_success,
        facts_failure=found.facts_failure,
        provenance={"results": [one.provenance for one in results], "seeds": {"bootstrap": seed}},
    )


def _table(results: Results, unit: str) -> pd.DataFrame:
    """Scores by unit (index) and result (columns); NaN where a result does not know a unit's."""
    keys = list(UNITS[unit])
    columns = [getattr(one, unit).set_index(keys)["score"].rename(i) for i, one in enumerate(results)]
    table = pd.concat(columns, axis=1)
    if unit == "layers":
        steering = table.index.get_level_values("module").str.startswith("steer")
        table.loc[steering] = table.loc[steering].fillna(0.0)
    return table


def _checked(results: Results, success: Sequence[bool], facts: Sequence[Hashable]) -> np.ndarray:
    """`success` as an array."""
    if not len(results) == len(success) == len(facts):
        raise InputError(
            f"results, success, facts: expected as many of each, found {len(results)}, {len(success)} and {len(facts)}"
        )
    kinds = {type(one) for one in results}
    if kinds not in ({Attribution}, {AttributionContrast}):
        raise InputError(
            "results: expected attributions, or differences of attributions, and not both; found "
            f"{', '.join(sorted(kind.__name__ for kind in kinds)) or 'none'}"
        )
    conventions = [_convention(one) for one in results]
    first = conventions[0]
    for index, said in enumerate(conventions):
        for key in (key for key in first if said[key] != first[key]):
            raise InputError(
                f"results: expected one {key} in all, found {first[key]!r} and, at {index}, {said[key]!r}"
            )
    outcome = np.array([bool(one) for one in success])
    if outcome.all() or not outcome.any():
        found = "all succeed" if outcome.all() else "none succeeds"
        raise InputError(f"success: expected both outcomes, found that {found} ({len(outcome)})")
    return outcome


def _convention(one: Attribution | AttributionContrast) -> dict[str, Any]:
    """What has to agree: an edit may change the model's hash, and each result has its own prompt and target."""
    side = one.provenance.get("a", one.provenance)
    names = ("name", "source")
    model = {f"model {name}": side.get("model", {}).get(name) for name in names}
    return {"biases": one.biases, "target_scored": one.target_scored, "dtype": side.get("dtype"), **model}
