"""Neuron-level attribution by the formula, one unit at a time, in fp64: the oracle of `test_attribution.py`.

It shares nothing with `mechedit.attribution`: activations come from forward hooks on the plain Hugging Face
model, weights from its modules, and every score is `log_softmax(B(base + v))[t] − log_softmax(B(base))[t]`
for one vector v.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

Key = tuple[Any, ...]


@dataclass(frozen=True)
class Plain:
    """One forward pass at the last position, fp64: residuals and outputs [L, d], A [L, H, T], v [L, T, K,
    d_head], m [L, T, d_mlp], x_all [L, T, d], and the weights."""

    x_pre: Tensor
    a: Tensor
    f: Tensor
    x_final: Tensor
    A: Tensor
    v: Tensor
    m: Tensor
    x_all: Tensor
    W_O: Tensor
    W_V: Tensor
    W_out: Tensor
    ln1: Tensor
    gamma: Tensor
    beta: Tensor | None
    eps: float
    W_U: Tensor

    def sigma(self) -> Tensor:
        """LayerNorm's scale where the norm has a bias (GPT-2), else RMSNorm's."""
        x = self.x_final
        power = x.square().mean() if self.beta is None else (x - x.mean()).square().mean()
        return (power + self.eps).sqrt()

    def logp(self, z: Tensor, t: int, *, biases: str, sigma: Tensor) -> float:
        if self.beta is not None:
            z = z - z.mean()
        normed = z / sigma * self.gamma
        if biases == "keep" and self.beta is not None:
            normed = normed + self.beta
        return float((normed @ self.W_U).log_softmax(-1)[t])


@dataclass(frozen=True)
class PlainReads(Plain):
    """And what value neurons read: x_mid_all, a_all, f_all [L, T, d], the FFN's keys (one matrix, or up and gate,
    each [L, d, d_mlp]), the second norm's weight and what the norms and projections add (biases)."""

    x_mid_all: Tensor
    a_all: Tensor
    f_all: Tensor
    W_keys: tuple[Tensor, ...]
    ln2: Tensor

    def key(self, value: Key, *, centre: bool) -> list[tuple[Tensor, Tensor]]:
        """(what it reads x, key) of an attention value neuron (l, h, j, pos) or of an FFN one (l, i)."""
        if len(value) == 4:
            layer, head, j, pos = value
            group = self.A.shape[1] // self.v.shape[2]
            pairs = [(self.x_all[layer, pos], self.W_V[layer, :, head // group, j] * self.ln1[layer])]
        else:
            layer, i = value
            pairs = [(self.x_mid_all[layer, -1], W[layer, :, i] * self.ln2[layer]) for W in self.W_keys]
        mean = centre and self.beta is not None
        return [(x, key - key.mean() if mean else key) for x, key in pairs]


@torch.no_grad()
def plain_run(folder: Path | str, ids: list[int]) -> PlainReads:
    """The record of a forward pass over `ids` of the checkpoint in `folder`."""
    hf: Any = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").double().eval()
    hf.requires_grad_(False)
    gpt2 = hf.config.model_type == "gpt2"
    blocks = hf.transformer.h if gpt2 else hf.model.layers
    norm = hf.transformer.ln_f if gpt2 else hf.model.norm
    kept: dict[str, list[Tensor]] = {name: [] for name in ("x", "mid", "a", "f", "v", "m", "final")}

    def keep_input(name: str) -> Any:
        return lambda module, args, kwargs: kept[name].append((args or tuple(kwargs.values()))[0][0])

    def keep_output(name: str) -> Any:
        return lambda module, args, output: kept[name].append(
            (output if torch.is_tensor(output) else output[0])[0]
        )

    for block in blocks:
        attention, mlp = (block.attn, block.mlp) if gpt2 else (block.self_attn, block.mlp)
        block.register_forward_pre_hook(keep_input("x"), with_kwargs=True)
        attention.register_forward_hook(keep_output("a"))
        mlp.register_forward_hook(keep_output("f"))
        norm2 = block.ln_2 if gpt2 else block.post_attention_layernorm
        norm2.register_forward_pre_hook(keep_input("mid"), with_kwargs=True)
        (attention.c_attn if gpt2 else attention.v_proj).register_forward_hook(keep_output("v"))
        (mlp.c_proj if gpt2 else mlp.down_proj).register_forward_pre_hook(keep_input("m"), with_kwargs=True)
    norm.register_forward_pre_hook(keep_input("final"), with_kwargs=True)
    output = hf(torch.tensor([ids]), output_attentions=True)

    heads, d = hf.config.num_attention_heads, hf.config.hidden_size
    kv_heads = getattr(hf.config, "num_key_value_heads", heads)
    x = torch.stack(kept["x"])
    values = [v[:, 2 * d :] if gpt2 else v for v in kept["v"]]
    W_O = [b.attn.c_proj.weight if gpt2 else b.self_attn.o_proj.weight.T for b in blocks]
    W_V = [b.attn.c_attn.weight[:, 2 * d :] if gpt2 else b.self_attn.v_proj.weight.T for b in blocks]
    ups = [[b.mlp.c_fc.weight for b in blocks]] if gpt2 else []
    ups += (
        [] if gpt2 else [[b.mlp.up_proj.weight.T for b in blocks], [b.mlp.gate_proj.weight.T for b in blocks]]
    )
    return PlainReads(
        x_pre=x[:, -1],
        a=torch.stack(kept["a"])[:, -1],
        f=torch.stack(kept["f"])[:, -1],
        x_final=kept["final"][0][-1],
        A=torch.stack([layer[0, :, -1] for layer in output.attentions]),
        v=torch.stack([v.unflatten(-1, (kv_heads, -1)) for v in values]),
        m=torch.stack(kept["m"]),
        x_all=x,
        W_O=torch.stack([w.unflatten(0, (heads, -1)) for w in W_O]),
        W_V=torch.stack([w.unflatten(1, (kv_heads, -1)) for w in W_V]),
        W_out=torch.stack([b.mlp.c_proj.weight if gpt2 else b.mlp.down_proj.weight.T for b in blocks]),
        ln1=torch.stack([b.ln_1.weight if gpt2 else b.input_layernorm.weight for b in blocks]),
        gamma=norm.weight,
        beta=norm.bias if gpt2 else None,
        eps=hf.config.layer_norm_epsilon if gpt2 else hf.config.rms_norm_eps,
        W_U=hf.lm_head.weight.T,
        x_mid_all=torch.stack(kept["mid"]),
        a_all=torch.stack(kept["a"]),
        f_all=torch.stack(kept["f"]),
        W_keys=tuple(torch.stack(up) for up in ups),
        ln2=torch.stack([b.ln_2.weight if gpt2 else b.post_attention_layernorm.weight for b in blocks]),
    )


Unit = Literal["layers", "heads", "head_positions", "mlp_neurons", "attn_neurons"]


@torch.no_grad()
def naive_scores(
    plain: Plain, t: int, *, biases: str, sigma: Tensor | None = None
) -> dict[Unit, dict[Key, float]]:
    """Every score by the formula, keyed by the unit's columns."""
    scale = plain.sigma() if sigma is None else sigma

    def logp(z: Tensor) -> float:
        return plain.logp(z, t, biases=biases, sigma=scale)

    layers, heads, positions, mlp, attn = ({} for _ in range(5))
    n_heads, n_tokens, width = plain.A.shape[1], plain.A.shape[2], plain.v.shape[3]
    group = n_heads // plain.v.shape[2]
    for layer in range(len(plain.a)):
        pre = plain.x_pre[layer]
        mid = pre + plain.a[layer]
        at_pre, at_mid = logp(pre), logp(mid)
        layers[layer, "attn"] = at_mid - at_pre
        layers[layer, "mlp"] = logp(mid + plain.f[layer]) - at_mid
        for i in range(plain.W_out.shape[1]):
            mlp[layer, i] = logp(mid + plain.m[layer, -1, i] * plain.W_out[layer, i]) - at_mid
        for h in range(n_heads):
            head = torch.zeros_like(pre)
            for pos in range(n_tokens):
                term = torch.zeros_like(pre)
                for j in range(width):
                    value = (
                        plain.A[layer, h, pos] * plain.v[layer, pos, h // group, j] * plain.W_O[layer, h, j]
                    )
                    attn[layer, h, j, pos] = logp(pre + value) - at_pre
                    term = term + value
                positions[layer, h, pos] = logp(pre + term) - at_pre
                head = head + term
            heads[layer, h] = logp(pre + head) - at_pre
    return {
        "layers": layers,
        "heads": heads,
        "head_positions": positions,
        "mlp_neurons": mlp,
        "attn_neurons": attn,
    }


@torch.no_grad()
def naive_shares(plain: PlainReads, value: Key, *, guard: float, centre: bool) -> dict[Key, float]:
    """The share of each source in what a value neuron reads: the embedding ("embed",), sub-layers ("attn", l) and
    ("mlp", l), FFN neurons (l, i), one by one; the mean over its keys."""
    layer, pos = value[0], value[3] if len(value) == 4 else plain.A.shape[2] - 1
    shares: dict[Key, float] = {}
    pairs = plain.key(value, centre=centre)
    for x, key in pairs:
        read, least = float(x @ key), guard * float(x.norm() * key.norm())
        if abs(read) < least:
            read = -least if read < 0 else least

        def add(name: Key, vector: Tensor, key: Tensor = key, read: float = read) -> None:
            shares[name] = shares.get(name, 0.0) + float(vector @ key) / read / len(pairs)

        add(("embed",), plain.x_all[0, pos])
        for k in range(len(plain.a)):
            if k < layer or (k == layer and len(value) == 2):
                add(("attn", k), plain.a_all[k, pos])
            if k < layer:
                add(("mlp", k), plain.f_all[k, pos])
                for i in range(plain.W_out.shape[1]):
                    add((k, i), plain.m[k, pos, i] * plain.W_out[k, i])
    return shares


@torch.no_grad()
def naive_queries(
    plain: PlainReads, values: list[tuple[Key, float]], *, guard: float, centre: bool
) -> tuple[dict[Key, float], dict[Key, float]]:
    """Query scores of every FFN neuron (l, i), and of every layer (l, module), from value neurons and scores."""
    neurons = {(k, i): 0.0 for k in range(len(plain.a)) for i in range(plain.W_out.shape[1])}
    layers: dict[Key, float] = {(-1, "embed"): 0.0}
    layers |= {(k, name): 0.0 for k in range(len(plain.a)) for name in ("attn", "mlp")}
    for value, score in values:
        for name, share in naive_shares(plain, value, guard=guard, centre=centre).items():
            if name == ("embed",):
                layers[-1, "embed"] += score * share
            elif isinstance(name[0], str):
                layers[name[1], name[0]] += score * share
            else:
                neurons[name] += score * share
    return neurons, layers
