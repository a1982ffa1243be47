"""Forward hooks on a TransformerLens bridge that cannot fail silently.

The bridge's own hook context leaves five ways to change nothing, or to change it twice, without an error. Here:

1. a name the model does not have is refused, with the nearest one it has;
2. one hook point under two of its names is refused: the same edit would be applied twice;
3. a hook point that is switched off (`hook_result` and the like) is refused;
4. a hook that never fired although the model ran is an error on leaving;
5. a value returned at `hook_resid_mid` is refused: that point is the input of the second norm, behind the branch,
   so the bridge would feed the new value to the MLP and add the old one to the residual stream.

Hooks see the caller's passes alone. Where an edit's gate needs a look ahead, a pass of its own before the caller's,
hooks are not called in it (`unheard`): a hook that collects would have everything twice, and first as it is unedited.

Where a model's layers lie on several devices, a hook sees every tensor on the unembedding's, and what it returns goes
back to the layer's.

Leaving the context by any way removes the hooks, exactly these; contexts nest.
"""

from __future__ import annotations

import contextlib
import difflib
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from transformer_lens.hook_points import HookPoint
from transformer_lens.model_bridge import TransformerBridge

from reports.errors import InputError, IntegrityError

__all__ = ["Hook", "attach", "in_block", "post", "resid_post", "resid_pre", "unheard"]

Hook = tuple[str, Callable[..., torch.Tensor | None]]


class _Here(threading.local):
    unheard = False


_HERE = _Here()


@contextlib.contextmanager
def unheard() -> Iterator[None]:
    """Passes of this thread in the block are none of the caller's: only hooks attached with `always` are called."""
    before, _HERE.unheard = _HERE.unheard, True
    try:
        yield
    finally:
        _HERE.unheard = before


@contextlib.contextmanager
def attach(bridge: TransformerBridge, hooks: Sequence[Hook], *, always: bool = False) -> Iterator[None]:
    """Attach (name, fn) pairs, in order, for the length of the block; `fn(tensor, hook)` returns a tensor or None.

    Args:
        bridge: The model.
        hooks: The pairs.
        always: Whether they are called in passes that are `unheard` too.

    Raises:
        InputError: Names as in 1 to 3 above (nothing is attached then); out of the forward pass, a value as in 5.
        IntegrityError: A hook never fired (4).
    """
    points = bridge.hook_dict  # the bridge builds it anew at each look
    canonical = [_resolve(bridge, points, name) for name, _ in hooks]
    _refuse_twins([name for name, _ in hooks], canonical)
    fired = [0] * len(hooks)
    home = bridge.unembed.original_component.weight.device
    wrapped = [
        (point.name, partial(_call, fn, name, always, fired, i, home))
        for i, (point, (name, fn)) in enumerate(zip(canonical, hooks, strict=True))
    ]
    passes = [0]
    counter = bridge.original_model.register_forward_hook(partial(_count, passes))
    try:
        with bridge.hooks(fwd_hooks=wrapped):
            yield
    finally:
        counter.remove()
    silent = [name for (name, _), times in zip(hooks, fired, strict=True) if not times]
    if passes[0] and silent:
        raise IntegrityError(
            f"hooks: {silent[0]!r} never fired in {passes[0]} forward passes ({len(silent)} of {len(hooks)} hooks); "
            "the model does not run through that point, so nothing was read or changed there"
        )


def _resolve(bridge: TransformerBridge, points: dict[str, HookPoint], name: str) -> HookPoint:
    """The hook point that `name` (canonical or an alias) stands for; unknown and switched-off ones are refused."""
    if name not in points:
        near = difflib.get_close_matches(name, points, n=1)
        raise InputError(
            f"hooks: no hook point {name!r} in this model; nearest: {near[0] if near else 'none'}"
        )
    point: HookPoint = points[name]
    try:
        bridge.check_hooks_to_add(point, name, _resolve)
    except ValueError as error:
        raise InputError(f"hooks: {error}") from error
    return point


def _refuse_twins(names: list[str], points: list[HookPoint]) -> None:
    """Two spellings of one point in one list are a mistake; the same spelling twice is two hooks, in order."""
    spelled: dict[int, str] = {}
    for name, point in zip(names, points, strict=True):
        first = spelled.setdefault(id(point), name)
        if first != name:
            raise InputError(f"hooks: {first!r} and {name!r} are one hook point; give it under one name")


def _call(
    fn: Callable[..., torch.Tensor | None],
    name: str,
    always: bool,
    fired: list[int],
    index: int,
    home: torch.device,
    tensor: torch.Tensor,
    hook: HookPoint,
) -> torch.Tensor | None:
    if _HERE.unheard and not always:
        return None
    fired[index] += 1
    result = fn(tensor.to(home), hook)
    if result is not None and name.endswith("hook_resid_mid"):
        raise InputError(
            f"hooks: {name!r} can be read but not replaced: the new value would reach the MLP and not the residual "
            f"stream; return it at {name.removesuffix('hook_resid_mid')}hook_attn_out, as attn_out + change"
        )
    return None if result is None else result.to(tensor.device)


def _count(passes: list[int], *_: object) -> None:
    passes[0] += not _HERE.unheard


def in_block(layer: int, point: str) -> str:
    """The full name of a hook point of a layer's block.

    >>> in_block(3, "attn.hook_z")
    'blocks.3.attn.hook_z'
    """
    return f"blocks.{layer}.{point}"


def resid_pre(layer: int) -> str:
    """The hook point of a layer's input.

    >>> resid_pre(3)
    'blocks.3.hook_resid_pre'
    """
    return in_block(layer, "hook_resid_pre")


def post(layer: int) -> str:
    """The hook point of what W_out multiplies: the key k of a weight edit.

    >>> post(3)
    'blocks.3.mlp.hook_post'
    """
    return in_block(layer, "mlp.hook_post")


def resid_post(layer: int) -> str:
    """The hook point of a layer's output.

    >>> resid_post(3)
    'blocks.3.hook_resid_post'
    """
    return in_block(layer, "hook_resid_post")
