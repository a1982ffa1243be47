"""IKE and SAKE: edits that change no weight."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import mechedit as me
from mechedit.attribution import attribute
from mechedit.data.facts import FactEdit
from mechedit.data.prompts import avoid, repeat
from mechedit.editors import IKE, MEGA, SAKE
from mechedit.editors.steering.steer import steer
from mechedit.editors.steering.steering_edit import SteeringEdit
from mechedit.editors.steering.transport import gaussian_map, mean_shift
from mechedit.evaluation.evaluate import Baseline
from mechedit.models.hooked import HookedModel
from mechedit.models.hooking import resid_post
from mechedit.models.states import last_states
from reports.errors import InputError
from tests.tiny import ARCHS, tiny_model

FACT = FactEdit("Anna Keller", "{} works as a", "teacher", "king")
POOL = tuple(
    FactEdit(
        subject,
        "{} plays the",
        "guitar",
        "piano",
        case_id=i,
        paraphrase_prompts=(f"The instrument of {subject} is the",),
        neighborhood_prompts=("Lily plays the",),
    )
    for i, subject in enumerate(("Tim Duncan", "Edwin", "Danielle Darrieux", "Anna Keller"))
)
PROMPTS = [FACT.rewrite_prompt, "The mother tongue of Danielle Darrieux is", " Tim Duncan plays"]
TABLE = {FACT.prompt: ("{} is a", "The work of {} is that of a", "By trade, {} is a")}


@pytest.fixture(params=[(arch, bos) for arch in ARCHS for bos in (False, True)], ids=str)
def model(request: pytest.FixtureRequest) -> HookedModel:
    return tiny_model(request.param[0], bos=request.param[1])


# --- IKE ----------------------------------------------------------------------------------------------------


def test_ike_is_the_same_text_put_before_every_prompt(model: HookedModel) -> None:
    digest, plain = model.hash, model.logits(PROMPTS)
    with IKE(demonstrations=1, pool=POOL).apply(model, FACT) as edited:
        written = [edited.prefix + prompt.lstrip() for prompt in PROMPTS]
        assert torch.equal(edited.logits(PROMPTS), model.logits(written))
        assert edited.generate(PROMPTS, max_new_tokens=4) == model.generate(written, max_new_tokens=4)
        ids, target = edited.continuation(FACT.rewrite_prompt, FACT.target_new)
        wanted = model.continuation(written[0], FACT.target_new)
        assert torch.equal(ids, wanted[0])
        assert torch.equal(target, wanted[1])
        attr = attribute(edited, FACT.rewrite_prompt, FACT.target_new, top_k=3)
        assert attr.ids[: attr.prompt_length] == tuple(ids.tolist())
        assert abs(attr.completeness_gap) < 1e-4
        assert edited.hash == digest
        assert not torch.equal(model.logits(PROMPTS), edited.logits(PROMPTS))
    assert model.hash == digest
    assert torch.equal(model.logits(PROMPTS), plain)


def test_ike_shows_copy_update_and_retain_the_nearest_last() -> None:
    model = tiny_model("gpt2")
    ike = IKE(demonstrations=3, pool=POOL)
    shown = ike._retrieve(model, (FACT,))
    assert [kind for _, kind in shown] == ["retain", "update", "copy"]
    assert FACT.subject not in {fact.subject for fact, _ in shown}
    *demonstrations, question = ike.prefix(model, FACT).split("\n\n")
    assert question == "New Fact: Anna Keller works as a king\nPrompt: "
    assert len(demonstrations) == 3
    retain, update, copy = demonstrations
    assert retain.endswith("Prompt: Lily plays the guitar")
    assert "Prompt: The instrument of" in update
    assert update.endswith("piano")
    assert copy.split(" plays")[0].removeprefix("New Fact: ") in copy.split("Prompt: ")[1]
    assert IKE(demonstrations=0, pool=POOL).prefix(model, FACT) == question
    assert IKE(demonstrations=9, pool=POOL).prefix(model, FACT).count("New Fact") == 4


def test_ike_shows_as_many_demonstrations_as_fit(caplog: pytest.LogCaptureFixture) -> None:
    """By hand: with one more the longest prompt would not fit; the least similar ones are gone."""
    model = tiny_model("llama")
    assert model.n_ctx == 128
    with IKE(demonstrations=1, pool=POOL).apply(model, FACT) as edited:
        assert (edited.demonstrations, edited.left_out) == (1, 0)
    assert not caplog.records
    ike = IKE(demonstrations=3, pool=POOL)
    with caplog.at_level("WARNING"), ike.apply(model, FACT) as edited:
        assert edited.logits([FACT.rewrite_prompt]).isfinite().all()
        assert ike.prefix(model, FACT).endswith(edited.prefix)
        assert edited.prefix.count("New Fact") == 1 + edited.demonstrations
        assert edited.demonstrations + edited.left_out == 3
        more = "\n\n".join(ike.prefix(model, FACT).split("\n\n")[-2 - edited.demonstrations :])
        assert len(model.tokenize(more + FACT.rewrite_prompt)) + 32 > 128
        assert len(edited.tokenize(FACT.rewrite_prompt)) + 32 <= 128
    assert f"{edited.demonstrations} of 3 demonstrations fit the context of 128 tokens" in caplog.text
    many = [replace(FACT, subject=f"Anna Keller {i}") for i in range(9)]
    with pytest.raises(InputError, match="edit fewer"), IKE(demonstrations=0).apply(model, many):
        pass


def test_an_evaluation_says_how_many_demonstrations_fitted() -> None:
    model = tiny_model("llama")
    facts = [replace(FACT, case_id=i) for i in range(2)]
    known = Baseline([True, True], [{}, {}])  # or nothing would be edited
    ike = IKE(demonstrations=3, pool=POOL)
    with ike.apply(model, facts[0]) as edited:
        shown = edited.demonstrations
    (note,) = me.evaluate(model, ike, facts, progress=False, unedited=known).notes
    assert note == f"{shown} of 3 demonstrations fit the model's context, in 2 of 2 facts"
    assert me.evaluate(model, IKE(demonstrations=0), facts, progress=False, unedited=known).notes == ()


def test_the_nearest_fact_is_demonstrated() -> None:
    model = tiny_model("gpt2")
    twin = replace(FACT, subject="Anna", case_id=9)
    ((nearest, _),) = IKE(demonstrations=1, pool=(*POOL[:3], twin))._retrieve(model, (FACT,))
    assert nearest == twin


def test_another_embedding_changes_what_is_retrieved() -> None:
    model = tiny_model("gpt2")
    for wanted in POOL[:3]:

        def embed(texts: list[str], name: str = wanted.subject) -> list[list[float]]:
            return [[1.0, 0.0] if name in text or FACT.subject in text else [0.0, 1.0] for text in texts]

        ((nearest, _),) = IKE(demonstrations=1, pool=POOL[:3], embed=embed)._retrieve(model, (FACT,))
        assert nearest == wanted


def test_several_facts_are_all_in_the_prompt() -> None:
    model = tiny_model("gpt2")
    second = replace(FACT, subject="Tim Duncan", target_new="queen")
    prefix = IKE(demonstrations=0).prefix(model, [second, FACT])
    assert prefix.startswith("New Fact: Tim Duncan works as a queen\nPrompt: Tim Duncan works as a queen\n\n")
    assert prefix.endswith("New Fact: Anna Keller works as a king\nPrompt: ")
    with pytest.raises(InputError, match="demonstrations"):
        IKE(demonstrations=-1, pool=POOL).prefix(model, FACT)


def test_a_steering_edit_over_ike_reads_the_demonstrations_too() -> None:
    model = tiny_model("llama")
    shift = mean_shift(torch.zeros(1, 32), 3 * torch.ones(1, 32))
    ike, edit = IKE(demonstrations=0), SteeringEdit(FACT, {1: shift})
    with ike.apply(model, FACT) as prompted:
        plain, ids = prompted.logits(PROMPTS), prompted.tokenize(PROMPTS[0])
    with ike.apply(model, FACT) as prompted, steer(prompted, [edit]) as both:
        assert torch.equal(both.tokenize(PROMPTS[0]), ids)
        assert not torch.equal(both.logits(PROMPTS), plain)
    with steer(model, [SteeringEdit(FACT, {1: shift})]) as steered, IKE().apply(steered, FACT) as both:
        assert both.gate_fired(PROMPTS) == [True] * 3
    assert model.tokenize(PROMPTS[0]).tolist() == model.tokenize(PROMPTS[0]).tolist()


# --- SAKE ---------------------------------------------------------------------------------------------------


def test_sake_moves_the_final_state_to_its_target(model: HookedModel) -> None:
    sake = SAKE(gate="always", forced=False, contexts=(), paraphrases=TABLE, estimator="shift")
    from mechedit.editors.steering.paraphrases import paraphrases

    prompts = paraphrases(FACT, TABLE)
    final = resid_post(model.shape.n_layers - 1)
    (goal,) = last_states(model, [avoid(p, "teacher", "king") for p in prompts], [final])
    digest, plain = model.hash, model.logits(PROMPTS)
    with sake.apply(model, FACT) as edited:
        (reached,) = last_states(edited, prompts, [final])
        torch.testing.assert_close(reached.mean(0), goal.mean(0), atol=1e-4, rtol=1e-4)
        assert not torch.equal(edited.logits(PROMPTS), plain)
        attr = attribute(edited, FACT.rewrite_prompt, FACT.target_new, top_k=3)
        steered = attr.layers.query("module == 'steer_mlp'")["layer"].tolist()
        assert steered == [model.shape.n_layers - 1]
        assert abs(attr.completeness_gap) < 1e-4
    assert torch.equal(model.logits(PROMPTS), plain)
    assert model.hash == digest


def test_sake_fits_the_map_of_its_prompts() -> None:
    model = tiny_model("gpt2")
    sake = SAKE(gate="always", forced=True, contexts=(), paraphrases=TABLE, reg=0.1)
    from mechedit.editors.steering.paraphrases import paraphrases

    prompts = paraphrases(FACT, TABLE)
    (start,) = last_states(
        model, prompts + [repeat(p, "teacher") for p in prompts], ["blocks.2.hook_resid_post"]
    )
    (goal,) = last_states(model, [avoid(p, "teacher", "king") for p in prompts], ["blocks.2.hook_resid_post"])
    fitted = sake.fit(model, FACT).maps[2]
    wanted = gaussian_map(start, goal, reg=0.1)
    # fitted on the last tokens behind a cache: another order of sums
    torch.testing.assert_close(fitted(start), wanted(start), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "change",
    [{"alpha": 0.5}, {"reg": 5.0}, {"forced": True}, {"estimator": "shift"}, {"contexts": ((1, 3),)}],
)
def test_sakes_options_change_the_outcome(change: dict[str, object]) -> None:
    model = tiny_model("llama-gqa")
    base = SAKE(gate="always", forced=False, contexts=(), paraphrases=TABLE, reg=0.1)
    with base.apply(model, FACT) as edited:
        reference = edited.logits(PROMPTS)
    with replace(base, **change).apply(model, FACT) as edited:  # type: ignore[arg-type]
        assert not torch.allclose(edited.logits(PROMPTS), reference, atol=1e-4)


def test_sake_generates_behind_its_gate(factworld_gpt2: HookedModel) -> None:
    facts = me.factworld.edits(4, seed=1)
    sake = SAKE().select(factworld_gpt2, facts[1:])
    assert not sake.needs_selection
    with sake.apply(factworld_gpt2, facts[0]) as edited:
        assert edited.gate_fired([facts[0].rewrite_prompt, *facts[0].neighborhood_prompts[:1]]) == [
            True,
            False,
        ]
        text = edited.generate([facts[0].rewrite_prompt], max_new_tokens=4)[0]
    assert text.startswith(f" {facts[0].target_new}")


def test_sake_says_that_its_gate_is_to_be_chosen() -> None:
    model = tiny_model("gpt2")
    with pytest.raises(InputError, match="threshold"), SAKE(contexts=()).apply(model, FACT):
        pass


def test_steering_and_prompting_share_one_interface() -> None:
    assert {SAKE().name, IKE().name, MEGA().name} == {"sake", "ike", "mega"}
