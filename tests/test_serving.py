"""A steered model that is served: in whatever way a prompt comes in, the logits and the text are the prompt's alone."""

from __future__ import annotations

import copy
import threading
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from itertools import pairwise
from typing import Any, Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    DynamicCache,
    MistralConfig,
    MistralForCausalLM,
    StaticCache,
)

from mechedit.editors import SteeringEdit
from mechedit.editors.steering.attach import attach
from mechedit.editors.steering.gates import AlwaysOn, HiddenGate, Pool, SentenceGate
from mechedit.editors.steering.steer import steer
from mechedit.editors.steering.steering import Steering
from mechedit.editors.steering.steering_edit import Following, Position
from mechedit.editors.steering.transport import AffineMap
from reports.errors import InputError
from tests.serving_oracle import alone, attentions, open_edit
from tests.test_steering import FACT, OTHER
from tests.tiny import randomise, tiny_folder, tiny_model

PROMPTS = (
    "Anna Keller works as a",
    "Tim Duncan plays the sport of",
    "The mother tongue of Danielle Darrieux is",
    "Rome",
)
N = 4
KINDS = ("gpt2", "llama-gqa", "mistral")
Kind = Literal["gpt2", "llama-gqa", "mistral"]
Where = Literal["below", "above", "mean"]


@cache
def plain(kind: Kind) -> Any:
    if kind != "mistral":
        return AutoModelForCausalLM.from_pretrained(tiny_folder(kind), attn_implementation="eager").eval()
    sizes: dict[str, Any] = {
        "hidden_size": 32,
        "intermediate_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = MistralConfig(
            vocab_size=400,
            num_key_value_heads=2,
            sliding_window=6,
            eos_token_id=None,
            bos_token_id=0,
            **sizes,
        )
        model = MistralForCausalLM(config)
        randomise(model)
    return model.eval()


@cache
def ids_of(prompt: str) -> Tensor:
    return tiny_model("gpt2").tokenize(prompt)


def fitted(d: int, seed: int) -> AffineMap:
    draw = torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(torch.randn(d, 3, generator=draw)).Q
    parts = (torch.randn(d, generator=draw), basis, torch.randn(3, 3, generator=draw))
    return AffineMap(*parts, 4 * torch.randn(3, generator=draw))


@cache
def edits_on(kind: Kind, where: Where = "below", position: Position = "every") -> tuple[SteeringEdit, ...]:
    """Of the first two prompts; the gates are read below the maps, above them, or off the mean state."""
    hf = plain(kind)
    layer = 2 if where == "above" else 1
    pool: Pool = "mean" if where == "mean" else "last"
    edits = []
    for i, fact in enumerate((FACT, OTHER)):
        with torch.no_grad():
            hidden = hf(ids_of(PROMPTS[i])[None], output_hidden_states=True).hidden_states[layer][0]
        centre = hidden.mean(0, keepdim=True) if pool == "mean" else hidden[-1:]
        maps = {n: fitted(32, 10 * i + n) for n in (1, 2)}
        gate = HiddenGate(layer, centre, 1e-3, pool=pool)
        edit = SteeringEdit(fact, maps, gate, 0.8, position=position)
        edits.append(followed(hf, edit, i) if position == "object" else edit)
    return tuple(edits)


def followed(hf: Any, edit: SteeringEdit, i: int) -> SteeringEdit:
    """With maps of their own behind the first two tokens that it makes the model write, and behind others."""
    for n in (1, 2):
        _, tokens = alone(hf, ids_of(PROMPTS[i]), [edit], n)
        maps = {layer: fitted(32, 50 + 10 * i + 2 * n + layer) for layer in (1, 2)}
        others = Following((tokens[0], 399 - n)[-n:], {2: fitted(32, 90)}, 3.0)
        edit = replace(edit, following=(*edit.following, Following(tuple(tokens), maps, 0.6), others))
    return edit


@cache
def expected(kind: Kind, where: Where, position: Position, prompt: str) -> tuple[Tensor, list[int]]:
    return alone(plain(kind), ids_of(prompt), edits_on(kind, where, position), N)


def padded(prompts: Sequence[str], side: Literal["left", "right"] = "left") -> tuple[Tensor, Tensor]:
    return tiny_model("gpt2").pad([ids_of(p) for p in prompts], side=side)


def positions(mask: Tensor) -> Tensor:
    return (mask.cumsum(-1) - 1).clamp(min=0)


def close(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(found, wanted, atol=2e-4, rtol=2e-4)


def run(hf: Any, ids: Tensor, mask: Tensor, cache: Any, done: int, **options: Any) -> Any:
    """Columns `done` on of ids [B, T] behind those that the cache holds."""
    return hf(
        ids[:, done:],
        attention_mask=mask,
        position_ids=positions(mask)[:, done:],
        past_key_values=cache,
        use_cache=True,
        **options,
    )


def serve(
    hf: Any,
    prompts: Sequence[str],
    side: Literal["left", "right"],
    cuts: Sequence[int],
    cache: Any,
    steering: Steering,
    *,
    tell: bool,
    new: Sequence[Sequence[int]],
) -> Tensor:
    """Logits [B, N + 1, V] of a loop of the caller's own: the prompts in pieces, then given tokens one by one."""
    ids, mask = padded(prompts, side)
    ends = (mask * torch.arange(1, mask.shape[1] + 1)).amax(1) - 1
    edges = [0, *sorted({cut % mask.shape[1] for cut in cuts} - {0}), mask.shape[1]]
    pieces = []
    for start, stop in pairwise(edges):
        last = stop == mask.shape[1]
        if tell and not last:
            with steering.prompt_part():
                out = run(hf, ids[:, :stop], mask[:, :stop], cache, start)
        else:
            out = run(hf, ids[:, :stop], mask[:, :stop], cache, start)
        pieces.append(out.logits)
        cache = out.past_key_values
    logits = [torch.cat(pieces, 1)[torch.arange(len(ids)), ends]]
    for step in torch.tensor(new).T:
        ids = torch.cat([ids, step[:, None]], 1)
        mask = torch.cat([mask, torch.ones_like(step[:, None])], 1)
        logits.append(run(hf, ids, mask, cache, ids.shape[1] - 1).logits[:, -1])
    return torch.stack(logits, 1)


def hooks_on(hf: Any) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in hf.modules())


# -- the property -------------------------------------------------------------------------------------------------


@settings(max_examples=60)
@given(
    kind=st.sampled_from(KINDS),
    where=st.sampled_from(("below", "above", "mean")),
    position=st.sampled_from(("object", "every", "prompt")),
    prompts=st.lists(st.sampled_from(PROMPTS), min_size=1, max_size=3),
    side=st.sampled_from(("left", "right")),
    cuts=st.lists(st.integers(0, 30), max_size=3),
    static=st.booleans(),
    tell=st.booleans(),
)
@torch.no_grad()
def test_pieces_batches_and_padding_give_the_prompt_alone(
    kind: Kind,
    where: Where,
    position: Position,
    prompts: list[str],
    side: Literal["left", "right"],
    cuts: list[int],
    static: bool,
    tell: bool,
) -> None:
    hf = plain(kind)
    width = padded(prompts)[1].shape[1]
    single = (width - 1) in {cut % width for cut in cuts} and width > 1
    ragged = side == "right" and len({len(ids_of(p)) for p in prompts}) > 1
    if single and ragged:  # neither rule nor word tells a token of one row from the padding of another
        cuts = [cut for cut in cuts if cut % width != width - 1]
    tell = (tell or (single and not ragged)) and not ragged
    edges = sorted({0, *(cut % width for cut in cuts)})
    tell = tell or (1 in (b - a for a, b in pairwise(edges)) and not ragged)  # refused: a row may begin in it
    window = kind == "mistral"
    tell = tell or (window and not ragged)  # a window that has moved on cannot be taken back
    if window and ragged:
        cuts = []
    cache: Any = StaticCache(config=hf.config, max_cache_len=width + N) if static else None
    answers = [expected(kind, where, position, prompt) for prompt in prompts]
    with attach(hf, edits_on(kind, where, position)) as steering:
        found = serve(hf, prompts, side, cuts, cache, steering, tell=tell, new=[new for _, new in answers])
    wanted = torch.stack([logits for logits, _ in answers])
    if window and ragged:  # a window counts the padding behind a prompt, without any edit too
        found, wanted = found[:, :1], wanted[:, :1]
    close(found, wanted)


def test_the_oracle_tells_a_steered_model_from_a_plain_one() -> None:
    """It fails for no edit, for the other position, for a gate read at another token."""
    hf = plain("gpt2")
    every, tokens = expected("gpt2", "below", "every", PROMPTS[0])
    prompt, _ = alone(hf, ids_of(PROMPTS[0]), edits_on("gpt2", "below", "prompt"), tokens)
    steered, written = expected("gpt2", "below", "object", PROMPTS[0])
    end, _ = alone(hf, ids_of(PROMPTS[0]), edits_on("gpt2", "below", "prompt"), written)
    close(steered[0], end[0])
    assert (steered - end)[1:3].abs().amax(1).min() > 1e-1  # behind the first token and behind the second
    bare, _ = alone(hf, ids_of(PROMPTS[0]), [replace(edits_on("gpt2")[0], alpha=0.0)], tokens)
    assert (every - bare).abs().amax(1).min() > 1e-1
    close(every[0], prompt[0])
    assert (every - prompt)[1:].abs().amax(1).min() > 1e-1
    assert open_edit(hf, ids_of(PROMPTS[0])[:-1], edits_on("gpt2")) is None
    assert open_edit(hf, ids_of(PROMPTS[2]), edits_on("gpt2")) is None
    assert expected("gpt2", "mean", "every", PROMPTS[0])[1] == tokens


# -- generate -----------------------------------------------------------------------------------------------------


def text(hf: Any, prompts: Sequence[str], **options: Any) -> list[list[int]]:
    ids, mask = padded(prompts)
    inputs = {"input_ids": ids, "attention_mask": mask, **options}
    if "inputs_embeds" in options:
        inputs.pop("input_ids")
    out = hf.generate(**inputs, max_new_tokens=N, do_sample=False, eos_token_id=None, pad_token_id=0)
    return out[:, 0 if "inputs_embeds" in options else ids.shape[1] :].tolist()


@pytest.mark.parametrize("position", ["object", "every", "prompt"])
@pytest.mark.parametrize("where", ["below", "above", "mean"])
@pytest.mark.parametrize("kind", KINDS)
def test_generate_gives_the_text_of_each_prompt_alone(kind: Kind, where: Where, position: Position) -> None:
    hf = plain(kind)
    answers = [expected(kind, where, position, prompt)[1] for prompt in PROMPTS]
    assert answers[0] != alone(hf, ids_of(PROMPTS[0]), [replace(edits_on(kind)[0], alpha=0.0)], N)[1]
    ways: list[dict[str, Any]] = [
        {},
        {"use_cache": False},
        *({"prefill_chunk_size": n} for n in (1, 3)),
        {"cache_implementation": "static"},
        {"inputs_embeds": hf.get_input_embeddings()(padded(PROMPTS)[0])},
    ]
    with attach(hf, edits_on(kind, where, position)):
        for way in ways:
            assert text(hf, PROMPTS, **way) == answers, list(way)
        if kind != "mistral":  # its window cannot be taken back by drafts
            for i, prompt in enumerate(PROMPTS):
                assert text(hf, [prompt], prompt_lookup_num_tokens=2) == answers[i : i + 1]
                assert text(hf, [prompt], assistant_model=plain("mistral")) == answers[i : i + 1]
    assert "generate" not in vars(hf)


@pytest.mark.parametrize("kind", KINDS)
def test_beams_are_those_of_the_prompt_alone(kind: Kind) -> None:
    hf = plain(kind)
    with attach(hf, edits_on(kind, "above")):
        single = [text(hf, [prompt], num_beams=3)[0] for prompt in PROMPTS]
        assert text(hf, PROMPTS, num_beams=3) == single
        assert text(hf, PROMPTS, num_beams=3, use_cache=False) == single
        assert text(hf, PROMPTS, num_beams=3, prefill_chunk_size=2) == single
        sampled = hf.generate(
            ids_of(PROMPTS[0])[None], num_return_sequences=3, do_sample=True, max_new_tokens=2, pad_token_id=0
        )
        assert len(sampled) == 3
    assert text(hf, PROMPTS[:1], num_beams=3)[0] != single[0]


@pytest.mark.parametrize("where", ["below", "above"])
@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("kind", ["gpt2", "llama-gqa"])
@torch.no_grad()
def test_a_reused_prefix_gives_the_prompt_alone(kind: Kind, inside: bool, where: Where) -> None:
    """The prefix's end is no prompt's end, also where an always open edit steered it when it came in."""
    hf, answers = plain(kind), [expected(kind, where, "every", prompt)[1] for prompt in PROMPTS]
    always = replace(edits_on(kind)[0], gate=AlwaysOn())
    for edits, wanted in ((edits_on(kind, where), answers), ([always], None)):
        for i, prompt in enumerate(PROMPTS[:3]):
            ids = ids_of(prompt)[None]
            right = alone(hf, ids[0], edits, N)[1] if wanted is None else wanted[i]
            for kept in (1, 3, ids.shape[1] - 1):
                prefix = None if inside else hf(ids[:, :kept], use_cache=True).past_key_values
                with attach(hf, edits):
                    if inside:
                        prefix = hf(ids[:, :kept], use_cache=True).past_key_values
                    for _ in range(2):
                        out = hf.generate(
                            ids,
                            past_key_values=copy.deepcopy(prefix),
                            max_new_tokens=N,
                            do_sample=False,
                            eos_token_id=None,
                            pad_token_id=0,
                        )
                        assert out[0, ids.shape[1] :].tolist() == right


@torch.no_grad()
def test_the_next_turn_of_a_conversation_is_a_prompt_of_its_own() -> None:
    """What was steered in the turn before is run again without steering: the answer is that of the whole text alone."""
    hf, options = plain("llama-gqa"), {"do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    always = replace(edits_on("llama-gqa")[0], gate=AlwaysOn())
    cache = DynamicCache(config=hf.config)
    with attach(hf, [always]):
        first = hf.generate(ids_of(PROMPTS[0])[None], past_key_values=cache, max_new_tokens=3, **options)
        turn = torch.cat([first, ids_of(PROMPTS[1])[None]], 1)
        second = hf.generate(turn, past_key_values=cache, max_new_tokens=N, **options)
    assert second[0, turn.shape[1] :].tolist() == alone(hf, turn[0], [always], N)[1]


# -- loops of the caller's own --------------------------------------------------------------------------------------


@torch.no_grad()
def test_sequences_on_one_model_do_not_mix() -> None:
    """Two caches in turns; the neighbour behind an edited prompt; another batch size behind both."""
    hf = plain("gpt2")
    wanted = [expected("gpt2", "below", "every", prompt) for prompt in PROMPTS]
    with attach(hf, edits_on("gpt2")):
        caches, logits = [], []
        for prompt in PROMPTS[:3]:
            out = hf(ids_of(prompt)[None], use_cache=True)
            caches.append(out.past_key_values)
            logits.append([out.logits[0, -1]])
        for step in range(N):
            for i, cache_of_one in enumerate(caches):
                out = hf(torch.tensor([[wanted[i][1][step]]]), past_key_values=cache_of_one)
                logits[i].append(out.logits[0, -1])
    for rows, (right, _) in zip(logits, wanted, strict=False):
        close(torch.stack(rows), right)


@torch.no_grad()
def test_rows_of_a_cache_that_are_moved_keep_their_edit() -> None:
    hf = plain("llama-gqa")
    wanted = [expected("llama-gqa", "below", "every", prompt) for prompt in PROMPTS[:3]]
    ids, mask = padded(PROMPTS[:3])

    def start() -> Any:
        return run(hf, ids, mask, None, 0).past_key_values

    def go_on(cache_of_rows: Any, rows: Sequence[int]) -> None:
        step = torch.tensor([[wanted[row][1][0]] for row in rows])
        more = torch.cat([mask[list(rows)], torch.ones_like(step)], 1)
        out = hf(
            step, attention_mask=more, position_ids=positions(more)[:, -1:], past_key_values=cache_of_rows
        )
        close(out.logits[:, -1], torch.stack([wanted[row][0][1] for row in rows]))

    with attach(hf, edits_on("llama-gqa")):
        moved = start()
        moved.reorder_cache(torch.tensor([2, 0, 1]))
        go_on(moved, [2, 0, 1])
        fewer = start()
        fewer.batch_select_indices(torch.tensor([2, 0]))
        go_on(fewer, [2, 0])
        twice = start()
        twice.batch_repeat_interleave(2)
        go_on(twice, [0, 0, 1, 1, 2, 2])
        with pytest.raises(InputError, match="rows"):
            hf(torch.tensor([[5], [6]]), past_key_values=start())


@torch.no_grad()
def test_a_prompts_last_token_that_is_run_again_is_the_prompts() -> None:
    """The cache is cut by one: a single token behind it is no generated one."""
    hf = plain("gpt2")
    right, _ = expected("gpt2", "below", "every", PROMPTS[0])
    ids = ids_of(PROMPTS[0])[None]
    with attach(hf, edits_on("gpt2")):
        kept = hf(ids, use_cache=True).past_key_values
        kept.crop(-1)
        close(hf(ids[:, -1:], past_key_values=kept).logits[0, -1], right[0])
    unhooked = hf(ids[:, :-1], use_cache=True).past_key_values
    with attach(hf, edits_on("gpt2")):
        close(hf(ids[:, -1:], past_key_values=unhooked).logits[0, -1], right[0])


@torch.no_grad()
def test_a_draft_is_generated_where_the_caller_says_so() -> None:
    hf = plain("gpt2")
    right, tokens = expected("gpt2", "below", "every", PROMPTS[0])
    ids = ids_of(PROMPTS[0])[None]
    with attach(hf, edits_on("gpt2")) as steering:
        kept = hf(ids, use_cache=True).past_key_values
        with steering.generated_tokens():
            close(hf(torch.tensor([tokens]), past_key_values=kept).logits[0], right[1:])
            with pytest.raises(InputError, match="generated_tokens"):
                hf(ids)


@torch.no_grad()
def test_a_batch_may_have_empty_rows() -> None:
    """A row of padding alone has no prompt; what its first token is has to be said."""
    hf = plain("gpt2")
    right, tokens = expected("gpt2", "below", "every", PROMPTS[0])
    ids, mask = padded([PROMPTS[0], PROMPTS[0]])
    mask[1] = 0
    more = torch.cat([mask, torch.ones(2, 1, dtype=torch.long)], 1)
    step = torch.cat([ids, torch.tensor([tokens[:1], tokens[:1]])], 1)
    with attach(hf, edits_on("gpt2")) as steering:
        kept = run(hf, ids, mask, None, 0).past_key_values
        with pytest.raises(InputError, match="all behind them"):
            run(hf, step, more, kept, ids.shape[1])
        with steering.generated_tokens():
            close(run(hf, step, more, kept, ids.shape[1]).logits[0, -1], right[1])


@torch.no_grad()
def test_the_base_model_alone_is_steered_as_well() -> None:
    hf = plain("llama-gqa")
    right, _ = expected("llama-gqa", "above", "every", PROMPTS[0])
    with attach(hf, edits_on("llama-gqa", "above")):
        hidden = hf.model(ids_of(PROMPTS[0])[None]).last_hidden_state
    close(hf.lm_head(hidden)[0, -1], right[0])


def test_threads_on_one_attached_model_do_not_mix() -> None:
    hf = plain("llama-gqa")
    answers = [expected("llama-gqa", "above", "every", prompt)[1] for prompt in PROMPTS]
    found: list[list[list[int]]] = [[] for _ in PROMPTS]
    with attach(hf, edits_on("llama-gqa", "above")):

        def ask(i: int) -> None:
            found[i] += [text(hf, [PROMPTS[i]])[0] for _ in range(5)]

        threads = [threading.Thread(target=ask, args=(i,)) for i in range(len(PROMPTS))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert found == [[answer] * 5 for answer in answers]


@torch.no_grad()
def test_tokens_that_came_in_as_embeddings_are_run_again_as_such() -> None:
    """A steered end that was none: its embedding is known, its id is not."""
    hf = plain("llama-gqa")
    always = replace(edits_on("llama-gqa")[0], gate=AlwaysOn())
    ids = ids_of(PROMPTS[2])[None]
    vectors = hf.get_input_embeddings()(ids)
    right, _ = alone(hf, ids[0], [always], 0)
    with attach(hf, [always]):
        kept = hf(inputs_embeds=vectors[:, :3], use_cache=True).past_key_values
        hf(ids[:, 3:5], past_key_values=kept)
        hf(inputs_embeds=vectors[:, 5:7], past_key_values=kept)
        close(hf(ids[:, 7:], past_key_values=kept).logits[0, -1], right[0])


@torch.no_grad()
def test_a_copy_of_a_cache_keeps_what_was_steered() -> None:
    """Also by edits that are gone, for edits that have not seen the prefix."""
    hf = plain("gpt2")
    always = replace(edits_on("gpt2")[0], gate=AlwaysOn())
    ids = ids_of(PROMPTS[2])[None]
    right, tokens = alone(hf, ids[0], [always], 1)
    with attach(hf, [always]):
        prefix = hf(ids[:, :4], use_cache=True).past_key_values
    for _ in range(2):
        kept = copy.deepcopy(prefix)
        assert isinstance(kept, DynamicCache)
        with attach(hf, [always]):
            close(hf(ids[:, 4:], past_key_values=kept).logits[0, -1], right[0])
            close(hf(torch.tensor([tokens]), past_key_values=kept).logits[0, -1], right[1])


@torch.no_grad()
def test_edits_that_are_attached_inside_each_other_add_up_and_leave_in_any_order() -> None:
    hf, ids = plain("gpt2"), ids_of(PROMPTS[0])[None]
    maps = {1: fitted(32, 1), 2: fitted(32, 2)}
    one, two = (SteeringEdit(FACT, {n: maps[n]}) for n in (1, 2))
    both, tokens = alone(hf, ids[0], [SteeringEdit(FACT, maps)], N)
    last, _ = alone(hf, ids[0], [two], 0)
    before = hooks_on(hf)
    outer, inner = attach(hf, [one]), attach(hf, [two])
    outer.__enter__()
    inner.__enter__()
    assert text(hf, PROMPTS[:1], prefill_chunk_size=2) == [tokens]
    kept = hf(ids[:, :3], use_cache=True).past_key_values
    close(hf(ids[:, 3:], past_key_values=kept).logits[0, -1], both[0])
    outer.__exit__(None, None, None)
    close(hf(ids).logits[0, -1], last[0])
    inner.__exit__(None, None, None)
    assert hooks_on(hf) == before
    assert "generate" not in vars(hf)


# -- both libraries, and gates that read text ---------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["gpt2", "llama-gqa"])
@pytest.mark.parametrize("where", ["below", "above", "mean"])
@torch.no_grad()
def test_the_hooked_model_takes_a_prompt_in_pieces_as_well(kind: Any, where: Where) -> None:
    model = tiny_model(kind)
    ids, mask = padded(PROMPTS)
    with steer(model, edits_on(kind, where)) as steered:
        _, kept = steered.run(ids[:, :4], mask[:, :4], use_cache=True)
        logits, _ = steered.run(ids[:, 4:], mask, use_cache=True, past_key_values=kept)
    close(logits[:, -1], torch.stack([expected(kind, where, "every", prompt)[0][0] for prompt in PROMPTS]))


def letters(texts: Sequence[str]) -> Tensor:
    """How often each letter occurs."""
    return torch.tensor([[float(text.lower().count(chr(97 + i))) for i in range(26)] for text in texts])


def text_edit(kind: Kind) -> SteeringEdit:
    return replace(edits_on(kind)[0], gate=SentenceGate(letters(PROMPTS[:1]), 0.5, "letters", letters))


@torch.no_grad()
def test_a_gate_that_reads_text_reads_the_whole_prompt_or_refuses() -> None:
    hf, tokenizer = plain("gpt2"), tiny_model("gpt2").tokenizer
    edit, ids = text_edit("gpt2"), ids_of(PROMPTS[0])[None]
    right, tokens = expected("gpt2", "below", "every", PROMPTS[0])
    before = hf(ids[:, :3], use_cache=True).past_key_values
    with attach(hf, [edit], tokenizer=tokenizer):
        assert text(hf, PROMPTS[:1], prefill_chunk_size=2) == [tokens]
        kept = hf(ids[:, :3], use_cache=True).past_key_values
        close(hf(ids[:, 3:], past_key_values=kept).logits[0, -1], right[0])
        close(hf(ids[:, 3:], past_key_values=copy.deepcopy(before)).logits[0, -1], right[0])
        vectors = hf.get_input_embeddings()(ids)
        close(hf(inputs_embeds=vectors).logits[0, -1], right[0])
        with pytest.raises(InputError, match="input_ids"):
            hf(inputs_embeds=vectors + 0.5)
        before.layers[0].values += 0.5
        with pytest.raises(InputError, match="input_ids"):
            hf(ids[:, 3:], past_key_values=copy.deepcopy(before))
        before.layers[0].values -= 0.5
        assert text(hf, PROMPTS[:1], past_key_values=copy.deepcopy(before)) == [tokens]
    with attach(hf, [edit]):  # the tokenizer lies beside the weights that the model was loaded from
        assert text(hf, PROMPTS[:1]) == [tokens]
    hf.config._name_or_path = "nowhere"
    with pytest.raises(InputError, match="tokenizer"), attach(hf, [edit]):
        pass


@torch.no_grad()
def test_no_look_ahead_where_the_text_leaves_no_gate_open(monkeypatch: pytest.MonkeyPatch) -> None:
    """A gate of two questions: who, by the ids; what, by a state above the first steered layer."""
    from mechedit.editors.steering import gate_bank

    class Named(gate_bank._Hidden):
        reads_text = True

        def screen(self, prompts: gate_bank.PromptBatch) -> Tensor:
            mine = torch.tensor(["Keller" in text for text in prompts.texts])
            return self.centres.screen(prompts) & mine

    monkeypatch.setitem(gate_bank.GROUPS, HiddenGate, Named)
    hf, passes = plain("gpt2"), [0]

    def count(*_: Any) -> None:
        passes[0] += 1

    with attach(hf, edits_on("gpt2", "above")[:1], tokenizer=tiny_model("gpt2").tokenizer):
        handle = attentions(hf)[0].register_forward_hook(count)
        try:
            found = hf(ids_of(PROMPTS[0])[None]).logits[0, -1]
            assert passes == [2]
            hf(ids_of(PROMPTS[2])[None])
            assert passes == [3]
        finally:
            handle.remove()
    close(found, expected("gpt2", "above", "every", PROMPTS[0])[0][0])


# -- what is refused ------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_what_cannot_be_served_is_refused_in_one_line() -> None:
    hf, ids = plain("llama-gqa"), ids_of(PROMPTS[0])[None]
    right = padded(PROMPTS, "right")
    window, outside = plain("mistral"), hf(ids[:, :3], use_cache=True).past_key_values
    always = replace(edits_on("llama-gqa")[0], gate=AlwaysOn())

    def whole() -> Any:
        return hf(ids, use_cache=True).past_key_values

    with attach(hf, edits_on("llama-gqa")):
        refused = [
            (
                lambda: hf.generate(right[0], attention_mask=right[1], pad_token_id=0, max_new_tokens=2),
                "left",
            ),
            (lambda: hf.generate(ids, token_healing=True, max_new_tokens=2), "token_healing"),
            (lambda: hf.generate_batch([[1, 2]]), "continuous batching"),
            (lambda: hf(ids, position_ids=torch.tensor([[0, 1, 2] * 10])[:, : ids.shape[1]]), "packed"),
            (lambda: hf(ids, block_table=torch.zeros(1)), "packed"),
            (lambda: hf(ids, attention_mask=torch.ones(1, 2)), "attention_mask"),
            (lambda: hf.generate(ids, past_key_values=whole(), max_new_tokens=2, pad_token_id=0), "crop"),
            (lambda: hf.model.layers[1](torch.zeros(1, 2, 32)), "pass of the model"),
        ]
        for call, word in refused:
            with pytest.raises(InputError, match=word) as error:
                call()
            assert "\n" not in str(error.value)
    with (
        attach(hf, edits_on("llama-gqa", "mean")),
        pytest.raises(InputError, match="mean state"),
    ):
        hf(ids[:, 3:], past_key_values=outside)
    with attach(window, [replace(always)]) as steering:
        kept = window(ids, use_cache=True).past_key_values
        with pytest.raises(InputError, match="prompt_part"):
            window(ids, past_key_values=kept)
        with steering.prompt_part():
            ended = run(window, *right, None, 0).past_key_values
        more = torch.cat([right[1], torch.zeros_like(right[1])], 1)
        more[0, -1] = 1
        with pytest.raises(InputError, match="ended in it"):
            run(window, torch.cat([right[0], right[0]], 1), more, ended, right[0].shape[1])


# -- a pre-trained model --------------------------------------------------------------------------------------------


@pytest.mark.real
@torch.no_grad()
def test_a_pretrained_model_is_served_as_the_prompt_alone(plain_smollm2: Any) -> None:
    hf, tokenizer = plain_smollm2
    asked = ["The capital of France is", "The mother tongue of Danielle Darrieux is"]
    ids = [tokenizer(prompt, return_tensors="pt").input_ids[0] for prompt in asked]
    centre = hf(ids[0][None], output_hidden_states=True).hidden_states[14][0, -1:]
    d = hf.config.hidden_size
    edit = SteeringEdit(FACT, {12: fitted(d, 1), 16: fitted(d, 2)}, HiddenGate(14, centre, 1e-2), 60.0)
    answers = [alone(hf, row, [edit], 3) for row in ids]
    assert answers[0][1] != alone(hf, ids[0], [replace(edit, alpha=0.0)], 3)[1]
    batch = tokenizer(asked, return_tensors="pt", padding=True, padding_side="left")
    with attach(hf, [edit]):
        for way in ({}, {"prefill_chunk_size": 2}, {"cache_implementation": "static"}):
            out = hf.generate(
                **batch, **way, do_sample=False, max_new_tokens=3, eos_token_id=None, pad_token_id=2
            )
            assert out[:, batch.input_ids.shape[1] :].tolist() == [tokens for _, tokens in answers]
        kept = hf(ids[0][None, :3], use_cache=True).past_key_values
        close(hf(ids[0][None, 3:], past_key_values=kept).logits[0, -1], answers[0][0][0])
