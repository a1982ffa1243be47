"""What a steered model says of one prompt alone, computed without a cache, a batch, or a line of the code under test.

Steps: the gate is read off the plain model's hidden states; the whole sequence is run again for every new token, with a
hook on each steered attention module that moves the prompt's end (and, with position "every", all that follows; with
"object", the tokens that are the beginning of the object, each by its own map).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mechedit.editors import SteeringEdit
from mechedit.editors.steering.gates import AlwaysOn, HiddenGate


def attentions(hf: Any) -> list[Any]:
    if hasattr(hf, "transformer"):
        return [block.attn for block in hf.transformer.h]
    return [block.self_attn for block in hf.model.layers]


@torch.no_grad()
def open_edit(hf: Any, ids: Tensor, edits: Sequence[SteeringEdit]) -> SteeringEdit | None:
    """The edit that steers this prompt [T]: that of the smallest distance over threshold, if that is 1 or less."""
    hidden = hf(ids[None], output_hidden_states=True, use_cache=False).hidden_states
    ratios = []
    for edit in edits:
        gate = edit.gate
        if isinstance(gate, AlwaysOn):
            ratios.append(0.0)
            continue
        assert isinstance(gate, HiddenGate)
        states = hidden[gate.layer][0]
        state = states[-1] if gate.pool == "last" else states.mean(0)
        ratios.append(float((state - gate.centres).norm(dim=1).min()) / gate.threshold)
    best = min(range(len(edits)), key=ratios.__getitem__)
    return edits[best] if ratios[best] <= 1 else None


@torch.no_grad()
def alone(
    hf: Any, ids: Tensor, edits: Sequence[SteeringEdit], new: Sequence[int] | int
) -> tuple[Tensor, list[int]]:
    """(logits [n + 1, V] behind the prompt and behind each new token, the new tokens): greedy for a number of them."""
    edit, end = open_edit(hf, ids, edits), len(ids) - 1
    tokens = [] if isinstance(new, int) else list(new)
    logits: list[Tensor] = []
    handles = []
    behind: list[Any] = [([], {} if edit is None else edit.maps, 1.0 if edit is None else edit.alpha)]
    behind += [] if edit is None else [(list(one.tokens), one.maps, one.alpha) for one in edit.following]
    for before, layer, fitted, alpha in [(b, n, maps[n], a) for b, maps, a in behind for n in maps]:
        assert edit is not None

        def move(
            module: Any,
            args: Any,
            output: Any,
            before: Any = before,
            fitted: Any = fitted,
            alpha: float = alpha,
            position: str = edit.position,
        ) -> Any:
            written = (output[0] if isinstance(output, tuple) else output).clone()
            first = end + len(before)
            stop = None if position == "every" else first + 1
            if written.shape[1] > first and so_far[end + 1 : first + 1].tolist() == list(before):
                written[:, first:stop] += alpha * fitted.displacement(written[:, first:stop])
            return (written, *output[1:]) if isinstance(output, tuple) else written

        handles.append(attentions(hf)[layer].register_forward_hook(move))
    try:
        for step in range(1 + (new if isinstance(new, int) else len(new))):
            so_far = torch.cat([ids, torch.tensor(tokens[:step], dtype=torch.long)])
            logits.append(hf(so_far[None], use_cache=False).logits[0, -1])
            if isinstance(new, int):
                tokens.append(int(logits[-1].argmax()))
    finally:
        for handle in handles:
            handle.remove()
    return torch.stack(logits), tokens[:new] if isinstance(new, int) else tokens
