"""`ablate`: do the neurons that an attribution names carry the target's log-probability?

A static score is a claim; here the k best neurons are really taken out of the forward pass (`ablation.py`), beside two
controls: k random neurons of the same layers, as many in each (several draws), and the k neurons at the other end of
the ranking. Source: Yu & Ananiadou, EMNLP 2024 (arXiv 2312.12141), section 4, who intervene on the top neurons.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes

from mechedit.attribution.nlka import attribute
from mechedit.attribution.result import Attribution
from mechedit.faithfulness.intervention import Means, Neurons, logp_without, mean_activations
from mechedit.models.hooked import HookedModel
from mechedit.models.selfcheck import TOLERANCE
from reports.ablation_figures import ablation_curve
from reports.errors import InputError
from reports.results import Result, bootstrap_mean

__all__ = ["KINDS", "Ablation", "ablate", "random_like"]

#: What is ablated: the k best FFN neurons, the k best attention value neurons, or both sets at once.
KINDS = ("mlp", "attn", "both")
SETS = ("top", "random", "bottom")


@dataclass(frozen=True, repr=False, eq=False)
class Ablation(Result):
    """What `ablate` found. Δ = log p(target) without the neurons − with them, nats; negative: they carried it.

    curve: kind ("mlp", "attn", "both"), neurons ("top", "random", "bottom"), k, delta, low, high, n. differences: kind,
    k, against ("random", "bottom"), delta (top − control), low, high, n. cases: prompt (index), kind, neurons, k, draw,
    delta. Intervals are 95 %, bootstrap over the n prompts; with one prompt over the draws of the random sets, and
    undefined (nan) where there are none. ablated: "zero" or "mean". logp: mean over prompts, nothing ablated.
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

    def plot(self, ax: Axes | None = None, *, kind: str = "both") -> Axes:
        """Δ against k, a line for each set of neurons; drawn from the stored numbers alone."""
        if kind not in KINDS:
            raise InputError(f"kind: expected one of {', '.join(KINDS)}, found {kind!r}")
        chosen = self.curve[self.curve["kind"] == kind]
        return ablation_curve(chosen.rename(columns={"neurons": "line"}), ax)


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

    Ablated at the last position, where the attribution reads them, each k on its own. `mean_over`: prompts whose mean
    activations take the neurons' place; without any they are set to zero. Random sets have as many neurons of each
    layer as the top-k, drawn from all of that layer's, the top ones too: all that such a choice knows is the layers. A
    target scored as the "sum" of its tokens loses the neurons in each teacher-forced pass.

    Cost: per prompt and k 3 · (2 + draws) rows of a forward pass, and one certified attribution of the other sign.
    Errors: `InputError` for k < 1 or more than the attribution holds of either kind, draws < 1, another model than the
    attributed one, and one that is edited otherwise than it was (its log p differs).
    Wrong as a measure of a neuron's total effect: what it wrote at earlier positions stays.

    >>> import mechedit as me
    >>> model = me.load_model("factworld")
    >>> attr = me.attribute(model, "The mother tongue of", " English", top_k=10)
    >>> found = ablate(model, attr, (1, 10), draws=2)
    >>> found.curve.loc[found.curve["kind"] == "mlp", ["neurons", "k"]].to_numpy().tolist()
    [['top', 1], ['top', 10], ['random', 1], ['random', 10], ['bottom', 1], ['bottom', 10]]
    """
    chosen = [attributions] if isinstance(attributions, Attribution) else list(attributions)
    ks = [k] if isinstance(k, int) else list(k)
    _check(model, chosen, ks, draws)
    means = mean_activations(model, mean_over) if len(mean_over) else None
    parts, logps = [], []
    for index, attr in enumerate(chosen):
        rng = np.random.default_rng((seed, index))
        labels, sets = _sets(model, attr, ks, draws=draws, rng=rng)
        logp = _logp(model, attr, [Neurons(), *sets], means=means, batch_size=batch_size)
        _same_model(model, attr, float(logp[0]))
        frame = pd.DataFrame(labels, columns=["kind", "neurons", "k", "draw"])
        parts.append(frame.assign(prompt=index, delta=(logp[1:] - logp[0]).tolist()))
        logps.append(float(logp[0]))
    cases = pd.concat(parts, ignore_index=True)[["prompt", "kind", "neurons", "k", "draw", "delta"]]
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
    """A random set with as many neurons of each kind and layer; `heads` = (n_heads, d_head), `length` of the prompt.

    >>> chosen = Neurons(mlp=[(0, 3), (2, 1)])
    >>> found = random_like(chosen, d_mlp=8, heads=(2, 4), length=3, rng=np.random.default_rng(0))
    >>> [layer for layer, _ in found.mlp], found.attn
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


def _sets(
    model: HookedModel, attr: Attribution, ks: Sequence[int], *, draws: int, rng: np.random.Generator
) -> tuple[list[tuple[str, str, int, int]], list[Neurons]]:
    """(kind, neurons, k, draw) and the set, of all that is ablated for one prompt."""
    asked = attr.provenance["data"]
    other: Literal["promote", "suppress"] = "suppress" if attr.sign == "promote" else "promote"
    opposite = attribute(
        model,
        asked["prompt"],
        asked["target"],
        top_k=max(ks),
        sign=other,
        biases=attr.biases,  # type: ignore[arg-type]
        tokens=attr.target_scored,  # type: ignore[arg-type]
    )
    s = model.shape
    sizes = {"d_mlp": s.d_mlp, "heads": (s.n_heads, s.d_head), "length": len(attr.ids)}
    labels, sets = [], []
    for kind, name, k in itertools.product(KINDS, SETS, ks):
        best = _best(opposite if name == "bottom" else attr, k, kind)
        for draw in range(draws if name == "random" else 1):
            labels.append((kind, name, k, draw))
            sets.append(random_like(best, rng=rng, **sizes) if name == "random" else best)  # type: ignore[arg-type]
    return labels, sets


def _best(attr: Attribution, k: int, kind: str) -> Neurons:
    def rows(frame: pd.DataFrame, columns: list[str]) -> Iterable[Any]:
        return frame[columns].head(k).astype(int).itertuples(index=False, name=None)

    return Neurons(
        mlp=list(rows(attr.mlp_neurons, ["layer", "neuron"])) if kind != "attn" else [],
        attn=list(rows(attr.attn_neurons, ["layer", "head", "dim", "pos"])) if kind != "mlp" else [],
    )


def _logp(
    model: HookedModel, attr: Attribution, sets: Sequence[Neurons], *, means: Means | None, batch_size: int
) -> torch.Tensor:
    """log p of the scored tokens [n], the sum over their teacher-forced passes."""
    scored = attr.target_ids[: 1 if attr.target_scored == "first" else None]
    length = len(attr.ids) - len(scored) + 1
    total = torch.zeros(len(sets), dtype=torch.float64)
    for n, token in enumerate(scored):
        ids = torch.tensor(attr.ids[: length + n], device=model.device)
        there = [Neurons(s.mlp, [place for place in s.attn if place[3] < len(ids)]) for s in sets]
        found = logp_without(model, ids, token, sets=there, means=means, batch_size=batch_size)
        total += found.cpu()
    return total


def _curve(cases: pd.DataFrame, *, seed: int) -> pd.DataFrame:
    rows = []
    for (kind, name, k), group in cases.groupby(["kind", "neurons", "k"], sort=False):
        rows.append((kind, name, k, *_mean(group.set_index(["prompt", "draw"])["delta"], seed)))
    return pd.DataFrame(rows, columns=["kind", "neurons", "k", "delta", "low", "high", "n"])


def _differences(cases: pd.DataFrame, *, seed: int) -> pd.DataFrame:
    """Top less control, prompt by prompt."""
    rows = []
    for (kind, k), group in cases.groupby(["kind", "k"], sort=False):
        sets = {name: own.set_index(["prompt", "draw"])["delta"] for name, own in group.groupby("neurons")}
        top = sets["top"].droplevel("draw")
        for control in ("random", "bottom"):
            paired = top.reindex(sets[control].index.get_level_values("prompt")).to_numpy() - sets[control]
            rows.append((kind, k, control, *_mean(paired, seed)))
    return pd.DataFrame(rows, columns=["kind", "k", "against", "delta", "low", "high", "n"])


def _mean(values: pd.Series, seed: int) -> tuple[float, float, float, int]:
    """Mean, interval and number of prompts; with one prompt its draws are what varies."""
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
    """Hooks leave the weights' hash as it is; an attribution with its biases kept has the model's own log p."""
    allowed = 10 * TOLERANCE[model.dtype] * max(1.0, abs(logp))
    if attr.biases == "keep" and abs(logp - attr.logp) > allowed:
        raise InputError(
            f"model: expected log p {attr.logp:.4f} of the attribution, found {logp:.4f}: its hooks are others than "
            "they were; ablate inside the same edit"
        )
