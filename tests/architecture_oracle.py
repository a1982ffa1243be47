"""The formulas of attribution on a plain Hugging Face model of any family of `tests.architectures`, in fp64.

Shares nothing with `mechedit`: activations come from forward hooks on the modules, which stand in a table by their
names; what becomes of a unit behind a norm is the norm's own effect on the sub-layer's output, `norm(y) / y`, entry by
entry, and a multiplier is what the config says.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from tests.architectures import FAMILIES, folder_of
from tests.nlka_oracle import Key, Plain


@dataclass(frozen=True)
class Names:
    """The modules of a family.

    `post1` and `post2` are norms behind attention and MLP; `ln2` of a parallel block is what its MLP reads through.
    """

    blocks: str = "model.layers"
    norm: str = "model.norm"
    attn: str = "self_attn"
    o: str = "o_proj"
    v: str = "v_proj"
    mlp: str = "mlp"
    out: str = "down_proj"
    ups: tuple[str, ...] = ("up_proj", "gate_proj")
    ln1: str | None = "input_layernorm"
    ln2: str | None = "post_attention_layernorm"
    post1: str | None = None
    post2: str | None = None
    parallel: bool = False
    offset: float = 0.0


_GPT2 = Names(
    "transformer.h",
    "transformer.ln_f",
    "attn",
    "c_proj",
    "c_attn",
    "mlp",
    "c_proj",
    ("c_fc",),
    "ln_1",
    "ln_2",
)
_NEOX = Names(
    "gpt_neox.layers", "gpt_neox.final_layer_norm", "attention", "dense", "query_key_value", "mlp", "dense_4h_to_h",
    ("dense_h_to_4h",), parallel=True,
)  # fmt: skip
NAMES: dict[str, Names] = {
    "gpt2": _GPT2,
    "gpt-j": Names(
        "transformer.h", "transformer.ln_f", "attn", "out_proj", "v_proj", "mlp", "fc_out", ("fc_in",), "ln_1", "ln_1",
        parallel=True,
    ),
    "gpt-neox": _NEOX,
    "gpt-neox sequential": Names(**{**vars(_NEOX), "parallel": False}),
    "phi": Names(
        norm="model.final_layernorm", o="dense", out="fc2", ups=("fc1",), ln2="input_layernorm", parallel=True
    ),
    "gemma": Names(offset=1.0),
    "gemma 3": Names(
        ln2="pre_feedforward_layernorm", post1="post_attention_layernorm", post2="post_feedforward_layernorm",
        offset=1.0,
    ),
    "olmo-2": Names(ln1=None, ln2=None, post1="post_attention_layernorm", post2="post_feedforward_layernorm"),
    "cohere": Names(ln2="input_layernorm", parallel=True),
    "starcoder 2": Names(out="c_proj", ups=("c_fc",)),
    "phi 3": Names(v="qkv_proj", ups=("gate_up_proj",)),
    "glm 4": Names(post1="post_self_attn_layernorm", post2="post_mlp_layernorm", ups=("gate_up_proj",)),
    "nemotron": Names(ups=("up_proj",), offset=1.0),
    "falcon": Names(
        "transformer.h", "transformer.ln_f", "self_attention", "dense", "query_key_value", "mlp", "dense_4h_to_h",
        ("dense_h_to_4h",), ln2="input_layernorm", parallel=True,
    ),
}  # fmt: skip
CENTRED = (
    "gpt2",
    "gpt-j",
    "gpt-neox",
    "gpt-neox sequential",
    "phi",
    "olmo",
    "cohere",
    "starcoder 2",
    "nemotron",
    "falcon",
)


@dataclass(frozen=True)
class Family(Plain):
    """`Plain`, whose W_O and W_out are what becomes of their rows at the last position, and what value neurons read:
    ln1, ln2 [L, d] (the norms' weights as they count), everything at all positions [L, T, d], the raw W_out, gains of
    the MLP [L, T, d] or a number, keys."""

    centre: bool
    parallel: bool
    b_U: Tensor
    ln2: Tensor
    x_mid_all: Tensor
    a_all: Tensor
    f_all: Tensor
    W_keys: tuple[Tensor, ...]
    rows: Tensor
    gains: Tensor

    def sigma(self) -> Tensor:
        x = self.x_final - self.x_final.mean() if self.centre else self.x_final
        return (x.square().mean() + self.eps).sqrt()

    def logp(self, z: Tensor, t: int, *, biases: str, sigma: Tensor) -> float:
        normed = (z - z.mean() if self.centre else z) / sigma * self.gamma
        if biases == "drop":
            return float((normed @ self.W_U).log_softmax(-1)[t])
        normed = normed if self.beta is None else normed + self.beta
        return float((normed @ self.W_U + self.b_U).log_softmax(-1)[t])

    def keys(self, value: Key) -> list[tuple[Tensor, Tensor]]:
        """(what it reads x, key) of an attention value neuron (l, h, j, pos) or of an FFN one (l, i)."""
        if len(value) == 4:
            layer, head, j, pos = value
            group = self.A.shape[1] // self.v.shape[2]
            pairs = [(self.x_all[layer, pos], self.W_V[layer, :, head // group, j] * self.ln1[layer])]
        else:
            layer, i = value
            x = (self.x_all if self.parallel else self.x_mid_all)[layer, -1]
            pairs = [(x, W[layer, :, i] * self.ln2[layer]) for W in self.W_keys]
        return [(x, key - key.mean() if self.centre else key) for x, key in pairs]

    def shares(self, value: Key, *, guard: float) -> dict[Key, float]:
        """The share of each source in what a value neuron reads, the mean over its keys."""
        layer, pos = value[0], value[3] if len(value) == 4 else self.A.shape[2] - 1
        shares: dict[Key, float] = {}
        pairs = self.keys(value)
        for x, key in pairs:
            read, least = float(x @ key), guard * float(x.norm() * key.norm())
            if abs(read) < least:
                read = -least if read < 0 else least

            def add(name: Key, vector: Tensor, key: Tensor = key, read: float = read) -> None:
                shares[name] = shares.get(name, 0.0) + float(vector @ key) / read / len(pairs)

            add(("embed",), self.x_all[0, pos])
            for k in range(len(self.a)):
                if k < layer or (k == layer and len(value) == 2 and not self.parallel):
                    add(("attn", k), self.a_all[k, pos])
                if k < layer:
                    add(("mlp", k), self.f_all[k, pos])
                    for i in range(self.rows.shape[1]):
                        add((k, i), self.m[k, pos, i] * self.rows[k, i] * self.gains[k, pos])
        return shares


def queries(
    plain: Family, values: Sequence[tuple[Key, float]], *, guard: float
) -> tuple[dict[Key, float], dict[Key, float]]:
    """Query scores of every FFN neuron (l, i), and of every layer (l, module), from value neurons and scores."""
    neurons = {(k, i): 0.0 for k in range(len(plain.a)) for i in range(plain.rows.shape[1])}
    layers: dict[Key, float] = {(-1, "embed"): 0.0}
    layers |= {(k, name): 0.0 for k in range(len(plain.a)) for name in ("attn", "mlp")}
    for value, score in values:
        for name, share in plain.shares(value, guard=guard).items():
            if name == ("embed",):
                layers[-1, "embed"] += score * share
            elif isinstance(name[0], str):
                layers[name[1], name[0]] += score * share
            else:
                neurons[name] += score * share
    return neurons, layers


@torch.no_grad()
def family_run(name: str, ids: list[int]) -> Family:
    """The record of a forward pass over `ids` of a family's checkpoint."""
    hf: Any = (
        AutoModelForCausalLM.from_pretrained(folder_of(name), attn_implementation="eager").double().eval()
    )
    hf.requires_grad_(False)
    names, config = NAMES.get(name, Names()), hf.config
    kept: dict[str, list[Tensor]] = {key: [] for key in ("x", "a", "f", "v", "m", "final", "a0", "f0")}
    blocks, norm = hf.get_submodule(names.blocks), hf.get_submodule(names.norm)

    def keep_input(key: str) -> Any:
        return lambda module, args, kwargs: kept[key].append(
            (args or tuple(kwargs.values()))[0][0].clone()  # Falcon goes on to add to it in place
        )

    def keep_output(key: str) -> Any:
        return lambda module, args, output: kept[key].append(
            (output if torch.is_tensor(output) else output[0])[0].clone()
        )

    for block in blocks:
        attn, mlp = block.get_submodule(names.attn), block.get_submodule(names.mlp)
        block.register_forward_pre_hook(keep_input("x"), with_kwargs=True)
        attn.register_forward_hook(keep_output("a0"))
        mlp.register_forward_hook(keep_output("f0"))
        block.get_submodule(names.post1 or names.attn).register_forward_hook(keep_output("a"))
        block.get_submodule(names.post2 or names.mlp).register_forward_hook(keep_output("f"))
        attn.get_submodule(names.v).register_forward_hook(keep_output("v"))
        mlp.get_submodule(names.out).register_forward_pre_hook(keep_input("m"), with_kwargs=True)
    norm.register_forward_pre_hook(keep_input("final"), with_kwargs=True)
    output = hf(torch.tensor([ids]), output_attentions=True, use_cache=False)

    factor = float(getattr(config, "residual_multiplier", 1.0))
    scale = float(getattr(config, "logit_scale", 1.0)) / float(getattr(config, "logits_scaling", 1.0))
    x, a, f, a0, f0 = (torch.stack(kept[key]) for key in ("x", "a", "f", "a0", "f0"))
    gains = [factor * (added / raw) for added, raw in ((a, a0), (f, f0))]
    a, f = factor * a, factor * f
    heads = config.num_attention_heads
    width = getattr(blocks[0].get_submodule(names.attn), "head_dim", config.hidden_size // heads)
    weights = [_values(hf, name, block.get_submodule(names.attn), heads, width) for block in blocks]
    rows = torch.stack([_matrix(block.get_submodule(f"{names.mlp}.{names.out}")) for block in blocks])
    W_O = torch.stack([_matrix(block.get_submodule(f"{names.attn}.{names.o}")) for block in blocks])
    keys = [[_matrix(block.get_submodule(f"{names.mlp}.{up}")) for block in blocks] for up in names.ups]
    if names.ups == ("gate_up_proj",):  # the gate's columns, then those of up
        keys = [
            [both[:, both.shape[1] // 2 :] for both in keys[0]],
            [both[:, : both.shape[1] // 2] for both in keys[0]],
        ]
    bias = getattr(hf.lm_head, "bias", None)
    W_U = hf.lm_head.weight.T * scale
    values = torch.stack([_split(name, v, heads, width) for v in kept["v"]])
    return Family(
        x_pre=x[:, -1],
        a=a[:, -1],
        f=f[:, -1],
        x_final=kept["final"][0][-1],
        A=torch.stack([layer[0, :, -1] for layer in output.attentions]),
        v=values,
        m=torch.stack(kept["m"]),
        x_all=x,
        W_O=(W_O * gains[0][:, -1][:, None]).unflatten(1, (heads, -1)),
        W_V=torch.stack(weights).unflatten(2, (values.shape[2], -1)),
        W_out=rows * gains[1][:, -1][:, None],
        ln1=_norms(blocks, names.ln1, names.offset, x),
        gamma=torch.ones_like(x[0, 0]) if name == "olmo" else norm.weight + names.offset,
        beta=getattr(norm, "bias", None),
        eps=_eps(norm),
        W_U=W_U,
        centre=name in CENTRED,
        parallel=names.parallel,
        b_U=W_U[0] * 0 if bias is None else bias * scale,
        ln2=_norms(blocks, names.ln2, names.offset, x),
        x_mid_all=x + a,
        a_all=a,
        f_all=f,
        W_keys=tuple(torch.stack(own) for own in keys),
        rows=rows,
        gains=gains[1],
    )


def _matrix(module: Any) -> Tensor:
    """[in, out]: GPT-2's Conv1D stores it so."""
    weight: Tensor = module.weight
    return weight if type(module).__name__ == "Conv1D" else weight.T


def _eps(norm: Any) -> float:
    return float(next((getattr(norm, n) for n in ("variance_epsilon", "eps") if hasattr(norm, n)), 1e-5))


def _norms(blocks: Any, name: str | None, offset: float, x: Tensor) -> Tensor:
    weights = [
        None if name is None else getattr(block.get_submodule(name), "weight", None) for block in blocks
    ]
    return torch.stack(
        [torch.ones_like(x[0, 0]) if weight is None else weight + offset for weight in weights]
    )


def _split(name: str, v: Tensor, heads: int, width: int) -> Tensor:
    """[T, K, d_head] of what the module that makes values has put out: some make queries and keys too."""
    if name in ("gpt-neox", "gpt-neox sequential"):
        return v.unflatten(-1, (heads, 3, width))[:, :, 2]
    if name == "gpt2":
        return v[:, 2 * heads * width :].unflatten(-1, (heads, width))
    if name == "falcon":
        return v[:, -width:][:, None]
    if name == "phi 3":
        return v[:, -int(FAMILIES[name][1]["num_key_value_heads"]) * width :].unflatten(-1, (-1, width))
    return v.unflatten(-1, (-1, width))


def _values(hf: Any, name: str, attn: Any, heads: int, width: int) -> Tensor:
    """W_V [d_model, K · d_head]."""
    weight = _matrix(attn.get_submodule(NAMES.get(name, Names()).v))
    return _split(name, weight, heads, width).flatten(1)
