"""Sites, a plain `transformers` model and books of edits, on tiny models of every architecture and one family more."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel, Qwen2Config, Qwen2ForCausalLM

from mechedit.attribution import attribute
from mechedit.editors import MEGA, EditBook, SteeringEdit
from mechedit.editors.steering.attach import attach
from mechedit.editors.steering.gates import AlwaysOn, HiddenGate
from mechedit.editors.steering.sites import SiteName, read_site
from mechedit.editors.steering.steer import steer
from mechedit.editors.steering.transport import AffineMap, mean_shift
from mechedit.models.hooked import HookedModel, load_model
from mechedit.models.hooking import post, resid_post, resid_pre
from mechedit.models.states import last_states, mean_states
from reports.errors import InputError, IntegrityError
from tests.test_steering import FACT, OTHER, PROMPTS, TABLE
from tests.tiny import ARCHS, build_tokenizer, randomise, tiny_folder, tiny_model

SITES: tuple[SiteName, ...] = get_args(SiteName)


@cache
def qwen_folder(root: Path) -> Path:
    """A family of its own: biases on q, k and v, GQA, tied."""
    tokenizer = build_tokenizer()
    sizes: dict[str, Any] = {
        "hidden_size": 32,
        "intermediate_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Qwen2ForCausalLM(Qwen2Config(vocab_size=len(tokenizer), num_key_value_heads=2, **sizes))
        randomise(model)
    model.save_pretrained(root)
    tokenizer.save_pretrained(root)
    return root


@pytest.fixture(params=[*ARCHS, "qwen2"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    if request.param == "qwen2":
        return qwen_folder(tmp_path_factory.getbasetemp() / "qwen2")
    return tiny_folder(request.param)


@cache
def hooked(folder: Path) -> HookedModel:
    return load_model(folder, device="cpu")


@cache
def plain(folder: Path) -> PreTrainedModel:
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    return model


def random_map(d: int, *, rank: int = 3) -> AffineMap:
    draw = torch.Generator().manual_seed(4)
    basis = torch.linalg.qr(torch.randn(d, rank, generator=draw)).Q
    parts = (torch.randn(d, generator=draw), basis, torch.randn(rank, rank, generator=draw))
    return AffineMap(*parts, 3 * torch.randn(rank, generator=draw))


def edit_at(model: HookedModel, site: SiteName, *, gated: bool = False) -> SteeringEdit:
    heads = {1: (0, 2), 2: (1,)} if site == "z" else {}
    size = {
        layer: len(heads[layer]) * model.shape.d_head if heads else model.shape.d_model for layer in (1, 2)
    }
    gate = HiddenGate(1, last_states(model, PROMPTS[:1], [resid_pre(1)])[0], 1e-2) if gated else AlwaysOn()
    return SteeringEdit(FACT, {n: random_map(size[n]) for n in (1, 2)}, gate, 0.7, site, heads)


def padded(model: HookedModel, prompts: Sequence[str]) -> dict[str, torch.Tensor]:
    ids, mask = model.pad([model.tokenize(p) for p in prompts])
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    return {"input_ids": ids, "attention_mask": mask, "position_ids": positions}


# -- a plain model --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("site", SITES)
@torch.no_grad()
def test_a_plain_model_gives_the_hooked_models_logits_at_every_site(folder: Path, site: SiteName) -> None:
    model, hf = hooked(folder), plain(folder)
    edit, inputs = edit_at(model, site, gated=True), padded(model, PROMPTS)
    before = hf(**inputs).logits[:, -1]
    with steer(model, [edit]) as steered:  # the same padded batch: padding moves the last digits
        expected = steered.forward(inputs["input_ids"], inputs["attention_mask"])[:, -1]
    with attach(hf, [edit]):
        logits = hf(**inputs).logits[:, -1]
    scale = float(expected.abs().max())
    assert (logits - expected).abs().max() <= 1e-6 * max(scale, 1)
    assert (logits[0] - before[0]).abs().max() > 1e-2
    assert torch.equal(logits[1:], before[1:])
    assert torch.equal(hf(**inputs).logits[:, -1], before)


@torch.no_grad()
def test_a_plain_model_generates_what_the_hooked_one_generates(folder: Path) -> None:
    model, hf = hooked(folder), plain(folder)
    edit = edit_at(model, "attn_out")
    ids, mask = model.pad([model.tokenize(PROMPTS[0])])
    with attach(hf, [edit]):
        generate: Any = hf.generate
        out = generate(
            ids, attention_mask=mask, max_new_tokens=6, do_sample=False, eos_token_id=None, pad_token_id=0
        )
    with steer(model, [edit]) as steered:
        ids_so_far = ids[0]
        new, cache_so_far = [], None
        step, seen = ids, mask
        for _ in range(6):
            logits, cache_so_far = steered.run(step, seen, use_cache=True, past_key_values=cache_so_far)
            new.append(int(logits[0, -1].argmax()))
            step = torch.tensor([[new[-1]]])
            seen = torch.cat([seen, torch.ones_like(step)], dim=1)
    assert out[0, len(ids_so_far) :].tolist() == new


def test_hooks_leave_a_plain_model_whatever_happens(folder: Path) -> None:
    hf = plain(folder)

    def interrupted() -> None:
        with attach(hf, [edit_at(hooked(folder), "z")]):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in hf.modules())


def test_a_model_of_unknown_modules_is_refused() -> None:
    with pytest.raises(InputError, match="decoder layers"), attach(torch.nn.Linear(2, 2), []):  # type: ignore[arg-type]
        pass


# -- sites ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("stream", "output"), [("resid_mid", "attn_out"), ("resid_post", "mlp_out")])
def test_a_constant_shift_of_the_stream_is_one_of_what_was_added(
    folder: Path, stream: SiteName, output: SiteName
) -> None:
    model = hooked(folder)
    shift = mean_shift(torch.zeros(1, model.shape.d_model), torch.ones(1, model.shape.d_model))
    logits = []
    for site in (stream, output):
        with steer(model, [SteeringEdit(FACT, {1: shift}, site=site)]) as steered:
            logits.append(steered.logits(PROMPTS))
    torch.testing.assert_close(*logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("site", SITES)
def test_the_state_that_a_site_names_moves_by_the_map(folder: Path, site: SiteName) -> None:
    model = hooked(folder)
    edit = replace(edit_at(model, site), maps={1: edit_at(model, site).maps[1]})
    (before,) = last_states(model, PROMPTS, [read_site(1, site)])
    with steer(model, [edit]) as steered:
        (after,) = last_states(steered, PROMPTS, [read_site(1, site)])
    chosen = list(edit.heads[1]) if site == "z" else slice(None)
    h, moved = before[:, chosen].flatten(1), after[:, chosen].flatten(1)
    torch.testing.assert_close(moved, edit.maps[1](h, alpha=0.7), atol=1e-4, rtol=1e-4)
    if site == "z":
        untouched = [head for head in range(model.shape.n_heads) if head not in edit.heads[1]]
        assert torch.equal(before[:, untouched], after[:, untouched])


@pytest.mark.parametrize("site", SITES)
def test_attribution_under_steering_still_sums_up(folder: Path, site: SiteName) -> None:
    model = hooked(folder)
    with steer(model, [edit_at(model, site)]) as steered:
        attr = attribute(steered, PROMPTS[0], " basketball", top_k=3)
    assert abs(attr.completeness_gap) < 1e-4
    steers = {"steer_mlp"} if site in ("mlp_out", "resid_post") else {"steer"}
    assert set(attr.layers["module"]) - {"attn", "mlp"} == steers


def test_position_prompt_steers_no_token_behind_it(folder: Path) -> None:
    model = hooked(folder)
    every = edit_at(model, "attn_out")
    ids, mask = model.pad([model.tokenize(PROMPTS[0])])
    with steer(model, [every]) as steered:
        first, cache_every = steered.run(ids, mask, use_cache=True)
    step = first[:, -1:].argmax(-1)
    mask = torch.cat([mask, torch.ones_like(step)], dim=1)
    with steer(model, [replace(every, position="prompt")]) as steered:
        again, cache_prompt = steered.run(ids, mask[:, :-1], use_cache=True)
        logits, _ = steered.run(step, mask, use_cache=True, past_key_values=cache_prompt)
    assert torch.equal(again, first)
    unsteered, _ = model.run(step, mask, use_cache=True, past_key_values=cache_every)
    assert torch.equal(logits, unsteered)


def test_mean_states_are_of_the_prompt_alone(folder: Path) -> None:
    model = hooked(folder)
    (together,) = mean_states(model, PROMPTS, [resid_pre(1)])
    alone = torch.cat([mean_states(model, [p], [resid_pre(1)])[0] for p in PROMPTS])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-4)


def test_a_pass_for_states_ends_where_the_last_of_them_is_read(folder: Path) -> None:
    model = hooked(folder)
    ids, mask = model.pad(model.encode(PROMPTS))
    whole: dict[str, torch.Tensor] = {}
    points = [resid_pre(0), post(0)]
    keep = [
        (point, lambda states, hook, point=point: whole.update({point: states[:, -1]})) for point in points
    ]
    with torch.no_grad(), model.hooks(keep):
        model.run(ids, mask)
    ran: list[int] = []
    handles = [
        block.register_forward_pre_hook(lambda *_, layer=layer: ran.append(layer))
        for layer, block in enumerate(model.bridge.blocks)
    ]
    try:
        read = last_states(model, PROMPTS, points)
        assert {*ran} == {0}
        last_states(model, PROMPTS[:1], [resid_post(1)])
    finally:
        for handle in handles:
            handle.remove()
    assert ran[-2:] == [0, 1]
    for point, states in zip(points, read, strict=True):
        torch.testing.assert_close(states, whole[point], rtol=1e-4, atol=1e-5)


# -- books ----------------------------------------------------------------------------------------------------


def fitted_book(model: HookedModel, n: int = 3) -> EditBook:
    mega = MEGA(
        window=(1, 2), alpha=1.0, gate="hidden", gate_layer=1, threshold=0.5, doubted=False, paraphrases=TABLE
    )
    subjects = ("Anna Keller", "Tim Duncan", "Edwin of Northumbria", "Danielle Darrieux")
    facts = [
        replace(FACT, subject=subjects[i % 4], target_new=("basketball", "Paris")[i // 4 % 2], case_id=i)
        for i in range(n)
    ]
    return EditBook.of(model, [mega.fit(model, fact) for fact in facts])


def test_removing_one_edit_leaves_the_bits_of_the_others(folder: Path) -> None:
    model = hooked(folder)
    book = fitted_book(model, 4)
    prompts = [edit.fact.rewrite_prompt for edit in book.edits.values()]
    with book.apply(model) as steered:
        whole = steered.logits(prompts)
    with book.remove(1).apply(model) as steered:
        rest = steered.logits(prompts)
    keep = [0, 2, 3]
    assert torch.equal(whole[keep], rest[keep])
    assert not torch.equal(whole[1], rest[1])


def test_a_book_comes_back_bit_for_bit_and_goes_on_its_model_alone(tmp_path: Path) -> None:
    model = tiny_model("gpt2")
    book = fitted_book(model)
    prompts = [edit.fact.rewrite_prompt for edit in book.edits.values()]
    again = EditBook.load(book.save(tmp_path / "book"))
    with book.apply(model) as one:
        expected = one.logits(prompts)
    with again.apply(model) as other:
        assert torch.equal(other.logits(prompts), expected)
    assert again.to_frame().equals(book.to_frame())
    with again.attach(plain(tiny_folder("gpt2"))):
        pass
    with pytest.raises(InputError, match="fitted on"), again.apply(tiny_model("llama")):
        pass
    with pytest.raises(InputError, match="fitted on"), again.attach(plain(tiny_folder("llama"))):
        pass


def test_an_edit_is_revised_in_its_place() -> None:
    model = tiny_model("gpt2")
    book = fitted_book(model)
    revised = book.put(replace(book.edits["1"], alpha=2.0))
    assert list(revised.edits) == list(book.edits)
    assert [edit.alpha for edit in revised.edits.values()] == [1.0, 2.0, 1.0]
    assert revised.edits["0"] is book.edits["0"]
    with pytest.raises(InputError, match="case_id"):
        book.remove(99)
    with pytest.raises(InputError, match="occurs twice"):
        EditBook.of(model, [book.edits["0"], book.edits["0"]])


def test_damage_is_found_and_nothing_foreign_is_overwritten(tmp_path: Path) -> None:
    book = fitted_book(tiny_model("gpt2"), 1)
    folder = book.save(tmp_path / "book")
    record = json.loads((folder / "edits.json").read_text())
    changes: tuple[dict[str, Any], ...] = ({"schema_version": 9}, {"edits": [{}]}, {"edits": None})
    for change in changes:
        (folder / "edits.json").write_text(json.dumps(record | change))
        with pytest.raises(IntegrityError):
            EditBook.load(folder)
    (folder / "edits.json").write_text(json.dumps(record))
    (folder / "edits.safetensors").write_bytes(b"torn")
    with pytest.raises(IntegrityError):
        EditBook.load(folder)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match=r"notes\.txt"):
        book.save(tmp_path / "other")
    with pytest.raises(InputError, match="saved book"):
        EditBook.load(tmp_path / "nowhere")


def test_two_edits_that_claim_one_prompt_are_told(caplog: pytest.LogCaptureFixture) -> None:
    model = tiny_model("gpt2")
    (centre,) = last_states(model, PROMPTS[:1], [resid_pre(1)])
    near = SteeringEdit(FACT, {1: random_map(32)}, HiddenGate(1, centre, 1.0))
    far = SteeringEdit(OTHER, {1: random_map(32)}, HiddenGate(1, centre + 0.01, 1.0))
    with steer(model, [far, near]) as both:
        claims = both.claims(PROMPTS)
    assert claims["case_id"].tolist() == ["0", "1"]
    assert claims["steers"].tolist() == [True, False]
    assert "several edits claim one prompt" in caplog.text
