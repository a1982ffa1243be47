"""Prompts with structure: conversations, ids, a frame around every text, and what a target may not be.

The oracle of a conversation is `transformers` alone: `apply_chat_template` and the plain model.
"""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers import models as tokenizer_models
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

import mechedit as me
from mechedit.cli import main
from mechedit.data.facts import FactEdit
from mechedit.editors import IKE, MEMIT
from mechedit.editors.weights.subject import subject_end
from mechedit.evaluation.evaluate import Baseline
from mechedit.models import checks
from mechedit.models.hooked import HookedModel
from mechedit.models.prefix_check import best_prefix, perplexities
from mechedit.models.prompts import recorded
from reports.errors import InputError
from tests.tiny import END, build

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
FACT = FactEdit("Danielle Darrieux", "The mother tongue of {} is", "French", "English", case_id=0)
TALK = [
    {"role": "system", "content": "You speak."},
    {"role": "user", "content": "The mother tongue of Anna Keller is"},
]


def chat_folder(tmp_path: Path, arch: Any = "llama", *, bos: bool = False) -> Path:
    """A tiny model whose tokenizer has ChatML's template; the special tokens stand in for two of its words."""
    folder = build(arch, tmp_path / arch, bos=bos)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    plain = AutoModelForCausalLM.from_pretrained(folder)
    plain.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    plain.save_pretrained(folder)
    return folder


@pytest.fixture(params=["gpt2", "llama-gqa"])
def chat(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[HookedModel, Any, Any]:
    """(hooked, plain model, plain tokenizer)."""
    folder = chat_folder(tmp_path, request.param)
    return (
        me.load_model(folder, device="cpu"),
        AutoModelForCausalLM.from_pretrained(folder).eval(),
        AutoTokenizer.from_pretrained(folder),
    )


def template_ids(tokenizer: Any, messages: list[dict[str, str]], **options: Any) -> list[int]:
    return list(tokenizer.apply_chat_template(messages, return_dict=True, **options)["input_ids"])


# --- conversations ------------------------------------------------------------------------------------------


def test_a_conversation_is_what_transformers_makes_of_it(chat: tuple[HookedModel, Any, Any]) -> None:
    model, plain, tokenizer = chat
    wanted = template_ids(tokenizer, TALK, add_generation_prompt=True)
    assert model.tokenize(TALK).tolist() == wanted
    special = tokenizer.convert_tokens_to_ids("<|im_start|>")
    assert wanted.count(special) == 3
    ids = torch.tensor([wanted])
    with torch.no_grad():
        logits = plain(ids).logits[0, -1]
    torch.testing.assert_close(model.logits([TALK])[0], logits, atol=1e-4, rtol=1e-4)
    greedy = plain.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, do_sample=False)
    text = tokenizer.decode(greedy[0, len(wanted) :], skip_special_tokens=True)
    assert model.generate([TALK], max_new_tokens=6) == [text]
    # A plain text of the same characters is another thing.
    assert model.tokenize(TALK[1]["content"]).tolist() == tokenizer(TALK[1]["content"]).input_ids


def test_an_answer_opens_the_assistants_turn_without_a_space(chat: tuple[HookedModel, Any, Any]) -> None:
    model, plain, tokenizer = chat
    ids, target = model.continuation(TALK, "French")
    answer = [*TALK, {"role": "assistant", "content": "French"}]
    whole = template_ids(tokenizer, answer, continue_final_message=True)
    assert [*ids.tolist(), *target.tolist()] == whole
    assert tokenizer.decode(target) == "French"
    attr = me.attribute(model, TALK, "French", top_k=3)
    with torch.no_grad():
        logp = plain(torch.tensor([whole])).logits[0, len(ids) - 1].log_softmax(-1)[target[0]]
    assert attr.logp == pytest.approx(float(logp), abs=1e-4)
    assert attr.provenance["data"]["prompt"] == TALK
    (many,) = me.attribute_many(model, [TALK], ["French"], top_k=3, progress=False)
    assert many.logp == pytest.approx(attr.logp, abs=1e-5)
    assert me.contrast(model, TALK, "French", "Dutch").logp == pytest.approx(
        attr.logp - me.attribute(model, TALK, "Dutch", top_k=3).logp, abs=1e-4
    )
    # What the assistant has begun is continued, with the space of any text.
    begun = [*TALK, {"role": "assistant", "content": "It is"}]
    ids, target = model.continuation(begun, "French")
    assert tokenizer.decode(target) == " French"
    assert ids.tolist() == template_ids(tokenizer, begun, continue_final_message=True)


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ([{"role": "user"}], "content"),
        ([{"role": "user", "content": ["an image"]}], "both texts"),
        (torch.ones(2, 2, dtype=torch.long), "shape"),
        (torch.ones(3), "float"),
        ([5, 100_000], "expected ids of 0 to"),
        ([], "at least one token"),
        ([None], "expected a text, a list of messages or ids"),
    ],
)
def test_what_is_no_prompt_is_one_line(tmp_path: Path, prompt: Any, words: str) -> None:
    model = me.load_model(chat_folder(tmp_path), device="cpu")
    with pytest.raises(InputError, match=f"^prompt: .*{words}"):
        model.tokenize(prompt)


def test_one_prompt_in_the_place_of_a_list_is_refused(tmp_path: Path) -> None:
    model = me.load_model(chat_folder(tmp_path), device="cpu")
    ones: list[Any] = ["The mother tongue", TALK]
    for one in ones:
        for call in (model.logits, lambda p: model.generate(p, max_new_tokens=1)):
            with pytest.raises(InputError, match="put it in a list"):
                call(one)
        with pytest.raises(InputError, match="found one"):
            me.attribute_many(model, one, ["French"])


def test_a_model_without_a_template_and_a_template_that_refuses(tmp_path: Path) -> None:
    folder = build("gpt2", tmp_path / "plain")
    with pytest.raises(InputError, match="this is no chat model"):
        me.load_model(folder, device="cpu").tokenize(TALK)
    with pytest.raises(InputError, match="this is no chat model"):
        me.load_model(folder, device="cpu", chat=True)
    strict = me.load_model(chat_folder(tmp_path), device="cpu")
    strict.tokenizer.chat_template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(InputError, match="refuses the messages: roles must alternate"):
        strict.tokenize(TALK)


# --- ids ----------------------------------------------------------------------------------------------------


def test_ids_are_taken_as_they_are(chat: tuple[HookedModel, Any, Any]) -> None:
    model, _, tokenizer = chat
    ids = model.tokenize(FACT.rewrite_prompt)
    for given in (ids, ids.tolist()):
        assert torch.equal(model.tokenize(given), ids)
        head, target = model.continuation(given, "French")
        wanted = model.continuation(FACT.rewrite_prompt, "French")
        assert torch.equal(head, wanted[0])
        assert torch.equal(target, wanted[1])
    attr = me.attribute(model, ids, "French", top_k=2)
    assert attr.provenance["data"]["prompt"] == ids.tolist()
    assert attr.logp == me.attribute(model, FACT.rewrite_prompt, "French", top_k=2).logp
    turn = model.tokenize(TALK)[:-1]  # ends in "assistant"
    assert tokenizer.decode(model.continuation(turn, "French")[1]) == " French"
    start = template_ids(tokenizer, TALK, add_generation_prompt=True)
    start = [*start[: start.index(tokenizer.convert_tokens_to_ids("<|im_end|>")) + 1]]
    assert (
        tokenizer.decode(model.continuation(start, "French")[1]) == "French"
    )  # behind a special token: no space
    assert recorded(turn) == turn.tolist()


# --- a frame around every text ------------------------------------------------------------------------------


def test_with_chat_every_text_is_the_users_message(tmp_path: Path) -> None:
    folder = chat_folder(tmp_path)
    model, framed = me.load_model(folder, device="cpu"), me.load_model(folder, device="cpu", chat=True)
    prompt = FACT.rewrite_prompt
    messages = [{"role": "user", "content": prompt}]
    assert torch.equal(framed.tokenize(prompt), model.tokenize(messages))
    for a, b in zip(
        framed.continuation(prompt, "French"), model.continuation(messages, "French"), strict=True
    ):
        assert torch.equal(a, b)
    assert torch.equal(framed.tokenize(TALK), model.tokenize(TALK))
    assert framed.plain_ids(prompt).tolist() == model.tokenize(prompt).tolist()
    ids, at = subject_end(framed, FACT.prompt, FACT.subject)
    assert torch.equal(ids, framed.tokenize(prompt))
    assert str(framed.tokenizer.decode(ids[: at + 1])).endswith(
        f"user\n{FACT.prompt.format(FACT.subject)[:-3]}"
    )
    with IKE(demonstrations=0).apply(framed, FACT) as edited:
        shown = [{"role": "user", "content": edited.prefix + prompt}]
        assert torch.equal(edited.tokenize(prompt), model.tokenize(shown))
        assert torch.equal(edited.tokenize(messages), model.tokenize(shown))
    assert framed.identity["chat"]
    assert "chat" not in model.identity
    assert set(framed.identity) - {"chat"} == set(model.identity)


def test_edits_and_scores_in_a_conversation(tmp_path: Path) -> None:
    """An edit is made and scored where the chat's answers stand; Acc by hand is the argmax of the plain model."""
    folder = chat_folder(tmp_path)
    framed = me.load_model(folder, device="cpu", chat=True)
    memit = MEMIT(layers=(0, 1), steps=25, lr=0.5, kl_factor=0.0, weight_decay=0.0, clamp=20.0, lam=1e-2)
    known = Baseline([True], [{}])
    scored = me.evaluate(framed, memit, [FACT], unedited=known, progress=False)
    (row,) = scored.prompts.to_dict("records")
    with memit.apply(framed, [FACT]) as edited:
        ids = torch.tensor([template_ids(edited.tokenizer, [{"role": "user", "content": FACT.rewrite_prompt}],
                                         add_generation_prompt=True)])  # fmt: skip
        logits = edited.hf(ids).logits[0, -1].log_softmax(-1)
    first = framed.tokenizer("English", add_special_tokens=False).input_ids
    assert framed.continuation(FACT.rewrite_prompt, "English")[1].tolist() == first
    assert row["p_new"] > 0
    assert float(logits[first[0]]) == pytest.approx(float(edited_first(framed, memit)), abs=1e-3)
    assert scored.provenance["model"]["chat"] == framed.framing["chat"]


def edited_first(model: HookedModel, editor: Any) -> float:
    ids, target = model.continuation(FACT.rewrite_prompt, "English")
    with editor.apply(model, [FACT]) as edited:
        return float(edited.logits([ids])[0].log_softmax(-1)[target[0]])


@pytest.mark.parametrize("bos", [False, True])
def test_a_prefix_stands_in_front_of_every_text(tmp_path: Path, bos: bool) -> None:
    folder = chat_folder(tmp_path, "gpt2", bos=bos)
    model = me.load_model(folder, device="cpu")
    behind = me.load_model(folder, device="cpu", prefix="<|im_end|>")
    token = model.tokenizer.convert_tokens_to_ids("<|im_end|>")
    prompt = FACT.rewrite_prompt
    assert behind.tokenize(prompt).tolist() == [token, *model.tokenize(prompt).tolist()]
    ids, target = behind.continuation(prompt, "French")
    assert target.tolist() == model.continuation(prompt, "French")[1].tolist()
    plain = AutoModelForCausalLM.from_pretrained(folder).eval()
    with torch.no_grad():
        wanted = plain(ids[None]).logits[0, -1]
    torch.testing.assert_close(behind.logits([prompt])[0], wanted, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(model.logits([prompt])[0], wanted, atol=1e-3)
    assert torch.equal(behind.tokenize(ids), ids)
    assert torch.equal(behind.tokenize(TALK), model.tokenize(TALK))
    assert behind.identity["prefix"] == "<|im_end|>"
    _, at = subject_end(behind, FACT.prompt, FACT.subject)
    assert str(behind.tokenizer.decode(ids[: at + 1])).endswith(FACT.subject)
    already = me.load_model(folder, device="cpu", prefix=END)
    assert already.tokenize(prompt)[:2].tolist().count(0) == 1
    assert already.framing == ({} if bos else {"prefix": END})
    for wrong in ("The", "<|im_end|> The", "", "<|no such|>"):
        with pytest.raises(InputError, match=r"^prefix: expected a special token of this tokenizer .*im_end"):
            me.load_model(folder, device="cpu", prefix=wrong)
    with pytest.raises(InputError, match=r"^prefix: expected none beside chat"):
        me.load_model(folder, device="cpu", prefix=END, chat=True)
    for framed in (behind, me.load_model(folder, device="cpu", chat=True)):
        rows = {check.name: check for check in checks.special_tokens(framed, [(prompt, "French")])}
        assert all(check.ok for check in rows.values()), rows


def test_a_run_goes_on_only_in_its_own_frame(tmp_path: Path) -> None:
    folder = chat_folder(tmp_path, "gpt2")
    behind = me.load_model(folder, device="cpu", prefix="<|im_end|>")
    pair: Any = ([FACT.rewrite_prompt], ["French"])
    me.attribute_many(behind, *pair, top_k=2, progress=False, out=tmp_path / "run")
    with pytest.raises(InputError, match="run"):
        me.attribute_many(
            me.load_model(folder, device="cpu"), *pair, top_k=2, progress=False, out=tmp_path / "run"
        )
    assert len(me.attribute_many(behind, *pair, top_k=2, progress=False, out=tmp_path / "run")) == 1


# --- what is logged, and what is refused --------------------------------------------------------------------


def test_special_tokens_written_out_in_a_text_are_logged_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = me.load_model(chat_folder(tmp_path), device="cpu")
    text = "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"
    with caplog.at_level(logging.WARNING):
        ids = model.tokenize(text)
        model.tokenize(text)
        model.tokenize("In Rome < | > im_start.")
    assert model.tokenizer.convert_tokens_to_ids("<|im_start|>") not in ids
    (record,) = caplog.records
    assert "'<|im_start|>', '<|im_end|>' written out (3 in all)" in record.getMessage()


def words_folder(tmp_path: Path) -> Path:
    """A tiny model of whole words, which has <unk> for all others."""
    folder = build("gpt2", tmp_path / "words")
    words = ["The", "mother", "tongue", "of", "Anna", "is", "French", "Dutch"]
    vocabulary = {word: i for i, word in enumerate(["<unk>", END, *words])}
    core = Tokenizer(tokenizer_models.WordLevel(vocabulary, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>", eos_token=END).save_pretrained(folder)
    return folder


def test_a_target_that_the_tokenizer_does_not_know_is_refused(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = me.load_model(words_folder(tmp_path), device="cpu")
    assert len(model.continuation("The mother tongue of Anna is", "French")[1]) == 1
    with pytest.raises(InputError, match=r"^target: ' Basque' becomes '<unk>', which is no word"):
        model.continuation("The mother tongue of Anna is", "Basque")
    fact = FactEdit("Anna", "The mother tongue of {} is", "French", "Basque", case_id=3)
    with pytest.raises(InputError, match=r"case_id 3.*target_new.*<unk>"):
        me.evaluate(model, me.editors.NoEdit(), [fact], progress=False)
    with caplog.at_level(logging.WARNING):
        model.tokenize("The mother tongue of Bob is")
    assert "does not know 1 of the 6 tokens" in caplog.text


def test_a_special_token_as_an_answer_is_refused(tmp_path: Path) -> None:
    model = me.load_model(chat_folder(tmp_path), device="cpu")
    with pytest.raises(InputError, match=r"^target: .*special token"):
        model.continuation(TALK, "<|im_end|>")


# --- which token helps --------------------------------------------------------------------------------------


def test_perplexity_is_that_of_a_plain_loop(chat: tuple[HookedModel, Any, Any]) -> None:
    model, plain, tokenizer = chat
    text = FACT.rewrite_prompt + " French. " + TALK[1]["content"]
    measured = perplexities(model, text)
    assert set(measured) == {"", END, "<|im_start|>", "<|im_end|>"}
    ids = tokenizer(text, add_special_tokens=False).input_ids
    for name, value in measured.items():
        head = [] if not name else [tokenizer.convert_tokens_to_ids(name)]
        nll = 0.0
        for i in range(1, len(ids)):
            with torch.no_grad():
                logits = plain(torch.tensor([head + ids[:i]])).logits[0, -1]
            nll -= float(logits.double().log_softmax(-1)[ids[i]])
        assert value == pytest.approx(math.exp(nll / (len(ids) - 1)), rel=1e-4)


@pytest.mark.real
def test_smollm2_reads_better_behind_endoftext_and_speaks_in_its_template(
    smollm2: HookedModel, plain_smollm2: Any
) -> None:
    model, (plain, tokenizer) = smollm2, plain_smollm2
    notes: list[str] = []
    (check,) = best_prefix(model, notes)
    assert check.ok
    assert 0.1 < check.measured < 0.3
    assert "<|endoftext|> lowers" in notes[0]
    behind = HookedModel(model.bridge, model.tokenizer, name="smollm2", source=model.source, prefix=END)
    notes = []
    (check,) = best_prefix(behind, notes)
    assert not notes
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    wanted = template_ids(tokenizer, messages, add_generation_prompt=True)
    assert model.tokenize(messages).tolist() == wanted
    ids = torch.tensor([wanted])
    made = plain.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, do_sample=False)
    text = tokenizer.decode(made[0, len(wanted) :], skip_special_tokens=True)
    assert model.generate([messages], max_new_tokens=8) == [text]
    assert "Paris" in text


# --- the command line ---------------------------------------------------------------------------------------


def test_the_command_line_speaks_in_a_frame(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = chat_folder(tmp_path)
    prompt = "The mother tongue of Anna Keller is"
    pairs = [{"prompt": TALK, "target": "French"}, {"prompt": prompt, "target": "French"}]
    (tmp_path / "pairs.json").write_text(json.dumps(pairs), encoding="utf-8")
    asked = [{"role": "user", "content": prompt}]
    wanted = {
        "--chat": me.attribute(me.load_model(folder, device="cpu"), asked, "French", top_k=1).logp,
        "--prefix=<|im_end|>": me.attribute(
            me.load_model(folder, device="cpu", prefix="<|im_end|>"), prompt, "French", top_k=1
        ).logp,
    }
    assert len(set(wanted.values())) == 2
    common = ["--model", str(folder), "--device", "cpu", "--top-k", "1", "--json"]
    for option, logp in wanted.items():
        assert main(["attribute", *common, option, "--prompt", prompt, "--target", "French"]) == 0
        shown = json.loads(capsys.readouterr().out)
        assert shown["logp"] == pytest.approx(logp, abs=1e-5)
    assert main(["attribute", *common, "--prompts", str(tmp_path / "pairs.json")]) == 0
    shown = json.loads(capsys.readouterr().out)
    alone = me.attribute(me.load_model(folder, device="cpu"), TALK, "French", top_k=1).logp
    assert shown["results"][0]["logp"] == pytest.approx(alone, abs=1e-5)


def test_an_evaluation_in_a_frame_is_a_run_of_its_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = chat_folder(tmp_path)
    fact = {"case_id": 1, "prompt": "Anna Keller works as a", "subject": "Anna Keller", "target_new": "king",
            "ground_truth": "teacher", "rephrase_prompt": "By trade, Anna Keller is a",
            "locality_prompt": "Tim Duncan plays", "locality_ground_truth": "basketball"}  # fmt: skip
    (tmp_path / "facts.json").write_text(json.dumps([fact]), encoding="utf-8")
    call = ["evaluate", "--model", str(folder), "--device", "cpu", "--editor", "no_edit", "--quiet"]
    call += ["--data", str(tmp_path / "facts.json"), "--out", str(tmp_path / "run")]
    assert main([*call, "--chat"]) == 0
    config = (tmp_path / "run" / "config.toml").read_text(encoding="utf-8")
    assert "chat = true" in config
    assert "prefix" not in config
    assert main(call) != 0
    assert "chat" in capsys.readouterr().err
