"""The explanation of an edit: its terms against the logits, the weights and `attribution.contrast`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mechedit.anatomy.explain import Explanation, explain
from mechedit.attribution import contrast
from mechedit.cli import main
from mechedit.data.facts import FactEdit
from mechedit.editors import FT, MEGA, NoEdit
from mechedit.factworld import edits
from mechedit.models.hooked import HookedModel, load_model
from reports.errors import InputError


@pytest.fixture(scope="module")
def fact() -> FactEdit:
    return edits(2, seed=8)[1]


@pytest.fixture(scope="module")
def explanation(factworld_gpt2: HookedModel, fact: FactEdit) -> Explanation:
    return explain(factworld_gpt2, FT(), fact)


def token(model: HookedModel, prompt: str, target: str) -> int:
    return int(model.continuation(prompt, target)[1][0])


def test_texts_are_what_the_models_write(
    factworld_gpt2: HookedModel, fact: FactEdit, explanation: Explanation
) -> None:
    model, texts = factworld_gpt2, explanation.texts
    prompts = [fact.rewrite_prompt, *fact.paraphrase_prompts, *fact.neighborhood_prompts[:3]]
    assert texts["prompt"].tolist() == prompts
    assert texts["before"].tolist() == model.generate(prompts, max_new_tokens=12)
    with FT().apply(model, fact) as edited:
        assert texts["after"].tolist() == edited.generate(prompts, max_new_tokens=12)
        says = edited.logits(prompts).argmax(-1).tolist()
    new = token(model, fact.rewrite_prompt, fact.target_new)
    wanted = [new] * (1 + len(fact.paraphrase_prompts)) + model.logits(prompts[-3:]).argmax(-1).tolist()
    assert texts["ok"].tolist() == [a == b for a, b in zip(says, wanted, strict=True)]
    assert texts["changed"].tolist() == [a != b for a, b in zip(texts["before"], texts["after"], strict=True)]


@pytest.mark.parametrize("editor", [FT(), MEGA(window=(5, 7), alpha=2.0, gate="always")], ids=["ft", "mega"])
def test_terms_sum_to_the_margin_of_the_logits(
    factworld_gpt2: HookedModel, fact: FactEdit, editor: Any
) -> None:
    model = factworld_gpt2
    result = explain(model, editor, fact, neighbours=0)
    sums = result.units[result.units["kind"].isin(["sublayer", "rest"])].groupby(
        ["role", "index"], sort=False
    )
    margins = result.texts.set_index(["role", "index"])
    for stage in ("before", "after"):
        np.testing.assert_allclose(sums[stage].sum(), margins[f"margin_{stage}"], atol=1e-4)
    pair = [int(model.tokenizer(margins.iloc[0][name]).input_ids[0]) for name in ("wanted", "against")]
    logits = model.logits([fact.rewrite_prompt])[0]
    assert margins.iloc[0]["margin_before"] == pytest.approx(
        float(logits[pair[0]] - logits[pair[1]]), abs=1e-4
    )
    with editor.apply(model, fact) as edited:
        logits = edited.logits([fact.rewrite_prompt])[0]
    assert margins.iloc[0]["margin_after"] == pytest.approx(
        float(logits[pair[0]] - logits[pair[1]]), abs=1e-4
    )


def test_units_are_those_of_contrast_and_of_the_weights(factworld_gpt2: HookedModel, fact: FactEdit) -> None:
    model = factworld_gpt2
    result = explain(model, NoEdit(), fact, neighbours=0)
    units = result.units[(result.units["role"] == "rewrite")]
    scores = contrast(model, fact.rewrite_prompt, fact.target_new, fact.target_true).layers
    mine = units[units["kind"] == "sublayer"].set_index("unit")["before"]
    for row in scores.itertuples():
        name = {"attn": "attention", "mlp": "MLP"}[str(row.module)]
        assert mine[f"{name} L{row.layer}"] == pytest.approx(row.score, abs=1e-9)
    view = model.residual_view(model.tokenize(fact.rewrite_prompt))
    norm = model.final_norm
    sigma = (view.resid_final.double().var(unbiased=False) + norm.eps).sqrt()
    new, old = (token(model, fact.rewrite_prompt, t) for t in (fact.target_new, fact.target_true))
    direction = (model.W_U[:, new] - model.W_U[:, old]).double() * norm.weight.double() / sigma
    direction = direction - direction.mean()
    heads = units[units["kind"] == "head"].set_index("unit")["before"]
    for layer in (0, 5):
        bias = model.b_O(layer)
        assert bias is not None
        attn = float(scores[(scores["layer"] == layer) & (scores["module"] == "attn")]["score"].iloc[0])
        total = sum(heads[f"L{layer}.H{h}"] for h in range(6)) + float(bias.double() @ direction)
        assert total == pytest.approx(attn, abs=1e-5)
    neurons = units[units["kind"] == "neuron"]
    for row in neurons.head(5).itertuples():
        layer, index = map(int, str(row.unit)[1:].split("."))
        value = view.mlp_post[layer, -1, index].double() * (model.W_out(layer)[index].double() @ direction)
        assert row.before == pytest.approx(float(value), abs=1e-5)
    every = torch.stack(
        [view.mlp_post[i, -1].double() * (model.W_out(i).double() @ direction) for i in range(8)]
    )
    assert neurons["after"].min() == pytest.approx(float(every.min()), abs=1e-5)


def test_an_edit_that_does_nothing_is_overruled_by_what_is_there(
    factworld_gpt2: HookedModel, fact: FactEdit
) -> None:
    result = explain(factworld_gpt2, NoEdit(), fact)
    assert not result.texts["changed"].any()
    assert (result.units["delta"] == 0).all()
    assert result.texts.loc[0, "margin_after"] < 0
    over = result.overruled()
    assert (over["after"] < 0).all()
    assert over["after"].is_monotonic_increasing
    assert "FAILED" in result.lines()[0]
    assert "overruled by" in result.lines()[0]


def test_what_helped_and_what_overruled_are_asked_by_prompt(explanation: Explanation) -> None:
    helped = explanation.helped(k=2)
    assert helped["delta"].is_monotonic_decreasing
    assert helped["delta"].iloc[0] > 0
    assert explanation.lines()[0].startswith("rewrite ok:")
    with pytest.raises(InputError, match="expected one that was asked"):
        explanation.helped("paraphrase", 7)


def test_it_comes_back_from_disk(explanation: Explanation, tmp_path: Path) -> None:
    assert Explanation.load(explanation.save(tmp_path / "x")).equals(explanation)


def test_the_command_edits_explains_and_keeps(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, fact: FactEdit
) -> None:
    inline = {name: getattr(fact, name) for name in ("subject", "prompt", "target_true", "target_new")}
    argv = ["edit", "--editor", "ft", "--fact", json.dumps(inline), "--quiet"]
    assert main([*argv, "--json", "--out", str(tmp_path / "why")]) == 0
    rows = json.loads(capsys.readouterr().out)["prompts"]
    assert [row["role"] for row in rows] == ["rewrite"]
    assert rows[0]["after"].startswith(f" {fact.target_new}")
    assert rows[0]["helped"][0]["delta"] > 0
    assert Explanation.load(tmp_path / "why").subject == fact.subject
    assert main([*argv, "--explain"]) == 0
    assert "rose most at" in capsys.readouterr().out


def test_a_line_break_in_a_text_does_not_end_the_line(factworld_gpt2: HookedModel) -> None:
    why = explain(factworld_gpt2, NoEdit(), edits(1)[0])
    why.texts.loc[0, "before"] = " Paris.\n\nThe"
    assert " | before: Paris.⏎⏎The | after:" in why.lines()[0].splitlines()[0]


@pytest.mark.parametrize(
    ("extra", "says"),
    [
        (("--fact", '{"subject": "Ann"}'), "fact"),
        (("--fact", "{nonsense"), "fact"),
        (("--fact", "no/such.json"), "no/such.json"),
        (("--fact", "world", "--case", "x"), "case"),
        (("--fact", "world", "--editor", "roma"), "roma"),
        (("--fact", "world", "--editor", "ft", "--gate", "always"), "gate"),
    ],
)
def test_bad_input_is_one_line(capsys: pytest.CaptureFixture[str], extra: tuple[str, ...], says: str) -> None:
    assert main(["edit", *extra]) == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1
    assert says in error


def test_an_edit_is_kept_and_one_without_weights_is_refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, fact: FactEdit
) -> None:
    inline = {name: getattr(fact, name) for name in ("subject", "prompt", "target_true", "target_new")}
    argv = ["edit", "--fact", json.dumps(inline), "--quiet"]
    assert main([*argv, "--editor", "ft", "--save", str(tmp_path / "kept")]) == 0
    kept = load_model(tmp_path / "kept", device="cpu")
    assert kept.generate([fact.rewrite_prompt], max_new_tokens=3)[0].startswith(f" {fact.target_new}")
    assert main([*argv, "--editor", "no_edit", "--save", str(tmp_path / "none")]) == 2
    assert "changes no weight" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()
