"""The edited model − the unedited one, unit by unit."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import asdict, replace
from typing import Any, Literal

from mechedit.attribution.exact_scores import with_units
from mechedit.attribution.nlka import attribute, attributed
from mechedit.attribution.options import Options
from mechedit.attribution.passes import TargetTokens, run_passes
from mechedit.attribution.projection import Biases
from mechedit.attribution.ranking.neurons import Sign
from mechedit.attribution.result import AttributionContrast, subtract
from mechedit.data.facts import FactEdit
from mechedit.data.joining import Space
from mechedit.editors import Editor
from mechedit.editors.settings import resolved
from mechedit.models.hooked import HookedModel

__all__ = ["edit_contrast", "under_edit"]


def edit_contrast(
    model: HookedModel,
    editor: Editor,
    fact: FactEdit,
    *,
    prompt: str | None = None,
    target: str | None = None,
    top_k: int | Literal["all"] = 300,
    sign: Sign = "promote",
    biases: Biases = "keep",
    tokens: TargetTokens = "first",
) -> AttributionContrast:
    """The edited model − the unedited one: the attribution of `target` behind `prompt`, unit by unit, nats.

    Side a is `model` with `fact` edited by `editor`, b is `model` unedited. The `top_k` neurons of both sides are rows,
    each scored exactly on both. A steering edit's term is a row of `layers` (module "steer"), 0 on side b.

    Args:
        model: Unedited.
        editor: What edits.
        fact: What is edited.
        prompt: None: the rewrite prompt of the fact.
        target: None: the new object of the fact.
        top_k: As `attribute`, and so are the following.
        sign: Whether the neurons are those that promote the target or suppress it.
        biases: Whether biases are kept in the projection.
        tokens: Which tokens of the target are scored.

    Raises:
        InputError: As `attribute`, and for an edit that changes the prompt's tokens (IKE).

    >>> import mechedit as me
    >>> model, fact = me.load_model("factworld"), me.factworld.edits(1)[0]
    >>> change = edit_contrast(model, me.editors.ROME(), fact, top_k=5)
    >>> change.a.label, change.logp > 0, change.unknown["mlp_neurons"]
    ('rome', True, 0)
    """
    prompt = fact.rewrite_prompt if prompt is None else prompt
    target = fact.target_new if target is None else target
    options = Options(top_k=top_k, sign=sign, biases=biases, tokens=tokens)
    edited = editor.apply(model, [fact])
    change = under_edit(model, edited, prompt, target, label=editor.name, options=options, space=fact.space)
    return replace(change, provenance={**change.provenance, "settings": resolved(editor, model)})


def under_edit(
    model: HookedModel,
    edited: AbstractContextManager[HookedModel],
    prompt: str,
    target: str,
    *,
    label: str,
    options: Options,
    space: Space = "auto",
) -> AttributionContrast:
    """`edit_contrast` of an edit that has been made already.

    Args:
        model: Unedited.
        edited: Gives the edited model for the length of a block.
        prompt: What is attributed.
        target: What is scored behind it.
        label: Of the edited side.
        options: Of both attributions.
        space: As in `attribute`.

    Raises:
        InputError: As `edit_contrast`.
    """
    reading: dict[str, Any] = {"tokens": options.tokens, "biases": options.biases, "space": space}
    passes, target_ids = run_passes(model, prompt, target, **reading)
    before = attributed(model, passes, target_ids, prompt=prompt, target=target, options=options, space=space)
    with edited as changed:
        after = attribute(changed, prompt, target, also=before, space=space, **asdict(options))
    # Terms are views of the weights: once the edit is undone, they are again those of the unedited model.
    change = subtract(after, with_units(before, passes, after))
    return replace(change, a=replace(change.a, label=label), b=replace(change.b, label="unedited"))
