"""The diagnosis of a decoder: sound ones pass, and each check fails on a model that is spoilt where it looks."""

from __future__ import annotations

import importlib
import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import processors
from transformers import AutoModelForCausalLM, AutoTokenizer

import mechedit as me
from experiments import checkpoints
from mechedit.cli import main
from mechedit.models import checks
from mechedit.models.hooked import HookedModel, load_model
from mechedit.models.prefix_check import NEUTRAL, best_prefix
from reports.diagnosis import Check, Diagnosis
from reports.errors import InputError
from tests.tiny import END, Arch, build, tiny_folder, tiny_model

module = importlib.import_module("mechedit.diagnose")  # the package gives its name to the function
PROBES = (("The mother tongue of Danielle Darrieux is", "French"), ("She was born in", "Rome"))


def failed(checked: Diagnosis | Iterable[Check]) -> set[str]:
    if isinstance(checked, Diagnosis):
        return set(checked.checks[~checked.checks["ok"]]["check"])
    return {check.name for check in checked if not check.ok}


def ids_of(model: HookedModel) -> list[torch.Tensor]:
    return [model.tokenize(prompt) for prompt, _ in PROBES]


def own_model(tmp_path: Path, arch: Arch = "llama-gqa", **options: Any) -> HookedModel:
    """A sound model of its own, to be spoilt."""
    return load_model(shutil.copytree(tiny_folder(arch), tmp_path / "model"), device="cpu", **options)


@pytest.mark.parametrize("arch", ["gpt2", "llama-gqa"])
def test_a_sound_model_passes_and_the_result_is_kept(arch: Arch, tmp_path: Path) -> None:
    diagnosis = me.diagnose(tiny_model(arch))
    assert failed(diagnosis) == set()
    assert diagnosis.notes == ()
    assert (diagnosis.dtype, diagnosis.device, diagnosis.attention) == ("float32", "cpu", "eager")
    assert set(diagnosis.checks["change"]) == {""}
    assert Diagnosis.load(diagnosis.save(tmp_path / "found")).equals(diagnosis)


def test_every_check_has_a_test_in_which_it_fails() -> None:
    """The names that the tests below make fail are all there are."""
    diagnosis = me.diagnose(tiny_model("gpt2"), PROBES)
    shown = Path(__file__).read_text(encoding="utf-8")
    assert [name for name in diagnosis.checks["check"] if f'"{name}"' not in shown] == []


# -- the model alone -------------------------------------------------------------------------------------------------


def test_a_mask_that_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    model, run = tiny_model("llama"), HookedModel.run
    monkeypatch.setattr(
        HookedModel, "run", lambda self, ids, mask, **o: run(self, ids, torch.ones_like(mask), **o)
    )
    names = {"padded on the left", "beside a batch mate", "last of its batch", "the mask forgotten"}
    assert failed(checks.invariance(model, ids_of(model))) == names


def test_padding_on_the_right_that_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """A causal model sees no padding behind it; one whose last token is taken from the padding's place does."""
    model, pad = tiny_model("llama"), HookedModel.pad

    def shifted(
        self: HookedModel, sequences: Any, *, side: Any = "left"
    ) -> tuple[torch.Tensor, torch.Tensor]:
        ids, mask = pad(self, sequences, side=side)
        return (ids.roll(1, 1), mask.roll(1, 1)) if side == "right" else (ids, mask)

    monkeypatch.setattr(HookedModel, "pad", shifted)
    assert failed(checks.invariance(model, ids_of(model))) >= {"padded on the right"}


def test_bos_twice_and_otherwise_than_declared(tmp_path: Path) -> None:
    model = load_model(build("llama", tmp_path / "model", bos=True), device="cpu")
    assert failed(checks.special_tokens(model, PROBES)) == set()
    config = tmp_path / "model" / "tokenizer_config.json"
    declared = json.loads(config.read_text()) | {"add_bos_token": False}
    config.write_text(json.dumps(declared))
    assert failed(checks.special_tokens(model, PROBES)) == {"BOS as declared"}
    config.write_text(json.dumps(declared | {"add_bos_token": True}))
    assert failed(checks.special_tokens(model, PROBES)) == set()
    twice = processors.TemplateProcessing(single=f"{END} {END} $A", special_tokens=[(END, 0)])
    model.tokenizer.backend_tokenizer.post_processor = twice
    again = HookedModel(model.bridge, model.tokenizer, name="twice", source="test")
    assert failed(checks.special_tokens(again, PROBES)) == {"BOS at most once"}


def test_other_ids_than_the_tokenizers_own(tmp_path: Path) -> None:
    model = own_model(tmp_path)
    model._prefix = [0]
    assert failed(checks.special_tokens(model, PROBES)) == {"prompts as the tokenizer's"}


def test_a_model_that_is_lost_without_a_token_in_front(tmp_path: Path) -> None:
    """Trained on the neutral text behind END alone; loaded with it in front, the same check is quiet."""
    folder = build("gpt2", tmp_path / "model")
    plain, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    ids = torch.tensor([[0, *tokenizer(NEUTRAL).input_ids][: plain.config.n_positions]])
    adam = torch.optim.Adam(plain.parameters(), lr=3e-3)
    for _ in range(120):
        adam.zero_grad()
        plain(ids, labels=ids).loss.backward()
        adam.step()
    plain.save_pretrained(folder)
    notes: list[str] = []
    (check,) = best_prefix(load_model(folder, device="cpu"), notes)
    assert failed([check]) == {"special token in front"}
    assert f"prefix={END!r}" in check.change
    assert f"{END} lowers the perplexity" in notes[0]
    notes = []
    (check,) = best_prefix(load_model(folder, device="cpu", prefix=END), notes)
    assert (check.ok, notes) == (True, [])
    (check,) = best_prefix(tiny_model("gpt2"), notes)  # random weights read nothing
    assert (check.ok, notes, check.measured) == (True, [], 0.0)
    assert "by guessing" in check.said


def test_a_bos_id_of_another_model(tmp_path: Path) -> None:
    model = own_model(tmp_path)
    model.hf.config.bos_token_id = 7
    assert failed(checks.special_tokens(model, PROBES)) == {"BOS id of model and tokenizer"}


def test_a_target_that_the_tokenizer_does_not_know(tmp_path: Path) -> None:
    model = own_model(tmp_path)
    model.tokenizer.add_special_tokens({"unk_token": " Rome"})
    model._encode = lambda text: tuple(model.tokenizer(text, add_special_tokens=False).input_ids)  # type: ignore[assignment]
    model.tokenize = lambda prompt: torch.tensor(model._encode(prompt))  # type: ignore[method-assign]
    assert "no special token in a target" in failed(checks.special_tokens(model, PROBES))


def test_a_hook_point_that_is_gone(tmp_path: Path) -> None:
    model = own_model(tmp_path)
    point: Any = model.bridge.hook_dict["blocks.1.attn.hook_z"]
    point._call_impl = lambda states: states  # the states pass it by
    assert failed(checks.hooks_fire(model, ids_of(model))) == {"hooks fire once"}


def test_hooks_that_fire_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    model, run = tiny_model("llama"), HookedModel.run
    monkeypatch.setattr(HookedModel, "run", lambda *a, **k: (run(*a, **k), run(*a, **k))[0])
    (check,) = checks.hooks_fire(model, ids_of(model))
    assert not check.ok
    assert "fired 2 times" in check.change


def test_a_norm_weight_that_is_not_the_one_that_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = own_model(tmp_path)
    for part, name in (
        (model.final_norm, "final norm folded into W_U"),
        (model.norm2(2), "second norm folded into W_in"),
    ):
        spoilt = type(part)(weight=part.weight - 1, bias=part.bias, eps=part.eps, kind=part.kind)
        with monkeypatch.context() as patch:
            if name.startswith("final"):
                patch.setattr(HookedModel, "final_norm", spoilt)
            else:
                patch.setattr(HookedModel, "norm2", lambda self, layer: spoilt)  # noqa: B023
            assert failed(checks.folded_norms(model, ids_of(model))) == {name}


def test_a_norm_that_does_more_than_its_weight_says(tmp_path: Path) -> None:
    model = own_model(tmp_path)
    norm = model.bridge.ln_final.original_component
    forward = norm.forward
    norm.forward = lambda x: 2 * forward(x)
    assert failed(checks.folded_norms(model, ids_of(model))) == {"final norm folded into W_U"}


@pytest.mark.parametrize(
    ("point", "spoils"),
    [
        ("attn_out", {"resid_pre + attn_out = resid_mid", "heads + b_O = attn_out"}),
        ("mlp_out", {"resid_mid + mlp_out = the next resid_pre", "mlp_post @ W_out + b_out = mlp_out"}),
        (
            "resid_final",
            {"final_norm(resid_final) @ W_U + b_U = logits", "resid_mid + mlp_out = the next resid_pre"},
        ),
        ("resid_pre_all", {"norm1(resid_pre) @ W_V + b_V = v"}),
        ("resid_mid_all", {"act(norm2(resid) @ W_in + b_in) = mlp_post"}),
    ],
)
def test_a_view_that_does_not_add_up(point: str, spoils: set[str], monkeypatch: pytest.MonkeyPatch) -> None:
    model, view = tiny_model("gpt2"), HookedModel.residual_view

    def moved(self: HookedModel, ids: torch.Tensor) -> Any:
        view_of_ids = view(self, ids)
        old = getattr(view_of_ids, point)
        return type(view_of_ids)(**{**vars(view_of_ids), point: old + torch.linspace(0, 0.3, old.shape[-1])})

    monkeypatch.setattr(HookedModel, "residual_view", moved)
    assert failed(checks.identities(model, ids_of(model))) == spoils


# -- beside a second load --------------------------------------------------------------------------------------------


def test_weights_that_are_not_the_checkpoints(tmp_path: Path) -> None:
    """Rounded to bfloat16 and called float32: what a careless conversion leaves."""
    model = own_model(tmp_path)
    with torch.no_grad():
        for weight in model.hf.parameters():
            weight.copy_(weight.bfloat16().float())
    names = {"logits of transformers, eager", "logits of transformers, sdpa", "logits against float64"}
    assert failed(me.diagnose(model, PROBES)) == names | {"folded TransformerLens"}


def test_bfloat16_is_outside_float32s_tolerance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = own_model(tmp_path, dtype="bfloat16")
    diagnosis = me.diagnose(model, PROBES)
    assert failed(diagnosis) <= {"completeness gap", "top-1 against float64"}
    assert "completeness gap" in failed(diagnosis)
    fp32 = {torch.bfloat16: module.TOLERANCE[torch.float32]}
    monkeypatch.setattr(module, "TOLERANCE", fp32)
    monkeypatch.setattr(checks, "TOLERANCE", fp32)
    assert {"logits against float64", "logits of transformers, sdpa"} <= failed(me.diagnose(model, PROBES))


def test_another_likeliest_token(tmp_path: Path) -> None:
    model = own_model(tmp_path)
    with torch.no_grad():
        model.W_U.mul_(-1)
    assert "top-1 against float64" in failed(me.diagnose(model, PROBES))


def test_memory_that_does_not_suffice_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("gpt2")
    for reads in (module, checkpoints):
        monkeypatch.setattr(reads, "free_bytes", lambda device: -1)
    diagnosis = me.diagnose(model, PROBES)
    assert "memory of an attribution" in failed(diagnosis)
    assert "are free on cpu" in diagnosis.notes[0]
    assert "logits of transformers, eager" not in set(diagnosis.checks["check"])


def test_a_bridge_without_a_checkpoint_is_said(tmp_path: Path) -> None:
    model = own_model(tmp_path)
    model.source = "bridge:no such model"
    diagnosis = me.diagnose(model, PROBES)
    assert diagnosis.ok
    assert "no second load" in diagnosis.notes[0]


def test_a_check_that_cannot_be_made_is_not_ok_and_the_others_are_made(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = tiny_model("gpt2")

    def broken(*_: Any) -> Any:
        raise InputError("norms:\n none here")

    monkeypatch.setattr(checks, "folded_norms", broken)
    diagnosis = me.diagnose(model, PROBES)
    assert failed(diagnosis) == {"folded norms"}
    assert diagnosis.checks.set_index("check")["change"]["folded norms"] == "norms: none here"


def test_probes_that_pad_nothing_are_refused() -> None:
    with pytest.raises(InputError, match="two or more of unlike length"):
        me.diagnose(tiny_model("gpt2"), PROBES[:1])


# -- the command -----------------------------------------------------------------------------------------------------


def test_the_command_says_what_to_change_by_its_status(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = str(tiny_folder("gpt2"))
    assert main(["diagnose", "--model", folder]) == 0
    assert "ok: 28 checks" in capsys.readouterr().out
    file = tmp_path / "probes.json"
    file.write_text(json.dumps([{"prompt": p, "target": t} for p, t in PROBES]), encoding="utf-8")
    assert main(["diagnose", "--model", folder, "--dtype", "bfloat16", "--prompts", str(file), "--json"]) == 1
    printed = json.loads(capsys.readouterr().out)
    assert not printed["ok"]
    assert "float32" in printed["checks"]["completeness gap"]["change"]


def test_the_embedded_llama_passes(factworld_llama: HookedModel) -> None:
    assert failed(me.diagnose(factworld_llama)) == set()  # the other one: the example of `diagnose`


@pytest.mark.shared
def test_a_really_trained_model_and_gpt2s_own_vocabulary_pass(shared_dir: Path, tmp_path: Path) -> None:
    stories = me.diagnose(load_model(shared_dir / "models" / "stories260K", device="cpu"))
    assert failed(stories) == set()
    assert "add_bos_token=True" in stories.checks.set_index("check")["said"]["BOS as declared"]
    with pytest.raises(InputError, match=r"no config\.json"):  # a tokenizer alone is no model
        load_model(shared_dir / "models" / "gpt2-tokenizer")
    from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

    from tests.tiny import randomise

    torch.manual_seed(0)
    hf = GPT2LMHeadModel(GPT2Config(n_embd=8, n_layer=1, n_head=2))
    randomise(hf)
    hf.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(shared_dir / "models" / "gpt2-tokenizer").save_pretrained(tmp_path)
    assert failed(me.diagnose(load_model(tmp_path, device="cpu"))) == set()
