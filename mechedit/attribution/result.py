"""The result of an attribution: tidy frames, their ranking, their picture, their circuit.

Source of the quantities: Yu & Ananiadou, EMNLP 2024 (arXiv 2312.12141). Every score is
`inc(base, v) = logp(t | base + v) − logp(t | base)` in nats, with the final norm's scale frozen.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import pandas as pd

from mechedit.attribution.units import UNITS, as_code, check_top, tidy
from reports.results import Result
from reports.text import visible

if TYPE_CHECKING:
    from mechedit.attribution.circuits.attention import HeadAttention
    from mechedit.attribution.difference import AttributionContrast
    from mechedit.faithfulness.ablate import Ablation
    from mechedit.models.hooked import HookedModel

__all__ = ["Attribution", "attribution_json"]


@dataclass(frozen=True, repr=False, eq=False)
class Attribution(Result):
    """Which layers, heads and neurons raise (or lower) the log-probability of a target token.

    Frames (scores in nats): `layers` (layer, module "attn" | "mlp" | "steer" | "steer_mlp", score; in the
    order of the computation), `heads` (layer, head, score), `head_positions` (layer, head, pos, score; of the
    strongest heads, or of all where neurons were enumerated),
    `mlp_neurons` (layer, neuron, score), `attn_neurons` (layer, head, dim, pos, score), `query_neurons`
    (layer, neuron, score: who switches the best attention value neurons on; `mlp_query_neurons`: the best FFN value
    neurons), `query_layers` and `mlp_query_layers` (layer, module, score: the same for whole sub-layers and the
    embedding, layer −1, module "embed"; `query.py`),
    `promotes` (layer, neuron, side "promotes" | "demotes", rank, token_id, token, logit: what the neuron's
    contribution m_i · W_out[i] adds to single tokens' logits, for the first rows of `mlp_neurons`). Neuron frames are
    sorted, best first, and hold `top_k` rows. `reads`: the strongest edges of the circuit (columns: `edges.py`).
    `after − before` is a result too: an `AttributionContrast`.

    `target_scored`: "first" token of the target, or the "sum" over its tokens. `logp` = logp(t | x_final),
    `prior_logp` = logp(t | 0) (what the constants alone predict) and
    `embedding_logp` = logp(t | x_pre^0), under this `biases` convention; so `logp = embedding_logp + Σ
    layers.score + completeness_gap`. Only the layer scores sum up: heads and neurons of one layer are each
    scored alone against the same base, and their scores overlap. `certificate`: method, exact, evaluated,
    total (value neurons), tolerance (nats), query and mlp_query (the denominators of the query neurons, and `pass`, the
    forward pass of `passes` that they were read in: the last), reads (`edges` kept, of `edges_total`, whose |score| is
    `total` by kind).
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

    @property
    def prompt_length(self) -> int:
        """Tokens of the prompt: `ids` without those of the target that a later token was scored behind."""
        return len(self.ids) - (len(self.target_ids) - 1 if self.target_scored == "sum" else 0)

    def __sub__(self, other: object) -> AttributionContrast:
        """Edited less unedited, or new target less old, unit by unit: see `AttributionContrast`."""
        from mechedit.attribution.difference import subtract  # here: difference.py imports this module

        return subtract(self, other) if isinstance(other, Attribution) else NotImplemented

    def top(self, k: int, unit: str = "mlp_neurons") -> pd.DataFrame:
        """The k best rows of one frame: the largest scores, or with `sign="suppress"` the lowest; k >= 1.

        Errors: `InputError` for k < 1 and for a unit that is none of `UNITS`.
        """
        check_top(k, unit, UNITS)
        frame: pd.DataFrame = getattr(self, unit)
        ascending = self.sign == "suppress"
        ranked = frame.sort_values("score", ascending=ascending, kind="stable")
        return ranked.head(k).reset_index(drop=True)

    def to_frame(self) -> pd.DataFrame:
        """All scores in one tidy frame: unit, layer, module, head, neuron, dim, pos (missing: NA), score."""
        return tidy({unit: getattr(self, unit) for unit in UNITS}, scores=("score",))

    def plot(self, ax: Any = None) -> Any:
        """Layer scores over depth, one line a module; returns the axes."""
        from reports.figures import layer_curve  # here: matplotlib is slow to import and not always wanted

        return layer_curve(self.layers, ax=ax)

    def circuit(self, *, share: float = 0.8, max_units: int = 40, max_edges: int = 12) -> dict[str, Any]:
        """The attribution graph as data: value neurons ← query neurons ← embedding, on tokens → heads → target; see
        `circuit.py`. `reports.viewer.save_viewer` writes it for circuit-tracer's and Neuronpedia's viewers."""
        from mechedit.attribution.circuits.circuit import build_circuit

        return build_circuit(self, share=share, max_units=max_units, max_edges=max_edges)

    def attention(self, model: HookedModel, *, k: int = 8) -> HeadAttention:
        """Where the k strongest heads of the circuit look, and their scores divided among the tokens; see
        `attention.py`. A result holds no model, so the attributed one is given again."""
        from mechedit.attribution.circuits.attention import head_attention

        return head_attention(model, self, k=k)

    def ablate(
        self,
        model: HookedModel,
        k: int | Sequence[int],
        *,
        mean_over: Sequence[str] = (),
        draws: int = 10,
        seed: int = 0,
    ) -> Ablation:
        """Take the top-k neurons out of `model`'s forward pass, against random and bottom ones; see `ablate.py`.

        A result holds no model, so the attributed one is given again.
        """
        from mechedit.faithfulness.ablate import ablate

        return ablate(model, self, k, mean_over=mean_over, draws=draws, seed=seed)

    def _repr_html_(self) -> str:
        """The target, the account of its log-probability, and the best rows of each frame; all text
        escaped."""
        text = "".join(visible(token) for token in self.tokens)
        gain = self.layers["score"].sum()
        lines = [
            f"<p><strong>Attribution</strong> of {as_code(self.target_token)} after {as_code(text)}</p>",
            f"<p>log p {self.logp:.4f} = embedding {self.embedding_logp:.4f} + layers {gain:.4f} "
            f"+ gap {self.completeness_gap:.1e} nats; σ {self.sigma:.4g} (frozen), biases: "
            f"{html.escape(self.biases)}, sign: {html.escape(self.sign)}, method: {html.escape(self.method)}"
            "</p>",
        ]
        for unit in UNITS:
            frame: pd.DataFrame = getattr(self, unit)
            shown = frame if unit == "layers" else self.top(5, unit)
            if len(frame):
                head = f"<p><strong>{unit}</strong> ({len(shown)} of {len(frame)} rows)</p>"
                lines.append(head + shown.to_html(escape=True, border=0, index=False))
        return f"<div>{''.join(lines)}</div>"


def attribution_json(attr: Attribution) -> dict[str, Any]:
    """The result as plain lists and numbers: frames become rows (dicts by column name), for `json.dumps`.

    Keys: ids, tokens, target, target_id, target_token, target_scored, logp, embedding_logp, prior_logp,
    completeness_gap, sigma, biases, sign, method, certificate, and each frame of `UNITS` and `promotes`.
    """
    plain = (
        "target",
        "target_id",
        "target_token",
        "target_scored",
        "logp",
        "embedding_logp",
        "prior_logp",
        "completeness_gap",
    )
    result: dict[str, Any] = {"ids": list(attr.ids), "tokens": list(attr.tokens)}
    result |= {name: getattr(attr, name) for name in (*plain, "sigma", "biases", "sign", "method")}
    result["certificate"] = dict(attr.certificate)
    for name in (*UNITS, "promotes"):
        result[name] = getattr(attr, name).to_dict("records")
    return result
