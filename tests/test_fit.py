"""Fits in two passes against the plain way: a pass a layer, each with the earlier layers' maps active."""

from __future__ import annotations

import logging
from dataclasses import replace

import pytest
import torch

import mechedit as me
from mechedit.data.facts import FactEdit
from mechedit.editors import MEGA
from mechedit.editors.steering.fit_prompts import sources, targets
from mechedit.editors.steering.gates import AlwaysOn
from mechedit.editors.steering.sites import read_site
from mechedit.editors.steering.steer import steer
from mechedit.editors.steering.steering_edit import SteeringEdit
from mechedit.editors.steering.transport import AffineMap
from mechedit.models.hooked import HookedModel
from mechedit.models.states import last_states

FITTED = MEGA(window=(5, 7), alpha=1.0, gate="always", target="avoid", rank=2, all_targets=True)


@pytest.fixture(scope="module")
def facts() -> list[FactEdit]:
    return me.factworld.edits(2, seed=3)


def plain_maps(model: HookedModel, editor: MEGA, fact: FactEdit, *, sequential: bool) -> dict[int, AffineMap]:
    """The oracle: whole passes, one a layer, over all sources and all targets."""
    prompts = editor.plain_prompts(fact)
    goals = targets(fact, prompts, "avoid")
    maps: dict[int, AffineMap] = {}
    for layer in range(5, 8):
        point = read_site(layer, editor.site)
        edit = SteeringEdit(fact, maps if sequential else {}, AlwaysOn(), 1.0, editor.site, position="prompt")
        with steer(model, [edit]) as steered:
            (start,) = last_states(steered, sources(fact, prompts, "plain"), [point])
        (goal,) = last_states(model, goals, [point])
        maps[layer] = editor.make_map(start, goal, 0)
    return maps


@pytest.mark.parametrize("sequential", [True, False])
@pytest.mark.parametrize("site", ["attn_out", "resid_mid", "resid_post"])
def test_one_pass_fits_what_a_pass_a_layer_fits(
    factworld_gpt2: HookedModel, facts: list[FactEdit], site: str, sequential: bool
) -> None:
    editor = replace(FITTED, site=site, sequential=sequential)  # type: ignore[arg-type]
    edits = editor.fit_all(factworld_gpt2, facts)
    h = torch.randn(5, factworld_gpt2.shape.d_model, generator=torch.Generator().manual_seed(1))
    for fact, edit in zip(facts, edits, strict=True):
        expected = plain_maps(factworld_gpt2, editor, fact, sequential=sequential)
        other = plain_maps(factworld_gpt2, editor, fact, sequential=not sequential)
        for layer, fitted in edit.maps.items():
            moved = expected[layer].displacement(h.double())
            assert torch.allclose(
                fitted.displacement(h).double(), moved, atol=1e-2 * float(moved.abs().max())
            )
        last = other[7].displacement(h.double())
        assert not torch.allclose(
            edit.maps[7].displacement(h).double(), last, atol=1e-2 * float(last.abs().max())
        )


def test_targets_that_fail_are_left_out(factworld_gpt2: HookedModel, facts: list[FactEdit]) -> None:
    editor = replace(FITTED, target="auto", all_targets=False)
    edit = editor.fit(factworld_gpt2, facts[0])
    right, total = edit.choice["targets_right"]
    assert 0 < right <= total
    assert edit.choice["own_right"] > 0
    assert edit.choice["target"] in ("avoid", "new_fact", "statement", "correction")


def test_the_strength_is_the_smallest_that_the_own_prompts_need(
    factworld_gpt2: HookedModel, facts: list[FactEdit]
) -> None:
    editor = replace(FITTED, alpha="auto", all_targets=False)
    edit = editor.fit(factworld_gpt2, facts[0])
    weaker = replace(edit, alpha=0.25 * edit.alpha)
    own = editor.plain_prompts(facts[0])
    token = factworld_gpt2.continuation(facts[0].rewrite_prompt, facts[0].target_new)[1][0]
    share = []
    for one in (edit, weaker):
        with steer(factworld_gpt2, [one]) as steered:
            share.append(float((steered.logits(own).argmax(-1) == token).double().mean()))
    assert share[0] > share[1]


def test_an_edit_that_does_nothing_says_so(
    factworld_gpt2: HookedModel, facts: list[FactEdit], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        replace(FITTED, window=(0, 0), alpha=0.01).fit(factworld_gpt2, facts[0])
    assert "none of the edit's own prompts gives" in caplog.text
