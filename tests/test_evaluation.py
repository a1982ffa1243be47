"""Scoring and evaluation on tiny real models, against a second, naive implementation that batches and pads nothing."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from experiments.runs import RunFolder
from mechedit.data.facts import FactEdit, load_facts
from mechedit.editors.base import NoEdit
from mechedit.evaluation.evaluate import KNOWS_NONE, NOT_ROMES_PS, Evaluation, check_facts, evaluate
from mechedit.evaluation.questions import FactQuestions
from mechedit.models.bridged import Prompts
from mechedit.models.hooked import HookedModel, load_model
from mechedit.models.scoring import score_pairs
from reports.errors import InputError
from tests import tiny
from tests.tiny import ARCHS, Arch, tiny_model

NAMES = ("Anna Keller", "Tim Duncan", "Danielle Darrieux", "Lily", "Paris", "The Space Needle", "Edwin")
TEMPLATES = (
    "{} is",
    "{} was born in",
    "{} works as a",
    "{} lived in the city of",
    "the capital of {} in",
    "{} and",
)
PAIRS = [
    ("Lily is", "Paris"),
    ("The mother tongue of Thomas Joannes Stieltjes is", "Dutch"),
    ("The Eiffel Tower is located in the city of", "San Antonio"),
    ("She", "basketball in the city of San Antonio"),
    ("What does Anna Keller do? Anna Keller works as a", "teacher"),
]


# --- a second implementation ------------------------------------------------------------------------


@torch.no_grad()
def naive(
    model: HookedModel, prompt: str, target: str, *, shift: int = 0
) -> tuple[float, bool, int, list[float]]:
    """nll per token, all argmax, next token, log p of each token: one plain Hugging Face pass, no batch, no cache."""
    head = model.tokenizer(prompt).input_ids
    whole = model.tokenizer(f"{prompt} {target}").input_ids
    logits = model.hf(torch.tensor([whole])).logits[0]
    logps, hits = [], True
    for position in range(len(head), len(whole)):
        before = logits[position - 1 + shift].double()
        logps.append(float(before[whole[position]] - torch.logsumexp(before, 0)))
        hits &= int(before.argmax()) == whole[position]
    return -sum(logps) / len(logps), hits, int(logits[len(head) - 1].argmax()), logps


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("bos", [False, True], ids=["plain", "bos"])
def test_batched_scores_equal_the_naive_ones(arch: Arch, bos: bool) -> None:
    model = tiny_model(arch, bos=bos)
    pairs = [model.continuation(*pair) for pair in PAIRS]
    for batch_size in (1, 2, 32):
        for pair, scored in zip(PAIRS, score_pairs(model, pairs, batch_size=batch_size), strict=True):
            nll, hits, next_id, logps = naive(model, *pair)
            assert scored.nll == pytest.approx(nll, rel=1e-5)
            assert scored.logps.tolist() == pytest.approx(logps, rel=1e-4, abs=1e-5)
            assert (scored.all_hit, scored.next_id) == (float(hits), next_id)


def test_the_naive_oracle_can_fail() -> None:
    """A reading that is off by one token is told apart by the same comparison."""
    model = tiny_model("gpt2")
    scored = score_pairs(model, [model.continuation(*PAIRS[2])])[0]
    assert scored.nll == pytest.approx(naive(model, *PAIRS[2])[0], rel=1e-5)
    assert scored.nll != pytest.approx(naive(model, *PAIRS[2], shift=-1)[0], rel=1e-2)


def test_scores_keep_the_order_of_the_pairs() -> None:
    model = tiny_model("llama-gqa")
    pairs = [model.continuation(*pair) for pair in PAIRS]
    forward = [scored.nll for scored in score_pairs(model, pairs, batch_size=2)]
    backward = [scored.nll for scored in score_pairs(model, pairs[::-1], batch_size=2)]
    assert forward == pytest.approx(backward[::-1], rel=1e-5)
    assert score_pairs(model, []) == []
    with pytest.raises(InputError, match="batch_size"):
        score_pairs(model, pairs, batch_size=0)


# --- editors that really edit -----------------------------------------------------------------------


@dataclass(frozen=True)
class Push:
    """Adds to the logit of the new object's first token, at the last position."""

    strength: float = 50.0
    name: str = "push"
    needs_selection = False
    seen: list[Any] = field(default_factory=list, repr=False, compare=False)

    @contextlib.contextmanager
    def apply(self, model: HookedModel, facts: FactEdit | Sequence[FactEdit]) -> Iterator[HookedModel]:
        assert not isinstance(facts, FactEdit)
        assert len(facts) == 1, "one edit at a time"
        self.seen.append(facts[0].case_id)
        first = model.continuation(facts[0].rewrite_prompt, facts[0].target_new)[1][0]

        def push(logits: torch.Tensor, hook: object) -> torch.Tensor:
            moved = logits.clone()
            moved[:, -1, first] += self.strength
            return moved

        with model.hooks([("unembed.hook_out", push)]):
            yield self.view(model)

    def view(self, model: HookedModel) -> HookedModel:
        return model


class Gated(HookedModel):
    """A model whose gate opens for prompts that hold a word."""

    word: str

    def gate_fired(self, prompts: Prompts, *, batch_size: int = 64) -> list[bool]:
        return [self.word in prompt for prompt in prompts]


@dataclass(frozen=True)
class GatedPush(Push):
    word: str = "Anna"
    name: str = "gated"

    def view(self, model: HookedModel) -> HookedModel:
        gated = Gated.__new__(Gated)
        gated.__dict__.update(model.__dict__)
        gated.word = self.word
        return gated


@cache
def known_facts(arch: Arch = "gpt2") -> tuple[FactEdit, ...]:
    """Edits of what a random model happens to say: the true object is its own greedy next word."""
    model = tiny_model(arch)
    prompts = [(name, template) for name in NAMES for template in TEMPLATES]
    texts = model.generate([t.replace("{}", n) for n, t in prompts], max_new_tokens=1)
    facts: list[FactEdit] = []
    for (name, template), text in zip(prompts, texts, strict=True):
        if text.strip().isalpha() and text.isascii() and text.startswith(" "):
            fact = FactEdit(
                name,
                template,
                text.strip(),
                ("San Antonio", "Dutch", "teacher")[len(facts) % 3],
                case_id=len(facts),
                paraphrase_prompts=(f"We say that {name} is", f"In {name}'s house one speaks")[
                    : 1 + len(facts) % 2
                ],
                neighborhood_prompts=("Rome is", "Anna Keller was born in", "Thomas plays the sport of"),
            )
            facts.append(fact)
    assert len(facts) >= 3, "the random model says too few words; the tests below need some"
    return tuple(facts[:4])


def unknown_fact(case_id: int = 99) -> FactEdit:
    return FactEdit("Lily", "{} lived in the city of", "basketball", "Rome", case_id=case_id)


def quiet(model: HookedModel, editor: Any, facts: Sequence[FactEdit], **options: Any) -> Evaluation:
    return evaluate(model, editor, facts, progress=False, **options)


def values(result: Evaluation, **options: Any) -> dict[str, float]:
    table = result.summary(**options)
    return dict(zip(table["metric"], table["value"], strict=True))


# --- evaluate ---------------------------------------------------------------------------------------


def naive_record(model: HookedModel, fact: FactEdit, base: list[tuple[float, float]]) -> dict[str, float]:
    """Every metric of one record from one pass a prompt and object, in the words of the definitions."""

    def mean(terms: list[float]) -> float:
        return sum(terms) / len(terms) if terms else math.nan

    def ask(prompts: Sequence[str]) -> list[tuple[Any, Any]]:
        return [(naive(model, p, fact.target_new), naive(model, p, fact.target_true)) for p in prompts]

    def says_new(asked: list[tuple[Any, Any]]) -> list[float]:
        words = [str(model.tokenizer.decode([new[2]])).strip() for new, _ in asked]
        return [float(word != "" and fact.target_new.startswith(word)) for word in words]

    e = math.exp
    found: dict[str, float] = {}
    sides = {
        "E": ask([fact.rewrite_prompt]),
        "P": ask(fact.paraphrase_prompts),
        "N": ask(fact.neighborhood_prompts),
    }
    for letter, asked in sides.items():
        sign = -1 if letter == "N" else 1
        found[f"{letter}S"] = mean([float(sign * (true[0] - new[0]) > 0) for new, true in asked])
        found[f"{letter}M"] = mean([sign * (e(-new[0]) - e(-true[0])) for new, true in asked])
        found[f"{letter}S_acc"] = mean([float((true if letter == "N" else new)[1]) for new, true in asked])
    found["Acc"], found["Gen"] = mean(says_new(sides["E"])), mean(says_new(sides["P"]))
    # the objects of these tests differ in their first token
    kept = [pair for pair, (p_new, p_old) in zip(sides["N"], base, strict=True) if not p_new > p_old]
    found["Spec"] = mean([float(new[3][0] < true[3][0]) for new, true in kept])
    return found


@pytest.mark.parametrize("arch", ["gpt2", "llama"])
def test_evaluate_equals_the_definitions_written_out(arch: Arch) -> None:
    model, facts = tiny_model(arch), known_facts(arch)
    result = quiet(model, NoEdit(), facts)
    expected = []
    for fact in facts:
        first = [
            (naive(model, p, fact.target_new)[3][0], naive(model, p, fact.target_true)[3][0])
            for p in fact.neighborhood_prompts
        ]
        expected.append(naive_record(model, fact, first))
    for fact, record in zip(facts, expected, strict=True):
        mine = result.records[result.records["case_id"] == str(fact.case_id)].set_index("metric")["value"]
        assert dict(mine) == pytest.approx(record, rel=1e-4, abs=1e-6, nan_ok=True)
    for name in expected[0]:
        there = [record[name] for record in expected if not math.isnan(record[name])]
        assert values(result)[name] == pytest.approx(sum(there) / len(there), rel=1e-4, abs=1e-6)
    assert values(result)["S"] == 0.0  # nothing was edited, so ES is 0
    assert result.n_known == result.n_total == len(facts)


def test_an_edit_is_seen_and_undone() -> None:
    model, facts = tiny_model("gpt2"), known_facts()
    before = model.logits([fact.rewrite_prompt for fact in facts])
    plain, pushed = values(quiet(model, NoEdit(), facts)), values(quiet(model, Push(), facts))
    assert (plain["Acc"], pushed["Acc"], pushed["Gen"]) == (0.0, 1.0, 1.0)
    assert plain["ES"] == 0.0
    assert pushed["ES"] > 0.5  # the push hurts the later tokens of a long object
    assert pushed["Spec"] < plain["Spec"] == 1.0
    assert torch.equal(model.logits([fact.rewrite_prompt for fact in facts]), before)


def test_a_hook_at_the_last_position_acts_as_in_generation() -> None:
    """What the edited model writes greedily is all argmax when it is scored; one padded pass does not see it."""
    model, fact = tiny_model("gpt2"), known_facts()[0]
    with Push().apply(model, [fact]) as edited:
        ids = model.tokenize(fact.rewrite_prompt)
        row, written = ids, []
        for _ in range(3):
            written.append(int(edited.logits([row])[0].argmax()))
            row = torch.cat([row, torch.tensor(written[-1:])])
        scored = score_pairs(edited, [(ids, torch.tensor(written))])[0]
        whole, mask = model.pad([row])
        one_pass = edited.forward(whole, mask)[0, len(ids) - 1]
    assert int(model.continuation(fact.rewrite_prompt, fact.target_new)[1][0]) == written[0]
    assert scored.next_id == written[0]
    assert int(one_pass.argmax()) != written[0]


def test_a_silent_gate_counts_as_specific() -> None:
    model, facts = tiny_model("gpt2"), known_facts()
    ungated = quiet(model, Push(), facts).prompts
    gated = quiet(model, GatedPush(word="Rome"), facts)
    assert ungated["gate_fired"].isna().all()
    fired = gated.prompts.set_index(["case_id", "role", "index"])["gate_fired"]
    assert bool(fired["0", "neighborhood", 0])
    assert not bool(fired["0", "neighborhood", 1])
    assert values(gated)["Spec"] > values(quiet(model, Push(), facts))["Spec"]
    assert values(quiet(model, GatedPush(word="nowhere"), facts))["Spec"] == 1.0


def test_scores_are_over_the_known_facts_and_all_can_be_asked_for() -> None:
    model, facts = tiny_model("gpt2"), (*known_facts(), unknown_fact())
    result = quiet(model, Push(), facts)
    table = result.summary()
    assert (result.n_known, result.n_total) == (len(facts) - 1, len(facts))
    assert set(table["n_known"]) == {len(facts) - 1}
    assert set(table["n_total"]) == {len(facts)}
    by_name, over_all = table.set_index("metric")["n"], result.summary(over="all").set_index("metric")["n"]
    assert (by_name["ES"], over_all["ES"]) == (len(facts) - 1, len(facts))
    assert by_name["Gen"] == over_all["Gen"] == len(facts) - 1  # the unknown one has no paraphrases
    with pytest.raises(InputError, match="over: expected 'known' or 'all'"):
        result.summary(over="some")  # type: ignore[arg-type]


def test_a_model_that_knows_nothing_gets_no_score_and_no_edit() -> None:
    editor = Push()
    result = quiet(tiny_model("gpt2"), editor, [unknown_fact(1), unknown_fact(2)])
    table = result.summary()
    assert editor.seen == []
    assert (result.n_known, result.n_total) == (0, 2)
    assert table["value"].isna().all()
    assert (table["n"] == 0).all()
    assert set(table["note"]) == {KNOWS_NONE}
    assert list(table["metric"])[-6:] == ["Acc", "Gen", "Spec", "S", "KL", "Top1"]
    assert KNOWS_NONE in result.notes


@dataclass(frozen=True)
class Break:
    """Writes a NaN into the residual stream of one case."""

    case_id: int
    name: str = "break"
    needs_selection = False

    @contextlib.contextmanager
    def apply(self, model: HookedModel, facts: FactEdit | Sequence[FactEdit]) -> Iterator[HookedModel]:
        assert not isinstance(facts, FactEdit)
        hit = facts[0].case_id == self.case_id
        with model.hooks([("blocks.0.hook_mlp_out", lambda x, hook: x * math.nan if hit else None)]):
            yield model


def test_nan_stays_nan_and_is_counted() -> None:
    facts = known_facts()
    result = quiet(tiny_model("gpt2"), Break(1), facts)
    table = result.summary().set_index("metric")
    assert table["value"].isna().all()
    assert (table["n_nan"] == 1).all()
    assert table.loc["ES", "n"] == len(facts)
    assert table[["low", "high"]].isna().all(axis=None)
    clean = quiet(tiny_model("gpt2"), Break(-1), facts).summary()
    assert not clean["value"].isna().any()
    assert (clean["n_nan"] == 0).all()


def test_an_edit_to_the_same_object_is_refused_for_it_would_tie_and_so_fail() -> None:
    fact = known_facts()[0]
    with pytest.raises(InputError, match="target_new: expected another object than target_true"):
        replace(fact, target_new=fact.target_true)
    same = replace(fact)
    object.__setattr__(same, "target_new", same.target_true)  # what is refused, measured all the same
    found = values(quiet(tiny_model("gpt2"), NoEdit(), [same]))
    assert (found["ES"], found["NS"], found["Spec"], found["EM"]) == (0.0, 0.0, 0.0, 0.0)


def test_doubts_are_scored_when_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiny, "N_CTX", 512)  # the weights stay: LLaMA has none that depend on the context
    model = load_model(tiny.build("llama", tmp_path), device="cpu")
    result = quiet(model, Push(), known_facts("llama"), families=("doubt",))
    assert list(result.summary()["metric"]) == ["DI", "DII", "KL", "Top1"]
    assert (values(result)["DI"], values(result)["DII"]) == (1.0, 1.0)
    assert set(result.prompts["role"]) == {"doubt_1", "doubt_2"}


def test_intervals_say_what_they_are() -> None:
    table = quiet(tiny_model("gpt2"), Push(), known_facts()).summary().set_index("metric")
    assert (table.loc["ES", "interval"], table.loc["EM", "interval"]) == ("wilson", "bootstrap")
    assert table.loc["NS", "interval"] == "bootstrap"
    assert table.loc["Acc", "interval"] == "wilson"
    assert table.loc["Acc", "low"] < table.loc["Acc", "value"] == table.loc["Acc", "high"] == 1.0
    assert ((table["low"] <= table["value"] + 1e-12) & (table["value"] <= table["high"] + 1e-12)).all()


def test_batch_size_changes_rounding_only() -> None:
    model, facts = tiny_model("gpt2"), known_facts()
    small, large = (values(quiet(model, Push(), facts, batch_size=size)) for size in (3, 64))
    assert small == pytest.approx(large, rel=1e-5, abs=1e-6)


def test_a_result_comes_back_from_disk_and_is_drawn(tmp_path: Path) -> None:
    for facts in (known_facts(), [unknown_fact()]):
        result = quiet(tiny_model("gpt2"), Push(), facts)
        again = Evaluation.load(result.save(tmp_path / str(len(facts))))
        assert again.equals(result)
        assert again.summary().equals(result.summary())
        shares = [name for name in again.summary()["metric"] if name not in ("KL", "GE")]
        drawn = [label.get_text().split(" ")[0] for label in again.plot().axes.get_yticklabels()]
        assert sorted(drawn) == sorted(shares)
        assert result.to_frame().equals(result.records)


def test_the_flat_schema_is_noted_beside_its_paraphrase_scores() -> None:
    flat = [replace(fact, source_schema="easyedit") for fact in known_facts()]
    result = quiet(tiny_model("gpt2"), NoEdit(), flat)
    notes = result.summary().set_index("metric")["note"]
    assert NOT_ROMES_PS in result.notes
    assert {name for name, note in notes.items() if note} == {"PS", "PM", "PS_acc", "Gen", "S"}
    assert not quiet(tiny_model("gpt2"), NoEdit(), known_facts()).notes


def test_progress_is_silent_where_asked(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model("gpt2")
    capfd.readouterr()  # what saving the model says
    quiet(model, NoEdit(), known_facts()[:1])
    assert capfd.readouterr() == ("", "")
    monkeypatch.setattr("experiments.progress.SECONDS", 0.0)  # between two lines where there is no terminal
    evaluate(model, NoEdit(), known_facts()[:1])
    assert "no_edit" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("facts", "options", "says"),
    [
        ([], {}, "facts: expected at least one"),
        ([unknown_fact(), unknown_fact()], {}, "record 1: case_id 99 occurs twice"),
        ([unknown_fact()], {"families": ("ripple",)}, r"families: expected some of .* found \['ripple'\]"),
        ([unknown_fact()], {"families": ()}, "families: expected some of"),
        ([unknown_fact()], {"batch_size": 0}, "batch_size"),
        (
            [unknown_fact()],
            {"mode": "twice"},
            "mode: expected one of single, sequential, batch, found 'twice'",
        ),
        ([unknown_fact(), replace(unknown_fact(5), subject="Lily " * 200)], {}, "at most 128 tokens"),
    ],
)
def test_bad_input_is_refused_before_anything_is_edited(facts: Any, options: Any, says: str) -> None:
    editor = Push()
    with pytest.raises(InputError, match=says):
        quiet(tiny_model("gpt2"), editor, facts, **options)
    assert editor.seen == []


def test_a_target_that_the_prompt_swallows_names_its_record() -> None:
    facts = [unknown_fact(1), replace(unknown_fact(2), paraphrase_prompts=("Lily lives in ",))]
    with pytest.raises(InputError, match=r"record 1 \(case_id 2\): target_new behind a paraphrase prompt"):
        check_facts(tiny_model("gpt2"), facts)
    assert check_facts(tiny_model("gpt2"), facts[:1], families=("argmax", "argmax")) == ("argmax",)


# --- together ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Stack:
    """Adds to the logits of the new objects of all its facts; edits add up, one upon the other or at once."""

    strength: float = 20.0
    name: str = "stack"
    needs_selection = False
    seen: list[Any] = field(default_factory=list, repr=False, compare=False)

    @contextlib.contextmanager
    def apply(self, model: HookedModel, facts: FactEdit | Sequence[FactEdit]) -> Iterator[HookedModel]:
        assert not isinstance(facts, FactEdit)
        self.seen.append([fact.case_id for fact in facts])
        tokens = [int(model.continuation(f.rewrite_prompt, f.target_new)[1][0]) for f in facts]

        def push(logits: torch.Tensor, hook: object) -> torch.Tensor:
            moved = logits.clone()
            for token in tokens:
                moved[:, -1, token] += self.strength
            return moved

        with model.hooks([("unembed.hook_out", push)]):
            yield model
        self.seen.append("undone")


def test_edits_together_are_all_in_when_they_are_scored_and_undone_in_order() -> None:
    model, facts = tiny_model("gpt2"), known_facts()
    before = model.logits([fact.rewrite_prompt for fact in facts])
    results = {}
    for mode in ("single", "sequential", "batch"):
        editor = Stack()
        results[mode] = quiet(model, editor, facts, mode=mode)
        ids = [fact.case_id for fact in facts]
        groups = [ids] if mode == "batch" else [[i] for i in ids]
        undone = ["undone"] * len(groups)
        alone = [step for pair in zip(groups, undone, strict=True) for step in pair]
        assert editor.seen == (alone if mode == "single" else [*groups, *undone])
        assert torch.equal(model.logits([fact.rewrite_prompt for fact in facts]), before)
    assert values(results["sequential"]) == pytest.approx(values(results["batch"]), abs=1e-6)
    # three pushes at once: the other facts' objects come out at these prompts too
    assert values(results["batch"])["Acc"] < values(results["single"])["Acc"] == 1.0
    assert (results["batch"].mode, results["single"].mode) == ("batch", "single")


@pytest.mark.parametrize("mode", ["sequential", "batch"])
def test_locality_is_against_the_unedited_model_however_many_edits_are_in(mode: Any) -> None:
    model, facts = tiny_model("gpt2"), known_facts()
    result = quiet(model, Stack(), facts, mode=mode, families=("token", "argmax"))
    plain = quiet(model, NoEdit(), facts, families=("token", "argmax"))
    near, base = (r.prompts[r.prompts["role"] == "neighborhood"].reset_index() for r in (result, plain))
    assert near["base_argmax"].tolist() == base["argmax"].tolist() == base["base_argmax"].tolist()
    assert near["base_p_true"].tolist() == pytest.approx(base["p_true"].tolist(), rel=1e-4)
    assert values(plain)["Loc_tok"] == values(plain)["Loc_all"] == 1.0
    assert values(result)["Loc_tok"] < 1.0


def test_edits_together_resume_as_one(tmp_path: Path) -> None:
    model, facts = tiny_model("gpt2"), known_facts()
    run = open_run(tmp_path)
    first = quiet(model, Stack(), facts, mode="batch", run=run)
    assert run.done() == {f"stack-batch-{fact.case_id}" for fact in facts}
    again = Stack()
    assert quiet(model, again, facts, mode="batch", run=run).equals(first)
    assert again.seen == []
    next((tmp_path / "cases").iterdir()).unlink()
    assert quiet(model, again, facts, mode="batch", run=run).equals(first)
    assert len(again.seen) == 2
    with pytest.raises(InputError, match="choose another folder"):  # the same fact among fewer others
        quiet(model, Stack(), facts[:2], mode="batch", run=run)


def test_neighbours_may_have_answers_of_their_own() -> None:
    model, fact = tiny_model("gpt2"), known_facts()[0]
    own = replace(fact, neighborhood_answers=("basketball",) * len(fact.neighborhood_prompts))
    result = quiet(model, NoEdit(), [own])
    near = result.prompts[result.prompts["role"] == "neighborhood"].iloc[0]
    assert near["nll_true"] == pytest.approx(
        naive(model, own.neighborhood_prompts[0], "basketball")[0], rel=1e-5
    )
    notes = result.summary().set_index("metric")["note"]
    assert {name for name, note in notes.items() if note} == {"NS", "NM", "NS_acc", "Spec", "S"}


# --- runs -------------------------------------------------------------------------------------------


def open_run(folder: Path) -> RunFolder:
    return RunFolder.open(folder, {"editor": "push"}, provenance={"model": {}})


@dataclass(frozen=True)
class Interrupted(Push):
    """The same editor, as far as its numbers go, until somebody presses Ctrl-C at one case."""

    at: int = 2
    name: str = "push"

    @contextlib.contextmanager
    def apply(self, model: HookedModel, facts: FactEdit | Sequence[FactEdit]) -> Iterator[HookedModel]:
        assert not isinstance(facts, FactEdit)
        if facts[0].case_id == self.at and "stopped" not in self.seen:
            self.seen.append("stopped")
            raise KeyboardInterrupt
        with super().apply(model, facts) as edited:
            yield edited


def case_files(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in (folder / "cases").iterdir()}


def test_an_interrupted_evaluation_goes_on_and_ends_the_same(tmp_path: Path) -> None:
    model, facts = tiny_model("gpt2"), (*known_facts(), unknown_fact())
    editor = Interrupted()
    whole = quiet(model, replace(editor, seen=["stopped"]), facts, run=open_run(tmp_path / "whole"))
    with pytest.raises(KeyboardInterrupt):
        quiet(model, editor, facts, run=open_run(tmp_path / "cut"))
    assert open_run(tmp_path / "cut").done() == {"push-0", "push-1"}
    assert editor.seen == [0, 1, "stopped"]
    resumed = quiet(model, editor, facts, run=open_run(tmp_path / "cut"))
    assert editor.seen[3:] == [fact.case_id for fact in facts[2:]]
    assert resumed.equals(whole)
    assert case_files(tmp_path / "cut") == case_files(tmp_path / "whole")


def test_cases_of_another_editor_model_or_fact_are_not_taken_over(tmp_path: Path) -> None:
    facts = known_facts()[:1]
    quiet(tiny_model("gpt2"), Push(), facts, run=open_run(tmp_path))
    quiet(tiny_model("gpt2"), Push(name="other"), facts, run=open_run(tmp_path))
    assert open_run(tmp_path).done() == {"push-0", "other-0"}
    others: list[tuple[Arch, Any, Any, Any]] = [
        ("gpt2", Push(strength=1.0), facts, {}),
        ("gpt2-untied", Push(), facts, {}),
        ("gpt2", Push(), [replace(facts[0], target_new="Rome")], {}),
        ("gpt2", Push(), facts, {"families": ("argmax",)}),
    ]
    for arch, editor, changed, options in others:
        with pytest.raises(
            InputError, match=r"measured with another model, editor, fact|'strength' is 50\.0 there"
        ):
            quiet(tiny_model(arch), editor, changed, run=open_run(tmp_path), **options)


def test_a_case_id_that_is_no_file_name_is_refused_first(tmp_path: Path) -> None:
    editor = Push()
    with pytest.raises(InputError, match="case_id"):
        quiet(
            tiny_model("gpt2"),
            editor,
            [unknown_fact(), replace(unknown_fact(), case_id="a/b")],
            run=open_run(tmp_path),
        )
    assert open_run(tmp_path).done() == set()


@pytest.mark.shared
def test_a_random_model_knows_none_of_counterfact(shared_dir: Path) -> None:
    facts = load_facts(shared_dir / "data" / "counterfact" / "counterfact-val.json", limit=5)
    result = quiet(tiny_model("gpt2"), NoEdit(), facts)
    assert result.n_known == 0
    assert set(result.summary()["note"]) == {KNOWS_NONE}
    assert len(FactQuestions(facts[0]).read_by(["argmax"])) == 3
