"""`faithfulness`: NLKA and its peers judged by one ablation, over facts and models.

1. Each method ranks the value neurons for a fact's answer (`rankings`).
2. Its k best are ablated at the last position (`attribution.ablation`), FFN and attention neurons each on their own;
   what counts is Δ = log p(answer) without them − with them. The lower, the more the method has found.
3. Means over facts with bootstrap intervals, and NLKA less each peer, paired by fact.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes

from experiments.cases import every_case
from experiments.runs import RunFolder, check_case_id, provenance
from mechedit.data.case_keys import ablation_key
from mechedit.data.facts import FactEdit, facts_hash
from mechedit.evaluation.evaluate import known_facts
from mechedit.faithfulness.ablate import random_like
from mechedit.faithfulness.intervention import Means, Neurons, logp_without, mean_activations
from mechedit.faithfulness.rankings import METHODS, rank
from mechedit.models.hooked import HookedModel
from reports.ablation_figures import ablation_curve
from reports.errors import InputError
from reports.results import Result, bootstrap_mean

__all__ = ["FaithfulnessStudy", "faithfulness"]

KINDS = ("mlp", "attn")
_KEYS = ["kind", "method", "k"]


@dataclass(frozen=True, repr=False, eq=False)
class FaithfulnessStudy(Result):
    """What `faithfulness` found. Δ in nats, negative where ablation lowers log p; intervals 95 %, over facts.

    curve: model, kind ("mlp", "attn"), method, k, delta, low, high, n. differences: model, kind, k, peer, delta (NLKA
    less peer; negative: NLKA's neurons matter more), low, high, n, better ("nlka", the peer, or "" where the interval
    holds 0). ablated: "zero" or "mean". n: known facts by model; left out: those that a model does not know.
    """

    kind: ClassVar[str] = "faithfulness"
    curve: pd.DataFrame
    differences: pd.DataFrame
    ablated: str
    draws: int
    n: dict[str, int]
    left_out: dict[str, int]
    provenance: dict[str, Any] = field(default_factory=dict)

    def plot(self, ax: Axes | None = None, *, model: str = "", kind: str = "mlp") -> Axes:
        """Δ against k, a line a method, of one model ("": the first) and kind; from the stored numbers alone."""
        chosen = self.curve[self.curve["model"] == (model or self.curve["model"].iloc[0])]
        chosen = chosen[chosen["kind"] == kind]
        if chosen.empty:
            models = ", ".join(self.curve["model"].unique())
            raise InputError(
                f"model, kind: expected one of {models} and of mlp, attn, found {model!r}, {kind!r}"
            )
        return ablation_curve(chosen.rename(columns={"method": "line"}), ax)


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

    A fact is its rewrite prompt with its true object. mean_over: prompts whose mean activations take the neurons' place
    (none: zero). draws: random sets a k. Cost: per fact and model len(ks) · (8 + 2 · draws) rows of a forward pass, a
    certified attribution and a gradient. A finished fact is a case of `run`, so that a stopped study goes on.
    Errors: `InputError` for no models or facts, k < 1 or more than a model has FFN neurons, two models of one name, two
    facts of one case_id, and facts of which a model knows fewer than two.

    >>> import mechedit as me
    >>> study = faithfulness([me.load_model("factworld")], me.factworld.edits(3), ks=(1, 5), draws=2, progress=False)
    >>> study.n, len(study.curve), study.differences["peer"].nunique()
    ({'factworld': 3}, 20, 4)
    """
    _check(models, facts, ks, draws)
    curves, differences, known_by, left_out = [], [], {}, {}
    for model in models:
        known = [fact for fact, knows in zip(facts, known_facts(model, facts), strict=True) if knows]
        if len(known) < 2:
            raise InputError(
                f"facts: {model.name} knows {len(known)} of the {len(facts)}; expected two or more"
            )
        means = mean_activations(model, mean_over) if len(mean_over) else None
        digests = [_digest(model, fact, [list(ks), draws, list(mean_over), seed]) for fact in known]
        cases = every_case(
            run,
            [check_case_id(ablation_key(model.name, fact)) for fact in known],
            partial(_case, model, known, digests, means=means, ks=ks, draws=draws, seed=seed),
            settings=digests,
            label=f"faithfulness: {model.name}",
            progress=progress,
        )
        rows = [pd.DataFrame(case["rows"], columns=[*_KEYS, "delta"]) for case in cases]
        deltas = [own.set_index(_KEYS)["delta"] for own in rows]
        table = pd.concat(deltas, axis=1)  # kind, method, k × facts
        curves.append(_curve(table, seed=seed).assign(model=model.name))
        differences.append(_differences(table, seed=seed).assign(model=model.name))
        known_by[model.name], left_out[model.name] = len(known), len(facts) - len(known)
    return FaithfulnessStudy(
        curve=pd.concat(curves, ignore_index=True),
        differences=pd.concat(differences, ignore_index=True),
        ablated="mean" if len(mean_over) else "zero",
        draws=draws,
        n=known_by,
        left_out=left_out,
        provenance=provenance_of(
            models, {"facts": facts_hash(facts), "mean_over": list(mean_over)}, seed=seed
        ),
    )


def provenance_of(models: Sequence[HookedModel], data: Mapping[str, Any], *, seed: int) -> dict[str, Any]:
    """What a study of several models depends on."""
    single = [model.provenance(data=dict(data), seeds={"draws": seed, "bootstrap": seed}) for model in models]
    return provenance(
        model={model.name: own["model"] for model, own in zip(models, single, strict=True)},
        data=dict(data),
        seeds=single[0]["seeds"],
        **{key: single[0][key] for key in ("device", "dtype", "attn_implementation")},
    )


def _case(
    model: HookedModel,
    facts: Sequence[FactEdit],
    digests: Sequence[str],
    i: int,
    *,
    means: Means | None,
    ks: Sequence[int],
    draws: int,
    seed: int,
) -> dict[str, Any]:
    """One fact's Δ."""
    rng = np.random.default_rng((seed, int(digests[i][:8], 16)))
    rows = _measure(model, facts[i], means=means, ks=ks, draws=draws, rng=rng)
    return {"settings": digests[i], "rows": rows}


def _measure(
    model: HookedModel,
    fact: FactEdit,
    *,
    means: Means | None,
    ks: Sequence[int],
    draws: int,
    rng: np.random.Generator,
) -> list[list[Any]]:
    """Rows kind, method, k, Δ; of "random" the mean over its draws."""
    ids, target = model.continuation(fact.rewrite_prompt, fact.target_true)
    ranked = rank(model, fact.rewrite_prompt, fact.target_true, k=max(ks))
    s = model.shape
    labels, sets = [], [Neurons()]
    for kind in KINDS:
        for k in ks:
            chosen = {name: Neurons(**{kind: getattr(own, kind)[:k]}) for name, own in ranked.items()}
            labels += [(kind, name, k) for name in chosen]
            sets += chosen.values()
            for _ in range(draws):
                labels.append((kind, "random", k))
                like = chosen["nlka"]
                sets.append(
                    random_like(like, d_mlp=s.d_mlp, heads=(s.n_heads, s.d_head), length=len(ids), rng=rng)
                )
    logp = logp_without(model, ids, int(target[0]), sets=sets, means=means, batch_size=64)
    delta: torch.Tensor = logp[1:] - logp[0]
    frame = pd.DataFrame(labels, columns=_KEYS).assign(delta=delta.tolist())
    means_of = frame.groupby(_KEYS, sort=False)["delta"].mean()
    return [[*key, float(value)] for key, value in means_of.items()]


def _curve(table: pd.DataFrame, *, seed: int) -> pd.DataFrame:
    rows = [
        (*key, float(values.mean()), *bootstrap_mean(values, seed=seed), values.size)
        for key, values in zip(table.index, table.to_numpy(), strict=True)
    ]
    return pd.DataFrame(rows, columns=[*_KEYS, "delta", "low", "high", "n"])


def _differences(table: pd.DataFrame, *, seed: int) -> pd.DataFrame:
    """NLKA less each peer, paired by fact."""
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
    parts = [model.hash, str(model.dtype), dataclasses.asdict(fact), METHODS, settings]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
