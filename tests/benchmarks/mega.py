"""What steering costs: the fit of a map, a forward pass, generation, and a thousand edits live on one model.

Ratios within one run, warm, medians of `repeats` pairs that alternate (plain, steered, plain, ...), so that what else
the machine does falls on both sides:

- *fit*: the Gaussian map of one layer at d = 4,096 from 200 prompts a side, against POT's `LinearTransport` (once: it
  takes minutes), both in fp64 with the same regularisation; the largest difference of the mapped states beside it;
- *forward*: a batch of 8 prompts with one edit (window of four layers, hidden gate, open for one of them);
- *generate*: 64 tokens behind one prompt that is steered all along;
- *thousand edits*: the batch of 8 prompts with 1,000 edits live, 10 centres each, one of them open.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from mechedit.data.facts import FactEdit
from mechedit.editors.steering.edit_book import EditBook
from mechedit.editors.steering.gates import HiddenGate
from mechedit.editors.steering.steer import steer
from mechedit.editors.steering.steering_edit import SteeringEdit
from mechedit.editors.steering.transport import gaussian_map
from mechedit.models.hooked import HookedModel
from mechedit.models.states import last_states
from tests.benchmarks.shapes import about, bench_model, clock

__all__ = ["bench_mega"]

PROMPT = "The mother tongue of Anna Novak is Greek and"
D_MODEL, N_PROMPTS, REG = 4096, 200, 1e-2
EDITS, CENTRES = 1000, 10


def bench_mega(
    *,
    shape: str = "gpt2-small",
    model: str = "",
    repeats: int = 5,
    fit: bool = True,
    device: str = "cpu",
) -> dict[str, Any]:
    """The benchmark as one dict: fit_speedup_vs_pot, fit_max_diff, forward_ratio, generate_ratio,
    thousand_edits_ratio."""
    result: dict[str, Any] = _fit(repeats) if fit else {}
    loaded = bench_model(shape, model, device=device)
    return {**result, **_steered(loaded, repeats), **about(loaded, "" if model else shape)}


def _fit(repeats: int) -> dict[str, Any]:
    import ot  # a development tool, and slow to import

    draw = torch.Generator().manual_seed(0)
    source = torch.randn(N_PROMPTS, D_MODEL, generator=draw, dtype=torch.float64)
    target = 1.5 * torch.randn(N_PROMPTS, D_MODEL, generator=draw, dtype=torch.float64) + 1
    fitted = gaussian_map(source, target, reg=REG)
    now = time.process_time
    ours = statistics.median(
        _time(now, lambda: gaussian_map(source, target, reg=REG)) for _ in range(repeats)
    )
    began = now()
    theirs = ot.da.LinearTransport(reg=REG).fit(Xs=source.numpy(), Xt=target.numpy())
    pot = now() - began
    moved = torch.from_numpy(theirs.transform(source.numpy()))
    return {
        "fit_speedup_vs_pot": pot / ours,
        "fit_max_diff": float((fitted(source) - moved).abs().max()),
        "fit_seconds": {"ours": ours, "pot": pot},
        "fit_d_model": D_MODEL,
        "fit_prompts": N_PROMPTS,
        "map_bytes": sum(t.numel() * 8 for t in (fitted.mean, fitted.basis, fitted.matrix, fitted.shift)),
    }


@torch.no_grad()
def _steered(model: HookedModel, repeats: int) -> dict[str, Any]:
    prompts = [f"{PROMPT} {i}" for i in range(8)]
    edits = _edits(model, prompts[0])
    book, now = EditBook.of(model, edits), clock(model.device)

    def forward() -> None:
        model.logits(prompts)

    def tokens() -> None:
        model.generate(prompts[:1], max_new_tokens=64)

    with steer(model, edits[:1]) as steered:
        assert steered.gate_fired(prompts) == [True] + [False] * 7
    return {
        "forward_ratio": _ratio(now, forward, lambda: steer(model, edits[:1]), 4 * repeats),
        "generate_ratio": _ratio(now, tokens, lambda: steer(model, edits[:1]), repeats),
        "thousand_edits_ratio": _ratio(now, forward, lambda: book.apply(model), 4 * repeats),
        "edits": len(book),
        "batch": len(prompts),
    }


def _edits(model: HookedModel, prompt: str) -> list[SteeringEdit]:
    """An edit about `prompt`, and others whose gates are closed: as many centres, maps of the same size."""
    from mechedit.editors import SteeringEdit
    from mechedit.editors.steering.transport import gaussian_map
    from mechedit.models.hooking import resid_pre

    d, first = model.shape.d_model, model.shape.n_layers // 3
    window = range(first, first + 4)
    draw = torch.Generator().manual_seed(1)
    fact = FactEdit("Anna Novak", "The mother tongue of {} is", "Greek", "French")
    clouds = torch.randn(2, CENTRES, d, generator=draw)
    maps = {layer: gaussian_map(clouds[0], clouds[1], reg=1.0) for layer in window}
    (state,) = last_states(model, [prompt], [resid_pre(first)])
    (far_states,) = last_states(model, [f"{prompt} and more {i}" for i in range(CENTRES)], [resid_pre(first)])
    apart = float((far_states - state).norm(dim=1).min())
    edits = []
    for i in range(EDITS):
        centres = far_states + (0.1 if i else 0.0) * torch.randn(CENTRES, d, generator=draw)
        if i == 0:
            centres[0] = state
        gate = HiddenGate(first, centres, 1e-3 * apart)
        edits.append(SteeringEdit(replace(fact, case_id=i), maps, gate))
    return edits


def _ratio(
    now: Callable[[], float], call: Callable[[], object], steered: Callable[[], Any], repeats: int
) -> float:
    """Median of the ratios of neighbouring runs, under the edit over without it; both warm, hooks put on outside."""
    ratios = []
    call()
    for _ in range(repeats):
        plain = _time(now, call)
        with steered():
            call()
            ratios.append(_time(now, call) / plain)
    return statistics.median(ratios)


def _time(now: Callable[[], float], call: Callable[[], object]) -> float:
    began = now()
    call()
    return now() - began
