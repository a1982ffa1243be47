"""Why did this edit fail, or succeed? One fact, its own prompts, what the model writes, and which units decided.

For each prompt (rewrite, paraphrases, neighbours), steps:

1. *Text*: the greedy continuation, before and after the edit. Wanted are the new object's tokens on the rewrite prompt
   and its paraphrases, as many as tell it from the old one (`mechedit.models.deciding`), and on a neighbour as many of
   those that the unedited model writes. Mostly that is one token.
2. *Margin*: logit(wanted) − logit(against) at one of them, behind those before it: the first that the edited model does
   not write, else the one in which the objects differ. Against is what the edited model writes instead; where it writes
   what is wanted, the token that it would have written otherwise.
3. *Units*: with the final norm's scale σ frozen the margin is linear in the residual stream,

       margin = Σ over sub-layers of (B_wanted − B_against) · v + rest,

   and so are heads and MLP neurons inside their sub-layer (`attribution.contrast`): exact, no softmax. rest is the
   embedding's share and the constants. The edit *helped* where a unit's term rose most; the units whose terms after the
   edit are the lowest *overruled* it.

Before and after have each their own σ, so a unit's rise holds its change as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import pandas as pd
import torch
from torch import Tensor

from mechedit.attribution.layers import contrast_scores
from mechedit.attribution.passes import check_forced
from mechedit.attribution.projection import Projection
from mechedit.attribution.terms import layer_terms
from mechedit.data.facts import FactEdit
from mechedit.editors import Editor
from mechedit.editors.settings import resolved
from mechedit.models.deciding import decide
from mechedit.models.hooked import HookedModel
from mechedit.models.scoring import score_pairs
from reports.errors import InputError
from reports.results import Result
from reports.text import visible

__all__ = ["Explanation", "explain"]

_NAMES = {
    "attn": "attention",
    "mlp": "MLP",
    "steer": "steering term",
    "steer_mlp": "steering term at the MLP",
}
_SHOWN_NEURONS = 10


@dataclass(frozen=True, repr=False, eq=False)
class Explanation(Result):
    """The result of `explain`.

    Attributes:
        texts: role, index, prompt, before, after (the texts), wanted, against (tokens), behind (wanted tokens before
            them, mostly none), ok, changed, margin_before, margin_after (logits).
        units: role, index, kind ("sublayer", "head", "neuron", "rest"), layer, unit, before, after, delta (logits of
            the margin); of neurons those of largest |delta| and of lowest after.
        editor: Its name.
        model: Its name.
        subject: Of the fact.
        target_new: The new object.
        target_true: The old object.
        provenance: Model and editor.
    """

    kind: ClassVar[str] = "explanation"
    texts: pd.DataFrame
    units: pd.DataFrame
    editor: str
    model: str
    subject: str
    target_new: str
    target_true: str
    provenance: dict[str, Any] = field(default_factory=dict)

    def helped(
        self, role: str = "rewrite", index: int = 0, *, k: int = 5, kind: str = "sublayer"
    ) -> pd.DataFrame:
        """The k units whose term rose most with the edit.

        Args:
            role: Which kind of prompt: "rewrite", "paraphrase" or "neighborhood".
            index: Which prompt of this kind.
            k: The number of units.
            kind: Of units: "sublayer", "head", "neuron" or "rest".

        Raises:
            InputError: There is no such prompt or kind.
        """
        return self._of(role, index, kind).sort_values("delta", ascending=False, kind="stable").head(k)

    def overruled(
        self, role: str = "rewrite", index: int = 0, *, k: int = 5, kind: str = "sublayer"
    ) -> pd.DataFrame:
        """The k units whose term in the edited model is lowest, of those below 0; arguments as for `helped`."""
        units = self._of(role, index, kind)
        return units[units["after"] < 0].sort_values("after", kind="stable").head(k)

    def _of(self, role: str, index: int, kind: str) -> pd.DataFrame:
        units = self.units
        chosen = units[(units["role"] == role) & (units["index"] == index) & (units["kind"] == kind)]
        if chosen.empty:
            raise InputError(
                f"role, index, kind: expected one that was asked, found {role!r}, {index}, {kind!r}"
            )
        return chosen

    def lines(self) -> list[str]:
        """The explanation in words, a paragraph for each prompt."""
        return [self._line(row) for row in self.texts.to_dict("records")]

    def _line(self, row: dict[str, Any]) -> str:
        role, index = str(row["role"]), int(row["index"])
        verdict = "ok" if row["ok"] else "FAILED"
        helped = _listed(self.helped(role, index, k=3), "delta")
        behind = f" behind {row['behind']!r}" if row.get("behind") else ""
        line = (
            f"{role} {verdict}: {row['prompt']} | before:{visible(row['before'])} | after:{visible(row['after'])}"
            f"\n  {row['wanted']!r} against {row['against']!r}{behind}: logits {row['margin_before']:+.2f} before, "
            f"{row['margin_after']:+.2f} after; rose most at {helped}"
        )
        if not row["ok"]:
            line += f"\n  overruled by {_listed(self.overruled(role, index, k=3), 'after')}"
            line += f"; heads {_listed(self.overruled(role, index, k=3, kind='head'), 'after')}"
        return line


def explain(
    model: HookedModel, editor: Editor, fact: FactEdit, *, neighbours: int = 3, max_new_tokens: int = 12
) -> Explanation:
    """Edit `fact` by `editor`, and explain for each of its prompts what changed and what decided.

    Cost: two forward passes and two short texts a prompt.

    Args:
        model: Unedited.
        editor: What edits.
        fact: What is edited.
        neighbours: How many of the neighbourhood prompts are run.
        max_new_tokens: The length of the texts.

    Raises:
        InputError: As the editor, and for a target that encodes to nothing.

    >>> import mechedit as me
    >>> model, fact = me.load_model("factworld"), me.factworld.edits(1)[0]
    >>> why = explain(model, me.editors.NoEdit(), fact)
    >>> bool(why.texts.loc[0, "ok"]), why.lines()[0].startswith("rewrite FAILED: The employer of Lukas Novak is")
    (False, True)
    """
    prompts = [("rewrite", 0, fact.rewrite_prompt)]
    prompts += [("paraphrase", i, prompt) for i, prompt in enumerate(fact.paraphrase_prompts)]
    prompts += [("neighborhood", i, p) for i, p in enumerate(fact.neighborhood_prompts[:neighbours])]
    inputs = [prompt for _, _, prompt in prompts]
    wants = [_wanted(model, fact, role, prompt) for role, _, prompt in prompts]
    before = model.generate(inputs, max_new_tokens=max_new_tokens)
    said_before = [_likeliest(model, p, want) for p, want in zip(inputs, wants, strict=True)]
    with editor.apply(model, [fact]) as edited:
        after = edited.generate(inputs, max_new_tokens=max_new_tokens)
        said_after = [_likeliest(edited, p, want) for p, want in zip(inputs, wants, strict=True)]
        places = [
            _place(want, was, now) for want, was, now in zip(wants, said_before, said_after, strict=True)
        ]
        terms_after = [_terms(edited, p, place) for p, place in zip(inputs, places, strict=True)]
    terms_before = [_terms(model, p, place) for p, place in zip(inputs, places, strict=True)]
    texts, units = [], []
    for i, (role, index, prompt) in enumerate(prompts):
        wanted, against = (_token(model, token) for token in (places[i].wanted, places[i].against))
        row = {"role": role, "index": index, "prompt": prompt, "before": before[i], "after": after[i]}
        row |= {"wanted": wanted, "against": against, "behind": _text(model, places[i].behind)}
        row |= {"ok": places[i].ok}
        row |= {"changed": before[i] != after[i], "margin_before": terms_before[i].margin}
        texts.append({**row, "margin_after": terms_after[i].margin})
        units.append(_units(terms_before[i], terms_after[i]).assign(role=role, index=index))
    about = {"name": model.name, "hash": model.hash, **model.stored}
    return Explanation(
        texts=pd.DataFrame(texts),
        units=pd.concat(units, ignore_index=True),
        editor=editor.name,
        model=model.name,
        subject=fact.subject,
        target_new=fact.target_new,
        target_true=fact.target_true,
        provenance={"model": about, "editor": repr(editor), "settings": resolved(editor, model)},
    )


@dataclass(frozen=True)
class _Wanted:
    """The tokens that are wanted behind a prompt, and those of the two objects; the last of `tokens` decides.

    `ends` is the token that must not follow, where the new object is the beginning of the old one.
    """

    tokens: tuple[int, ...]
    new: tuple[int, ...]
    old: tuple[int, ...]
    ends: int | None = None


@dataclass(frozen=True)
class _Place:
    """Where the margin is taken: behind which tokens, and between which two; whether all wanted ones are written."""

    behind: tuple[int, ...]
    wanted: int
    against: int
    ok: bool


def _wanted(model: HookedModel, fact: FactEdit, role: str, prompt: str) -> _Wanted:
    """The deciding tokens of the new object, or of what the unedited model writes behind a neighbour."""
    new, old = (
        tuple(model.continuation(prompt, t, space=fact.space)[1].tolist())
        for t in (fact.target_new, fact.target_true)
    )
    decided = decide(model.tokenizer, new, old)
    if role != "neighborhood":
        ends = old[len(new)] if decided.begins_old else None
        return _Wanted(new[: decided.n_new], new, old, ends)
    length = max(decided.n_new, decided.n_old)
    written: tuple[int, ...] = ()
    while len(written) < length or (
        len(written) < length + 4 and not str(model.tokenizer.decode(list(written))).strip(" ")
    ):
        written = (*written, _likeliest(model, prompt, _Wanted((*written, 0), new, old))[-1])
    return _Wanted(written, new, old)


def _likeliest(model: HookedModel, prompt: str, want: _Wanted) -> list[int]:
    """The likeliest token in the place of each wanted one, teacher-forced, and of `ends`, where there is one."""
    ids = model.tokenize(prompt)
    if len(want.tokens) == 1 and want.ends is None:
        return [int(model.logits([ids])[0].argmax())]
    forced = torch.tensor([*want.tokens, *([] if want.ends is None else [want.ends])], device=ids.device)
    return list(score_pairs(model, [(ids, forced)])[0].argmax)


def _place(want: _Wanted, before: Sequence[int], after: Sequence[int]) -> _Place:
    """The first wanted token that is not written, else the first in which the objects differ.

    Against it is the first token that differs of after, before and the two objects.
    """
    n = len(want.tokens)
    missed = [i for i in range(n) if after[i] != want.tokens[i]]
    goes_on = not missed and want.ends is not None and after[n] == want.ends
    differ = next(
        (i for i, pair in enumerate(zip(want.new, want.old, strict=False)) if pair[0] != pair[1]), n - 1
    )
    at = missed[0] if missed else min(differ, n - 1)
    wanted = want.tokens[at]
    others = (after[at], before[at], *(ids[at] for ids in (want.old, want.new) if at < len(ids)))
    against = next((token for token in others if token != wanted), wanted)
    return _Place(want.tokens[:at], wanted, against, not missed and not goes_on)


@dataclass(frozen=True, eq=False)
class _Terms:
    """The margin's terms: sub-layers by (layer, module), heads [L, H], MLP neurons [L, d_mlp], rest."""

    margin: float
    sublayers: dict[tuple[int, str], float]
    heads: Tensor
    neurons: Tensor


@torch.no_grad()
def _terms(model: HookedModel, prompt: str, place: _Place) -> _Terms:
    wanted, against, ids = place.wanted, place.against, model.tokenize(prompt)
    view = model.residual_view(torch.cat([ids, ids.new_tensor(place.behind)]))
    if place.behind:
        check_forced(model, ids, [*place.behind, wanted], float(view.logits.double().log_softmax(-1)[wanted]))
    projection = Projection.freeze(
        model.final_norm, model.W_U, model.b_U, x_final=view.resid_final, biases="drop"
    )
    terms = list(layer_terms(model, view))
    direction = projection.column(wanted) - projection.column(against)
    layers = contrast_scores(projection, terms, new=wanted, old=against)
    sublayers = {(int(r.layer), str(r.module)): float(r.score) for r in layers.itertuples()}
    heads = torch.stack([term.heads().double() @ direction for term in terms])
    neurons = [
        term.mlp.coefficients[:, 0].double() * term.mlp.product(direction[:, None])[:, 0].double()
        for term in terms
    ]
    margin = float(view.logits[wanted].double() - view.logits[against].double())
    return _Terms(margin, sublayers, heads.cpu(), torch.stack(neurons).cpu())


def _units(before: _Terms, after: _Terms) -> pd.DataFrame:
    """All sub-layers and heads, the rest, and the neurons that matter, before and after."""
    rows: list[tuple[str, int, str, float, float]] = []
    for layer, module in sorted({*before.sublayers, *after.sublayers}):
        was, now = (t.sublayers.get((layer, module), 0.0) for t in (before, after))
        rows.append(("sublayer", layer, f"{_NAMES[module]} L{layer}", was, now))
    rests = [t.margin - sum(t.sublayers.values()) for t in (before, after)]
    rows.append(("rest", -1, "embedding and constants", rests[0], rests[1]))
    for layer, head in torch.cartesian_prod(*(torch.arange(n) for n in after.heads.shape)).tolist():
        was, now = float(before.heads[layer, head]), float(after.heads[layer, head])
        rows.append(("head", layer, f"L{layer}.H{head}", was, now))
    change = (after.neurons - before.neurons).abs().flatten()
    k = min(_SHOWN_NEURONS, len(change))
    chosen = {
        *change.topk(k).indices.tolist(),
        *after.neurons.flatten().topk(k, largest=False).indices.tolist(),
    }
    for place in sorted(chosen):
        layer, neuron = divmod(place, after.neurons.shape[1])
        was, now = float(before.neurons[layer, neuron]), float(after.neurons[layer, neuron])
        rows.append(("neuron", layer, f"L{layer}.{neuron}", was, now))
    frame = pd.DataFrame(rows, columns=["kind", "layer", "unit", "before", "after"])
    return frame.assign(delta=frame["after"] - frame["before"])


def _listed(units: pd.DataFrame, column: str) -> str:
    named = [f"{unit} ({value:+.2f})" for unit, value in zip(units["unit"], units[column], strict=True)]
    return ", ".join(named) or "none"


def _text(model: HookedModel, ids: Sequence[int]) -> str:
    return str(model.tokenizer.decode(list(ids))) if ids else ""


def _token(model: HookedModel, token: int) -> str:
    return str(model.tokenizer.decode([token]))
