"""Targets of several tokens: against one attribution a token, and against full enumeration."""

from __future__ import annotations

import pytest
import torch

from mechedit.attribution import attribute
from mechedit.attribution.passes import run_passes
from mechedit.attribution.ranking.neurons import Sign
from mechedit.models.hooked import HookedModel
from reports.errors import InputError
from tests.tiny import Arch, tiny_model

PROMPT, LONG = "Anna Keller works as a", " basketball in Berlin"
KEYS = {"mlp_neurons": ["layer", "neuron"], "attn_neurons": ["layer", "head", "dim", "pos"]}
SIGNS: tuple[Sign, ...] = ("promote", "suppress")


def test_an_unknown_choice_of_tokens_is_refused() -> None:
    with pytest.raises(InputError, match="tokens: expected one of first, sum, found 'all'"):
        attribute(tiny_model("gpt2"), PROMPT, LONG, tokens="all")  # type: ignore[arg-type]


@pytest.mark.parametrize("arch", ["gpt2", "llama-gqa"])
def test_the_sum_over_tokens_is_that_of_one_attribution_a_token(arch: Arch) -> None:
    model = tiny_model(arch)
    whole = attribute(model, PROMPT, LONG, top_k="all", tokens="sum")
    passes, ids = run_passes(model, PROMPT, LONG, tokens="sum", biases="keep")
    assert len(passes) == len(ids) > 1
    assert whole.target_scored == "sum"
    assert whole.logp == pytest.approx(teacher_forced(model, PROMPT, ids), abs=1e-4)
    assert abs(whole.completeness_gap) < 1e-4
    first = attribute(model, PROMPT, LONG, top_k="all")
    rest = [forward.acc.layers["score"] for forward in passes[1:]]
    assert (whole.layers["score"] - first.layers["score"] - sum(rest[1:], rest[0])).abs().max() < 1e-6
    assert len(whole.attn_neurons) == len(first.attn_neurons) // len(first.ids) * (
        len(first.ids) + len(ids) - 1
    )


def teacher_forced(model: HookedModel, prompt: str, ids: tuple[int, ...]) -> float:
    """log p of all target tokens from one forward pass over prompt and target."""
    start = model.tokenize(prompt)
    whole = torch.cat([start, torch.tensor(ids)])[None]
    log_p = model.forward(whole, torch.ones_like(whole))[0].double().log_softmax(-1)
    return sum(float(log_p[len(start) - 1 + n, token]) for n, token in enumerate(ids))


@pytest.mark.parametrize("sign", SIGNS)
def test_the_certified_sum_is_that_of_full_enumeration(sign: Sign) -> None:
    model = tiny_model("llama-gqa")
    fast = attribute(model, PROMPT, LONG, top_k=30, tokens="sum", sign=sign)
    full = attribute(model, PROMPT, LONG, top_k=30, tokens="sum", sign=sign, method="exhaustive")
    for unit, keys in KEYS.items():
        a, b = getattr(fast, unit), getattr(full, unit)
        assert (a["score"] - b["score"]).abs().max() < 1e-6
        assert set(map(tuple, a[keys].to_numpy())) == set(map(tuple, b[keys].to_numpy()))
