"""A gate above the first steered layer looks ahead in a pass of its own: whatever is measured in an edited model must
be what the same edit gives whose gate is always open and needs no second pass."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch

import mechedit as me
from mechedit.attribution.scored_pass import ScoredPass
from mechedit.data.facts import FactEdit
from mechedit.editors import MEGA
from mechedit.editors.weights.covariance import _add
from mechedit.faithfulness.intervention import Neurons, logp_without
from mechedit.faithfulness.rankings import _gradients
from mechedit.models.hooked import HookedModel
from mechedit.models.hooking import Hook, resid_pre
from mechedit.models.states import last_states, mean_states

LOOKS = MEGA(window=(2, 4), rank=0, target="avoid", gate="hidden", gate_layer=7, threshold=1e9)
OPEN = MEGA(window=(2, 4), rank=0, target="avoid", gate="always")
Measure = Callable[[HookedModel, FactEdit], Any]


@pytest.fixture(scope="module")
def fact() -> FactEdit:
    return me.factworld.edits(1)[0]


def _attributed(model: HookedModel, fact: FactEdit) -> list[float]:
    result = me.attribute(model, fact.rewrite_prompt, fact.target_new, top_k=20)
    assert abs(result.completeness_gap) < 1e-4
    return [result.logp, *result.layers["score"], *result.mlp_neurons["score"], *result.heads["score"]]


def _scored(model: HookedModel, fact: FactEdit) -> list[float]:
    scored = ScoredPass(model, fact.rewrite_prompt, [fact.target_new, fact.target_true])
    return [value for i in (0, 1) for value in (scored.layers(i).logp, *scored.layers(i).layers["score"])]


def _circuit(model: HookedModel, fact: FactEdit) -> list[float]:
    attribution = me.attribute(model, fact.rewrite_prompt, fact.target_new, top_k=20)
    return sorted(attribution.circuit().edges["score"])


def _ids(model: HookedModel, fact: FactEdit) -> tuple[torch.Tensor, int]:
    ids, target = model.continuation(fact.rewrite_prompt, fact.target_new)
    return ids, int(target[0])


def _gradient(model: HookedModel, fact: FactEdit) -> torch.Tensor:
    return _gradients(model, *_ids(model, fact)).mlp


def _many(model: HookedModel, fact: FactEdit) -> list[float]:
    prompts = fact.paraphrase_prompts
    many = me.attribute_many(model, prompts, [fact.target_new] * len(prompts), top_k=5)
    return [value for one in many for value in (one.logp, *one.layers["score"])]


def _moments(model: HookedModel, fact: FactEdit) -> torch.Tensor:
    sums = {6: torch.zeros(model.shape.d_mlp, model.shape.d_mlp, dtype=torch.float64)}
    assert _add(model, model.encode(fact.paraphrase_prompts), sums) > 0
    return sums[6]


def _heard(model: HookedModel, fact: FactEdit) -> torch.Tensor:
    """A hook of the user's own that collects what it sees."""
    seen: list[torch.Tensor] = []
    hooks: list[Hook] = [(resid_pre(6), lambda states, hook: seen.append(states[0, -1].clone()))]
    with model.hooks(hooks), torch.no_grad():
        model.logits([fact.rewrite_prompt])
    assert len(seen) == 1
    return seen[0]


MEASURES: dict[str, Measure] = {
    "attribute": _attributed,
    "attribute_many": _many,
    "scored pass": _scored,
    "circuit": _circuit,
    "last states": lambda model, fact: last_states(model, fact.paraphrase_prompts, [resid_pre(6)])[0],
    "mean states": lambda model, fact: mean_states(model, fact.paraphrase_prompts, [resid_pre(6)])[0],
    "ablation": lambda model, fact: logp_without(model, *_ids(model, fact), sets=[Neurons(mlp=[(6, 3)])]),
    "gradients": _gradient,
    "covariance": _moments,
    "a hook of one's own": _heard,
}


@pytest.mark.parametrize("name", MEASURES)
def test_what_is_measured_in_an_edited_model_is_that_of_the_caller_s_pass(
    factworld_gpt2: HookedModel, fact: FactEdit, name: str
) -> None:
    model, measure = factworld_gpt2, MEASURES[name]
    with LOOKS.apply(model, fact) as edited:
        assert edited.gate_fired([fact.rewrite_prompt]) == [True]
        found = torch.as_tensor(measure(edited, fact)).double()
    with OPEN.apply(model, fact) as edited:
        expected = torch.as_tensor(measure(edited, fact)).double()
    unedited = torch.as_tensor(measure(model, fact)).double()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert found.shape != unedited.shape or not torch.allclose(found, unedited, atol=1e-3)  # it would be seen


@contextlib.contextmanager
def counted_rows(model: HookedModel) -> Iterator[list[int]]:
    """How many rows each layer has run, by torch's own hooks on the modules."""
    rows = [0] * model.shape.n_layers

    def count(layer: int, module: Any, args: Any, output: Any) -> None:
        rows[layer] += (output[0] if isinstance(output, tuple) else output).shape[0]

    layers: Any = model.hf.base_model.h
    handles = [module.register_forward_hook(partial(count, i)) for i, module in enumerate(layers)]
    try:
        yield rows
    finally:
        for handle in handles:
            handle.remove()


def test_a_look_ahead_ends_where_the_last_gate_has_read(factworld_gpt2: HookedModel, fact: FactEdit) -> None:
    inner = MEGA(window=(1, 3), rank=0, target="avoid", gate="hidden", gate_layer=4, threshold=1e9)
    outer = replace(inner, window=(2, 4), gate_layer=5)
    with (
        inner.apply(factworld_gpt2, fact) as once,
        outer.apply(once, fact) as edited,
        counted_rows(edited) as rows,
    ):
        edited.logits([fact.rewrite_prompt])
    assert rows == [2, 2, 2, 2, 2, 1, 1, 1]  # layers 0 to 4 twice: the outer gate reads the input of layer 5


@pytest.mark.parametrize("gate_layer", [1, 7])
def test_what_gates_say_is_what_they_say_in_whole_passes(
    factworld_gpt2: HookedModel, gate_layer: int
) -> None:
    """Prompts that words leave open are run as far as the gate reads, others not at all."""
    facts = me.factworld.edits(6)
    prompts = [prompt for fact in facts[:3] for prompt in (fact.rewrite_prompt, *fact.neighborhood_prompts)]
    for named in (False, True):
        mega = MEGA(
            window=(2, 4), rank=0, target="avoid", gate="hidden", gate_layer=gate_layer, threshold=9.0
        )
        if named:
            mega = replace(mega, gate="asked", threshold=None, gate_layer=None).select(
                factworld_gpt2, facts[3:]
            )
        with mega.apply(factworld_gpt2, facts[:2]) as edited:
            whole = []
            for prompt in prompts:
                edited.logits([prompt])
                whole.append((edited.steering.ratios <= 1).any().item())
            with counted_rows(edited) as rows:
                assert edited.gate_fired(prompts) == whole
            assert {True, False} == set(whole)
            asked = len(prompts) - sum(edited.shut_by_words(prompts))
            assert (asked < len(prompts)) == named
            last = edited.steering.last_read
            assert rows == [asked] * last + [0] * (edited.shape.n_layers - last)
