"""Two checkpoints of one model: what differs, against a plain subtraction, and attribution against a second load."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from mechedit.anatomy.checkpoint_contrast import CheckpointContrast, contrast_checkpoints
from mechedit.anatomy.checkpoint_weights import find_weights, under_weights
from mechedit.attribution import attribute
from mechedit.cli import main
from mechedit.data.facts import FactEdit
from mechedit.editors import ROME
from mechedit.editors.weights.corpus import text_corpus
from mechedit.editors.weights.covariance import covariances
from mechedit.editors.weights.weight_edit import LowRank
from mechedit.models.hooked import HookedModel, load_model
from reports import overview
from reports.errors import InputError
from tests.tiny import ARCHS, SENTENCES, Arch, tiny_folder, tiny_model

FACT = FactEdit(
    "Anna Keller",
    "{} works as a",
    "teacher",
    "driver",
    paraphrase_prompts=("What does Anna Keller do? She is a",),
)


def rome() -> ROME:
    c = covariances(tiny_model("gpt2"), text_corpus(SENTENCES * 8, source="s"), layers=[1], progress=False)[1]
    options = {"steps": 3, "lr": 0.5, "weight_decay": 1e-3, "kl_factor": 0.0, "clamp": 4.0}
    return ROME(layer=1, covariance=c, contexts=((2, 3),), **options)  # type: ignore[arg-type]


def plain_difference(base: Path, edited: Path) -> dict[str, Tensor]:
    """Both files whole in memory, subtracted: those that differ."""
    before, after = (load_file(folder / "model.safetensors") for folder in (base, edited))
    assert before.keys() == after.keys()
    return {
        name: (after[name].double() - before[name].double())
        for name in before
        if not torch.equal(before[name], after[name])
    }


@pytest.fixture(scope="module")
def rome_saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Tensor]:
    """A checkpoint that ROME has edited, and the change that it made."""
    model, folder = load_model(tiny_folder("gpt2")), tmp_path_factory.mktemp("rome") / "edited"
    change = rome().change(model, FACT)
    ((part,),) = change.parts.values()
    assert isinstance(part, LowRank)
    with change.apply(model) as edited:
        edited.save_pretrained(folder)
    return folder, (part.left @ part.right).double()


def copy_of(folder: Path, to: Path, change: dict[str, Tensor] | None = None) -> Path:
    shutil.copytree(folder, to)
    if change:
        save_file(load_file(to / "model.safetensors") | change, to / "model.safetensors", {"format": "pt"})
    return to


# --- the weights ------------------------------------------------------------------------------------


def test_romes_update_is_found_as_what_it_is(rome_saved: tuple[Path, Tensor]) -> None:
    folder, change = rome_saved
    result = contrast_checkpoints(tiny_folder("gpt2"), folder)
    (row,) = result.weights.to_dict("records")
    (name,) = plain_difference(tiny_folder("gpt2"), folder)
    assert (row["weight"], row["layer"], row["module"]) == (name, 1, "mlp.c_proj.weight")
    assert row["rank"] == 1
    assert row["norm"] == pytest.approx(float(change.norm()), rel=1e-4)
    assert row["largest"] == pytest.approx(float(change.norm()), rel=1e-4)
    weight = tiny_model("gpt2").W_out(1)
    assert row["share"] == pytest.approx(float(change.norm() / weight.double().norm()), rel=1e-4)
    assert result.n_weights == len(load_file(folder / "model.safetensors"))
    assert "1 of 40 weights differ in layer 1, of rank 1" in repr(result)
    assert result.answers.empty
    with pytest.raises(InputError, match="fact"):
        result.plot()


def test_a_second_direction_is_rank_two_and_another_weight_a_second_row(
    rome_saved: tuple[Path, Tensor], tmp_path: Path
) -> None:
    """What the test above would miss if rank and rows were not read off the weights."""
    folder, _ = rome_saved
    name = "transformer.h.1.mlp.c_proj.weight"
    stored = load_file(folder / "model.safetensors")
    dice = torch.Generator().manual_seed(0)
    more = torch.randn(len(stored[name]), 1, generator=dice) @ torch.randn(
        1, stored[name].shape[1], generator=dice
    )
    bias = "transformer.h.2.attn.c_attn.bias"
    changed = {name: stored[name] + 0.01 * more, bias: stored[bias] + 0.1}
    result = contrast_checkpoints(tiny_folder("gpt2"), copy_of(folder, tmp_path / "more", changed))
    assert result.weights[["layer", "rank"]].to_dict("list") == {"layer": [1, 2], "rank": [2, 1]}


@pytest.mark.parametrize("arch", ARCHS)
def test_a_merged_adapter_against_a_plain_subtraction(arch: Arch, tmp_path: Path) -> None:
    """Made by another tool; saved in shards, without a tokenizer."""
    folder = tmp_path / "merged"
    hf = AutoModelForCausalLM.from_pretrained(tiny_folder(arch))
    targets = ["c_attn"] if arch.startswith("gpt2") else ["q_proj", "v_proj"]
    adapted = get_peft_model(
        hf,
        LoraConfig(
            r=3, target_modules=targets, layers_to_transform=[0, 2], fan_in_fan_out=arch.startswith("gpt2")
        ),
    )
    torch.manual_seed(1)
    for name, weight in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.1)
    merged: Any = adapted.merge_and_unload()
    merged.save_pretrained(folder)
    expected = plain_difference(tiny_folder(arch), folder)
    sharded = tmp_path / "sharded"
    merged.save_pretrained(sharded, max_shard_size="40KB")
    assert len(list(sharded.glob("*.safetensors"))) > 1
    for place in (folder, sharded):
        result = contrast_checkpoints(tiny_folder(arch), place)
        rows = {row["weight"]: row for row in result.weights.to_dict("records")}
        assert rows.keys() == expected.keys()
        assert len(rows) == 2 * len(targets)
        for name, delta in expected.items():
            values = torch.linalg.svdvals(delta)
            assert rows[name]["rank"] == 3 == int((values > 1e-5 * values[0]).sum())
            assert rows[name]["norm"] == pytest.approx(float(delta.norm()), rel=1e-4)
            assert rows[name]["largest"] == pytest.approx(float(values[0]), rel=1e-4)
        assert any("has no tokenizer" in note for note in result.notes)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_the_same_weights_stored_in_another_precision_are_the_same(
    dtype: torch.dtype, tmp_path: Path
) -> None:
    folder = copy_of(tiny_folder("llama"), tmp_path / "stored")
    stored = {name: weight.to(dtype) for name, weight in load_file(folder / "model.safetensors").items()}
    save_file(stored, folder / "model.safetensors", {"format": "pt"})
    assert contrast_checkpoints(tiny_folder("llama"), folder).weights.empty
    stored["model.layers.1.mlp.down_proj.weight"][3, 4] += 0.5
    save_file(stored, folder / "model.safetensors", {"format": "pt"})
    (row,) = contrast_checkpoints(tiny_folder("llama"), folder).weights.to_dict("records")
    assert (row["layer"], row["rank"]) == (1, 1)
    assert row["norm"] == pytest.approx(0.5, rel=1e-2)


def test_names_without_the_body_and_a_stored_copy_of_tied_weights(
    rome_saved: tuple[Path, Tensor], tmp_path: Path
) -> None:
    folder = copy_of(rome_saved[0], tmp_path / "body")
    stored = {
        name.removeprefix("transformer."): w for name, w in load_file(folder / "model.safetensors").items()
    }
    stored["lm_head.weight"] = stored["wte.weight"].clone()
    stored["h.0.attn.bias"] = torch.ones(1, 1, 4, 4)
    save_file(stored, folder / "model.safetensors", {"format": "pt"})
    result = contrast_checkpoints(tiny_folder("gpt2"), folder)
    assert list(result.weights["layer"]) == [1]
    (note,) = result.notes
    assert "h.0.attn.bias" in note


# --- what follows from it ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def contrasted(rome_saved: tuple[Path, Tensor]) -> CheckpointContrast:
    return contrast_checkpoints(tiny_folder("gpt2"), rome_saved[0], FACT, top_k=20)


def test_attribution_and_answers_are_those_of_either_model_loaded_alone(
    contrasted: CheckpointContrast, rome_saved: tuple[Path, Tensor]
) -> None:
    models = {"before": load_model(tiny_folder("gpt2")), "after": load_model(rome_saved[0])}
    for stage, model in models.items():
        for name, target in (("new", FACT.target_new), ("old", FACT.target_true)):
            alone = attribute(model, FACT.rewrite_prompt, target, top_k="all")
            assert contrasted.logp[f"{name}_{stage}"] == pytest.approx(alone.logp, abs=1e-5)
            for unit, keys in (
                ("layers", ["layer", "module"]),
                ("heads", ["layer", "head"]),
                ("mlp_neurons", ["layer", "neuron"]),
            ):
                frame = getattr(contrasted, unit)
                both = frame[frame["object"] == name].merge(
                    getattr(alone, unit), on=keys, suffixes=("", "_alone")
                )
                assert len(both) == (frame["object"] == name).sum()
                assert (both[stage] - both["score_alone"]).abs().max() < 1e-4
        texts = model.generate(list(contrasted.answers["prompt"]), max_new_tokens=12)
        assert list(contrasted.answers[stage]) == texts
        prompt, new = model.continuation(FACT.rewrite_prompt, FACT.target_new)
        logps = model.forward(torch.cat([prompt, new])[None], torch.ones(1, len(prompt) + len(new)))[
            0
        ].log_softmax(-1)
        expected = sum(float(logps[len(prompt) - 1 + i, token]) for i, token in enumerate(new.tolist()))
        assert contrasted.answers[f"p_new_{stage}"][0] == pytest.approx(math.exp(expected), rel=1e-4)
    assert contrasted.layers["score"].abs().max() > 0.1  # the two models are not one


def test_it_comes_back_from_disk_and_is_plotted(contrasted: CheckpointContrast, tmp_path: Path) -> None:
    assert CheckpointContrast.load(contrasted.save(tmp_path / "saved")).equals(contrasted)
    assert contrasted.plot().lines
    assert contrasted.provenance["data"]["edited_hash"] != contrasted.provenance["model"]["hash"]


def test_the_base_is_itself_again_however_the_block_is_left(rome_saved: tuple[Path, Tensor]) -> None:
    model = load_model(tiny_folder("gpt2"))
    before = model.hash
    stored = find_weights(model, rome_saved[0])
    for error in (None, RuntimeError, KeyboardInterrupt):
        try:
            with under_weights(model, stored, list(stored.places)) as changed:
                assert changed.hash == load_model(rome_saved[0]).hash
                if error is not None:
                    raise error
        except (RuntimeError, KeyboardInterrupt):
            pass
        assert model.hash == before
    contrast_checkpoints(model, rome_saved[0], FACT, top_k=5)
    assert model.hash == before


def test_the_same_checkpoint_twice_differs_in_nothing(tmp_path: Path) -> None:
    result = contrast_checkpoints(tiny_folder("llama"), tiny_folder("llama"), FACT, top_k=5)
    assert result.weights.empty
    assert (result.layers["score"] == 0).all()
    assert (result.answers["before"] == result.answers["after"]).all()
    assert repr(result).endswith("weights differ)")


# --- refusals ---------------------------------------------------------------------------------------


def test_what_is_no_checkpoint_of_the_model_is_refused(
    rome_saved: tuple[Path, Tensor], tmp_path: Path
) -> None:
    base, folder = tiny_folder("gpt2"), rome_saved[0]

    def refused(says: str, edited: Path, fact: FactEdit | None = None) -> None:
        with pytest.raises(InputError, match=says) as error:
            contrast_checkpoints(base, edited, fact)
        assert str(error.value).startswith("edited: ")
        assert "\n" not in str(error.value)

    refused("no such folder", tmp_path / "none")
    refused("expected a gpt2 model", tiny_folder("llama"))
    refused("found tie_word_embeddings False", tiny_folder("gpt2-untied"))

    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text("{}")
    refused("an adapter", adapter)
    change = rome().change(tiny_model("gpt2"), FACT).save(tmp_path / "change")
    refused("attribute --edited", change)

    other = copy_of(folder, tmp_path / "config")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"layer_norm_epsilon": 0.1}))
    refused("layer_norm_epsilon 0.1", other)

    stored = load_file(folder / "model.safetensors")
    name = "transformer.h.0.ln_1.weight"
    short = copy_of(folder, tmp_path / "short")
    save_file(
        {key: w for key, w in stored.items() if key != name}, short / "model.safetensors", {"format": "pt"}
    )
    refused(f"lacks 1 weights of gpt2, the first '{name}'", short)
    refused(r"expected \(32,\) for", copy_of(folder, tmp_path / "shape", {name: torch.ones(33)}))
    damaged = copy_of(folder, tmp_path / "damaged")
    (damaged / "model.safetensors").write_bytes(b"x" * 100)
    refused("damaged", damaged)

    read_otherwise = copy_of(folder, tmp_path / "tokens")
    tokenizer = json.loads((read_otherwise / "tokenizer.json").read_text())
    tokenizer["model"]["merges"] = tokenizer["model"]["merges"][:5]
    (read_otherwise / "tokenizer.json").write_text(json.dumps(tokenizer))
    refused("its tokenizer reads", read_otherwise, FACT)


# --- the command and its page -----------------------------------------------------------------------


def test_the_command_prints_and_writes_a_page(
    rome_saved: tuple[Path, Tensor], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    facts = tmp_path / "fact.json"
    facts.write_text(
        json.dumps(
            [
                {
                    "subject": FACT.subject,
                    "prompt": FACT.rewrite_prompt,
                    "ground_truth": FACT.target_true,
                    "target_new": FACT.target_new,
                }
            ]
        )
    )
    place = [
        "contrast",
        "--model",
        str(tiny_folder("gpt2")),
        "--edited",
        str(rome_saved[0]),
        "--fact",
        str(facts),
    ]
    run = tmp_path / "run"
    assert main([*place, "--out", str(run)]) == 0
    shown = capsys.readouterr().out
    for text in (
        "1 of 40 weights differ in layer 1, of rank 1",
        "mlp.c_proj.weight",
        FACT.rewrite_prompt,
        "log p",
        "report.html",
    ):
        assert text in shown
    page = (run / "report.html").read_text(encoding="utf-8")
    for text in (
        "Which weights differ",
        "mlp.c_proj.weight",
        "What both answer",
        FACT.rewrite_prompt,
        "edited against gpt2",
    ):
        assert text in page
    assert "No editor was evaluated" not in page
    loaded = CheckpointContrast.load(run / "results" / "checkpoints")
    assert loaded.weights["rank"].tolist() == [1]
    assert main([*place, "--out", str(run), "--json"]) == 0  # the same command goes on
    said = json.loads(capsys.readouterr().out)
    assert said["weights"][0]["rank"] == 1
    assert main([*place[:-2], "--out", str(tmp_path / "alone")]) == 0
    assert "What both answer" not in (tmp_path / "alone" / "report.html").read_text(encoding="utf-8")
    line, alone = overview.read(run), overview.read(tmp_path / "alone")  # of an index over runs
    ((label, scores),), ((_, none),) = line.rows, alone.rows
    assert (line.kind, alone.kind, none) == ("checkpoints", "checkpoints", {})
    assert "1 of 40 weights" in label
    new = loaded.logp["new_after"] - loaded.logp["new_before"]
    assert next(iter(scores.values())).value == pytest.approx(new)
    assert list(scores) == ["Change of log p, new object", "Change of log p, old object"]


@pytest.mark.real
def test_on_smollm2_romes_edit_is_one_matrix_of_rank_one(smollm2: HookedModel, tmp_path: Path) -> None:
    fact = FactEdit("France", "The capital of {} is", "Paris", "Rome")
    corpus = text_corpus(SENTENCES * 20, source="s")
    c = covariances(smollm2, corpus, layers=[5], progress=False)[5]
    change = replace(ROME(layer=5, covariance=c), steps=5, contexts=()).change(smollm2, fact)
    ((part,),) = change.parts.values()
    assert isinstance(part, LowRank)
    with change.apply(smollm2) as edited:
        folder = edited.save_pretrained(tmp_path / "edited")
    result = contrast_checkpoints(smollm2, folder, fact, top_k=5)
    (row,) = result.weights.to_dict("records")
    assert (row["layer"], row["module"], row["rank"]) == (5, "mlp.down_proj.weight", 1)
    assert row["norm"] == pytest.approx(float((part.left @ part.right).norm()), rel=1e-4)
    assert result.logp["new_after"] > result.logp["new_before"] + 1
