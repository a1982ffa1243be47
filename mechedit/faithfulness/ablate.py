"""`ablate`: do the neurons that an attribution names carry the target's log-probability?

A static score is a claim; here the k best neurons are really taken out of the forward pass (`intervention`), beside two
controls: k random neurons of the same layers, as many in each (several draws), and the k neurons at the other end of
the ranking. Source: Yu & Ananiadou, EMNLP 2024 (arXiv 2312.12141), section 4, who intervene on the top neurons.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes

from mechedit.attribution.nlka import attribute
from mechedit.attribution.result import Attribution
from mechedit.attribution.terms import KINDS
from mechedit.faithfulness.intervention import Means, Neurons, logp_without, mean_activations, top_neurons
from mechedit.models.hooked import HookedModel
from mechedit.models.selfcheck import TOLERANCE
from reports.ablation_figures import ablation_curve
from reports.errors import InputError
from reports.intervals import bootstrap_mean
from reports.plot import Plot
from reports.results import Result

__all__ = ["Ablation", "ablate", "random_like"]

#: What is ablated: the k best FFN neurons, the k best attention value neurons, or both sets at once.
ABLATED = (*KINDS, "both")
SETS = ("top", "random", "bottom")


@dataclass(frozen=True, repr=False, eq=False)
class Ablation(Result):
    """The result of `ablate`: Δ = log p(target) without the neurons − with them, nats; negative: they carried it.

    Intervals are 95 %, bootstrap over the n prompts; with one prompt over the draws of the random sets, and undefined
    (nan) where there are none.

    Attributes:
        curve: kind ("mlp", "attn", "both"), neurons ("top", "random", "bottom"), k, delta, low, high, n.
        differences: kind, k, against ("random", "bottom"), delta (top − control), low, high, n.
        cases: prompt (index), kind, neurons, k, draw, delta.
        ablated: What the neurons were set to, "zero" or "mean".
        logp: Mean over prompts, nothing ablated.
        n: Prompts.
        draws: Random sets of each k.
        sign: Of the attributions.
        provenance: Model, data, seeds, versions.
    """

    kind: ClassVar[str] = "ablation"
    curve: pd.DataFrame
    differences: pd.DataFrame
    cases: pd.DataFrame
    ablated: str
    logp: float
    n: int
    draws: int
    sign: str
    provenance: dict[str, Any] = field(default_factory=dict)

    def plot(self, ax: Axes | None = None, *, kind: str = "both") -> Plot:
        """Δ against k, a line for each set of neurons; drawn from the stored numbers alone.

        Args:
            ax: Where to draw; None: a new figure.
            kind: Which neurons: "mlp", "attn" or "both".

        Raises:
            InputError: Another kind.
        """
        if kind not in ABLATED:
            raise InputError(f"kind: expected one of {', '.join(ABLATED)}, found {kind!r}")
        chosen = self.curve[self.curve["kind"] == kind]
        drawn = ablation_curve(chosen.rename(columns={"neurons": "line"}), ax)
        return Plot(
            drawn, title=f"Neurons taken out of {self.n} prompts: {kind}, log p {self.logp:.3f} before"
        )


def ablate(
    model: HookedModel,
    attributions: Attribution | Sequence[Attribution],
    k: int | Sequence[int],
    *,
    mean_over: Sequence[str] = (),
    draws: int = 10,
    seed: int = 0,
    batch_size: int = 32,
) -> Ablation:
    """Ablate the top-k neurons of one or several attributions of `model`, against random and bottom ones.

    Neurons are ablated at the last position, where the attribution reads them, each k by itself. Random sets have as
    many neurons of each layer as the top-k, drawn from all of that layer's, the top ones included: such a choice knows
    only the layers. A target scored as the "sum" of its tokens loses the neurons in each teacher-forced pass. Wrong as
    a measure of a neuron's total effect: what it wrote at earlier positions stays.

    Cost: per prompt and k 3 · (2 + draws) rows of a forward pass, and one certified attribution of the other sign.

    Args:
        model: The attributed model, under the edit that it was attributed under.
        attributions: One, or several of one sign.
        k: How many neurons; several numbers are ablated separately.
        mean_over: Prompts whose mean activations take the neurons' place; without any they are set to zero.
        draws: Random sets of each k.
        seed: Of the draws and of the bootstrap.
        batch_size: Sets that run together.

    Raises:
        InputError: k or draws is below 1, k is more than the attribution holds of either kind, or the model is not the
            attributed one, under the same edit.

    >>> import mechedit as me
    >>> model = me.load_model("factworld")
    >>> attr = me.attribute(model, "The mother tongue of", " English", top_k=10)
    >>> ablate(model, attr, (1, 10), draws=2).curve.loc[:5, "neurons"].tolist()
    ['top', 'top', 'random', 'random', 'bottom', 'bottom']
    """
    chosen = [attributions] if isinstance(attributions, Attribution) else list(attributions)
    ks = [k] if isinstance(k, int) else list(k)
    _check(model, chosen, ks, draws)
    means = mean_activations(model, mean_over) if len(mean_over) else None
    cases, logps = _cases(model, chosen, ks, means=means, draws=draws, seed=seed, batch_size=batch_size)
    data = {"prompts": [attr.provenance["data"] for attr in chosen], "mean_over": list(mean_over)}
    return Ablation(
        curve=_curve(cases, seed=seed),
        differences=_differences(cases, seed=seed),
        cases=cases,
        ablated="mean" if means is not None else "zero",
        logp=float(np.mean(logps)),
        n=len(chosen),
        draws=draws,
        sign=chosen[0].sign,
        provenance=model.provenance(data=data, seeds={"draws": seed, "bootstrap": seed}),
    )


def random_like(
    neurons: Neurons, *, d_mlp: int, heads: tuple[int, int], length: int, rng: np.random.Generator
) -> Neurons:
    """A random set with as many neurons of each kind and layer.

    Args:
        neurons: The set whose layers are kept.
        d_mlp: FFN neurons of a layer.
        heads: (n_heads, d_head).
        length: Tokens of the prompt.
        rng: Draws the neurons.

    >>> chosen = Neurons(mlp=[(0, 3), (2, 1)])
    >>> drawn = random_like(chosen, d_mlp=8, heads=(2, 4), length=3, rng=np.random.default_rng(0))
    >>> [layer for layer, _ in drawn.mlp], drawn.attn
    ([0, 2], [])
    """
    shape = (*heads, length)
    mlp = [
        (layer, int(i))
        for layer, count in sorted(Counter(layer for layer, *_ in neurons.mlp).items())
        for i in rng.choice(d_mlp, size=count, replace=False)
    ]
    attn = [
        (layer, *(int(axis) for axis in np.unravel_index(i, shape)))
        for layer, count in sorted(Counter(layer for layer, *_ in neurons.attn).items())
        for i in rng.choice(int(np.prod(shape)), size=count, replace=False)
    ]
    return Neurons(mlp, attn)  # type: ignore[arg-type]


def _cases(
    model: HookedModel,
    attributions: Sequence[Attribution],
    ks: Sequence[int],
    *,
    means: Means | None,
    draws: int,
    seed: int,
    batch_size: int,
) -> tuple[pd.DataFrame, list[float]]:
    """The cases of an `Ablation`, and log p of every prompt with nothing ablated."""
    rows, logps = [], []
    for index, attr in enumerate(attributions):
        labels, sets = _sets(model, attr, ks, draws=draws, rng=np.random.default_rng((seed, index)))
        logp, *without = _logp(model, attr, [Neurons(), *sets], means=means, batch_size=batch_size).tolist()
        _same_model(model, attr, logp)
        rows += [(index, *label, value - logp) for label, value in zip(labels, without, strict=True)]
        logps.append(logp)
    return pd.DataFrame(rows, columns=["prompt", "kind", "neurons", "k", "draw", "delta"]), logps


def _sets(
    model: HookedModel, attr: Attribution, ks: Sequence[int], *, draws: int, rng: np.random.Generator
) -> tuple[list[tuple[str, str, int, int]], list[Neurons]]:
    """(kind, neurons, k, draw) and the set, of all that is ablated for one prompt."""
    data = attr.provenance["data"]
    opposite = attribute(
        model,
        data["prompt"],
        data["target"],
        top_k=max(ks),
        sign="suppress" if attr.sign == "promote" else "promote",
        biases=attr.biases,  # type: ignore[arg-type]
        tokens=attr.target_scored,  # type: ignore[arg-type]
        space=data.get("space", "auto"),
    )
    s = model.shape
    sizes = {"d_mlp": s.d_mlp, "heads": (s.n_heads, s.d_head), "length": len(attr.ids)}
    labels, sets = [], []
    for kind, name, k in itertools.product(ABLATED, SETS, ks):
        best = top_neurons(opposite if name == "bottom" else attr, k, kind=kind)
        for draw in range(draws if name == "random" else 1):
            labels.append((kind, name, k, draw))
            sets.append(random_like(best, rng=rng, **sizes) if name == "random" else best)  # type: ignore[arg-type]
    return labels, sets


def _logp(
    model: HookedModel, attr: Attribution, sets: Sequence[Neurons], *, means: Means | None, batch_size: int
) -> torch.Tensor:
    """The target's log p without each set [n], summed over the teacher-forced passes of its scored tokens."""
    scored = attr.target_ids[: attr.n_scored]
    length = len(attr.ids) - len(scored) + 1
    total = torch.zeros(len(sets), dtype=torch.float64)
    for n, token in enumerate(scored):
        ids = torch.tensor(attr.ids[: length + n], device=model.device)
        inside = [Neurons(s.mlp, [place for place in s.attn if place[3] < len(ids)]) for s in sets]
        total += logp_without(model, ids, token, sets=inside, means=means, batch_size=batch_size).cpu()
    return total


def _curve(cases: pd.DataFrame, *, seed: int) -> pd.DataFrame:
    rows = []
    for (kind, name, k), group in cases.groupby(["kind", "neurons", "k"], sort=False):
        rows.append((kind, name, k, *_mean(group.set_index(["prompt", "draw"])["delta"], seed)))
    return pd.DataFrame(rows, columns=["kind", "neurons", "k", "delta", "low", "high", "n"])


def _differences(cases: pd.DataFrame, *, seed: int) -> pd.DataFrame:
    """Top − control, prompt by prompt."""
    differences = []
    for (kind, k), group in cases.groupby(["kind", "k"], sort=False):
        deltas = group.set_index(["prompt", "draw"])
        sets = {name: rows["delta"] for name, rows in deltas.groupby("neurons")}
        top = sets["top"].droplevel("draw")
        for control in ("random", "bottom"):
            paired = top.reindex(sets[control].index.get_level_values("prompt")).to_numpy() - sets[control]
            differences.append((kind, k, control, *_mean(paired, seed)))
    return pd.DataFrame(differences, columns=["kind", "k", "against", "delta", "low", "high", "n"])


def _mean(values: pd.Series, seed: int) -> tuple[float, float, float, int]:
    """Mean, interval and number of prompts; with one prompt the interval is over its draws."""
    prompts = values.groupby("prompt").mean()
    varied = prompts if len(prompts) > 1 else values
    interval = bootstrap_mean(varied.to_numpy(), seed=seed) if len(varied) > 1 else (np.nan, np.nan)
    return (float(prompts.mean()), *interval, len(prompts))


def _check(model: HookedModel, attributions: Sequence[Attribution], ks: Sequence[int], draws: int) -> None:
    if not attributions or draws < 1:
        raise InputError(
            f"attributions, draws: expected at least one of each, found {len(attributions)} and {draws}"
        )
    held = min(min(len(attr.mlp_neurons), len(attr.attn_neurons)) for attr in attributions)
    if not ks or any(isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= held for k in ks):
        raise InputError(
            f"k: expected integers from 1 to {held}, the neurons of each kind that the attribution holds, found "
            f"{list(ks)!r}; attribute with a larger top_k"
        )
    if len({attr.sign for attr in attributions}) > 1:
        raise InputError("attributions: expected one sign, found promote and suppress")
    for attr in attributions:
        attributed = attr.provenance.get("model", {}).get("hash")
        if attributed != model.hash:
            raise InputError(
                f"model: expected the attributed one (weights {str(attributed)[:8]}), found {model.name!r} with "
                f"weights {model.hash[:8]}; attribute anew, or enter the edit again"
            )


def _same_model(model: HookedModel, attr: Attribution, logp: float) -> None:
    """Refuse other hooks, which the weights' hash does not show: with biases kept, `attr.logp` is the model's."""
    allowed = 10 * TOLERANCE[model.dtype] * max(1.0, abs(logp))
    if attr.biases == "keep" and abs(logp - attr.logp) > allowed:
        raise InputError(
            f"model: expected log p {attr.logp:.4f} of the attribution, found {logp:.4f}: its hooks are others than "
            "they were; ablate inside the same edit"
        )
