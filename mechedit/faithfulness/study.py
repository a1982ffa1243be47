"""`faithfulness`: NLKA and its peers judged by one ablation, over facts and models.

1. Each method ranks the value neurons for a fact's answer (`rankings`).
2. Its k best are ablated at the last position (`intervention`), FFN and attention neurons separately;
   what counts is Δ = log p(answer) without them − with them. The lower, the more the method has found.
3. Means over facts with bootstrap intervals, and NLKA − each peer, paired by fact.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes

from experiments.case_ids import check_case_id
from experiments.cases import Case, every_case, settings_digest
from experiments.runs import RunFolder
from mechedit.attribution.terms import KINDS
from mechedit.data.case_keys import ablation_key
from mechedit.data.facts import FactEdit, facts_hash
from mechedit.data.records import fact_fields
from mechedit.evaluation.evaluate import known_facts
from mechedit.faithfulness.ablate import random_like
from mechedit.faithfulness.intervention import Means, Neurons, logp_without, mean_activations
from mechedit.faithfulness.rankings import METHODS, rank
from mechedit.models.deciding import read_anew, through_text
from mechedit.models.hooked import HookedModel
from reports.ablation_figures import ablation_curve
from reports.errors import InputError
from reports.intervals import bootstrap_mean
from reports.plot import Plot
from reports.results import Result

__all__ = ["FaithfulnessStudy", "faithfulness"]

_KEYS = ["kind", "method", "k"]


@dataclass(frozen=True, repr=False, eq=False)
class FaithfulnessStudy(Result):
    """The result of `faithfulness`. Δ in nats, negative where ablation lowers log p; intervals 95 %, over facts.

    Attributes:
        curve: model, kind ("mlp", "attn"), method, k, delta, low, high, n.
        differences: model, kind, k, peer, delta (NLKA − peer; negative: NLKA's neurons matter more), low, high, n,
            better ("nlka", the peer, or "" where the interval holds 0).
        ablated: What the neurons were set to, "zero" or "mean".
        draws: Random sets of each k.
        n: Known facts of each model.
        left_out: Facts that each model does not know.
        provenance: Models, data, seeds, versions.
    """

    kind: ClassVar[str] = "faithfulness"
    curve: pd.DataFrame
    differences: pd.DataFrame
    ablated: str
    draws: int
    n: dict[str, int]
    left_out: dict[str, int]
    provenance: dict[str, Any] = field(default_factory=dict)

    def plot(self, ax: Axes | None = None, *, model: str = "", kind: str = "mlp") -> Plot:
        """Δ against k, a line a method; drawn from the stored numbers alone.

        Args:
            ax: Where to draw; None: a new figure.
            model: Of which model; "": the first.
            kind: Which neurons, "mlp" or "attn".

        Raises:
            InputError: The study has no such model or kind.
        """
        chosen = self.curve[self.curve["model"] == (model or self.curve["model"].iloc[0])]
        chosen = chosen[chosen["kind"] == kind]
        if chosen.empty:
            models = ", ".join(self.curve["model"].unique())
            raise InputError(
                f"model, kind: expected one of {models} and of mlp, attn, found {model!r}, {kind!r}"
            )
        drawn = ablation_curve(chosen.rename(columns={"method": "line"}), ax)
        return Plot(drawn, title=f"Neurons taken out: {kind}, {chosen['model'].iloc[0]}")


def faithfulness(
    models: Sequence[HookedModel],
    facts: Sequence[FactEdit],
    *,
    ks: Sequence[int] = (1, 3, 10, 30, 100),
    draws: int = 5,
    mean_over: Sequence[str] = (),
    seed: int = 0,
    run: RunFolder | None = None,
    progress: bool = True,
) -> FaithfulnessStudy:
    """Ablate the top-k of every method of `METHODS` on the facts that each model knows.

    A fact is its rewrite prompt with its true object. Cost: per fact and model len(ks) · (8 + 2 · draws) rows of a
    forward pass, a certified attribution and a gradient.

    Args:
        models: With different names.
        facts: With different case_ids.
        ks: Numbers of neurons of each kind.
        draws: Random sets of each k.
        mean_over: Prompts whose mean activations take the neurons' place; without any they are set to zero.
        seed: Of the draws and of the bootstrap.
        run: Keeps each finished fact as a case, so that a stopped study can be continued.
        progress: Whether a bar is shown.

    Raises:
        InputError: There are no models or facts, a k is below 1 or more than a model has FFN neurons, two models share
            a name or two facts a case_id, or a model knows fewer than two of the facts.

    >>> import mechedit as me
    >>> study = faithfulness([me.load_model("factworld")], me.factworld.edits(3), ks=(1, 5), draws=2, progress=False)
    >>> study.n, len(study.curve), study.differences["peer"].nunique()
    ({'factworld': 3}, 20, 4)
    """
    _check(models, facts, ks, draws)
    plan = _Plan(ks, draws, mean_over, seed)
    curves, differences, n, left_out = [], [], {}, {}
    for model in models:
        deltas = _deltas(model, facts, plan, run=run, progress=progress)
        curves.append(_curve(deltas, seed=seed).assign(model=model.name))
        differences.append(_differences(deltas, seed=seed).assign(model=model.name))
        n[model.name] = deltas.shape[1]
        left_out[model.name] = len(facts) - deltas.shape[1]
    data = {"facts": facts_hash(facts), "mean_over": list(mean_over)}
    return FaithfulnessStudy(
        curve=pd.concat(curves, ignore_index=True),
        differences=pd.concat(differences, ignore_index=True),
        ablated="mean" if len(mean_over) else "zero",
        draws=draws,
        n=n,
        left_out=left_out,
        provenance=provenance_of(models, data, seed=seed),
    )


def provenance_of(models: Sequence[HookedModel], data: Mapping[str, Any], *, seed: int) -> dict[str, Any]:
    """What the numbers of a study of several models depend on: `HookedModel.provenance` with all of the models."""
    first = models[0].provenance(data=dict(data), seeds={"draws": seed, "bootstrap": seed})
    return {**first, "model": {model.name: model.identity for model in models}}


@dataclass(frozen=True)
class _Plan:
    """What is ablated on every fact."""

    ks: Sequence[int]
    draws: int
    mean_over: Sequence[str]
    seed: int


def _deltas(
    model: HookedModel, facts: Sequence[FactEdit], plan: _Plan, *, run: RunFolder | None, progress: bool
) -> pd.DataFrame:
    """Δ by kind, method and k (index) of every fact that the model knows (columns)."""
    known = [fact for fact, knows in zip(facts, known_facts(model, facts), strict=True) if knows]
    if len(known) < 2:
        raise InputError(f"facts: {model.name} knows {len(known)} of the {len(facts)}; expected two or more")
    means = mean_activations(model, plan.mean_over) if len(plan.mean_over) else None
    settings = [list(plan.ks), plan.draws, list(plan.mean_over), plan.seed]
    digests = [_digest(model, fact, settings) for fact in known]
    cases = every_case(
        run,
        [check_case_id(ablation_key(model.name, fact)) for fact in known],
        partial(_case, model, known, digests, plan, means),
        settings=digests,
        label=f"faithfulness: {model.name}",
        progress=progress,
    )
    frames = [pd.DataFrame(case["rows"], columns=[*_KEYS, "delta"]) for case in cases]
    return pd.concat([frame.set_index(_KEYS)["delta"] for frame in frames], axis=1)


def _case(
    model: HookedModel,
    facts: Sequence[FactEdit],
    digests: Sequence[str],
    plan: _Plan,
    means: Means | None,
    i: int,
) -> Case:
    """The rows kind, method, k, Δ of one fact; of "random" the mean over its draws."""
    fact, rng = facts[i], np.random.default_rng((plan.seed, int(digests[i][:8], 16)))
    ids, target = model.continuation(fact.rewrite_prompt, fact.target_true, space=fact.space)
    lead = through_text(model.tokenizer, target.tolist()) - 1  # a bare space is read, and not scored
    ids, target = torch.cat([ids, target[:lead]]), target[lead:]
    ranked = rank(model, fact.rewrite_prompt, fact.target_true, k=max(plan.ks), space=fact.space)
    s = model.shape
    sizes: dict[str, Any] = {"d_mlp": s.d_mlp, "heads": (s.n_heads, s.d_head), "length": len(ids)}
    labels, sets = [], [Neurons()]
    for kind, k in itertools.product(KINDS, plan.ks):
        chosen = {name: Neurons(**{kind: getattr(best, kind)[:k]}) for name, best in ranked.items()}
        labels += [(kind, name, k) for name in chosen] + [(kind, "random", k)] * plan.draws
        sets += chosen.values()
        sets += [random_like(chosen["nlka"], rng=rng, **sizes) for _ in range(plan.draws)]
    logp = logp_without(model, ids, int(target[0]), sets=sets, means=means, batch_size=64)
    delta: torch.Tensor = logp[1:] - logp[0]
    frame = pd.DataFrame(labels, columns=_KEYS).assign(delta=delta.tolist())
    means_of = frame.groupby(_KEYS, sort=False)["delta"].mean()
    return {"settings": digests[i], "rows": [[*key, float(value)] for key, value in means_of.items()]}


def _curve(table: pd.DataFrame, *, seed: int) -> pd.DataFrame:
    rows = [
        (*key, float(values.mean()), *bootstrap_mean(values, seed=seed), values.size)
        for key, values in zip(table.index, table.to_numpy(), strict=True)
    ]
    return pd.DataFrame(rows, columns=[*_KEYS, "delta", "low", "high", "n"])


def _differences(table: pd.DataFrame, *, seed: int) -> pd.DataFrame:
    """NLKA − each peer, paired by fact."""
    rows = []
    for kind, method, k in table.index:
        if method == "nlka":
            continue
        paired = (table.loc[(kind, "nlka", k)] - table.loc[(kind, method, k)]).to_numpy()
        low, high = bootstrap_mean(paired, seed=seed)
        better = "nlka" if high < 0 else method if low > 0 else ""
        rows.append((kind, k, method, float(paired.mean()), low, high, paired.size, better))
    return pd.DataFrame(rows, columns=["kind", "k", "peer", "delta", "low", "high", "n", "better"])


def _check(models: Sequence[HookedModel], facts: Sequence[FactEdit], ks: Sequence[int], draws: int) -> None:
    if not models or not facts or draws < 1:
        raise InputError(
            f"models, facts, draws: expected at least one of each, found {len(models)}, {len(facts)} and {draws}"
        )
    names = [model.name for model in models]
    if len(set(names)) < len(names):
        raise InputError(f"models: expected different names, found {', '.join(names)}")
    most = min(model.shape.n_layers * model.shape.d_mlp for model in models)
    if not ks or not all(1 <= k <= most for k in ks) or len(set(ks)) < len(ks):
        raise InputError(f"ks: expected different numbers from 1 to {most}, found {list(ks)}")
    ids = [str(fact.case_id) for fact in facts]
    if twice := [name for name in ids if ids.count(name) > 1]:
        raise InputError(f"facts: case_id {twice[0]!r} occurs twice; give each its own")


def _digest(model: HookedModel, fact: FactEdit, settings: list[Any]) -> str:
    """sha256 of what a case's numbers depend on."""
    framing = [model.framing] if model.framing else []
    anew = read_anew(model, [(fact.rewrite_prompt, fact.target_true, "")], space=fact.space)
    return settings_digest(
        model.hash, str(model.dtype), fact_fields(fact), METHODS, settings, *anew, *framing
    )
