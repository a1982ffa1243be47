"""The result of an attribution: tidy frames, their ranking, picture and circuit; and one less another, `a - b`.

Source of the quantities: Yu & Ananiadou, EMNLP 2024 (arXiv 2312.12141). Every score is
`inc(base, v) = logp(t | base + v) − logp(t | base)` in nats, with the final norm's scale frozen.

The difference `a - b`:

1. Two results can be subtracted where one thing differs: the edit (weights, or what hooks add) or the target. All else
   that a score depends on has to agree.
2. Frames are joined by the columns that name a unit, outer: a unit of either result is a row, `score` = a − b.
3. A unit that is a row of one result only has no known score in the other (below that one's last row, not 0): NaN, and
   counted in `unknown`. `attribute(..., also=other)` and `anatomy.edit_contrast` score the units of both, exactly. A
   steering term that is not there has added nothing: 0.

Layer scores telescope in each result, so their differences do in the difference. Two models have each their own frozen
σ: a difference holds what the edit wrote and what it did to the scale of the final norm. Query neurons have no
difference: each result sums them over value neurons of its own.
"""

from __future__ import annotations

import html
import math
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import pandas as pd

from mechedit.attribution.units import (
    CONTRASTED,
    UNITS,
    as_code,
    by_size,
    check_exact,
    check_top,
    joined,
    tidy,
)
from reports.attribution_circuit import AttributionCircuit
from reports.circuit_data import build_circuit
from reports.errors import InputError
from reports.figures import layer_curve
from reports.plot import Plot, after
from reports.readable import (
    DIFFERENCE_MEANS,
    SCORE_MEANS,
    WORDS_MEAN,
    account_line,
    notebook_html,
    prompt_text,
    readable,
)
from reports.results import Result
from reports.text import clip, visible

__all__ = ["Attribution", "AttributionContrast", "Side", "subtract"]

#: Two passes of one model over one prompt have one σ up to rounding: relative, in half precision and else.
_SIGMA_HALF, _SIGMA = 1e-2, 1e-5


@dataclass(frozen=True, repr=False, eq=False)
class Attribution(Result):
    """Which layers, heads and neurons raise (or lower) the log-probability of a target token.

    `logp = embedding_logp + Σ layers.score + completeness_gap`, under this `biases` convention. Only the layer scores
    sum up: heads and neurons of one layer are each scored alone against the same base, and their scores overlap.
    `after − before` is a result too: an `AttributionContrast`.

    Attributes:
        ids: Token ids of the prompt (and of the target, as far as a later token of it was scored behind them).
        tokens: The same as text.
        target: As it was given.
        target_id: Its first token.
        target_token: The tokens that were scored, as text.
        target_ids: All its tokens.
        target_scored: "first" token of the target (with a bare space before it), or the "sum" over its tokens.
        logp: logp(t | x_final).
        embedding_logp: logp(t | x_pre^0).
        prior_logp: logp(t | 0), what the constants alone predict.
        completeness_gap: The part of `logp` that neither the embedding nor a layer accounts for.
        sigma: The frozen scale of the final norm; of the first pass, where there are several.
        biases: As in `attribute`.
        sign: As in `attribute`.
        method: As in `attribute`.
        layers: Layer, module "attn" | "mlp" | "steer" | "steer_mlp", score (nats, as all scores), in the order of the
            computation.
        heads: Layer, head, score.
        head_positions: Layer, head, pos, score, of the strongest heads, or of all where neurons were enumerated.
        mlp_neurons: Layer, neuron, score of the best FFN value neurons, `top_k` rows, best first.
        attn_neurons: Layer, head, dim, pos, score of the best attention value neurons, likewise.
        query_neurons: Layer, neuron, score: who switches the best attention value neurons on, likewise.
        mlp_query_neurons: The same for the best FFN value neurons.
        query_layers: Layer, module, score: the same as `query_neurons` for whole sub-layers and the embedding (layer
            −1, module "embed").
        mlp_query_layers: The same for the best FFN value neurons.
        reads: The strongest edges of the circuit; columns as in `circuits/edges.py`.
        promotes: Layer, neuron, side "promotes" | "demotes", rank, token_id, token, logit: what the contribution
            m_i · W_out[i] of the first rows of `mlp_neurons` adds to single tokens' logits.
        certificate: Method, exact, evaluated and total (value neurons), blocks (the order inside a block, which for
            parallel ones is a definition), tolerance (nats), query and mlp_query (the denominators of the query
            neurons, and `pass`, the one of `passes` that they were read in: the last), reads (`edges` kept, of
            `edges_total`, whose |score| is `total` by kind).
        provenance: Model, prompt, target, versions.
        scored_ids: The ids of the tokens that were scored; () in results of earlier versions (`n_scored`).
    """

    kind: ClassVar[str] = "attribution"

    ids: tuple[int, ...]
    tokens: tuple[str, ...]
    target: str
    target_id: int
    target_token: str
    target_ids: tuple[int, ...]
    target_scored: str
    logp: float
    embedding_logp: float
    prior_logp: float
    completeness_gap: float
    sigma: float
    biases: str
    sign: str
    method: str
    layers: pd.DataFrame
    heads: pd.DataFrame
    head_positions: pd.DataFrame
    mlp_neurons: pd.DataFrame
    attn_neurons: pd.DataFrame
    query_neurons: pd.DataFrame
    mlp_query_neurons: pd.DataFrame
    query_layers: pd.DataFrame
    mlp_query_layers: pd.DataFrame
    reads: pd.DataFrame
    promotes: pd.DataFrame
    certificate: dict[str, Any]
    provenance: dict[str, Any] = field(default_factory=dict)
    scored_ids: tuple[int, ...] = ()

    @property
    def n_scored(self) -> int:
        """How many tokens of the target were scored."""
        return len(self.scored_ids) or (len(self.target_ids) if self.target_scored == "sum" else 1)

    @property
    def prompt_length(self) -> int:
        """How many tokens the prompt has: `ids` without those of the target that a later one was scored behind."""
        return len(self.ids) - self.n_scored + 1

    def __sub__(self, other: object) -> AttributionContrast:
        """Edited less unedited, or new target less old, unit by unit: see `AttributionContrast`."""
        return subtract(self, other) if isinstance(other, Attribution) else NotImplemented

    def top(self, k: int, unit: str = "mlp_neurons") -> pd.DataFrame:
        """The k best rows of one frame: the largest scores, or with `sign="suppress"` the lowest.

        Args:
            k: At least 1.
            unit: The frame, one of `UNITS`.

        Raises:
            InputError: k < 1, or there is no such frame.
        """
        check_top(k, unit, UNITS)
        frame: pd.DataFrame = getattr(self, unit)
        ascending = self.sign == "suppress"
        ranked = frame.sort_values("score", ascending=ascending, kind="stable")
        return ranked.head(k).reset_index(drop=True)

    def to_frame(self) -> pd.DataFrame:
        """All scores in one tidy frame: unit, layer, module, head, neuron, dim, pos (missing: NA), score."""
        return tidy({unit: getattr(self, unit) for unit in UNITS}, scores=("score",))

    def readable(self, k: int, unit: str = "mlp_neurons") -> pd.DataFrame:
        """As `top`, with tokens as text: what a neuron promotes and demotes, which token a head reads.

        Args:
            k: At least 1.
            unit: The frame, one of `UNITS`.

        Raises:
            InputError: k < 1, or there is no such frame.
        """
        promotes = self.promotes if unit == "mlp_neurons" else None
        positions = self.head_positions if unit == "heads" else None
        return readable(self.top(k, unit), self.tokens, promotes=promotes, positions=positions)

    def plot(self, ax: Any = None) -> Plot:
        """Layer scores over depth, one line a module."""
        prompt = after(prompt_text(self.tokens, self.prompt_length))
        title = f"{visible(self.target_token, spaces=True)} after {prompt}, {self._model}"
        return Plot(layer_curve(self.layers, ax=ax), title=title)

    @property
    def _model(self) -> str:
        return str(self.provenance.get("model", {}).get("name", ""))

    def circuit(self, *, share: float = 0.8, max_units: int = 40, max_edges: int = 12) -> AttributionCircuit:
        """The attribution graph: value neurons ← query neurons ← embedding, on tokens → heads → target.

        A notebook draws it; `save` writes it as SVG, PDF, PNG, HTML or JSON; `nodes` and `edges` are frames. What it
        holds: `reports.circuit_data`. `reports.viewer.save_viewer` writes it for the viewers of circuit-tracer and
        Neuronpedia.

        Args:
            share: Of the units' |score| that is to be kept.
            max_units: How many units are kept at most.
            max_edges: How many edges from query neurons are kept at most, of either kind of value neuron.

        Raises:
            InputError: Not 0 < share <= 1, max_units < 1 or max_edges < 0.
        """
        return AttributionCircuit(build_circuit(self, share=share, max_units=max_units, max_edges=max_edges))

    def __repr__(self) -> str:
        target, prompt = visible(self.target_token, spaces=True), prompt_text(self.tokens, self.prompt_length)
        return (
            f"Attribution({target!r} after {clip(prompt, 60)!r}, {self._model}: log p {self.logp:.4f} nats)"
        )

    def _repr_html_(self) -> str:
        """The target, the account of its log-probability, the best heads and neurons in words; all text escaped."""
        account = (
            f"{account_line(self)}; σ {self.sigma:.4g} (frozen), biases: {html.escape(self.biases)}, sign: "
            f"{html.escape(self.sign)}, method: {html.escape(self.method)}"
        )
        total = {unit: len(getattr(self, unit)) for unit in UNITS}
        tables = {unit: self.readable(total[unit] if unit == "layers" else 5, unit) for unit in UNITS}
        title = f"{as_code(self.target_token)} after {as_code(prompt_text(self.tokens))}"
        return notebook_html(title, [account, SCORE_MEANS, WORDS_MEAN], tables, total=total)


@dataclass(frozen=True)
class Side:
    """One of the two results: what it is called, and the account of its log-probability as in `Attribution`."""

    label: str
    target: str
    target_id: int
    target_token: str
    logp: float
    embedding_logp: float
    completeness_gap: float
    sigma: float

    @classmethod
    def of(cls, attr: Attribution, label: str) -> Side:
        """The side of a result."""
        names = ("target", "target_id", "target_token", "logp", "embedding_logp", "completeness_gap", "sigma")
        return cls(label, *(getattr(attr, name) for name in names))


@dataclass(frozen=True, repr=False, eq=False)
class AttributionContrast(Result):
    """What raises (or lowers) the log-probability of side a more than that of side b, in nats.

    `logp` = Δ log p = `embedding_logp` + Σ layers.score + `completeness_gap`, each a difference of the two sides. Each
    frame has the columns a, b (the two scores) and score = a − b; NaN: not known (`unknown`).

    Attributes:
        a: The first side.
        b: The second side.
        ids: As in `Attribution`, and so are the next three; of the longer side.
        tokens: The same as text.
        biases: Whether they are part of the logits.
        target_scored: "first" or "sum".
        layers: Layer, module and the scores, in the order of the computation.
        heads: Layer, head and the scores, by place.
        head_positions: Layer, head, pos and the scores, by place.
        mlp_neurons: Layer, neuron and the scores, largest |score| first.
        attn_neurons: Layer, head, dim, pos and the scores, largest |score| first.
        provenance: That of both sides, by "a" and "b".
        aligned: "" where the sides differ in one thing, else by what their units were put beside each other
            (`mechedit.attribution.aligned`); the sides' labels then say target, prompt and model.
    """

    kind: ClassVar[str] = "attribution_contrast"

    a: Side
    b: Side
    ids: tuple[int, ...]
    tokens: tuple[str, ...]
    biases: str
    target_scored: str
    layers: pd.DataFrame
    heads: pd.DataFrame
    head_positions: pd.DataFrame
    mlp_neurons: pd.DataFrame
    attn_neurons: pd.DataFrame
    provenance: dict[str, Any] = field(default_factory=dict)
    aligned: str = ""

    @property
    def logp(self) -> float:
        """The difference log p(target of a) − log p(target of b), nats."""
        return self.a.logp - self.b.logp

    @property
    def embedding_logp(self) -> float:
        """The part of `logp` that is there before the first layer."""
        return self.a.embedding_logp - self.b.embedding_logp

    @property
    def completeness_gap(self) -> float:
        """The part of `logp` that neither the embedding nor a layer accounts for."""
        return self.logp - self.embedding_logp - float(self.layers["score"].sum())

    @property
    def unknown(self) -> dict[str, int]:
        """How many rows of each frame have a score that is not known on one side."""
        return {unit: int(getattr(self, unit)["score"].isna().sum()) for unit in CONTRASTED}

    def top(self, k: int, unit: str = "mlp_neurons") -> pd.DataFrame:
        """The k rows of one frame with the largest |score|; rows that are not known come last.

        Args:
            k: At least 1.
            unit: The frame, one of `CONTRASTED`.

        Raises:
            InputError: k < 1, or there is no such frame.
        """
        check_top(k, unit, CONTRASTED)
        return by_size(getattr(self, unit), unit).head(k)

    def to_frame(self) -> pd.DataFrame:
        """All scores in one tidy frame: unit, layer, module, head, neuron, dim, pos (missing: NA), a, b, score."""
        return tidy({unit: getattr(self, unit) for unit in CONTRASTED}, scores=("a", "b", "score"))

    def readable(self, k: int, unit: str = "mlp_neurons") -> pd.DataFrame:
        """As `top`, with the token of every position as text, where both sides have the same prompt."""
        return readable(self.top(k, unit), () if self.aligned else self.tokens)

    def plot(self, ax: Any = None) -> Plot:
        """Differences of the layer scores over depth, one line a module."""
        return Plot(layer_curve(self.layers, ax=ax), title=self._title)

    @property
    def _title(self) -> str:
        """The two sides and the prompt, for a title; labels of sides that were aligned say all of it."""
        if self.aligned:
            return f"{visible(self.a.label)} less {visible(self.b.label)}, aligned by {self.aligned}"
        return f"{_called(self.a)} less {_called(self.b)} after {after(prompt_text(self.tokens))}"

    def __repr__(self) -> str:
        return f"AttributionContrast({self._title}: Δ log p {self.logp:.4f} nats)"

    def __neg__(self) -> AttributionContrast:
        """The difference b − a."""
        frames = {}
        for unit in CONTRASTED:
            frame = getattr(self, unit).rename(columns={"a": "b", "b": "a"})
            frames[unit] = frame.assign(score=-frame["score"])[[*UNITS[unit], "a", "b", "score"]]
        sides = {"a": self.provenance.get("b", {}), "b": self.provenance.get("a", {})}
        provenance = {**self.provenance, **sides}
        return replace(self, a=self.b, b=self.a, provenance=provenance, **frames)

    def _repr_html_(self) -> str:
        """The two sides, the account of the difference, and the rows that differ most; all text escaped."""
        account = (
            f"Δ {account_line(self)}; σ {self.a.sigma:.4g} and {self.b.sigma:.4g} (frozen), biases: "
            f"{html.escape(self.biases)}"
        )
        unknown = ", ".join(f"{n} of {unit}" for unit, n in self.unknown.items() if n)
        lines = [account, DIFFERENCE_MEANS, *([f"Not known on one side: {unknown}."] if unknown else [])]
        total = {unit: len(getattr(self, unit)) for unit in CONTRASTED}
        tables = {unit: self.readable(total[unit] if unit == "layers" else 5, unit) for unit in CONTRASTED}
        return notebook_html(html.escape(self._title), lines, tables, total=total)


def subtract(a: Attribution, b: Attribution) -> AttributionContrast:
    """The difference `a - b`.

    Raises:
        InputError: More than the edit or the target differs, or scores are intervals.
    """
    _check(a, b)
    labels = _labels(a, b)
    longer = a if len(a.ids) >= len(b.ids) else b
    return AttributionContrast(
        a=Side.of(a, labels[0]),
        b=Side.of(b, labels[1]),
        ids=longer.ids,
        tokens=longer.tokens,
        biases=a.biases,
        target_scored=a.target_scored,
        provenance={"a": a.provenance, "b": b.provenance},
        **{unit: joined(getattr(a, unit), getattr(b, unit), unit) for unit in CONTRASTED},
    )


def _check(a: Attribution, b: Attribution) -> None:
    check_exact({"a": a.certificate, "b": b.certificate})
    options = ("biases", "target_scored", "sign")
    facts = [{name: getattr(side, name) for name in options} | _flat(side.provenance) for side in (a, b)]
    for of_side in facts:
        of_side.setdefault("data.space", "auto")  # earlier versions had no other
    differing = [
        key for key in {**facts[0], **facts[1]} if facts[0].get(key, math.nan) != facts[1].get(key, math.nan)
    ]
    for key in differing:
        if key not in ("model.hash", "data.target"):
            raise InputError(
                f"a - b: expected two results that differ in the edit or the target alone, found {key} "
                f"{facts[0].get(key)!r} and {facts[1].get(key)!r}; attribute both in the same way"
            )
    if a.ids[: a.prompt_length] != b.ids[: b.prompt_length]:
        raise InputError(
            f"a - b: expected the same prompt, found other tokens ({a.prompt_length} and {b.prompt_length}); an edit "
            "by the prompt moves every position: mechedit.anatomy contrasts such edits"
        )
    rounding = _SIGMA_HALF if "16" in str(a.provenance.get("dtype")) else _SIGMA
    same_pass = math.isclose(a.sigma, b.sigma, rel_tol=rounding) and "model.hash" not in differing
    if "data.target" in differing and not same_pass:
        raise InputError(
            f"a - b: expected one difference, found another target ({a.target!r} and {b.target!r}) under another edit; "
            "subtract results for one target, or of one model"
        )


def _flat(table: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested tables by dotted keys; lists as tuples, so that a result that was loaded equals one that was not."""
    flat: dict[str, Any] = {}
    for key, value in table.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = tuple(value) if isinstance(value, list) else value
    return flat


def _labels(a: Attribution, b: Attribution) -> tuple[str, str]:
    """Targets or models, whichever differ; else a and b."""
    if a.target_token != b.target_token:
        return a.target_token, b.target_token
    models = [side.provenance.get("model", {}) for side in (a, b)]
    if models[0].get("hash") != models[1].get("hash"):
        first, second = (f"{model.get('name')} {str(model.get('hash'))[:8]}" for model in models)
        return first, second
    return "a", "b"


def _called(side: Side) -> str:
    """A side of a difference in words."""
    target = visible(side.target_token, spaces=True)
    return target if side.label == side.target_token else f"{target} ({visible(side.label)})"
