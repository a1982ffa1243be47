"""An edit that is kept: a checkpoint that plain transformers loads, and the change alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from mechedit.data.facts import FactEdit
from mechedit.editors import FT, IKE, MEMIT, ROME, LoRA, WeightChange
from mechedit.editors.weights.corpus import text_corpus
from mechedit.editors.weights.covariance import covariances
from mechedit.models.hooked import HookedModel, load_model
from reports.errors import InputError
from tests.tiny import ARCHS, SENTENCES, tiny_model

FACT = FactEdit("Danielle Darrieux", "The mother tongue of {} is", "French", "English")
OTHER = FactEdit("Tim Duncan", "{} plays the sport of", "basketball", "tennis", case_id=1)


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MECHEDIT_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(params=ARCHS)
def model(request: pytest.FixtureRequest) -> HookedModel:
    return tiny_model(request.param)


def changes(model: HookedModel) -> list[WeightChange]:
    c = covariances(model, text_corpus(SENTENCES * 2, source="s"), layers=[0, 1], progress=False)
    few = ((1, 4),)
    return [
        FT(layer=1, steps=2, lr=1e-2).change(model, FACT),
        LoRA(steps=2, lr=1e-2, rank=2).change(model, FACT),
        ROME(layer=1, steps=3, contexts=few, covariance=c[1]).change(model, [FACT, OTHER]),
        MEMIT(layers=(0, 1), steps=3, contexts=few, covariances=c).change(model, [FACT, OTHER]),
    ]


def test_plain_transformers_loads_the_edited_checkpoint(model: HookedModel, tmp_path: Path) -> None:
    ids = model.tokenize(SENTENCES[0])[None]
    for change in changes(model):
        folder = tmp_path / change.editor
        with change.apply(model) as edited:
            assert edited.save_pretrained(folder) == folder
            wanted = edited.forward(ids, torch.ones_like(ids))
        plain = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
        torch.testing.assert_close(plain(ids).logits, wanted, atol=2e-5, rtol=1e-5)
        assert (model.forward(ids, torch.ones_like(ids)) - wanted).abs().max() > 1e-3
        assert AutoTokenizer.from_pretrained(folder)(SENTENCES[0]).input_ids == ids[0].tolist()
        assert load_model(folder, device="cpu").hash != model.hash


def test_the_change_alone_comes_back_as_it_was(model: HookedModel, tmp_path: Path) -> None:
    for change in changes(model):
        folder = change.save(tmp_path / change.editor)
        loaded = WeightChange.load(folder, model)
        assert (loaded.editor, loaded.facts, loaded.model_hash) == (
            change.editor,
            change.facts,
            change.model_hash,
        )
        with change.apply(model) as edited:
            wanted = edited.hash
        with loaded.apply(model) as edited:
            assert edited.hash == wanted


def test_what_is_of_low_rank_is_kept_so(tmp_path: Path) -> None:
    model = tiny_model("gpt2")
    ft, _, rome, _ = changes(model)
    rome.save(tmp_path / "rome")
    ft.save(tmp_path / "ft")
    kept = load_file(tmp_path / "rome" / "change.safetensors")
    assert sum(tensor.numel() for tensor in kept.values()) == 2 * (model.shape.d_mlp + model.shape.d_model)
    assert sum(tensor.numel() for tensor in load_file(tmp_path / "ft" / "change.safetensors").values()) == (
        model.shape.d_mlp * model.shape.d_model
    )


def test_another_model_is_refused(tmp_path: Path) -> None:
    model = tiny_model("gpt2")
    change = FT(layer=1, steps=1, lr=1e-2).change(model, FACT)
    change.save(tmp_path / "kept")
    with pytest.raises(InputError, match=r"was made for .* \(hash"):
        WeightChange.load(tmp_path / "kept", tiny_model("gpt2-untied"))
    # an edited model is another model too
    with change.apply(model) as edited, pytest.raises(InputError, match="hash"):
        WeightChange.load(tmp_path / "kept", edited)


def test_a_damaged_change_is_refused(tmp_path: Path) -> None:
    model = tiny_model("gpt2")
    with pytest.raises(InputError, match=r"change\.json"):
        WeightChange.load(tmp_path, model)
    FT(layer=1, steps=1, lr=1e-2).change(model, FACT).save(tmp_path / "kept")
    file = tmp_path / "kept" / "change.json"
    for text in ("{", "[]", json.dumps({**json.loads(file.read_text()), "schema_version": 9})):
        file.write_text(text)
        with pytest.raises(InputError, match="no weight change"):
            WeightChange.load(tmp_path / "kept", model)


def test_nothing_is_written_over_or_half(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("gpt2")
    change = FT(layer=1, steps=1, lr=1e-2).change(model, FACT)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    with pytest.raises(InputError, match="new or an empty folder"):
        change.save(tmp_path / "full")
    with change.apply(model) as edited, pytest.raises(InputError, match="new or an empty folder"):
        edited.save_pretrained(tmp_path / "full")
    from mechedit.editors.weights import weight_edit

    def fails(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(weight_edit, "save_file", fails)
    with pytest.raises(KeyboardInterrupt):
        change.save(tmp_path / "half")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["full"]


def test_an_edit_in_the_prompt_has_no_checkpoint(tmp_path: Path) -> None:
    model = tiny_model("gpt2")
    with IKE().apply(model, FACT) as edited, pytest.raises(InputError, match="changes no weight"):
        edited.save_pretrained(tmp_path / "x")
