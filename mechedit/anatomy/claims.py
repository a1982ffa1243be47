"""The paper's claims, tested on the numbers of one model: an answer (`reports.answers`), or not enough runs to say.

Claims of "The Anatomy of an Edit" (arXiv 2603.20795, abstract), in the words of success − failure differences d of
Δ log p (nats); "mid-to-late" is every layer from a third of the depth on [our reading]:

- *promotes*: d of the new object, attention: the mean of a mid-to-late layer is above 0, and above an early layer's.
- *suppress*: d of the old object: the sum over attention is below 0, and so is the sum over the FFNs.
- *agree* (of the editors): for every two, the correlation of their profiles d (attention and FFN by layer, both
  objects) is above 0, and above what profiles with their layers shuffled reach (97.5 %).

Attention is what really is added to the stream: the heads' output and, under an editor that steers it, the steering
term, whose own part the evidence names. "Above" and "below" are those of a 95 % bootstrap interval over facts: a claim
holds where all its conditions do, does not hold where the opposite of one is shown, else neither is shown. An answer
needs both outcomes on at least `tables.LEAST` facts. Over the editors together a claim is not answered by a mean that
one of them alone contradicts.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import numpy as np
import pandas as pd

from mechedit.anatomy.features import POOLED, columns
from mechedit.anatomy.success_contrast import SuccessContrast, interval
from mechedit.anatomy.tables import ALL, LEAST
from reports.answers import HOLDS, NOT, NOT_SHOWN, answer

__all__ = ["TOO_FEW", "agreement_table", "claim_table", "first_mid_layer"]

TOO_FEW = {"failure": "not enough failures", "success": "not enough successes"}
CLAIMS = {
    "promotes": "Mid-to-late attention promotes the new object",
    "suppress": "Attention and FFN suppress the old object together",
    "agree": "The editors agree on where",
}
ATTENTION, FFN = ("attn", "steer"), ("mlp", "steer_mlp")
_SHUFFLES = 1000


def first_mid_layer(n_layers: int) -> int:
    """Where "mid-to-late" begins: a third of the depth.

    >>> first_mid_layer(8), first_mid_layer(48)
    (3, 16)
    """
    return -(-n_layers // 3)


def claim_table(
    contrasts: Mapping[tuple[str, str], SuccessContrast], agreement: pd.DataFrame, *, n_layers: int
) -> pd.DataFrame:
    """One row for each claim and editor.

    Columns: claim, key, editor, answer, value, low, high (of the claim's first condition, nats; for "agree" the
    correlation of the pair nearest its null), evidence, n_success, n_failure.

    Args:
        contrasts: By editor and setting (`tables.success_contrasts`).
        agreement: Of every two editors (`agreement_table`).
        n_layers: Of the model.
    """
    rows = [
        test(editor, contrast, n_layers)
        for (editor, setting), contrast in contrasts.items()
        if setting == ALL
        for test in (_promotes, _suppress)
    ]
    ready = _ready(contrasts)
    alone = {(row["key"], row["editor"]): row["answer"] for row in rows if row["editor"] in ready}
    for row in rows:
        if row["editor"] == POOLED:
            row |= _of_the_mean(row, {name: alone[row["key"], name] for name in ready})
    rows.append(_agree(agreement))
    table = pd.DataFrame(rows)
    table.insert(0, "claim", [CLAIMS[key] for key in table["key"]])
    return table


def agreement_table(
    contrasts: Mapping[tuple[str, str], SuccessContrast], *, n_layers: int, seed: int = 0
) -> pd.DataFrame:
    """Correlation of two editors' difference profiles: a, b, correlation, low, high, null (97.5 % of shuffled layers).

    Editors without both outcomes on at least `LEAST` facts are left out, and so are steering terms.
    """
    profile = _mask(n_layers, "new", ("attn", "mlp")) | _mask(n_layers, "old", ("attn", "mlp"))
    ready = _ready(contrasts)
    rng = np.random.default_rng(seed)
    rows = []
    for a, b in itertools.combinations(ready, 2):
        profile_a, profile_b = (ready[name].difference[profile] for name in (a, b))
        drawn = _correlations(ready[a].drawn[:, profile], ready[b].drawn[:, profile])
        low, high = interval(drawn[:, None])
        blocks = np.tile(profile_b.reshape(4, n_layers), (_SHUFFLES, 1, 1))
        shuffled = rng.permuted(blocks, axis=2).reshape(_SHUFFLES, -1)
        null = float(np.quantile(_correlations(np.tile(profile_a, (_SHUFFLES, 1)), shuffled), 0.975))
        value = float(_correlations(profile_a[None], profile_b[None])[0])
        rows.append((a, b, value, float(low[0]), float(high[0]), null))
    return pd.DataFrame(rows, columns=["a", "b", "correlation", "low", "high", "null"])


def _ready(contrasts: Mapping[tuple[str, str], SuccessContrast]) -> dict[str, SuccessContrast]:
    """By editor, over all settings, those with both outcomes on enough facts."""
    return {
        editor: contrast
        for (editor, setting), contrast in contrasts.items()
        if setting == ALL and editor != POOLED and contrast.enough(LEAST)
    }


def _of_the_mean(row: Mapping[str, object], alone: Mapping[str, object]) -> dict[str, object]:
    """Answer and evidence of the editors' mean, `row`, beside the answers of each editor."""
    if not alone:  # all runs together would compare one editor's failures with another's successes
        return {"answer": TOO_FEW["failure"], "evidence": f"no editor has {LEAST} facts of each outcome"}
    opposite = {HOLDS: NOT, NOT: HOLDS}.get(str(row["answer"]))
    against = [name for name, own in alone.items() if own == opposite]
    evidence = f"mean of {', '.join(alone)}: {row['evidence']}"
    if not against:
        return {"answer": row["answer"], "evidence": evidence}
    return {"answer": NOT_SHOWN, "evidence": f"{evidence}; alone it {opposite} for {', '.join(against)}"}


def _promotes(editor: str, contrast: SuccessContrast, n_layers: int) -> dict[str, object]:
    mid = first_mid_layer(n_layers)
    late, early = (
        _mask(n_layers, "new", ATTENTION, layers) / len(layers)
        for layers in (range(mid, n_layers), range(mid))
    )
    value, low, high = _weighted(contrast, late)
    apart, apart_low, apart_high = _weighted(contrast, late - early)
    total = value * (n_layers - mid)
    evidence = (
        f"attention of layers {mid} to {n_layers - 1}: {total:+.2f} nats more where the edit succeeds "
        f"({value:+.3f} [{low:+.3f}, {high:+.3f}] a layer); against an early layer {apart:+.3f} "
        f"[{apart_low:+.3f}, {apart_high:+.3f}]"
    )
    evidence += _steering(contrast, "new", ATTENTION, n_layers)
    answered = answer((low, high), (apart_low, apart_high))
    return _row("promotes", editor, contrast, answered, (value, low, high), evidence)


def _suppress(editor: str, contrast: SuccessContrast, n_layers: int) -> dict[str, object]:
    modules = {"attention": ATTENTION, "MLP": FFN}
    parts = {label: _weighted(contrast, _mask(n_layers, "old", names)) for label, names in modules.items()}
    shares = [
        f"{label} {value:+.2f} [{low:+.2f}, {high:+.2f}]" for label, (value, low, high) in parts.items()
    ]
    evidence = f"on the old object, success less failure, nats over all layers: {'; '.join(shares)}"
    evidence += _steering(contrast, "old", (*ATTENTION, *FFN), n_layers)
    answered = answer(*((-high, -low) for _, low, high in parts.values()))
    return _row("suppress", editor, contrast, answered, parts["attention"], evidence)


def _steering(contrast: SuccessContrast, obj: str, modules: tuple[str, ...], n_layers: int) -> str:
    """The part that the editor's steering terms write, where there are any."""
    terms = {
        name: _weighted(contrast, _mask(n_layers, obj, (name,)))[0]
        for name in modules
        if name.startswith("steer")
    }
    where = {"steer": "attention", "steer_mlp": "MLP"}
    shares = [f"{where[name]} {value:+.2f}" for name, value in terms.items() if abs(value) > 1e-3]
    return f"; of which the steering term itself: {', '.join(shares)}" if shares else ""


def _agree(agreement: pd.DataFrame) -> dict[str, object]:
    none = {"value": np.nan, "low": np.nan, "high": np.nan, "n_success": 0, "n_failure": 0}
    row: dict[str, object] = {"key": "agree", "editor": POOLED}
    if agreement.empty:
        few = f"fewer than two editors with {LEAST} facts of each outcome"
        return {**row, "answer": TOO_FEW["failure"], "evidence": few, **none}
    passed = (agreement["low"] > 0) & (agreement["correlation"] > agreement["null"])
    least = agreement.loc[(agreement["correlation"] - agreement["null"]).idxmin()]
    evidence = (
        f"{int(passed.sum())} of {len(agreement)} pairs of editors agree; the least sure are {least['a']} and "
        f"{least['b']}, correlation {least['correlation']:+.2f} [{least['low']:+.2f}, {least['high']:+.2f}], shuffled "
        f"layers up to {least['null']:+.2f}; the median of all pairs {agreement['correlation'].median():+.2f}"
    )
    beyond = agreement["correlation"] - agreement["null"], agreement["high"] - agreement["null"]
    answered = answer(*zip(agreement["low"], agreement["high"], strict=True), *zip(*beyond, strict=True))
    values = {"value": least["correlation"], "low": least["low"], "high": least["high"]}
    return {**row, "answer": answered, "evidence": evidence, **none, **values}


def _row(
    key: str,
    editor: str,
    contrast: SuccessContrast,
    answered: str,
    value: tuple[float, float, float],
    evidence: str,
) -> dict[str, object]:
    if not contrast.enough(LEAST):
        success, failure = contrast.facts_success, contrast.facts_failure
        answered = TOO_FEW["failure" if failure < LEAST else "success"]
        evidence = f"succeeded on {success} facts, failed on {failure}; {LEAST} of each are needed"
    counts = {"n_success": contrast.n_success, "n_failure": contrast.n_failure}
    names = dict(zip(("value", "low", "high"), value, strict=True))
    return {"key": key, "editor": editor, "answer": answered, "evidence": evidence, **names, **counts}


def _mask(n_layers: int, obj: str, modules: tuple[str, ...], layers: range | None = None) -> np.ndarray:
    """True at the features of an object's modules and layers, in the flattened order of `Runs.layers`."""
    wanted = range(n_layers) if layers is None else layers
    return np.array(
        [
            name == obj and module in modules and layer in wanted
            for name in ("new", "old")
            for module, layer in columns(n_layers)
        ]
    )


def _weighted(contrast: SuccessContrast, weights: np.ndarray) -> tuple[float, float, float]:
    """A weighted sum of the differences, with its interval."""
    low, high = interval((contrast.drawn @ weights)[:, None])
    return float(contrast.difference @ weights), float(low[0]), float(high[0])


def _correlations(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Pearson's r of each row of a [n, D] with the same row of b."""
    a, b = (x - x.mean(axis=1, keepdims=True) for x in (a, b))
    with np.errstate(invalid="ignore", divide="ignore"):
        return (a * b).sum(1) / np.sqrt((a * a).sum(1) * (b * b).sum(1))
