"""The checks of a diagnosis that need only the loaded model: padding, BOS, hooks, folded norms, conservation.

Each takes the model and probes (ids of prompts) and yields rows (`reports.diagnosis.Check`): what was measured, how
large it may be, what to change. Numerical errors are the largest difference as a share of the largest value compared,
and may be as large as `mechedit.models.selfcheck.TOLERANCE` of the dtype.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from mechedit.models.architecture import points
from mechedit.models.bridged import BridgedModel
from mechedit.models.hooked import HookedModel
from mechedit.models.hooking import in_block
from mechedit.models.selfcheck import TOLERANCE, conservation, reads, share_off
from mechedit.models.weights import FinalNorm
from reports.diagnosis import Check
from reports.errors import InputError

__all__ = ["folded_norms", "hooks_fire", "identities", "invariance", "special_tokens"]

#: A forgotten mask must be off by this many times what padding and batch mates are.
FAR = 10


@torch.no_grad()
def invariance(model: BridgedModel, probes: Sequence[Tensor]) -> Iterator[Check]:
    """Logits behind each probe, alone and unpadded, against the same padded on either side and beside a longer one.

    The control is the padded probe with its mask forgotten: the padding is attended to, and positions shift. It is read
    at every token, for behind a sliding window's width the last one may see no padding.
    """
    off: dict[str, list[float]] = {}
    longest = max(probes, key=len)
    for ids in probes:
        every = model.run(*model.pad([ids]))[0][0]
        true = every[-1]
        width = min(model.n_ctx or 2 * len(ids) + 3, 2 * len(ids) + 3)
        filler = ids.new_zeros(width)
        left, right = (model.pad([ids, filler], side=side) for side in ("left", "right"))
        mates = model.pad([ids, longest])
        measured = {
            "padded on the left": model.run(left[0][:1], left[1][:1])[0][0, -1],
            "padded on the right": model.run(right[0][:1], right[1][:1])[0][0, len(ids) - 1],
            "beside a batch mate": model.run(*mates)[0][0, -1],
            "last of its batch": model.run(mates[0].flip(0), mates[1].flip(0))[0][1, -1],
        }
        for name, logits in measured.items():
            off.setdefault(name, []).append(share_off(logits, true))
        forgotten = model.run(left[0][:1], torch.ones_like(left[1][:1]))[0][0, -len(ids) :]
        off.setdefault("the mask forgotten", []).append(share_off(forgotten, every))
    control = off.pop("the mask forgotten")
    tolerance = TOLERANCE[model.dtype]
    for name, errors in off.items():
        yield Check(
            name,
            max(errors),
            tolerance,
            "of the largest logit, against the prompt alone",
            "prompts influence each other in a batch: run them one by one (batch_size=1), or use float32",
            n=len(errors),
        )
    worst = max(max(errors) for errors in off.values())
    yield Check(
        "the mask forgotten",
        min(control),
        FAR * worst,
        f"of the largest logit: the control, {FAR} times the worst of the rows above",
        "the model does not look at its mask, or the probes are too short: the rows above say nothing",
        n=len(control),
        control=True,
    )


def special_tokens(model: BridgedModel, pairs: Sequence[tuple[str, str]]) -> Iterator[Check]:
    """BOS before a prompt as the checkpoint declares it, and no special token in a target."""
    tokenizer, n = model.tokenizer, len(pairs)
    bos, declared = tokenizer.bos_token_id, _declared_bos(tokenizer)
    encoded = [model.tokenize(prompt).tolist() for prompt, _ in pairs]
    wanted = [_framed_ids(model, prompt) for prompt, _ in pairs]
    differing = sum(ids != expected for ids, expected in zip(encoded, wanted, strict=True))
    yield Check(
        "prompts as the tokenizer's",
        differing,
        0,
        "prompts whose ids differ from the tokenizer's own",
        "the tokenizer gives other ids from call to call: save it again with save_pretrained",
        n=n,
    )
    if model.framing:  # what the tokenizer puts in front by itself
        declared, encoded = declared if "prefix" in model.framing else None, [model.tokenizer("a").input_ids]
    leading = max(_leading(ids, bos) for ids in encoded)
    shown = repr(tokenizer.bos_token)
    yield Check(
        "BOS at most once",
        leading,
        1,
        f"{shown} before a prompt",
        "the tokenizer's post-processor adds it and its text too: remove one of them from tokenizer.json",
        n=n,
    )
    declaration = "not declared" if declared is None else f"add_bos_token={declared}"
    yield Check(
        "BOS as declared",
        0 if declared is None else abs(int(declared) - min(leading, 1)),
        0,
        f"{shown}: {declaration} in the tokenizer's config, {leading} put before a prompt",
        f"tokenizer_config.json says add_bos_token={declared} and tokenizer.json puts {leading}: set the template in "
        "its post_processor (or add_bos_token), for the model was trained on one of the two",
        n=n,
    )
    config = model.hf.config.bos_token_id
    differs = (
        bos is not None
        and config is not None
        and bos not in (config if isinstance(config, list) else [config])
    )
    yield Check(
        "BOS id of model and tokenizer",
        int(differs),
        0,
        f"{config} in config.json, {bos} in the tokenizer",
        "the two belong to different models, or config.json is wrong: set its bos_token_id",
    )
    yield from _targets(model, pairs)


def hooks_fire(model: BridgedModel, probes: Sequence[Tensor]) -> Iterator[Check]:
    """Every hook point that the package reads or steers, counted in one pass."""
    blocks = model.bridge.blocks
    names = [in_block(layer, point) for layer, block in enumerate(blocks) for point in points(block)]
    names.append("ln_final.hook_in")
    known, fired = model.bridge.hook_dict, dict.fromkeys(names, 0)

    def count(name: str) -> None:
        fired[name] += 1

    hooks = [(name, lambda _tensor, hook, name=name: count(name)) for name in names if name in known]
    with model.bridge.hooks(fwd_hooks=hooks), torch.no_grad():
        model.run(*model.pad(probes[:1]))
    wrong = [name for name in names if fired[name] != 1]
    first = f"{wrong[0]} fired {fired[wrong[0]]} times" if wrong else ""
    yield Check(
        "hooks fire once",
        len(wrong),
        0,
        f"of {len(names)} hook points did not fire exactly once in a pass",
        f"{first}: what is read or steered there is not what the model computes; load the model with load_model and "
        "leave its modules as they are",
    )


@torch.no_grad()
def folded_norms(model: HookedModel, probes: Sequence[Tensor]) -> Iterator[Check]:
    """A norm folded into the matrix behind it, as by TransformerLens' fold_ln, against the model's raw weights.

    With weight γ and bias β of the norm: (x − mean)/σ @ (γ ⊙ W) + (β @ W + b).
    """
    layer = model.shape.n_layers - 1
    final: list[float] = []
    second: list[float] = []
    for ids in probes:
        view = model.residual_view(ids)
        logits = _folded(model.final_norm, view.resid_final, model.W_U, model.b_U)
        norm, x = model.norm2(layer), (view.resid_pre if model.shape.parallel else view.resid_mid)[layer]
        up, gate = _folded(norm, x, model.W_in(layer), model.b_in(layer)), model.W_gate(layer)
        if gate is None:
            post = model.act_fn(up)
        else:
            post = model.act_fn(_folded(norm, x, gate, model.b_gate(layer))) * up
        final.append(share_off(logits, view.logits))
        second.append(share_off(post, view.mlp_post[layer, -1]))
    for name, errors in (("final norm folded into W_U", final), ("second norm folded into W_in", second)):
        yield Check(
            name,
            max(errors),
            TOLERANCE[model.dtype],
            "of the largest value, against the raw weights' own",
            "the norm does more than weight and bias say (weight − 1, soft caps): attribution on it is wrong",
            n=len(errors),
        )


def identities(model: HookedModel, probes: Sequence[Tensor]) -> Iterator[Check]:
    """The identities of `mechedit.models.residual`."""
    off: dict[str, list[float]] = {}
    for ids in probes:
        view = model.residual_view(ids)
        for identity, (total, expected) in {**conservation(model, view), **reads(model, view)}.items():
            off.setdefault(identity, []).append(share_off(total, expected))
    for identity, errors in off.items():
        yield Check(
            identity,
            max(errors),
            TOLERANCE[model.dtype],
            "of the largest value",
            "something writes to the residual stream that the view does not see: no attribution of this model adds up",
            n=len(errors),
        )


def _targets(model: BridgedModel, pairs: Sequence[tuple[str, str]]) -> Iterator[Check]:
    """No special token in a target."""
    bad = [target for prompt, target in pairs if not _is_text(model, prompt, target)]
    yield Check(
        "no special token in a target",
        len(bad),
        0,
        "targets with BOS, EOS or an unknown token",
        f"{bad[:1]} holds one: the tokenizer puts it behind a text, or does not know the word",
        n=len(pairs),
    )


def _is_text(model: BridgedModel, prompt: str, target: str) -> bool:
    """Whether the target's tokens are words."""
    try:
        ids = model.continuation(prompt, target)[1].tolist()
    except InputError:
        return False
    return not set(model.tokenizer.all_special_ids) & set(ids)


def _framed_ids(model: BridgedModel, prompt: str) -> list[int]:
    """The ids that the tokenizer itself gives a prompt, in the model's frame."""
    tokenizer = model.tokenizer
    if "chat" in model.framing:
        messages = [{"role": "user", "content": prompt}]
        chat: Any = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)
        return list(chat["input_ids"])
    front = tokenizer(model.framing["prefix"], add_special_tokens=False).input_ids if model.framing else []
    return [*front, *tokenizer(prompt).input_ids]


def _declared_bos(tokenizer: PreTrainedTokenizerBase) -> bool | None:
    """`add_bos_token` of the tokenizer_config.json it was read from: transformers does not tell False from absent."""
    file = Path(tokenizer.name_or_path) / "tokenizer_config.json"
    declared = json.loads(file.read_text(encoding="utf-8")).get("add_bos_token") if file.is_file() else None
    return None if declared is None else bool(declared)


def _leading(ids: Sequence[int], token: int | None) -> int:
    """How many times `token` stands at the beginning."""
    return next((i for i, leading in enumerate(ids) if leading != token), len(ids))


def _folded(norm: FinalNorm, x: Tensor, W: Tensor, bias: Tensor | None) -> Tensor:
    """The matrix [d, n] with the norm's weight and bias inside, on x [d] normed without them; in fp32."""
    wide = torch.float64 if W.dtype == torch.float64 else torch.float32
    x, W, weight = x.to(wide), W.to(x.device, wide), norm.weight.to(wide)
    inside = torch.zeros_like(W[0]) if norm.bias is None else norm.bias.to(wide) @ W
    inside = inside if bias is None else inside + bias.to(wide)
    return (norm.centre(x) / norm.scale(x)) @ (weight[:, None] * W) + inside
