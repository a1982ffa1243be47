"""Two attributions of different prompts, targets or models, subtracted on purpose.

`a - b` takes two results that differ in one thing, whose every unit is the same unit. Where more differs, it has to be
said which unit of one stands beside which of the other:

- "position": the prompts have as many tokens, and the i-th stands beside the i-th ("The capital of France is" beside
  "The capital of Japan is"); every frame is compared;
- "units": layers, heads and MLP neurons, whatever tokens they are at; prompts may be of any length. A head's score is
  that of all it reads. What belongs to a position has no counterpart and is left out.
"""

from __future__ import annotations

from typing import Literal, get_args

from mechedit.attribution.result import Attribution, AttributionContrast, Side
from mechedit.attribution.units import CONTRASTED, UNITS, check_exact, joined
from reports.errors import InputError
from reports.text import clip, visible

__all__ = ["Align", "subtract_aligned"]

Align = Literal["position", "units"]
_OPTIONS = ("biases", "target_scored", "sign")
_MODEL = ("name", "hash")


def subtract_aligned(a: Attribution, b: Attribution, *, align: Align) -> AttributionContrast:
    """The difference a − b of any two attributions of models of one size, unit by unit, nats.

    Raises:
        InputError: `align` is neither "position" nor "units"; the results were made with other options, their models
            have other layers or heads, or for "position" the prompts have other numbers of tokens.
    """
    if align not in get_args(Align):
        raise InputError(f"align: expected one of {', '.join(get_args(Align))}, found {align!r}")
    check_exact({"a": a.certificate, "b": b.certificate})
    for name in _OPTIONS:
        if getattr(a, name) != getattr(b, name):
            raise InputError(
                f"{name}: expected the same of both, found {getattr(a, name)!r} and {getattr(b, name)!r}"
            )
    sizes = [(int(attr.layers["layer"].max()) + 1, int(attr.heads["head"].max()) + 1) for attr in (a, b)]
    if sizes[0] != sizes[1]:
        raise InputError(
            f"a, b: expected models of one size, found {sizes[0][0]} layers of {sizes[0][1]} heads and "
            f"{sizes[1][0]} of {sizes[1][1]}: their units are no counterparts"
        )
    if align == "position" and len(a.ids) != len(b.ids):
        raise InputError(
            f"align: expected prompts of as many tokens, found {len(a.ids)} and {len(b.ids)}; align='units' compares "
            "units whatever position they are at"
        )
    frames = {}
    for unit in CONTRASTED:
        placed = align == "units" and "pos" in UNITS[unit]
        first, second = (getattr(attr, unit).iloc[: 0 if placed else None] for attr in (a, b))
        frames[unit] = joined(first, second, unit)
    labels = _labels(a, b)
    return AttributionContrast(
        a=Side.of(a, labels[0]),
        b=Side.of(b, labels[1]),
        ids=a.ids,
        tokens=_tokens(a, b) if align == "position" else a.tokens,
        biases=a.biases,
        target_scored=a.target_scored,
        provenance={"a": a.provenance, "b": b.provenance},
        aligned=align,
        **frames,
    )


def _tokens(a: Attribution, b: Attribution) -> tuple[str, ...]:
    """The tokens at each position; where they differ, both."""
    return tuple(x if x == y else f"{x} |{y}" for x, y in zip(a.tokens, b.tokens, strict=True))


def _labels(a: Attribution, b: Attribution) -> tuple[str, str]:
    """Of each side the target, the prompt, and the model where the two differ."""
    models = [{key: str(side.provenance.get("model", {}).get(key, "")) for key in _MODEL} for side in (a, b)]
    first, second = (
        f"{visible(side.target_token).strip()!r} after {clip(visible(_prompt(side)), 60)!r}"
        + (f" in {model['name']} {model['hash'][:8]}" if models[0] != models[1] else "")
        for side, model in zip((a, b), models, strict=True)
    )
    return first, second


def _prompt(attr: Attribution) -> str:
    return "".join(attr.tokens[: attr.prompt_length])
