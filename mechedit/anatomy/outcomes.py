"""Success against failure of any attributions at hand: of edited models, or of what an edit changed.

1. Each result is a column, each unit (layer and module, head, FFN neuron) a row; joined by the columns that name it. A
   steering term that is absent has added nothing: 0.
2. A unit whose score is not known in some result (it is no row of that top k, where it scores less than the last) has
   no mean over the results, and is left out and counted: attribute with top_k="all", or `also=`, to keep it.
3. difference = mean of the successes − mean of the failures, with the interval of `success_contrast`: a bootstrap over
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

from mechedit.anatomy.success_contrast import interval, success_contrast
from mechedit.attribution.result import Attribution, AttributionContrast
from mechedit.attribution.units import UNITS, in_order
from reports.anatomy_figures import difference_curve
from reports.errors import InputError
from reports.plot import Plot
from reports.results import Result

__all__ = ["OutcomeContrast", "outcome_contrast"]

#: The frames of an outcome contrast.
COMPARED = ("layers", "heads", "mlp_neurons")
Results = Sequence[Attribution] | Sequence[AttributionContrast]


@dataclass(frozen=True, eq=False, repr=False)
class OutcomeContrast(Result):
    """The result of `outcome_contrast`: what successes score, unit by unit, and failures do not.

    Each frame has the columns success, failure (means), difference, low, high (nats, 95 % bootstrap interval over
    facts) behind those that name the unit.

    Attributes:
        layers: By layer, module.
        heads: By layer, head.
        mlp_neurons: By layer, neuron; sorted by |difference|.
        left_out: For each frame, how many units are not known in all results.
        n_success: Results that succeeded.
        n_failure: Results that failed.
        facts_success: Facts of those that succeeded.
        facts_failure: Facts of those that failed.
        provenance: Of every result, and the seed.
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

    def plot(self, ax: Axes | None = None) -> Plot:
        """Success − failure by layer, one line a module, with its interval; drawn from the stored numbers alone."""
        title = f"{self.n_success} runs that succeed less {self.n_failure} that fail"
        return Plot(difference_curve(self.layers, ax), title=title)


def outcome_contrast(
    results: Results, success: Sequence[bool], *, facts: Sequence[Hashable] | None = None, seed: int = 0
) -> OutcomeContrast:
    """Success − failure of `results`.

    Args:
        results: Attributions, or differences of them (`edit_contrast`), of one run each.
        success: Whether each succeeded.
        facts: Which fact each is about (None: each another); results of one fact are drawn together.
        seed: Of the bootstrap.

    Raises:
        InputError: `success` or `facts` has another length, results are of several types, conventions or models, or
            all succeed or all fail.

    >>> import mechedit as me
    >>> model, facts = me.load_model("factworld"), me.factworld.edits(4)
    >>> pairs = [(fact.rewrite_prompt, word) for fact in facts for word in (fact.target_true, fact.target_new)]
    >>> results = [me.attribute(model, *pair, top_k=5) for pair in pairs]
    >>> outcome_contrast(results, [attr.logp > -0.5 for attr in results]).layers.columns.tolist()
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
        contrast = success_contrast(known.to_numpy().T, outcome, fact, n_facts=len(places), seed=seed)
        low, high = interval(contrast.drawn)
        columns = {name: getattr(contrast, name) for name in ("success", "failure", "difference")}
        frame = known.index.to_frame(index=False).assign(**columns, low=low, high=high)
        frames[unit] = in_order(frame, unit, by="difference")
    return OutcomeContrast(
        **frames,
        left_out=left_out,
        n_success=contrast.n_success,
        n_failure=contrast.n_failure,
        facts_success=contrast.facts_success,
        facts_failure=contrast.facts_failure,
        provenance={"results": [result.provenance for result in results], "seeds": {"bootstrap": seed}},
    )


def _table(results: Results, unit: str) -> pd.DataFrame:
    """Scores by unit (index) and result (columns); NaN where a result does not know a unit's."""
    keys = list(UNITS[unit])
    columns = [getattr(result, unit).set_index(keys)["score"].rename(i) for i, result in enumerate(results)]
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
    kinds = {type(result) for result in results}
    if kinds not in ({Attribution}, {AttributionContrast}):
        raise InputError(
            "results: expected attributions, or differences of attributions, and not both; found "
            f"{', '.join(sorted(kind.__name__ for kind in kinds)) or 'none'}"
        )
    conventions = [_convention(result) for result in results]
    first = conventions[0]
    for index, convention in enumerate(conventions):
        for key in (key for key in first if convention[key] != first[key]):
            raise InputError(
                f"results: expected one {key} in all, found {first[key]!r} and, at {index}, {convention[key]!r}"
            )
    outcome = np.array([bool(succeeded) for succeeded in success])
    if outcome.all() or not outcome.any():
        verdict = "all succeed" if outcome.all() else "none succeeds"
        raise InputError(f"success: expected both outcomes, found that {verdict} ({len(outcome)})")
    return outcome


def _convention(result: Attribution | AttributionContrast) -> dict[str, Any]:
    """What must agree: not the model's hash, which an edit may change, nor prompt and target."""
    side = result.provenance.get("a", result.provenance)
    model = {f"model {name}": side.get("model", {}).get(name) for name in ("name", "source")}
    return {
        "biases": result.biases,
        "target_scored": result.target_scored,
        "dtype": side.get("dtype"),
        **model,
    }
