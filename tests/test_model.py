"""The model wrapper: parity with plain Hugging Face, padding, the residual view, every trap of the bridge."""

from __future__ import annotations

import hashlib
import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from transformer_lens.model_bridge import TransformerBridge
from transformers import AutoModelForCausalLM, AutoTokenizer

from mechedit.models.hooked import HookedModel, load_model
from mechedit.models.selfcheck import conservation
from mechedit.models.weights import FinalNorm
from reports.errors import InputError, IntegrityError
from tests.tiny import ARCHS, Arch, build, tiny_folder, tiny_model

PROMPT = "The mother tongue of Danielle Darrieux is"
PROMPTS = [PROMPT, "Tim Duncan plays", "Paris", "Anna Keller works as a teacher in Berlin and speaks"]
EPS = 2e-5  # fp32 on logits of the order of 10

every_arch = pytest.mark.parametrize("arch", ARCHS)


def plain(arch: Arch, dtype: torch.dtype = torch.float32) -> Any:
    """The plain Hugging Face model, loaded apart from the one under test."""
    folder = tiny_folder(arch)
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="eager").eval()


def raw_bridge(arch: Arch) -> TransformerBridge:
    return TransformerBridge.boot_transformers(str(tiny_folder(arch)), device="cpu")


def ramp(value: float, size: int) -> torch.Tensor:
    """From -value to value: a constant would be invisible behind a LayerNorm, which centres."""
    return torch.linspace(-value, value, size)


def add(value: float) -> Callable[..., torch.Tensor]:
    return lambda tensor, hook: tensor + ramp(value, tensor.shape[-1])


def close(a: torch.Tensor, b: torch.Tensor, *, atol: float = EPS) -> bool:
    return a.shape == b.shape and bool(((a - b).abs() <= atol).all())


# ------------------------------------------------------------------------------------------ parity


@every_arch
@torch.no_grad()
def test_logits_are_those_of_plain_hugging_face(arch: Arch) -> None:
    model = tiny_model(arch)
    ids = model.tokenize(PROMPT)
    expected = plain(arch)(ids[None]).logits
    assert close(model.forward(ids[None], torch.ones_like(ids)[None]), expected)


@every_arch
@torch.no_grad()
def test_logits_are_exact_in_double_precision(arch: Arch) -> None:
    model = load_model(tiny_folder(arch), device="cpu", dtype="float64")
    ids = model.tokenize(PROMPT)
    expected = plain(arch, torch.float64)(ids[None]).logits
    logits = model.forward(ids[None], torch.ones_like(ids)[None])
    assert logits.dtype == torch.float64
    # LLaMA's softmax and norms are fp32 in Hugging Face whatever the dtype; GPT-2 is double throughout.
    assert close(logits, expected, atol=1e-11 if arch.startswith("gpt2") else 1e-5)


@every_arch
@torch.no_grad()
def test_parity_fails_when_one_norm_weight_is_off(arch: Arch, tmp_path: Path) -> None:
    model = load_model(tiny_folder(arch), device="cpu")
    ids = model.tokenize(PROMPT)
    expected = plain(arch)(ids[None]).logits
    model.norm2(1).weight[3] += 0.01
    assert not close(model.forward(ids[None], torch.ones_like(ids)[None]), expected)


@every_arch
def test_batch_and_padding_do_not_change_logits(arch: Arch) -> None:
    model = tiny_model(arch)
    alone = torch.cat([model.logits([prompt]) for prompt in PROMPTS])
    together = model.logits(PROMPTS)
    in_twos = model.logits(PROMPTS, batch_size=2)
    from_ids = model.logits([model.tokenize(prompt) for prompt in PROMPTS], batch_size=3)
    for logits in (together, in_twos, from_ids):
        assert close(logits, alone)
    assert not close(together, alone[[1, 0, 2, 3]])


@every_arch
@torch.no_grad()
def test_left_and_right_padding_agree_at_every_real_token(arch: Arch) -> None:
    model = tiny_model(arch)
    sequences = [model.tokenize(prompt) for prompt in PROMPTS]
    left, left_mask = model.pad(sequences, side="left")
    right, right_mask = model.pad(sequences, side="right")
    assert left_mask.sum() == right_mask.sum() == sum(map(len, sequences))
    by_left = model.forward(left, left_mask)[left_mask.bool()]
    assert close(by_left, model.forward(right, right_mask)[right_mask.bool()])


# ------------------------------------------------------------------------------------------ residual view


@every_arch
def test_residual_view_adds_up(arch: Arch) -> None:
    model = tiny_model(arch)
    for what, (actual, expected) in conservation(model, model.residual_view(model.tokenize(PROMPT))).items():
        assert close(actual, expected), what


@every_arch
def test_conservation_fails_for_a_view_of_another_prompt(arch: Arch) -> None:
    model = tiny_model(arch)
    view = model.residual_view(model.tokenize(PROMPT))
    elsewhere = model.residual_view(model.tokenize("Tim Duncan"))
    for (actual, _), (_, expected) in zip(
        conservation(model, view).values(), conservation(model, elsewhere).values(), strict=True
    ):
        assert not close(actual, expected, atol=1e-3)


@every_arch
def test_residual_view_has_the_shapes_it_says(arch: Arch) -> None:
    model = tiny_model(arch)
    s, ids = model.shape, model.tokenize(PROMPT)
    view = model.residual_view(ids)
    shapes = {name: tuple(value.shape) for name, value in vars(view).items() if value is not None}
    assert set(view.__dataclass_fields__) - set(shapes) == {
        "attn_scale",
        "mlp_scale",
    }  # of norms behind sub-layers
    per_layer = (s.n_layers, s.d_model)
    assert shapes == {
        "ids": (len(ids),),
        "resid_pre": per_layer,
        "attn_out": per_layer,
        "resid_mid": per_layer,
        "mlp_out": per_layer,
        "resid_final": (s.d_model,),
        "pattern": (s.n_layers, s.n_heads, len(ids)),
        "v": (s.n_layers, len(ids), s.n_kv_heads, s.d_head),
        "mlp_post": (s.n_layers, len(ids), s.d_mlp),
        "resid_pre_all": (s.n_layers, len(ids), s.d_model),
        "resid_mid_all": (s.n_layers, len(ids), s.d_model),
        "z": (s.n_layers, len(ids), s.n_heads * s.d_head),
        "logits": (s.d_vocab,),
    }
    assert s.norm == ("layer" if arch.startswith("gpt2") else "rms")
    assert s.gated == arch.startswith("llama")
    assert torch.equal(view.resid_pre, view.resid_pre_all[:, -1])
    assert close(view.pattern.sum(-1), torch.ones(s.n_layers, s.n_heads))
    assert close(view.logits, model.logits([ids])[0])
    assert not any(getattr(view, name).requires_grad for name in shapes)


@every_arch
def test_values_are_the_normed_residual_times_W_V(arch: Arch) -> None:
    """Ties W_V, ln1 and the order of the heads to what the model computes."""
    model = tiny_model(arch)
    view = model.residual_view(model.tokenize(PROMPT))
    group = model.shape.n_heads // model.shape.n_kv_heads
    for layer in range(model.shape.n_layers):
        module = model.bridge.blocks[layer].ln1.original_component
        bias = getattr(module, "bias", None)
        norm = FinalNorm(model.norm1(layer).weight, bias, model.final_norm.eps, model.shape.norm)
        actual = torch.einsum("td,hde->the", norm(view.resid_pre_all[layer]), model.W_V(layer))
        bias = model.bridge.blocks[layer].attn.v.original_component.bias
        if bias is not None:
            actual = actual + bias.unflatten(0, (model.shape.n_heads, -1))
        assert close(actual, view.v[layer].repeat_interleave(group, dim=1))


@every_arch
def test_neurons_are_the_normed_residual_times_W_in(arch: Arch) -> None:
    """Ties W_in, W_gate and ln2 to what the model computes; LLaMA's hook_post is act(gate) times up."""
    model = tiny_model(arch)
    view = model.residual_view(model.tokenize(PROMPT))
    for layer in range(model.shape.n_layers):
        module = model.bridge.blocks[layer].ln2.original_component
        bias = getattr(module, "bias", None)
        norm = FinalNorm(model.norm2(layer).weight, bias, model.final_norm.eps, model.shape.norm)
        up = norm(view.resid_mid[layer]) @ model.W_in(layer)
        gate = model.W_gate(layer)
        if gate is None:
            up = up + getattr(model.bridge.blocks[layer].mlp, "in").original_component.bias
            actual = torch.nn.functional.gelu(up, approximate="tanh")
        else:
            actual = torch.nn.functional.silu(norm(view.resid_mid[layer]) @ gate) * up
        assert close(actual, view.mlp_post[layer, -1])


@every_arch
def test_steering_term_is_what_attn_out_has_beyond_the_heads(arch: Arch) -> None:
    model = tiny_model(arch)
    ids = model.tokenize(PROMPT)
    with model.hooks([("blocks.1.hook_attn_out", add(0.5))]) as edited:
        view = edited.residual_view(ids)
        identities = conservation(model, view)
    heads, attn_out = identities.pop("heads + b_O = attn_out")
    assert close((attn_out - heads)[1], ramp(0.5, model.shape.d_model))
    assert close((attn_out - heads)[[0, 2]], torch.zeros(2, model.shape.d_model))
    for what, (actual, expected) in identities.items():
        assert close(actual, expected), what


@pytest.mark.shared
def test_stories260K_conserves_its_residual_stream(shared_dir: Path) -> None:
    model = load_model(shared_dir / "models" / "stories260K", device="cpu")
    view = model.residual_view(model.tokenize("Once upon a time, there was a little girl named"))
    for what, (actual, expected) in conservation(model, view).items():
        assert close(actual, expected, atol=1e-4), what
    assert model.shape.n_kv_heads == 4
    assert model.generate(["Once upon a time, there was a little girl named"], max_new_tokens=1) == [" Lily"]


# ------------------------------------------------------------------------------------------ text and ids


@pytest.mark.parametrize("bos", [False, True])
def test_tokenize_is_the_tokenizer_s_own(bos: bool) -> None:
    model = tiny_model("gpt2", bos=bos)
    assert model.tokenize(PROMPT).tolist() == model.tokenizer(PROMPT).input_ids
    assert (model.tokenize(PROMPT)[0] == model.tokenizer.bos_token_id) == bos


def test_special_tokens_written_in_a_text_are_text() -> None:
    model = tiny_model("gpt2")
    assert 0 in model.tokenizer("Paris<|endoftext|>").input_ids
    ids = model.tokenize("Paris<|endoftext|>")
    assert 0 not in ids
    assert model.tokenizer.decode(ids) == "Paris<|endoftext|>"


@pytest.mark.parametrize("bos", [False, True])
def test_continuation_reads_the_target_behind_the_prompt(bos: bool) -> None:
    model = tiny_model("gpt2", bos=bos)
    ids, target = model.continuation(PROMPT, "Paris")
    assert torch.equal(ids, model.tokenize(PROMPT))
    assert torch.equal(torch.cat([ids, target]), model.tokenize(PROMPT + " Paris"))
    assert torch.equal(target, model.continuation(PROMPT, " Paris")[1])
    assert model.tokenizer.decode(target) == " Paris"


@pytest.mark.parametrize("target", ["", " ", "\n"])
def test_continuation_refuses_an_empty_target(target: str) -> None:
    with pytest.raises(InputError, match="target: expected a word"):
        tiny_model("gpt2").continuation(PROMPT, target)


def test_continuation_refuses_a_prompt_whose_tokens_change() -> None:
    with pytest.raises(InputError, match="its tokens change"):
        tiny_model("gpt2").continuation("She was born in ", "Rome")


def test_continuation_refuses_a_target_that_encodes_to_nothing(tmp_path: Path) -> None:
    folder = build("gpt2", tmp_path)
    saved = json.loads((folder / "tokenizer.json").read_text())
    saved["normalizer"] = {"type": "Replace", "pattern": {"Regex": "\\s*\u200b"}, "content": ""}
    (folder / "tokenizer.json").write_text(json.dumps(saved))
    with pytest.raises(InputError, match="encodes to no token"):
        load_model(folder, device="cpu").continuation(PROMPT, "\u200b")


def test_empty_prompt_is_refused_where_there_is_no_bos() -> None:
    with pytest.raises(InputError, match="at least one token"):
        tiny_model("gpt2").tokenize("")
    assert tiny_model("gpt2", bos=True).tokenize("").tolist() == [0]


@every_arch
def test_a_prompt_beyond_the_context_is_refused(arch: Arch) -> None:
    model = tiny_model(arch)
    assert model.n_ctx == 128
    with pytest.raises(InputError, match="at most 128 tokens, found 129"):
        model.logits([torch.ones(129, dtype=torch.long)])
    with pytest.raises(InputError, match="129 together"):
        model.generate([torch.ones(100, dtype=torch.long)], max_new_tokens=29)


# ------------------------------------------------------------------------------------------ generation


def greedy_without_cache(model: HookedModel, prompt: str, n: int) -> str:
    ids = model.tokenize(prompt)
    start = len(ids)
    for _ in range(n):
        token = int(model.logits([ids])[0].argmax())
        if token == model.tokenizer.eos_token_id:
            break
        ids = torch.cat([ids, torch.tensor([token])])
    return str(model.tokenizer.decode(ids)).removeprefix(str(model.tokenizer.decode(ids[:start])))


@every_arch
def test_generation_with_the_cache_equals_the_naive_loop(arch: Arch) -> None:
    model, prompts, n = tiny_model(arch), PROMPTS[:2], 5
    plain_text = model.generate(prompts, max_new_tokens=n)
    assert plain_text == [greedy_without_cache(model, prompt, n) for prompt in prompts]
    with model.hooks([("blocks.1.hook_attn_out", add(3.0))]):
        steered = model.generate(prompts, max_new_tokens=n)
        assert steered == [greedy_without_cache(model, prompt, n) for prompt in prompts]
    assert steered != plain_text


def test_sampling_depends_on_the_seed_and_not_on_the_batch() -> None:
    model = tiny_model("llama-gqa")

    def sample(**options: Any) -> list[str]:
        return model.generate(PROMPTS, **{"max_new_tokens": 6, "top_k": 5, **options})

    assert sample() == sample() == sample(batch_size=1)
    assert sample() != sample(seed=9)
    assert sample() != sample(temperature=5.0)
    assert sample(top_k=1) == model.generate(PROMPTS, max_new_tokens=6)
    assert model.generate([], max_new_tokens=3) == []


@pytest.mark.parametrize(
    "bad", [{"top_k": 0}, {"temperature": 0.0}, {"max_new_tokens": 0}, {"batch_size": 0}]
)
def test_generation_refuses_impossible_options(bad: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="generate: expected"):
        tiny_model("gpt2").generate(PROMPTS, **{"max_new_tokens": 4, **bad})


def test_generation_ends_at_the_end_token() -> None:
    model = tiny_model("gpt2")
    end = model.tokenizer.eos_token_id

    def favour_end(logits: torch.Tensor, hook: object) -> torch.Tensor:
        bonus = torch.zeros_like(logits)
        bonus[..., end] = 100.0
        return logits + bonus

    with model.hooks([("unembed.hook_out", favour_end)]):
        assert model.generate(PROMPTS, max_new_tokens=4) == [""] * 4


# ------------------------------------------------------------------------------------------ hooks


@every_arch
def test_hooks_are_removed_on_any_exit(arch: Arch) -> None:
    model = tiny_model(arch)
    before = model.logits(PROMPTS)
    with model.hooks([("blocks.0.hook_mlp_out", add(1.0))]):
        assert not close(model.logits(PROMPTS), before, atol=1e-2)
    with pytest.raises(RuntimeError, match="on purpose"), model.hooks([("blocks.0.hook_mlp_out", add(1.0))]):
        raise RuntimeError("on purpose")
    assert torch.equal(model.logits(PROMPTS), before)
    assert not model.bridge.list_hooks()
    assert not model.hf._forward_hooks


def test_hooks_nest_and_the_inner_exit_leaves_the_outer_on() -> None:
    model = tiny_model("llama-gqa")
    first, second = ("blocks.0.hook_attn_out", add(0.3)), ("blocks.1.hook_attn_out", add(0.7))
    before = model.logits(PROMPTS)
    with model.hooks([first, second]):
        both = model.logits(PROMPTS)
    with model.hooks([first]) as edited:
        outer = edited.logits(PROMPTS)
        with edited.hooks([second]) as twice:
            assert torch.equal(twice.logits(PROMPTS), both)
        assert torch.equal(edited.logits(PROMPTS), outer)
        assert not close(outer, before, atol=1e-3)
    assert torch.equal(model.logits(PROMPTS), before)


def test_the_same_name_twice_is_two_hooks_in_order() -> None:
    model = tiny_model("gpt2")
    name = "blocks.1.hook_mlp_out"
    with model.hooks([(name, lambda t, hook: t * 2), (name, add(1.0))]):
        chained = model.logits(PROMPTS)
    with model.hooks([(name, lambda t, hook: t * 2 + ramp(1.0, t.shape[-1]))]):
        assert close(chained, model.logits(PROMPTS))


def test_a_hook_that_never_fired_is_an_error() -> None:
    model = tiny_model("gpt2")
    dead = "blocks.0.attn.qkv.hook_out"  # the fused projection, which the bridge does not run
    missed = pytest.raises(IntegrityError, match="never fired in 1 forward passes")
    with missed, model.hooks([(dead, add(1.0))]):
        model.logits(PROMPTS[:1])
    with model.hooks([(dead, add(1.0))]):
        pass  # nothing ran, so nothing can have been missed
    own_error = pytest.raises(InputError, match="prompts: expected some")
    with own_error, model.hooks([(dead, add(1.0))]):  # an error of the block's own is not covered up
        model.logits(PROMPTS[: int(model.logits(PROMPTS[:1]).isnan().any())])
    assert not model.bridge.list_hooks()


def test_resid_mid_can_be_read_but_not_replaced() -> None:
    """The raw bridge feeds the new value to the MLP and adds the old one to the stream, without an error."""
    model = tiny_model("gpt2")
    name, ids = "blocks.0.hook_resid_mid", model.tokenize(PROMPT)
    before = model.residual_view(ids)
    with model.bridge.hooks(fwd_hooks=[(name, add(5.0))]):
        half = model.residual_view(ids)
    assert close(half.resid_mid[0], before.resid_mid[0] + ramp(5.0, model.shape.d_model))
    # The change is missing from the stream:
    assert close(half.resid_pre[1] - half.mlp_out[0], before.resid_mid[0])
    with pytest.raises(InputError, match="can be read but not replaced"), model.hooks([(name, add(5.0))]):
        model.logits([ids])
    seen = []
    with model.hooks([(name, lambda t, hook: seen.append(t))]):
        model.logits([ids])
    assert len(seen) == 1


# ------------------------------------------------------------------------------------------ traps of the bridge


def test_trap_1_a_local_folder_causes_no_network_traffic(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[object] = []

    def refuse(*args: object, **kwargs: object) -> None:
        calls.append(args)
        raise OSError("no network in this test")

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    load_model(tiny_folder("gpt2"), device="cpu")
    assert not calls
    with pytest.raises(InputError, match="cannot be fetched from the hub"):
        load_model("nobody/no-such-model")
    assert calls  # the guard does see the network


def test_trap_1_the_plain_model_is_changed_in_place_and_there_is_one_copy() -> None:
    """q, k and v of GPT-2 are views of the fused projection: an edit of either is an edit of both."""
    model = tiny_model("gpt2")
    attn = model.bridge.blocks[0].attn
    fused = attn.qkv.original_component.weight
    for part in (attn.q, attn.k, attn.v):
        weight = part.original_component.weight
        assert weight.untyped_storage().data_ptr() == fused.untyped_storage().data_ptr()
    assert model.hf is model.bridge.original_model
    assert "Bridge" in type(model.hf.get_submodule("transformer.h.0")).__name__


def test_trap_1_a_folder_without_tokenizer_files_is_refused(tmp_path: Path) -> None:
    folder = build("gpt2", tmp_path)
    for file in folder.glob("tokenizer*"):
        file.unlink()
    assert AutoTokenizer.from_pretrained(folder)(PROMPT).input_ids == []  # no error from transformers
    with pytest.raises(InputError, match="no tokenizer files"):
        load_model(folder)


@pytest.mark.parametrize("bos", [False, True])
def test_trap_2_the_bridge_adds_a_bos_and_we_do_not(bos: bool) -> None:
    model = tiny_model("gpt2", bos=bos)
    assert model.bridge.to_tokens("Paris")[0, 0] == 0
    bare = model.tokenizer("Paris", add_special_tokens=False).input_ids
    assert model.tokenize("Paris").tolist() == ([0] if bos else []) + bare
    assert model.tokenizer.pad_token is None  # the bridge's re-wrapping stays in its own copy


@every_arch
@torch.no_grad()
def test_trap_3_padded_ids_without_a_mask_are_wrong(arch: Arch) -> None:
    model = tiny_model(arch)
    ids, mask = model.pad([model.tokenize(prompt) for prompt in PROMPTS])
    right = model.logits(PROMPTS)
    assert close(model.forward(ids, mask)[:, -1], right)
    assert (model.bridge(ids)[:, -1] - right).abs().max() > 0.1


@every_arch
@torch.no_grad()
def test_trap_4_weights_are_raw_and_the_norm_belongs_into_the_projection(arch: Arch) -> None:
    """A second bridge with its norms folded is the oracle: its logits are ours, its W_U has the norm's weight in it."""
    model, folded = tiny_model(arch), raw_bridge(arch)
    folded.enable_compatibility_mode(
        center_unembed=False, center_writing_weights=False, fold_value_biases=False, disable_warnings=True
    )
    ids = model.tokenize(PROMPT)
    view = model.residual_view(ids)
    assert close(folded(ids[None])[0, -1], view.logits)
    norm = model.final_norm
    assert close(folded.W_U.T, norm.centre((norm.weight[:, None] * model.W_U).T))
    frozen = norm.centre(view.resid_final) / norm.scale(view.resid_final)
    with_norm = (frozen * norm.weight) @ model.W_U
    if norm.bias is not None:
        with_norm = with_norm + norm.bias @ model.W_U
    assert close(with_norm, view.logits)
    assert not close(frozen @ model.W_U, view.logits, atol=0.1)  # raw W_U without the norm's weight


@every_arch
@pytest.mark.parametrize(
    "process",
    [
        lambda b: b.enable_compatibility_mode(disable_warnings=True),
        lambda b: b.enable_compatibility_mode(no_processing=True, disable_warnings=True),
        lambda b: b.process_weights(),
        lambda b: b.process_weights(fold_ln=False, center_writing_weights=False, fold_value_biases=False),
    ],
    ids=["compatibility mode", "hooks only", "folded", "centred"],
)
def test_trap_4_a_processed_bridge_is_refused(
    arch: Arch, process: Callable[[TransformerBridge], None]
) -> None:
    bridge = raw_bridge(arch)
    process(bridge)
    with pytest.raises(InputError, match=r"expected raw weights.*TransformerBridge.boot_transformers\('"):
        HookedModel.from_bridge(bridge, tiny_model(arch).tokenizer)


@pytest.mark.parametrize("option", ["center_writing_weights", "fold_value_biases"])
def test_trap_4_lesser_processing_of_a_gpt2_is_refused(option: str) -> None:
    bridge = raw_bridge("gpt2")
    off = dict.fromkeys(("fold_ln", "center_unembed", "center_writing_weights", "fold_value_biases"), False)
    bridge.process_weights(**{**off, option: True})
    with pytest.raises(InputError, match="expected raw weights"):
        HookedModel.from_bridge(bridge, tiny_model("gpt2").tokenizer)


@every_arch
def test_a_raw_bridge_is_taken_as_it_is(arch: Arch) -> None:
    loaded = tiny_model(arch)
    model = HookedModel.from_bridge(raw_bridge(arch), loaded.tokenizer, name="mine")
    assert model.name == "mine"
    assert torch.equal(model.logits(PROMPTS), loaded.logits(PROMPTS))
    assert model.hash == loaded.hash
    assert model.shape == loaded.shape


def test_trap_5_query_heads_read_the_kv_head_of_their_group() -> None:
    model = tiny_model("llama-gqa")
    s = model.shape
    assert (s.n_heads, s.n_kv_heads) == (4, 2)
    view = model.residual_view(model.tokenize(PROMPT))
    assert tuple(view.v.shape[2:]) == (2, s.d_head)
    assert torch.equal(model.W_V(0)[0], model.W_V(0)[1])
    assert not torch.equal(model.W_V(0)[1], model.W_V(0)[2])

    def heads(kv: list[int]) -> torch.Tensor:
        return torch.einsum("ht,thd,hdm->m", view.pattern[0], view.v[0][:, kv], model.W_O(0))

    assert close(heads([0, 0, 1, 1]), view.attn_out[0])
    assert not close(heads([0, 1, 0, 1]), view.attn_out[0], atol=1e-2)


@every_arch
def test_trap_5_biases_that_an_architecture_lacks_are_none(arch: Arch) -> None:
    model = tiny_model(arch)
    if arch.startswith("llama"):
        with pytest.raises(AttributeError):
            _ = model.bridge.b_O
        assert model.b_O(0) is None
        assert model.b_out(0) is None
        assert model.final_norm.bias is None
    else:
        assert all(bool(bias.any()) for bias in (model.b_O(0), model.b_out(0)) if bias is not None)
        assert model.b_O(0) is not None
        assert model.b_out(0) is not None
    assert not bool(model.bridge.b_U.any())  # the bridge makes up a bias of zeros
    assert model.b_U is None


def test_trap_6_run_with_cache_detaches_but_a_returned_leaf_has_a_gradient() -> None:
    model = load_model(tiny_folder("llama-gqa"), device="cpu", dtype="float64")
    ids = model.tokenize(PROMPT)
    ones = torch.ones_like(ids)
    assert not any(weight.requires_grad for weight in [*model.hf.parameters(), *model.bridge.parameters()])
    _, cache = model.bridge.run_with_cache(ids[None])
    assert not cache["blocks.1.hook_mlp_out"].requires_grad
    leaves = []

    def leaf(tensor: torch.Tensor, hook: object) -> torch.Tensor:
        leaves.append(tensor.detach().requires_grad_())
        return leaves[-1]

    with model.hooks([("blocks.1.hook_mlp_out", leaf)]):
        model.forward(ids[None], ones[None])[0, -1, 7].backward()
    assert leaves[0].grad is not None
    gradient, step = leaves[0].grad[0, -1], 1e-3
    nudge = torch.randn(model.shape.d_model, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def logit(size: float) -> torch.Tensor:
        def push(tensor: torch.Tensor, hook: object) -> torch.Tensor:
            return torch.cat([tensor[:, :-1], tensor[:, -1:] + size * nudge], dim=1)

        with model.hooks([("blocks.1.hook_mlp_out", push)]):
            return model.logits([ids])[0, 7]

    slope = (logit(step) - logit(-step)) / (2 * step)
    assert abs(float(slope - gradient @ nudge)) < 1e-3 * max(1.0, abs(float(slope)))
    assert float(gradient.norm()) > 0


def test_trap_7_one_point_under_two_names_is_refused() -> None:
    model = tiny_model("gpt2")
    alias, canonical = "blocks.0.hook_attn_out", "blocks.0.attn.hook_out"
    calls = []
    both = [(name, lambda t, hook: calls.append(hook.name)) for name in (alias, canonical)]
    with model.bridge.hooks(fwd_hooks=both):
        model.logits(["Paris"])
    assert calls == [canonical, canonical]  # the raw bridge applies it twice
    with (
        pytest.raises(InputError, match="are one hook point"),
        model.hooks([(alias, add(1.0)), (canonical, add(1.0))]),
    ):
        pass
    assert not model.bridge.list_hooks()


def test_trap_7_an_unknown_name_is_refused_with_the_nearest() -> None:
    with (
        pytest.raises(InputError, match=r"no hook point 'blocks.0.hook_atn_out'.*blocks.0.hook_attn_out"),
        tiny_model("gpt2").hooks([("blocks.0.hook_atn_out", add(1.0))]),
    ):
        pass


@every_arch
def test_trap_8_with_the_cache_a_hook_sees_the_prompt_once_and_then_one_position(arch: Arch) -> None:
    model = tiny_model(arch)
    seen: list[tuple[int, ...]] = []
    with model.hooks([("blocks.0.hook_attn_out", lambda t, hook: seen.append(tuple(t.shape)))]):
        model.generate([torch.arange(1, 8), torch.arange(1, 4)], max_new_tokens=3)
    d = model.shape.d_model
    assert seen[0] == (2, 7, d)
    assert seen[1:]
    assert set(seen[1:]) == {(2, 1, d)}

    def from_the_left(tensor: torch.Tensor, hook: object) -> None:
        assert tensor[:, 3].shape == (1, d)

    with pytest.raises(IndexError), model.hooks([("blocks.0.hook_attn_out", from_the_left)]):
        model.generate([torch.arange(1, 8)], max_new_tokens=3)


@every_arch
def test_trap_9_no_norm_of_the_test_models_is_fresh(arch: Arch) -> None:
    model = tiny_model(arch)
    weights = [
        norm(layer).weight for norm in (model.norm1, model.norm2) for layer in range(model.shape.n_layers)
    ]
    assert all(float((weight - 1).abs().mean()) > 0.1 for weight in [*weights, model.final_norm.weight])
    for name, parameter in plain(arch).named_parameters():
        assert float(parameter.detach().std()) > 0.05, name
    view = model.residual_view(model.tokenize(PROMPT))
    fresh = FinalNorm(torch.ones(model.shape.d_model), None, model.final_norm.eps, model.shape.norm)
    assert not close(fresh(view.resid_final) @ model.W_U, view.logits, atol=0.1)


@every_arch
def test_trap_10_a_switched_off_hook_is_refused_and_z_gives_the_same(arch: Arch) -> None:
    model = load_model(tiny_folder(arch), device="cpu")
    name, ids = "blocks.1.attn.hook_result", model.tokenize(PROMPT)
    with pytest.raises(InputError, match="use_attn_result"), model.hooks([(name, add(0.0))]):
        pass
    model.bridge.set_use_attn_result(True)
    kept: dict[str, torch.Tensor] = {}
    points = [name, "blocks.1.attn.hook_z"]
    with model.hooks([(point, lambda t, hook, point=point: kept.update({point: t})) for point in points]):
        model.logits([ids])
    cheaper = torch.einsum("bthd,hdm->bthm", kept[points[1]], model.W_O(1))
    assert close(kept[name], cheaper)


@every_arch
@torch.no_grad()
def test_trap_11_attention_is_eager_and_shows_the_pattern(arch: Arch) -> None:
    model = tiny_model(arch)
    ids = model.tokenize(PROMPT)
    assert model.hf.config._attn_implementation == "eager"
    view, reference = model.residual_view(ids), plain(arch)(ids[None], output_attentions=True)
    for layer, attention in enumerate(reference.attentions):
        assert close(view.pattern[layer], attention[0, :, -1])
    fused = AutoModelForCausalLM.from_pretrained(tiny_folder(arch), attn_implementation="sdpa").eval()
    assert fused.config._attn_implementation == "sdpa"
    assert close(fused(ids[None]).logits[0, -1], view.logits)


def test_trap_12_tests_run_on_one_thread() -> None:
    assert torch.get_num_threads() == 1


# ------------------------------------------------------------------------------------------ weights


@every_arch
def test_weights_are_views_that_an_edit_writes_through(arch: Arch) -> None:
    model = load_model(tiny_folder(arch), device="cpu")
    before = model.logits(PROMPTS)
    weights = [model.W_O(1), model.W_in(1), model.W_out(1), model.W_U, model.W_gate(1)]
    for weight in weights + ([] if arch == "llama-gqa" else [model.W_V(1)]):
        if weight is None:
            continue
        old = weight.clone()
        weight.add_(0.1 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)))
        assert not close(model.logits(PROMPTS), before, atol=1e-3)
        weight.copy_(old)
        assert torch.equal(model.logits(PROMPTS), before)


@every_arch
def test_hash_is_that_of_the_file_and_follows_an_edit(arch: Arch) -> None:
    model = load_model(tiny_folder(arch), device="cpu")
    digest = hashlib.sha256()
    with safe_open(tiny_folder(arch) / "model.safetensors", framework="pt") as file:
        for name in sorted(file.keys()):
            tensor = file.get_tensor(name)
            digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
            digest.update(tensor.numpy().tobytes())
    clean = model.hash
    assert clean == digest.hexdigest()
    weight = model.W_out(1)
    before = weight.clone()
    weight[0, 0] += 1
    assert model.hash != clean
    weight.copy_(before)
    assert model.hash == clean


def test_a_layer_outside_the_model_is_refused() -> None:
    for layer in (-1, 3):
        with pytest.raises(InputError, match="expected 0 to 2"):
            tiny_model("gpt2").W_O(layer)
