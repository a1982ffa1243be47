"""The editors that change weights: their own constraints, an oracle of v*, and that nothing stays behind."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mechedit.data.facts import FactEdit
from mechedit.editors import FT, FTL, MEMIT, NAMES, ROME, AlphaEdit, LoRA, WeightChange, by_name
from mechedit.editors.contexts import contexts
from mechedit.editors.steering.steer import steer
from mechedit.editors.steering.steering_edit import SteeringEdit
from mechedit.editors.steering.transport import mean_shift
from mechedit.editors.weights.corpus import text_corpus
from mechedit.editors.weights.covariance import Covariance, covariance_for, covariances
from mechedit.editors.weights.lora import shared_twin
from mechedit.editors.weights.memit import null_space_spread, spread
from mechedit.editors.weights.subject import edit_batch, subject_end, subject_ids
from mechedit.editors.weights.upper_layers import upper_part
from mechedit.editors.weights.value_search import Search, find_delta
from mechedit.editors.weights.weight_edit import Replaced, unedited
from mechedit.models.hooked import HookedModel
from mechedit.models.hooking import post
from mechedit.models.states import last_states
from reports.errors import InputError
from tests.benchmarks.edit import mlp_out, plain_delta
from tests.tiny import ARCHS, SENTENCES, tiny_model

FACT = FactEdit("Danielle Darrieux", "The mother tongue of {} is", "French", "English and Italian", case_id=0)
OTHER = FactEdit("Tim Duncan", "{} plays the sport of", "basketball", "tennis", case_id=1)
SPACED = FactEdit("Anna Keller", " {} works as a", "teacher", "king", case_id=2)
FACTS = (FACT, OTHER, SPACED)
BEFORE = ("", "In Rome. ", "She was born in Paris. ")
SEARCH = Search(steps=6, lr=0.1, weight_decay=0.5, kl_factor=0.0625, clamp=0.8)
LENGTHS = ((2, 4),)


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MECHEDIT_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(params=[(arch, bos) for arch in ARCHS for bos in (False, True)], ids=str)
def model(request: pytest.FixtureRequest) -> Iterator[HookedModel]:
    arch, bos = request.param
    loaded = tiny_model(arch, bos=bos)
    weights = {name: weight.clone() for name, weight in loaded.hf.named_parameters()}
    yield loaded
    assert all(torch.equal(weight, weights[name]) for name, weight in loaded.hf.named_parameters())


def of_text(model: HookedModel) -> dict[int, Covariance]:
    corpus = text_corpus(SENTENCES * 2, source="sentences")
    return covariances(model, corpus, layers=range(model.shape.n_layers), progress=False)


def editors(model: HookedModel) -> list[Any]:
    c = of_text(model)
    return [
        FT(layer=1, steps=3, lr=1e-2),
        FTL(layer=1, steps=3, lr=1e-2, epsilon=1e-3),
        LoRA(steps=2, lr=1e-2),
        ROME(layer=1, steps=3, contexts=LENGTHS, covariance=c[1]),
        MEMIT(layers=(0, 1), steps=3, contexts=LENGTHS, covariances=c),
        MEMIT(layers=(0, 1), steps=3, contexts=LENGTHS, covariances=c, null_space=1e9, name="alphaedit"),
    ]


# --- where an edit looks ------------------------------------------------------------------------------------


@pytest.mark.parametrize("fact", FACTS)
def test_the_subjects_last_token_is_found(model: HookedModel, fact: FactEdit) -> None:
    for context in BEFORE:
        ids, at = subject_end(model, fact.prompt, fact.subject, context=context)
        assert torch.equal(ids, model.tokenize(context + fact.rewrite_prompt))
        head = str(model.tokenizer.decode(ids[: at + 1].tolist(), skip_special_tokens=True))
        assert head.endswith(fact.subject)
        assert not str(model.tokenizer.decode(ids[:at].tolist(), skip_special_tokens=True)).endswith(
            fact.subject
        )


def test_the_upper_part_is_the_forward_pass(model: HookedModel) -> None:
    texts = [model.tokenize(sentence) for sentence in SENTENCES[:5]]
    starts = [3, 0, 5, 1, 2]
    full = torch.cat([model.logits([text]) for text in texts])
    for layer in range(model.shape.n_layers):
        upper = upper_part(model, layer, texts, starts)
        last = torch.tensor([len(t) - 1 - s for t, s in zip(texts, starts, strict=True)])
        logits = upper.logits(upper(upper.resid_post), torch.arange(5), last)
        torch.testing.assert_close(logits, full, atol=2e-5, rtol=1e-5)
        index = torch.tensor([4, 2])
        fewer = upper.rows(index)
        logits = fewer.logits(fewer(fewer.resid_post), torch.arange(2), last[index])
        torch.testing.assert_close(logits, full[index], atol=2e-5, rtol=1e-5)


# --- v* -----------------------------------------------------------------------------------------------------


def fast(
    model: HookedModel, facts: tuple[FactEdit, ...], search: Search, layer: int = 0
) -> tuple[Tensor, Tensor]:
    v0 = mlp_out(model, layer, facts)
    batch = edit_batch(model, facts, BEFORE)
    return v0, find_delta(upper_part(model, layer, batch.texts, batch.starts), batch, v0, search)


def test_v_star_is_the_plain_loops_alone_and_in_a_batch(model: HookedModel) -> None:
    v0, together = fast(model, FACTS, SEARCH)
    for i, fact in enumerate(FACTS):
        plain = plain_delta(model, 0, fact, BEFORE, v0[i], SEARCH)
        assert plain.norm() > 1
        torch.testing.assert_close(together[i], plain, atol=1e-4, rtol=0)
        torch.testing.assert_close(fast(model, (fact,), SEARCH)[1][0], plain, atol=1e-4, rtol=0)


def test_a_fact_that_is_done_stops_alone() -> None:
    model = tiny_model("llama-gqa")
    search = replace(SEARCH, steps=25, lr=0.5, clamp=50.0, weight_decay=0.0, kl_factor=0.0, stop=0.7)
    v0, together = fast(model, FACTS, search)
    plain = [plain_delta(model, 0, fact, BEFORE, v0[i], search) for i, fact in enumerate(FACTS)]
    # The first steps of Adam are ±lr in every entry: the norms tell that they stopped at different ones.
    assert len({round(float(delta.norm()), 2) for delta in plain}) > 1
    torch.testing.assert_close(together, torch.stack(plain), atol=1e-3, rtol=0)


@pytest.mark.parametrize(
    "change", [{"kl_factor": 5.0}, {"weight_decay": 5.0}, {"clamp": 0.1}, {"lr": 0.2}, {"steps": 3}]
)
def test_every_setting_of_the_search_changes_v_star(change: dict[str, float]) -> None:
    model = tiny_model("gpt2")
    reference = fast(model, (FACT,), SEARCH)[1]
    v0, other = fast(model, (FACT,), replace(SEARCH, **change))  # type: ignore[arg-type]
    assert not torch.allclose(reference, other, atol=1e-4)
    torch.testing.assert_close(
        other[0],
        plain_delta(model, 0, FACT, BEFORE, v0[0], replace(SEARCH, **change)),  # type: ignore[arg-type]
        atol=1e-4,
        rtol=0,
    )


# --- the closed forms ---------------------------------------------------------------------------------------


def test_rome_satisfies_its_constraint(model: HookedModel) -> None:
    c = of_text(model)[1]
    rome = ROME(layer=1, steps=5, contexts=LENGTHS, covariance=c)
    association = rome.associate(model, FACT)
    before = model.W_out(1).clone()
    bias = model.b_out(1)
    with rome.apply(model, FACT):
        after = model.W_out(1).clone()
    output = association.key @ after + (0 if bias is None else bias)
    torch.testing.assert_close(output, association.value, atol=1e-4, rtol=1e-4)
    # Of all W' that satisfy it, the one that changes the least of what the text's keys say: the change is C⁻¹ k*.
    direction = torch.linalg.solve(c.matrix, association.key.double())
    cosine = torch.nn.functional.cosine_similarity(association.direction.double(), direction, dim=0)
    assert torch.linalg.matrix_rank(after - before, rtol=1e-4) == 1
    assert cosine > 0.999 or c.condition == float("inf")
    cut = [subject_ids(model, FACT.prompt, FACT.subject, context=b) for b in contexts(model, LENGTHS)]
    torch.testing.assert_close(association.key, last_states(model, cut, [post(1)])[0].mean(0))


def test_memits_closed_form_is_the_least_squares_solution() -> None:
    torch.manual_seed(0)
    keys, rest = torch.randn(12, 3).double(), torch.randn(3, 5).double()
    root = torch.randn(12, 20).double()
    c, lam = root @ root.mT / 20, 3.0
    change = spread(c, keys, lam=lam) @ rest
    # min ‖Kᵀ Δ − R‖² + λ tr(Δᵀ C Δ) as one stacked least-squares problem
    stacked = torch.cat([keys.mT, torch.linalg.cholesky(lam * c).mT])
    wanted = torch.cat([rest, torch.zeros(12, 5).double()])
    torch.testing.assert_close(change, torch.linalg.lstsq(stacked, wanted).solution)
    assert not torch.allclose(spread(c, keys, lam=1.0) @ rest, change)


def test_alphaedit_leaves_the_kept_keys_alone() -> None:
    torch.manual_seed(0)
    kept, keys, rest = torch.randn(12, 7).double(), torch.randn(12, 3).double(), torch.randn(3, 5).double()
    change = null_space_spread(kept @ kept.mT, keys, below=1e-8, ridge=1e-9) @ rest
    torch.testing.assert_close(kept.mT @ change, torch.zeros(7, 5).double(), atol=1e-8, rtol=0)
    torch.testing.assert_close(keys.mT @ change, rest, atol=1e-6, rtol=1e-6)
    plain = spread(torch.eye(12).double(), keys, lam=1.0) @ rest
    assert (kept.mT @ plain).abs().max() > 1e-3
    with pytest.raises(InputError, match="null_space"):
        null_space_spread(torch.eye(12).double(), keys, below=0.5, ridge=1.0)


@pytest.mark.parametrize("dead", [1, 9])
def test_memit_where_c_has_no_inverse_is_the_limit_of_a_vanishing_ridge(
    dead: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Of a known null space: C is blind to `dead` of 12 directions, and the keys lie in it in part."""
    generator = torch.Generator().manual_seed(1)
    basis, _ = torch.linalg.qr(torch.randn(12, 12, generator=generator, dtype=torch.float64))
    seen = basis[:, dead:]
    c = seen @ torch.diag(torch.linspace(1, 3, 12 - dead).double()) @ seen.mT
    keys = torch.randn(12, 2, generator=generator, dtype=torch.float64)
    with caplog.at_level("WARNING"):
        rows = spread(c, keys, lam=50.0)
    assert ("no inverse" in caplog.text) == (dead > 2)  # the keys fill one blind direction
    blind = keys - seen @ (seen.mT @ keys)
    if dead > 2:  # the null space alone can hold the change: C costs it nothing
        torch.testing.assert_close(rows, torch.linalg.pinv(blind).mT, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(keys.mT @ rows, torch.eye(2).double(), atol=1e-5, rtol=0)
    tiny = 1e-7 * torch.eye(12, dtype=torch.float64)
    limit = torch.linalg.solve(50.0 * (c + tiny) + keys @ keys.mT, keys)
    torch.testing.assert_close(rows, limit, atol=1e-5, rtol=1e-4)
    # What a plain solve makes of it, if it says anything at all, is rounding.
    try:
        plain = torch.linalg.solve(50.0 * c + keys @ keys.mT, keys)
    except RuntimeError:
        return
    assert (plain - limit).norm() > 1e-3 or dead == 1


def test_what_no_ridge_can_help_is_refused() -> None:
    keys = torch.randn(12, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with pytest.raises(InputError, match=r"lam: .*larger lam"):
        spread(torch.eye(12).double(), 1e9 * keys, lam=1e-6)
    for c, word in ((torch.zeros(12, 12), "zero"), (torch.full((12, 12), torch.nan), "not finite")):
        with pytest.raises(InputError, match=word):
            spread(c.double(), keys, lam=1.0)
    with pytest.raises(InputError, match="ridge"):
        null_space_spread(torch.zeros(12, 12).double(), keys[:, [0, 0]], below=0.5, ridge=0.0)


def test_memit_adds_romes_ridge_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    """On the keys of a few tokens: the edit holds, and is of ROME's size, not of rounding's."""
    model = tiny_model("gpt2")
    few = text_corpus(SENTENCES[:1], source="one sentence")
    c = covariances(model, few, layers=range(2), progress=False)
    assert c[1].condition == float("inf")
    memit = MEMIT(layers=(1, 1), steps=4, contexts=LENGTHS, covariances=c, lam=100.0)
    with caplog.at_level("WARNING"):
        change = memit.change(model, FACTS)
    assert "layer 1" in caplog.text
    (parts,) = change.parts.values()
    left: Tensor = parts[0].left.double()  # type: ignore[union-attr]
    keys = memit.ready(model)._keys(model, FACTS, contexts(model, LENGTHS), 1)
    torch.testing.assert_close(keys.mT @ left, torch.eye(3).double(), atol=1e-3, rtol=0)
    assert left.norm() < 2 * torch.linalg.pinv(keys - _seen(c[1].moment, keys)).norm()


def _seen(moment: Tensor, keys: Tensor) -> Tensor:
    """The part of the keys in the range of `moment`."""
    values, vectors = torch.linalg.eigh(moment)
    seen = vectors[:, values > 1e-9 * values[-1]]
    return seen @ (seen.mT @ keys)


def test_alphaedit_in_sequence_is_the_published_closed_form() -> None:
    """(P (K_p K_pᵀ + K Kᵀ) + ridge·I)⁻¹ P K, solved as it is written; the earlier edits' keys stay where they are."""
    generator = torch.Generator().manual_seed(2)
    kept, earlier, keys = (torch.randn(12, n, generator=generator, dtype=torch.float64) for n in (5, 4, 3))
    values, vectors = torch.linalg.eigh(kept @ kept.mT)
    p = vectors[:, values < 1e-8] @ vectors[:, values < 1e-8].mT
    both = earlier @ earlier.mT + keys @ keys.mT
    for ridge in (0.5, 1e-6):
        wanted = torch.linalg.solve(p @ both + ridge * torch.eye(12).double(), p @ keys)
        rows = null_space_spread(kept @ kept.mT, keys, below=1e-8, ridge=ridge, earlier=earlier)
        torch.testing.assert_close(rows, wanted, atol=1e-6, rtol=1e-6)
        alone = null_space_spread(kept @ kept.mT, keys, below=1e-8, ridge=ridge)
        assert (earlier.mT @ rows).norm() < 0.7 * (earlier.mT @ alone).norm()
    torch.testing.assert_close(earlier.mT @ rows, torch.zeros(4, 3).double(), atol=1e-5, rtol=0)


def test_an_edit_by_alphaedit_keeps_the_keys_of_those_it_is_upon(tmp_path: Path) -> None:
    model = tiny_model("llama")
    c = of_text(model)
    alpha = AlphaEdit(layers=(0, 1), steps=3, contexts=LENGTHS, covariances=c, null_space=1e9, ridge=1e-3)
    first = alpha.change(model, FACT)
    assert set(first.keys) == {0, 1}
    with first.apply(model) as once:
        before = contexts(once, LENGTHS)
        ready = alpha.ready(once)
        fresh = ready._keys(once, [FACT], before, 0)
        torch.testing.assert_close(ready._earlier(once, before, 0), first.keys[0])
        second = alpha.change(once, OTHER)
        for layer in (0,):
            K = ready._keys(once, [OTHER], before, layer)
            torch.testing.assert_close(second.keys[layer], K)
            rows = second.parts[list(second.parts)[layer]][0].right.mT.double()  # type: ignore[union-attr]
            free = torch.eye(len(K)).double()
            wanted = torch.linalg.inv(first.keys[layer] @ first.keys[layer].mT + K @ K.mT + 1e-3 * free) @ K
            torch.testing.assert_close(rows, wanted, atol=1e-4, rtol=1e-4)
        alone = replace(alpha, name="memit").change(once, OTHER)
        with second.apply(once) as both:
            assert [e.shape[1] for e in (ready._earlier(both, before, 0),) if e is not None] == [2]
            moved = (first.keys[0].mT.float() @ (model.W_out(0))).clone()
        with alone.apply(once):
            further = (first.keys[0].mT.float() @ (model.W_out(0))).clone()
        here = first.keys[0].mT.float() @ model.W_out(0)
        assert (moved - here).norm() < 0.5 * (further - here).norm()
    first.save(tmp_path / "first")
    loaded = WeightChange.load(tmp_path / "first", model)
    torch.testing.assert_close(loaded.keys[1], first.keys[1], atol=0, rtol=0)
    bare = WeightChange(
        first.editor, first.facts, first.model_hash, first.parts
    )  # as an older version saved it
    with bare.apply(model) as once:
        torch.testing.assert_close(ready._earlier(once, before, 0), fresh)


def test_c_is_that_of_the_model_before_its_first_edit() -> None:
    model = tiny_model("gpt2-untied")
    edit = FT(layer=0, steps=2, lr=1e-2).change(model, FACT)
    weights = model.W_out(0).clone()
    with edit.apply(model) as once, edit.apply(once) as twice:
        changed = model.W_out(0).clone()
        with unedited(twice):
            assert torch.equal(model.W_out(0), weights)
        assert torch.equal(model.W_out(0), changed)
        of_edited = covariance_for(twice, 1)
        assert torch.equal(model.W_out(0), changed)
    assert torch.equal(model.W_out(0), weights)
    assert torch.equal(covariance_for(model, 1).moment, of_edited.moment)


def test_alphaedit_is_itself_for_every_model(factworld_gpt2: HookedModel) -> None:
    for model in (tiny_model("gpt2"), tiny_model("llama"), factworld_gpt2):
        ready = by_name("alphaedit").ready(model)  # type: ignore[attr-defined]
        assert type(ready) is AlphaEdit
        assert (ready.name, ready.null_space) == ("alphaedit", 2e-2)
        assert ready.lam == MEMIT().ready(model).lam
    assert MEMIT().ready(tiny_model("gpt2")).null_space is None


def test_one_layer_of_memit_is_its_formula(model: HookedModel) -> None:
    c = of_text(model)
    memit = MEMIT(layers=(1, 1), steps=4, lam=2.0, contexts=LENGTHS, covariances=c)
    (parts,) = memit.change(model, FACTS).parts.values()
    ready = memit.ready(model)
    before = contexts(model, LENGTHS)
    bare = [subject_ids(model, fact.prompt, fact.subject) for fact in FACTS]
    goals = ready._goals(model, FACTS, before, bare)
    (now,) = last_states(model, bare, ["blocks.1.hook_resid_post"])
    keys = []
    for fact in FACTS:
        keys_of_prompts = [
            last_states(model, [subject_ids(model, fact.prompt, fact.subject, context=b)], [post(1)])[0][0]
            for b in before
        ]
        keys.append((keys_of_prompts[0] + torch.stack(keys_of_prompts[1:]).mean(0)) / 2)
    K = torch.stack(keys, 1).double()
    wanted = torch.linalg.inv(2.0 * c[1].matrix + K @ K.mT) @ K @ (goals - now).double()
    made = (parts[0].left @ parts[0].right).double()  # type: ignore[union-attr]
    made = made if made.shape == wanted.shape else made.mT
    torch.testing.assert_close(made, wanted, atol=1e-3, rtol=1e-3)


def test_ft_l_stays_in_its_box_and_ft_does_not(model: HookedModel) -> None:
    before = model.W_out(1).clone()
    with FT(layer=1, steps=5, lr=1e-2).apply(model, FACTS):
        assert (model.W_out(1) - before).abs().max() > 1e-2
    with FTL(layer=1, steps=5, lr=1e-2, epsilon=1e-3).apply(model, FACTS):
        change = (model.W_out(1) - before).abs().max()
    assert 0.9e-3 < change <= 1e-3 + 1e-6


def test_ft_follows_autograd_through_the_whole_model(model: HookedModel) -> None:
    """One step of Adam from the gradient of a full forward pass."""
    prompt, target = model.continuation(FACT.rewrite_prompt, FACT.target_new)
    weight = model.bridge.blocks[1].mlp.out.original_component.weight
    weight.requires_grad_(True)
    try:
        ids = torch.cat([prompt, target[:-1]])[None]
        log_p = model.forward(ids, torch.ones_like(ids)).log_softmax(-1)[0, len(prompt) - 1 :]
        (-log_p.gather(-1, target[:, None]).mean()).backward()
        assert weight.grad is not None
        step = -1e-2 * weight.grad / (weight.grad.abs() + 1e-8)
        sure = weight.grad.abs() > 1e-4
    finally:
        weight.requires_grad_(False)
        weight.grad = None
    old = weight.detach().clone()
    with FT(layer=1, steps=1, lr=1e-2).apply(model, FACT):
        torch.testing.assert_close((weight - old)[sure], step[sure], atol=1e-4, rtol=1e-3)


def test_loras_twin_is_the_model_on_the_same_memory(model: HookedModel) -> None:
    twin = shared_twin(model)
    ids = model.tokenize(SENTENCES[0])[None]
    torch.testing.assert_close(
        twin(ids).logits, model.forward(ids, torch.ones_like(ids)), atol=1e-5, rtol=1e-5
    )
    with FT(layer=1, steps=1, lr=1e-2).apply(model, FACT):
        torch.testing.assert_close(
            twin(ids).logits, model.forward(ids, torch.ones_like(ids)), atol=1e-5, rtol=1e-5
        )


def test_lora_writes_what_its_adapters_say(model: HookedModel) -> None:
    change = LoRA(steps=4, lr=1e-2, rank=2).change(model, FACT)
    kinds = {name.split(".")[-2] for name in change.parts}
    assert kinds == ({"q_proj", "v_proj"} if model.shape.gated else {"c_attn"})
    pair = model.continuation(FACT.rewrite_prompt, FACT.target_new)
    ids = torch.cat(pair)[None]

    def log_p() -> float:
        logits = model.forward(ids, torch.ones_like(ids))[0, len(pair[0]) - 1 : -1].log_softmax(-1)
        return float(logits.gather(-1, pair[1][:, None]).sum())

    before = log_p()
    with change.apply(model):
        assert log_p() > before
    assert all(part[0].left.shape[1] == 2 for part in change.parts.values())  # type: ignore[union-attr]


# --- that nothing stays behind ------------------------------------------------------------------------------


def interrupted(model: HookedModel, editor: Any, error: type[BaseException]) -> None:
    digest, plain = model.hash, model.logits([FACT.rewrite_prompt])
    with editor.apply(model, FACTS) as edited:
        assert not torch.equal(edited.logits([FACT.rewrite_prompt]), plain), editor.name
        assert edited.hash != digest
        raise error


def test_every_weight_edit_is_undone_bit_for_bit(model: HookedModel) -> None:
    """However it is left: by Ctrl-C or by an error, in turn."""
    digest, plain = model.hash, model.logits([FACT.rewrite_prompt])
    for editor, error in zip(editors(model), cycle([ValueError, KeyboardInterrupt]), strict=False):
        with pytest.raises(error):
            interrupted(model, editor, error)
        assert torch.equal(model.logits([FACT.rewrite_prompt]), plain)
        model._hash = None  # not the remembered one
        assert model.hash == digest, editor.name


def test_nested_edits_unwind_in_order() -> None:
    model = tiny_model("gpt2")
    first, second = FT(layer=1, steps=2, lr=1e-2), FT(layer=1, steps=2, lr=2e-2)
    plain = model.W_out(1).clone()
    with first.apply(model, FACT) as outer:
        once = model.W_out(1).clone()
        with second.apply(outer, OTHER) as inner:
            assert not torch.equal(model.W_out(1), once)
            assert inner.change.facts == (OTHER,)
        assert torch.equal(model.W_out(1), once)
    assert torch.equal(model.W_out(1), plain)


def test_weights_are_fitted_without_a_steering_edit_that_is_on() -> None:
    model = tiny_model("llama")
    shift = mean_shift(torch.zeros(1, 32), 3 * torch.ones(1, 32))
    alone = FT(layer=1, steps=2, lr=1e-2).change(model, FACT)
    with steer(model, [SteeringEdit(OTHER, {0: shift})]) as steered:
        within = FT(layer=1, steps=2, lr=1e-2).change(steered, FACT)
        moved = steered.logits([FACT.rewrite_prompt])
        with within.apply(steered) as both:
            assert both.gate_fired([FACT.rewrite_prompt]) == [True]
            assert not torch.equal(both.logits([FACT.rewrite_prompt]), moved)
        assert torch.equal(steered.logits([FACT.rewrite_prompt]), moved)
    for name, parts in alone.parts.items():
        assert torch.equal(parts[0].value, within.parts[name][0].value)  # type: ignore[union-attr]


def test_an_interrupted_restoration_goes_on_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    from mechedit.editors.weights import weight_edit

    pressed: list[int] = []

    class Weight:
        def __init__(self) -> None:
            self.value = 1

        def copy_(self, old: int) -> None:
            if not pressed:
                pressed.append(1)
                raise KeyboardInterrupt
            self.value = old

    both = [Weight(), Weight()]
    with pytest.raises(KeyboardInterrupt):
        weight_edit._restore([(weight, 0) for weight in both])  # type: ignore[misc]
    assert [weight.value for weight in both] == [0, 0]


def test_several_facts_in_turn_by_rome() -> None:
    """The second association is computed with the first one written."""
    model = tiny_model("gpt2")
    rome = ROME(layer=1, steps=3, contexts=LENGTHS, covariance=of_text(model)[1])
    change = rome.change(model, [FACT, OTHER])
    (parts,) = change.parts.values()
    assert [part.left.shape[1] for part in parts] == [1, 1]  # type: ignore[union-attr]
    fixed = rome.ready(model)._fixed(model)  # contexts and C are the unedited model's
    with rome.apply(model, FACT) as once:
        second = rome.ready(model)._insert(once, OTHER, *fixed)
    alone = rome.associate(model, OTHER)
    assert (second.change - alone.change).abs().max() > 1e-3
    torch.testing.assert_close(parts[1].right[0], second.change, atol=1e-4, rtol=1e-3)  # type: ignore[union-attr]


# --- refusals and defaults ----------------------------------------------------------------------------------


def test_a_change_of_another_model_writes_nothing() -> None:
    model = tiny_model("gpt2")
    change = FT(layer=1, steps=1, lr=1e-2).change(model, FACT)
    ((name, parts),) = change.parts.items()
    smaller = Replaced(torch.zeros(2, 2))
    for bad in ({"no.such.weight": parts}, {name: (smaller,)}):
        with pytest.raises(InputError, match="change"), WeightChange("ft", (FACT,), "", bad).apply(model):
            pass


@pytest.mark.parametrize(
    ("editor", "word"),
    [
        (FT(layer=9), "layer"),
        (ROME(layer=-1), "layer"),
        (MEMIT(layers=(2, 1)), "layers"),
        (ROME(layer=1, steps=0), "steps"),
        (ROME(layer=0, covariance=Covariance(torch.eye(2).double(), 2, 1, "")), "covariance"),
        (MEMIT(layers=(0, 1), covariances={}), "covariances"),
        (MEMIT(layers=(1, 1), lam=0.0), "lam"),
    ],
)
def test_a_wrong_setting_is_one_line(editor: Any, word: str) -> None:
    model = tiny_model("gpt2")
    if editor.name != "ft" and getattr(editor, "covariance", 0) is None:
        editor = replace(editor, covariance=replace(of_text(model)[1], layer=editor.layer))
    if editor.name == "memit" and editor.covariances is None:
        editor = replace(editor, covariances=of_text(model))
    with pytest.raises(InputError, match=word), editor.apply(model, FACT):
        pass


def test_defaults_follow_the_model(factworld_gpt2: HookedModel) -> None:
    tiny = tiny_model("llama")
    assert ROME().ready(tiny).layer == 0
    assert ROME().ready(tiny).steps == 25
    assert FT().ready(tiny).layer == 1
    assert FT().ready(factworld_gpt2).layer == FT.DEFAULTS["factworld"]["layer"]
    assert ROME.DEFAULTS["gpt2-xl"]["layer"] == 17
    assert set(NAMES) >= {"ft", "ft_l", "lora", "rome", "memit", "alphaedit", "ike", "sake", "mega"}
    assert all(by_name(name).name == name for name in NAMES)


def test_a_change_round_trips_without_bits_lost(tmp_path: Path) -> None:
    model = tiny_model("llama")
    change = FT(layer=1, steps=2, lr=1e-2).change(model, FACT)
    change.save(tmp_path / "kept")
    with change.apply(model) as edited:
        wanted = edited.logits([FACT.rewrite_prompt])
    with WeightChange.load(tmp_path / "kept", model).apply(model) as edited:
        assert torch.equal(edited.logits([FACT.rewrite_prompt]), wanted)


def test_a_change_of_another_model_is_refused_in_one_good_line(tmp_path: Path) -> None:
    """Whatever differs: the weights' values alone, their names and shapes, or the file behind the record."""
    model = tiny_model("llama")
    ROME(layer=1, steps=1, contexts=LENGTHS, covariance=of_text(model)[1]).change(model, FACT).save(
        tmp_path / "a"
    )
    for another in (tiny_model("llama-gqa"), tiny_model("gpt2"), tiny_model("llama", bos=True)):
        if another.hash == model.hash:
            continue
        with pytest.raises(
            InputError, match=r"^change: .*change.json was made for llama .hash .*found "
        ) as caught:
            WeightChange.load(tmp_path / "a", another)
        assert f"found {another.name} (hash {another.hash[:12]})" in str(caught.value)
        assert str(caught.value).count("change: ") == 1
    (tmp_path / "a" / "change.safetensors").unlink()
    with pytest.raises(InputError, match="was made for llama"):
        WeightChange.load(tmp_path / "a", tiny_model("gpt2"))
    with pytest.raises(InputError, match=r"expected change.json and change.safetensors"):
        WeightChange.load(tmp_path / "a", model)
