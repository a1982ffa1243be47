"""Steering edits on tiny models of every architecture: what is moved, when, and that nothing stays behind."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from mechedit.attribution import attribute
from mechedit.data.facts import FactEdit
from mechedit.editors import MEGA, NoEdit, SteeringEdit
from mechedit.editors.steering.gates import AlwaysOn, HiddenGate
from mechedit.editors.steering.sites import read_site
from mechedit.editors.steering.steer import steer
from mechedit.editors.steering.transport import AffineMap, mean_shift
from mechedit.models.hooked import HookedModel
from mechedit.models.hooking import resid_pre
from mechedit.models.states import last_states
from reports.errors import InputError
from tests.tiny import ARCHS, Arch, tiny_model

FACT = FactEdit(
    "Anna Keller",
    "{} works as a",
    "teacher",
    "basketball",
    paraphrase_prompts=("The work of Anna Keller is that of a",),
    neighborhood_prompts=("Tim Duncan works as a",),
)
OTHER = replace(FACT, subject="Tim Duncan", case_id=1)
TABLE = {FACT.prompt: ("{} is a", "The work of {} is that of a", "By trade, {} is a")}
PROMPTS = [FACT.rewrite_prompt, "The mother tongue of Danielle Darrieux is", "Tim Duncan plays"]


def shift(model: HookedModel, size: float = 3.0) -> AffineMap:
    zero = torch.zeros(1, model.shape.d_model)
    draw = torch.randn(1, model.shape.d_model, generator=torch.Generator().manual_seed(5))
    return mean_shift(zero, size * draw)


@pytest.fixture(params=ARCHS)
def model(request: pytest.FixtureRequest) -> HookedModel:
    arch: Arch = request.param
    return tiny_model(arch)


def test_the_last_position_moves_by_the_map_and_no_other(model: HookedModel) -> None:
    edit = SteeringEdit(FACT, {1: shift(model)})
    ids = model.tokenize(PROMPTS[0])
    seen: dict[str, torch.Tensor] = {}
    hook = [(read_site(1, "attn_out"), lambda a, hook: seen.__setitem__("plain", a.clone()))]
    with model.hooks(hook):
        model.forward(ids[None], torch.ones_like(ids)[None])
    hook = [(read_site(1, "attn_out"), lambda a, hook: seen.__setitem__("steered", a.clone()))]
    with steer(model, [edit]) as steered, steered.hooks(hook):
        steered.forward(ids[None], torch.ones_like(ids)[None])
    moved = seen["steered"] - seen["plain"]
    assert moved[0, :-1].abs().max() == 0
    torch.testing.assert_close(
        moved[0, -1], shift(model).displacement(torch.zeros(model.shape.d_model)), atol=1e-5, rtol=0
    )


def test_leaving_gives_back_the_same_bits(model: HookedModel) -> None:
    before, digest = model.logits(PROMPTS), model.hash

    def interrupted() -> None:
        with steer(model, [SteeringEdit(FACT, {0: shift(model)})]) as steered:
            assert not torch.equal(steered.logits(PROMPTS), before)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert torch.equal(model.logits(PROMPTS), before)
    assert model.hash == digest


def test_nested_edits_compose_and_unwind_in_order(model: HookedModel) -> None:
    first, second = SteeringEdit(FACT, {0: shift(model)}), SteeringEdit(OTHER, {1: shift(model, 2.0)})
    plain = model.logits(PROMPTS)
    with steer(model, [first]) as outer:
        once = outer.logits(PROMPTS)
        with steer(outer, [second]) as inner:
            twice = inner.logits(PROMPTS)
        assert torch.equal(outer.logits(PROMPTS), once)
    with steer(model, [replace(first, maps={**first.maps, **second.maps})]) as both:
        torch.testing.assert_close(both.logits(PROMPTS), twice, atol=1e-5, rtol=1e-5)
    assert torch.equal(model.logits(PROMPTS), plain)


def test_a_closed_gate_changes_no_bit_and_an_open_one_only_its_rows(model: HookedModel) -> None:
    (centre,) = last_states(model, PROMPTS[:1], [resid_pre(1)])
    edit = SteeringEdit(FACT, {1: shift(model)}, gate=HiddenGate(1, centre, 1e-3))
    plain = model.logits(PROMPTS)
    with steer(model, [edit]) as steered:
        assert steered.gate_fired(PROMPTS) == [True, False, False]
        logits = steered.logits(PROMPTS)
    assert torch.equal(logits[1:], plain[1:])
    assert (logits[0] - plain[0]).abs().max() > 1e-2


def test_the_nearer_of_two_open_gates_steers(model: HookedModel) -> None:
    (centre,) = last_states(model, PROMPTS[:1], [resid_pre(1)])
    near = SteeringEdit(FACT, {1: shift(model)}, gate=HiddenGate(1, centre, 1.0))
    far = SteeringEdit(OTHER, {1: shift(model, -5.0)}, gate=HiddenGate(1, centre + 0.01, 1.0))
    with steer(model, [near]) as alone:
        expected = alone.logits(PROMPTS[:1])
    with steer(model, [far, near]) as both:
        assert torch.equal(both.logits(PROMPTS[:1]), expected)


def test_generation_is_steered_at_every_token(model: HookedModel) -> None:
    """The oracle: greedy decoding without a cache, the map applied by hand from the prompt's end on."""
    fitted, n = shift(model), 4
    ids = model.tokenize(PROMPTS[0])
    end = len(ids) - 1

    def by_hand(a: torch.Tensor, hook: object) -> torch.Tensor:
        moved = a.clone()
        moved[:, end:] = fitted.to(a.device, a.dtype)(a[:, end:])
        return moved

    text = ids
    with model.hooks([(read_site(1, "attn_out"), by_hand)]):
        for _ in range(n):
            logits = model.forward(text[None], torch.ones_like(text)[None])[0, -1]
            text = torch.cat([text, logits.argmax()[None]])
    naive = model.tokenizer.decode(text.tolist())
    with steer(model, [SteeringEdit(FACT, {1: fitted})]) as steered:
        made = steered.generate(PROMPTS[:1], max_new_tokens=n)[0]
    assert str(naive).endswith(made)
    assert made != model.generate(PROMPTS[:1], max_new_tokens=n)[0]


def test_attribution_names_the_steering_and_still_adds_up(model: HookedModel) -> None:
    with steer(model, [SteeringEdit(FACT, {1: shift(model)})]) as steered:
        attr = attribute(steered, FACT.rewrite_prompt, FACT.target_new, top_k=3)
    assert attr.layers.query("module == 'steer'")["layer"].tolist() == [1]
    assert abs(attr.completeness_gap) < 1e-4


def test_a_mega_edit_fits_its_own_targets(model: HookedModel) -> None:
    """One layer: the steered outputs of the source prompts have the mean of the target prompts' outputs."""
    mega = MEGA(window=(1, 1), gate="always", alpha=1.0, target="avoid", all_targets=True, paraphrases=TABLE)
    edit = mega.fit(model, FACT)
    from mechedit.data.prompts import avoid
    from mechedit.editors.steering.paraphrases import paraphrases

    source = paraphrases(FACT, TABLE)
    assert len(source) == 3
    (goal,) = last_states(
        model, [avoid(p, "teacher", "basketball") for p in source], [read_site(1, "attn_out")]
    )
    with steer(model, [edit]) as steered:
        (reached,) = last_states(steered, source, [read_site(1, "attn_out")])
    torch.testing.assert_close(reached.mean(0), goal.mean(0), atol=1e-4, rtol=1e-4)


def test_sequential_fitting_starts_from_what_earlier_layers_did(model: HookedModel) -> None:
    options = {"window": (0, 2), "gate": "always", "alpha": 1.0, "paraphrases": TABLE}
    in_order = MEGA(**options).fit(model, FACT)  # type: ignore[arg-type]
    apart = MEGA(**options, sequential=False).fit(model, FACT)  # type: ignore[arg-type]
    torch.testing.assert_close(in_order.maps[0].shift, apart.maps[0].shift)
    assert (in_order.maps[2].mean - apart.maps[2].mean).abs().max() > 1e-4


def test_mega_options_change_the_outcome_and_alpha_zero_does_not(model: HookedModel) -> None:
    base = MEGA(window=(0, 1), gate="always", alpha=1.0, paraphrases=TABLE)
    plain = model.logits(PROMPTS)

    def logits(editor: MEGA) -> torch.Tensor:
        with editor.apply(model, FACT) as edited:
            return edited.logits(PROMPTS)

    assert torch.equal(logits(replace(base, alpha=0.0)), plain)
    reference = logits(base)
    for change in (
        {"alpha": 0.5},
        {"reg": 5.0},
        {"sequential": False},
        {"rank": 1},
        {"estimator": "shift"},
        {"window": (1, 1)},
    ):
        assert not torch.equal(logits(replace(base, **change)), reference), change


def test_no_edit_is_the_model_itself(model: HookedModel) -> None:
    with NoEdit().apply(model, FACT) as same:
        assert same is model


@pytest.mark.parametrize(
    ("editor", "word"),
    [
        (MEGA(), "window: 'auto'"),
        (MEGA(window=(0, 1), alpha=1.0), "threshold"),
        (MEGA(window=(2, 9), alpha=1.0, gate="always"), "window"),
        (MEGA(window=(2, 1), alpha=1.0, gate="always"), "window"),
    ],
)
def test_an_editor_that_is_not_ready_says_what_to_do(editor: MEGA, word: str) -> None:
    model = tiny_model("gpt2")
    with pytest.raises(InputError, match=word), editor.apply(model, FACT):
        pass


def test_padding_changes_no_state() -> None:
    model = tiny_model("gpt2")
    (together,) = last_states(model, PROMPTS, [resid_pre(1)])
    alone = torch.cat([last_states(model, [p], [resid_pre(1)])[0] for p in PROMPTS])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)


def test_the_gate_is_decided_by_the_prompt_and_kept_for_its_tokens() -> None:
    """A text is steered to its end although its later tokens are far from the gate's centre."""
    model = tiny_model("gpt2")
    (centre,) = last_states(model, PROMPTS[:1], [resid_pre(1)])
    gated = SteeringEdit(FACT, {1: shift(model)}, gate=HiddenGate(1, centre, 1e-3))
    with steer(model, [gated]) as steered:
        texts = steered.generate(PROMPTS[:2], max_new_tokens=6)
    with steer(model, [replace(gated, gate=AlwaysOn())]) as steered:
        assert texts[0] == steered.generate(PROMPTS[:1], max_new_tokens=6)[0]
    assert texts[1] == model.generate(PROMPTS[:2], max_new_tokens=6)[1]


def test_a_gate_above_the_steered_layers_is_decided_on_the_unsteered_prompt(model: HookedModel) -> None:
    (centre,) = last_states(model, PROMPTS[:1], [resid_pre(2)])
    plain = model.logits(PROMPTS)
    with steer(model, [SteeringEdit(FACT, {0: shift(model)}, gate=HiddenGate(2, centre, 1e-3))]) as steered:
        logits = steered.logits(PROMPTS)
        texts = steered.generate(PROMPTS, max_new_tokens=4)
    assert torch.equal(logits[1:], plain[1:])
    with steer(model, [SteeringEdit(FACT, {0: shift(model)})]) as always:
        torch.testing.assert_close(logits[0], always.logits(PROMPTS)[0])
        assert texts[0] == always.generate(PROMPTS, max_new_tokens=4)[0]
    assert texts[1:] == model.generate(PROMPTS, max_new_tokens=4)[1:]
