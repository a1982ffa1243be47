"""Seconds per edit: ROME's search for v* on what it can change, against the plain loop over full forward passes.

All on one random model, in one run, on the same facts, contexts and hyper-parameters; both take as many steps
(nothing stops early):

- *plain*: for each fact alone, every step runs all contexts through the whole model, δ added by a hook at the layer's
  MLP output, and takes the logits of every position, as the published code does;
- *single*: `find_delta` on `upper_part`, one fact; *batch*: the same for all facts in one batch.

The plain loop is also the oracle of the tests: the same formulas written once more, without padding to a common column,
a cache or a batch of facts.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from mechedit.data.facts import FactEdit
from mechedit.editors.contexts import Lengths, contexts
from mechedit.editors.weights.subject import DRIFT, edit_batch, subject_end, subject_ids
from mechedit.editors.weights.upper_layers import upper_part
from mechedit.editors.weights.value_search import Search, find_delta
from mechedit.factworld import edits
from mechedit.models.hooked import HookedModel
from mechedit.models.states import last_states
from tests.benchmarks.shapes import about, bench_model, clock

__all__ = ["bench_edit", "plain_delta"]

CONTEXTS: Lengths = ((10, 5), (10, 10))  # ROME's


def bench_edit(
    *,
    shape: str = "gpt2-small",
    model: str = "",
    facts: int = 32,
    steps: int = 5,
    repeats: int = 3,
    device: str = "cpu",
) -> dict[str, Any]:
    """As one dict: single_speedup, batch_speedup, max_diff (of v* from the plain loop's), seconds per edit.

    The plain loop is timed on `repeats` facts, alternating with the single edit of the same fact; the batch once.
    """
    records = edits(facts)
    # No stop before the last step: the two must do the same number of them.
    search = Search(steps, lr=0.5, weight_decay=0.5, kl_factor=0.0625, clamp=4.0, stop=0.0)
    loaded = bench_model(shape, model, device=device)
    layer, before, now = loaded.shape.n_layers // 3, contexts(loaded, CONTEXTS), clock(loaded.device)

    def fast(chosen: Sequence[FactEdit]) -> tuple[Tensor, Tensor]:
        requests = edit_batch(loaded, chosen, before)
        upper = upper_part(loaded, layer, requests.texts, requests.starts)
        v0 = mlp_out(loaded, layer, chosen)
        return v0, find_delta(upper, requests, v0, search)

    def plain(fact: FactEdit) -> Tensor:
        return plain_delta(loaded, layer, fact, before, mlp_out(loaded, layer, [fact])[0], search)

    fast(records[:1])  # warm
    timed = [
        (_timed(now, partial(plain, fact)), _timed(now, partial(fast, [fact]))) for fact in records[:repeats]
    ]
    batch_seconds, (v0, together) = _timed(now, partial(fast, records))
    worst = max(
        float((slow - fast_delta).abs().max())
        for i, ((_, slow), (_, (_, single))) in enumerate(timed)
        for fast_delta in (single[0], together[i])
    )
    slow_seconds = statistics.median(seconds for (seconds, _), _ in timed)
    single_seconds = statistics.median(seconds for _, (seconds, _) in timed)
    return {
        "single_speedup": slow_seconds / single_seconds,
        "batch_speedup": slow_seconds / (batch_seconds / facts),
        "max_diff": worst,
        "v_norm": float(v0.norm(dim=-1).mean()),
        "seconds": {"plain": slow_seconds, "single": single_seconds, "batch": batch_seconds / facts},
        "facts": facts,
        "steps": steps,
        "contexts": len(before),
        "layer": layer,
        "n_layers": loaded.shape.n_layers,
        **about(loaded, "" if model else shape),
    }


def mlp_out(model: HookedModel, layer: int, facts: Sequence[FactEdit]) -> Tensor:
    """v0 [F, d]: the layer's MLP output at the end of each rewrite prompt's subject."""
    cut = [subject_ids(model, fact.prompt, fact.subject) for fact in facts]
    (states,) = last_states(model, cut, [f"blocks.{layer}.mlp.hook_out"])
    return states


def plain_delta(
    model: HookedModel, layer: int, fact: FactEdit, before: Sequence[str], v0: Tensor, search: Search
) -> Tensor:
    """δ [d] of one fact by full forward passes: the oracle of `mechedit.editors.weights.value_search.find_delta`."""
    pairs = [model.continuation(c + fact.rewrite_prompt, fact.target_new) for c in before]
    drift_ids, drift_at = subject_end(model, DRIFT, fact.subject)
    rows = [torch.cat([prompt, target[:-1]]) for prompt, target in pairs] + [drift_ids]
    places = [subject_end(model, fact.prompt, fact.subject, context=c)[1] for c in before] + [drift_at]
    ids, mask = model.pad(rows, side="right")
    every = torch.arange(len(rows), device=model.device)
    delta = torch.zeros_like(v0).requires_grad_()
    adam = torch.optim.Adam([delta], lr=search.lr)
    drift: Tensor | None = None

    def add(out: Tensor, hook: object) -> Tensor:
        changed = out.clone()
        changed[every, places] = changed[every, places] + delta
        return changed

    for step in range(search.steps):
        with model.hooks([(f"blocks.{layer}.mlp.hook_out", add)]), torch.enable_grad():
            log_p = model.forward(ids, mask).log_softmax(-1)
        now = log_p[-1, len(drift_ids) - 1]
        drift = now.detach() if drift is None else drift
        nll = torch.stack([
            -torch.stack([log_p[row, len(prompt) - 1 + i, token] for i, token in enumerate(target)]).mean()
            for row, (prompt, target) in enumerate(pairs)
        ]).mean()  # fmt: skip
        kl = (drift.exp() * (drift - now)).sum()
        loss = nll + search.kl_factor * kl + search.weight_decay * delta.norm() / v0.norm() ** 2
        if loss < search.stop or step == search.steps - 1:
            break
        adam.zero_grad()
        loss.backward()
        adam.step()
        with torch.no_grad():
            limit = search.clamp * v0.norm()
            if delta.norm() > limit:
                delta.mul_(limit / delta.norm())
    return delta.detach()


def _timed(now: Callable[[], float], call: Callable[[], Any]) -> tuple[float, Any]:
    began = now()
    result = call()
    return now() - began, result
