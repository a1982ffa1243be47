"""The part of a forward pass that an edit of one layer can change, and nothing else.

While a value v* is optimised at layer l and at a prompt's subject, nothing changes below l, nor (attention is causal)
at the positions before the subject's last token. So, once for a batch of texts:

1. the texts are padded so that the first position that changes stands in the same column of every row;
2. one pass over what comes before it fills the KV cache;
3. one pass over the rest gives the residual stream and the MLP's input at layer l, and what the model hands to each
   block above: masks, positions, rotations.

After that, each step of an optimisation runs the blocks above l on the changed positions alone. The numbers are those
of the full forward pass, up to rounding; a full pass is the oracle of the tests.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from mechedit.models.hooked import HookedModel
from mechedit.models.hooking import post, resid_post, resid_pre

__all__ = ["Upper", "mlp_output", "upper_part"]


@dataclass(frozen=True)
class _Call:
    """What the model hands to one block besides the hidden states.

    In the block's eyes it is the cache: it shows the keys and values of the positions that do not change,
    [B, K, P, d_head], and keeps nothing.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    keys: Tensor | None
    values: Tensor | None

    def update(self, keys: Tensor, values: Tensor, *_: object, **__: object) -> tuple[Tensor, Tensor]:
        """As `Cache.update`, without a memory."""
        if self.keys is None or self.values is None:
            return keys, values
        return torch.cat([self.keys, keys], dim=-2), torch.cat([self.values, values], dim=-2)

    def run(self, block: Any, hidden: Tensor) -> Tensor:
        """The block's output for `hidden` [B, n, d]."""
        args = tuple(self if value is _CACHE else value for value in self.args)
        kwargs = {name: self if value is _CACHE else value for name, value in self.kwargs.items()}
        output = block(hidden, *args, **kwargs)
        return output[0] if isinstance(output, tuple) else output

    def rows(self, index: Tensor, n_rows: int) -> _Call:
        """The same for some rows of the batch."""

        def pick(value: Any) -> Any:
            if isinstance(value, tuple):
                return tuple(pick(item) for item in value)
            return value[index] if isinstance(value, Tensor) and len(value) == n_rows else value

        kwargs = {name: pick(value) for name, value in self.kwargs.items()}
        return _Call(pick(self.args), kwargs, pick(self.keys), pick(self.values))


_CACHE = object()  # stands where the model hands over its cache


@dataclass(frozen=True, eq=False)
class Upper:
    """A layer of B texts, from the start of each on (n columns, padded on the right), and how to go on from it.

    The tensors are those of the unedited model, without gradients.

    Attributes:
        resid_mid: The residual stream before the layer's MLP [B, n, d].
        key: What its W_out multiplies [B, n, d_mlp].
        resid_post: The residual stream after the MLP [B, n, d].
        first: What W_out writes at the first position, its product and b_out [B, d].
        calls: The call of each block above.
    """

    model: HookedModel
    layer: int
    resid_mid: Tensor
    key: Tensor
    resid_post: Tensor
    first: Tensor
    calls: tuple[_Call, ...]

    def behind(self, written: Tensor) -> Tensor:
        """The layer's output [B, n, d] if its MLP wrote `written` [B, n, d]."""
        outlet = self.model.mlp_outlet(self.layer)
        return self.resid_mid + outlet(written).to(self.resid_mid.dtype)

    def moved(self, delta: Tensor) -> Tensor:
        """The layer's output [B, n, d] if its MLP wrote `delta` [B, d] more at the first position."""
        resid, outlet = self.resid_post, self.model.mlp_outlet(self.layer)
        if outlet.plain:
            first = resid[:, :1] + delta[:, None].to(resid.dtype)
        else:
            first = self.resid_mid[:, :1] + outlet(self.first + delta)[:, None].to(resid.dtype)
        return torch.cat([first, resid[:, 1:]], dim=1)

    def __call__(self, resid: Tensor) -> Tensor:
        """The final norm's output [B, n, d] if the layer's output were `resid` [B, n, d]; differentiable."""
        for call, block in zip(self.calls, self.model.bridge.blocks[self.layer + 1 :], strict=True):
            resid = call.run(block, resid)
        normed: Tensor = self.model.bridge.ln_final(resid)
        return normed

    def logits(self, normed: Tensor, row: Tensor, column: Tensor) -> Tensor:
        """fp32 logits [N, d_vocab] at the N places (row, column) of `normed`."""
        logits = self.model.shape.logit_scale * (normed[row, column] @ self.model.W_U)
        bias = self.model.b_U
        return (logits if bias is None else logits + bias).float()

    def rows(self, index: Tensor) -> Upper:
        """The same for some of the texts."""
        n_rows = len(self.resid_post)
        return replace(
            self,
            resid_mid=self.resid_mid[index],
            key=self.key[index],
            resid_post=self.resid_post[index],
            first=self.first[index],
            calls=tuple(call.rows(index, n_rows) for call in self.calls),
        )


@torch.no_grad()
def upper_part(model: HookedModel, layer: int, texts: Sequence[Tensor], starts: Sequence[int]) -> Upper:
    """The `Upper` of some texts.

    Args:
        model: The model.
        layer: The layer.
        texts: Ids of each text [T].
        starts: The position in each text before which nothing changes.
    """
    before, rest = max(starts), max(len(t) - s for t, s in zip(texts, starts, strict=True))
    ids = torch.zeros(len(texts), before + rest, dtype=torch.long, device=model.device)
    mask = torch.zeros_like(ids)
    for row, (text, start) in enumerate(zip(texts, starts, strict=True)):
        where = slice(before - start, before - start + len(text))
        ids[row, where], mask[row, where] = text, 1
    cache = None
    if before:
        _, cache = model.run(ids[:, :before], mask[:, :before], use_cache=True, logits_to_keep=1)
    kept: dict[str, Tensor] = {}
    seen: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
    # before the MLP: a parallel block has no such point, and the sum is it in every block
    points = {
        "resid_pre": resid_pre(layer),
        "attn_out": f"blocks.{layer}.hook_attn_out",
        "key": post(layer),
        "resid_post": resid_post(layer),
    }
    above = model.bridge.blocks[layer + 1 :]
    # Keys and values as they are before this pass appends to them.
    past = [_keys_values(cache, layer + 1 + i) for i in range(len(above))]
    handles = [block.register_forward_pre_hook(partial(_note, seen), with_kwargs=True) for block in above]
    try:
        with model.hooks([(point, partial(_keep, kept, name)) for name, point in points.items()]):
            model.run(
                ids[:, before:], mask, past_key_values=cache, use_cache=cache is not None, logits_to_keep=1
            )
    finally:
        for handle in handles:
            handle.remove()
    calls = tuple(_Call(args, kwargs, *pair) for (args, kwargs), pair in zip(seen, past, strict=True))
    resid_mid = kept.pop("resid_pre") + kept.pop("attn_out")
    first = mlp_output(model, layer, kept["key"][:, 0])
    return Upper(model, layer, resid_mid=resid_mid, first=first, calls=calls, **kept)


def mlp_output(model: HookedModel, layer: int, keys: Tensor) -> Tensor:
    """What the layer's W_out writes for keys [..., d_mlp]: k W_out + b_out [..., d_model], fp32 at least.

    On the device of the keys, wherever the layer lies.
    """
    weight, bias = model.W_out(layer), model.b_out(layer)
    wide = keys.to(weight.device, torch.promote_types(keys.dtype, torch.float32))
    written = wide @ weight.to(wide.dtype)
    return (written if bias is None else written + bias.to(written.device)).to(keys.device)


def _keys_values(cache: Any, layer: int) -> tuple[Tensor | None, Tensor | None]:
    return (None, None) if cache is None else (cache.layers[layer].keys, cache.layers[layer].values)


def _keep(store: dict[str, Tensor], name: str, tensor: Tensor, hook: object) -> None:
    store[name] = tensor.detach().clone()


def _note(
    seen: list[tuple[tuple[Any, ...], dict[str, Any]]],
    block: object,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> None:
    """Notes a block's arguments but the hidden states, with a mark in the place of the cache."""
    named = {name: value for name, value in kwargs.items() if name != "hidden_states"}
    args = args if "hidden_states" in kwargs else args[1:]
    marked = tuple(_CACHE if isinstance(value, DynamicCache) else value for value in args)
    seen.append((marked, {n: _CACHE if isinstance(v, DynamicCache) else v for n, v in named.items()}))
