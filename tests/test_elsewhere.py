"""KL and Top1 on running text: held against plain transformers, passage by passage and word by word."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from experiments.runs import RunFolder
from mechedit.editors import IKE, MEGA, NoEdit
from mechedit.editors.steering.attach import attach
from mechedit.evaluation.elsewhere import LENGTH, N_PASSAGES, TEXT, Cost, passages, running_text
from mechedit.evaluation.evaluate import evaluate
from mechedit.evaluation.result import Evaluation
from mechedit.factworld import edits
from mechedit.models.hooked import HookedModel
from reports.errors import InputError
from tests.tiny import Arch, tiny_folder, tiny_model

COLUMNS = ["KL", "Top1"]


@dataclass(frozen=True)
class Nudge:
    """Adds the same number to the first column of a layer's W_out."""

    size: float = 0.5
    name: str = "nudge"
    needs_selection = False

    @contextlib.contextmanager
    def apply(self, model: HookedModel, facts: Any) -> Iterator[HookedModel]:
        weight = model.W_out(1)[:, 0]
        before = weight.clone()
        weight += self.size
        try:
            yield model
        finally:
            weight.copy_(before)


def naive(p: list[list[float]], q: list[list[float]]) -> tuple[float, float]:
    """KL and Top1 of probabilities, one passage and one token after the other."""
    kl = same = 0.0
    for before, after in zip(p, q, strict=True):
        for a, b in zip(before, after, strict=True):
            kl += a * math.log(a / b)
        same += before.index(max(before)) == after.index(max(after))
    return kl / len(p), same / len(p)


@torch.no_grad()
def plain_probabilities(hf: Any, tokenizer: Any, texts: Any, prefix: str = "") -> list[list[float]]:
    rows = []
    for text in texts:
        ids = tokenizer(prefix + text, return_tensors="pt").input_ids
        rows.append(hf(ids).logits[0, -1].double().softmax(-1).tolist())
    return rows


@pytest.mark.parametrize("arch", ["gpt2", "llama-gqa"])
def test_a_changed_weight_costs_what_plain_transformers_says(arch: Arch) -> None:
    model, folder = tiny_model(arch), tiny_folder(arch)
    hf, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    text = running_text(model)
    p = plain_probabilities(hf, tokenizer, text.texts)
    weight = hf.get_parameter(
        "transformer.h.1.mlp.c_proj.weight" if arch == "gpt2" else "model.layers.1.mlp.down_proj.weight"
    )
    with torch.no_grad():
        (weight[:, 0] if arch == "gpt2" else weight[0]).add_(0.5)  # GPT-2 stores [in, out], LLaMA [out, in]
    q = plain_probabilities(hf, tokenizer, text.texts)
    with Nudge().apply(model, ()) as edited:
        cost = text.cost(edited)
    kl, top1 = naive(p, q)
    assert cost.n == len(text.texts) == N_PASSAGES
    assert cost.kl == pytest.approx(kl, rel=1e-3)
    assert cost.top1 == top1
    assert kl > 0.01
    assert top1 < 1
    assert naive(q, p)[0] != pytest.approx(kl, rel=5e-3)  # the other direction is another number


def test_no_edit_costs_exactly_nothing() -> None:
    model = tiny_model("gpt2")
    assert running_text(model).cost(model) == Cost(0.0, 1.0, N_PASSAGES, running_text(model).digest)


def test_what_stands_before_every_prompt_counts(factworld_gpt2: HookedModel) -> None:
    model, fact = factworld_gpt2, edits(1)[0]
    text = running_text(model)
    folder = Path(__file__).parent.parent / "mechedit" / "factworld" / "models" / "gpt2"
    hf, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    p = plain_probabilities(hf, tokenizer, text.texts)
    with IKE().apply(model, fact) as edited:
        cost = text.cost(edited)
        q = plain_probabilities(hf, tokenizer, text.texts, prefix=edited.prefix)
    kl, top1 = naive(p, q)
    assert cost.kl == pytest.approx(kl, rel=1e-3)
    assert cost.top1 == top1


def test_a_steered_model_pays_where_it_steers(factworld_gpt2: HookedModel) -> None:
    """Against the same edit on plain transformers; behind a gate that stays closed it costs nothing."""
    model, fact = factworld_gpt2, edits(1)[0]
    text = running_text(model)
    folder = Path(__file__).parent.parent / "mechedit" / "factworld" / "models" / "gpt2"
    hf, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    p = plain_probabilities(hf, tokenizer, text.texts)
    with MEGA(window=(5, 7), alpha=1.0, gate="always").apply(model, fact) as edited:
        cost = text.cost(edited)
        with attach(hf, edited.edits):
            q = plain_probabilities(hf, tokenizer, text.texts)
    assert cost.kl == pytest.approx(naive(p, q)[0], rel=1e-3)
    assert cost.kl > 0.5
    shut = MEGA(window=(5, 7), alpha=1.0, gate="hidden", gate_layer=5, threshold=1e-9)
    with shut.apply(model, fact) as edited:
        assert text.cost(edited) == Cost(0.0, 1.0, N_PASSAGES, text.digest)


# -- passages --------------------------------------------------------------------------------------------------------


def test_passages_are_short_and_spread_and_those_of_the_text() -> None:
    model = tiny_model("gpt2")
    taken = passages(model, TEXT.read_text(encoding="utf-8"))
    words = TEXT.read_text(encoding="utf-8").split()
    assert len(taken) == N_PASSAGES
    assert all(len(model.tokenize(passage)) <= LENGTH for passage in taken)
    assert taken[0].split()[0] == words[0]
    flat = " ".join(words)
    places = [flat.index(passage) for passage in taken]
    assert places == sorted(places)
    assert places[-1] > 0.9 * len(flat)


def test_a_text_without_spaces_and_a_short_one() -> None:
    model = tiny_model("gpt2")
    (passage,) = passages(model, "東京は日本の首都であり、世界最大の都市圏の一つである。" * 20)
    assert 1 <= len(model.tokenize(passage)) <= LENGTH
    assert passages(model, "One word") == ("One word",)


def test_a_text_without_a_word_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text(" \n\n ")
    with pytest.raises(InputError, match=r"^text: expected running text, found no word in .*empty\.txt"):
        running_text(tiny_model("gpt2"), tmp_path / "empty.txt")
    with pytest.raises(InputError, match=r"^text: "):
        running_text(tiny_model("gpt2"), tmp_path / "absent.txt")


def test_passages_that_no_longer_fit_are_left_out_of_n(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("gpt2")
    text = running_text(model)
    lengths = sorted(len(ids) for ids in model.encode(text.texts))
    monkeypatch.setattr(type(model), "n_ctx", lengths[11])
    assert text.cost(model).n == sum(length <= lengths[11] for length in lengths)
    monkeypatch.setattr(type(model), "n_ctx", 1)
    cost = text.cost(model)
    assert (cost.n, math.isnan(cost.kl), math.isnan(cost.top1)) == (0, True, True)


def test_logits_that_are_no_numbers_give_none() -> None:
    model = tiny_model("gpt2")
    text = running_text(model)
    with Nudge(math.nan).apply(model, ()) as edited:
        cost = text.cost(edited)
    assert math.isnan(cost.kl)
    assert math.isnan(cost.top1)
    assert cost.n == N_PASSAGES


# -- in evaluate -----------------------------------------------------------------------------------------------------


def row(result: Evaluation, metric: str) -> pd.Series:
    return result.summary().set_index("metric").loc[metric]


def test_evaluate_says_what_each_edit_costs(factworld_gpt2: HookedModel) -> None:
    facts = edits(3)
    plain = evaluate(factworld_gpt2, NoEdit(), facts, progress=False)
    nudged = evaluate(factworld_gpt2, Nudge(0.05), facts, progress=False)
    assert (row(plain, "KL")["value"], row(plain, "Top1")["value"]) == (0.0, 1.0)
    assert row(nudged, "KL")["value"] > 0
    assert row(nudged, "KL")["n"] == nudged.n_known
    assert row(nudged, "KL")["low"] <= row(nudged, "KL")["value"] <= row(nudged, "KL")["high"]
    assert row(nudged, "Top1")["n_prompts"] == N_PASSAGES * nudged.n_known
    assert list(plain.elsewhere["KL"]) == [0.0] * 3


@pytest.mark.parametrize("mode", ["sequential", "batch"])
def test_facts_edited_together_cost_once(mode: Any, factworld_gpt2: HookedModel) -> None:
    result = evaluate(factworld_gpt2, Nudge(0.05), edits(3), mode=mode, progress=False)
    assert len(result.elsewhere) == 1
    assert row(result, "KL")["n"] == 1
    assert row(result, "KL")["value"] > 0


def test_a_text_of_the_users(tmp_path: Path, factworld_gpt2: HookedModel) -> None:
    (tmp_path / "a.txt").write_text("Cats sleep in the sun. " * 40)
    facts = edits(2)
    named = evaluate(factworld_gpt2, Nudge(0.05), facts, text=tmp_path / "a.txt", progress=False)
    own = evaluate(factworld_gpt2, Nudge(0.05), facts, progress=False)
    assert row(named, "KL")["value"] != row(own, "KL")["value"]
    pd.testing.assert_frame_equal(named.records, own.records)


def test_a_run_goes_on_and_another_text_is_refused(tmp_path: Path, factworld_gpt2: HookedModel) -> None:
    facts, run = edits(2), RunFolder.open(tmp_path / "run", {}, provenance={})
    first = evaluate(factworld_gpt2, Nudge(0.05), facts, progress=False, run=run)
    again = evaluate(factworld_gpt2, Nudge(0.05), facts, progress=False, run=run)
    pd.testing.assert_frame_equal(first.elsewhere, again.elsewhere)
    (tmp_path / "a.txt").write_text("Cats sleep in the sun. " * 40)
    with pytest.raises(InputError):
        evaluate(factworld_gpt2, Nudge(0.05), facts, progress=False, run=run, text=tmp_path / "a.txt")


def test_a_run_of_an_earlier_version_opens_without_costs(tmp_path: Path, factworld_gpt2: HookedModel) -> None:
    facts, run = edits(2), RunFolder.open(tmp_path / "run", {}, provenance={})
    evaluate(factworld_gpt2, Nudge(0.05), facts, progress=False, run=run)
    for file in (tmp_path / "run" / "cases").glob("*.json"):
        case = json.loads(file.read_text())
        del case["elsewhere"]
        file.write_text(json.dumps(case))
    old = evaluate(factworld_gpt2, Nudge(0.05), facts, progress=False, run=run)
    assert row(old, "KL")["n"] == 0
    assert math.isnan(row(old, "KL")["value"])
    assert row(old, "Acc")["n"] == old.n_known


def test_a_saved_result_of_an_earlier_version_loads(tmp_path: Path, factworld_gpt2: HookedModel) -> None:
    result = evaluate(factworld_gpt2, NoEdit(), edits(2), progress=False)
    result.save(tmp_path / "saved")
    pd.testing.assert_frame_equal(Evaluation.load(tmp_path / "saved").summary(), result.summary())
    record = json.loads((tmp_path / "saved" / "result.json").read_text())
    del record["frames"]["elsewhere"]
    (tmp_path / "saved" / "result.json").write_text(json.dumps(record))
    old = Evaluation.load(tmp_path / "saved")
    assert (row(old, "KL")["n"], math.isnan(row(old, "KL")["value"])) == (0, True)
    assert row(old, "Acc")["n"] == row(result, "Acc")["n"]


@pytest.mark.real
def test_on_a_real_model_no_edit_costs_nothing_and_a_nudge_what_it_says(smollm2: HookedModel) -> None:
    text = running_text(smollm2)
    assert text.cost(smollm2) == Cost(0.0, 1.0, N_PASSAGES, text.digest)
    p = text.logps.double().exp().tolist()
    with Nudge(3.0).apply(smollm2, ()) as edited:
        cost = text.cost(edited)
        q = edited.logits(text.texts).double().softmax(-1).tolist()
    assert cost.kl == pytest.approx(naive(p, q)[0], rel=1e-2)
