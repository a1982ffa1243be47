"""Attention of a circuit's heads: patterns against the plain model, the heat against its definition and its sum."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from transformers import AutoModelForCausalLM

from mechedit.attribution import Attribution, HeadAttention, attribute, head_attention
from mechedit.attribution.circuits.attention import divided
from mechedit.attribution.projection import Projection
from mechedit.attribution.scores import inc_rows
from reports.errors import InputError
from tests.nlka_oracle import PlainReads, plain_run
from tests.tiny import ARCHS, Arch, tiny_folder, tiny_model

PROMPT, TARGET = "The mother tongue of Anna is", " French"
HEAD = ["layer", "head"]


@cache
def attributed(arch: Arch, tokens: str = "first") -> Attribution:
    target = TARGET if tokens == "first" else " Seattle Dutch"
    return attribute(tiny_model(arch), PROMPT, target, top_k=20, tokens=tokens)  # type: ignore[arg-type]


@cache
def looked(arch: Arch, tokens: str = "first") -> HeadAttention:
    return head_attention(tiny_model(arch), attributed(arch, tokens))


def pattern(seen: HeadAttention, layer: int, head: int) -> torch.Tensor:
    rows = seen.patterns[(seen.patterns["layer"] == layer) & (seen.patterns["head"] == head)]
    return torch.tensor(rows.pivot(index="query", columns="key", values="weight").to_numpy(copy=True))


# ------------------------------------------------------------------------------------------------ patterns


@cache
def plain_patterns(arch: Arch, ids: tuple[int, ...]) -> list[torch.Tensor]:
    model: Any = AutoModelForCausalLM.from_pretrained(tiny_folder(arch), attn_implementation="eager")
    with torch.no_grad():
        return list(model(torch.tensor([ids]), output_attentions=True).attentions)


@pytest.mark.parametrize("arch", ARCHS)
def test_patterns_are_those_of_the_plain_model(arch: Arch) -> None:
    seen, expected = looked(arch), plain_patterns(arch, attributed(arch).ids)
    for layer, head in seen.heads[HEAD].itertuples(index=False, name=None):
        torch.testing.assert_close(pattern(seen, layer, head), expected[layer][0, head], atol=1e-6, rtol=0)
    sums = seen.patterns.groupby([*HEAD, "query"])["weight"].sum()
    assert (sums - 1).abs().max() < 1e-5
    assert (seen.patterns.loc[seen.patterns["key"] > seen.patterns["query"], "weight"] == 0).all()


def test_the_oracle_tells_another_head_and_another_prompt_apart() -> None:
    seen = looked("gpt2")
    layer, head = seen.heads.loc[0, HEAD]
    weights = pattern(seen, layer, head)
    expected = plain_patterns("gpt2", attributed("gpt2").ids)
    assert (weights - expected[layer][0, (head + 1) % 4]).abs().max() > 1e-2
    other = plain_patterns("gpt2", tuple(reversed(attributed("gpt2").ids)))
    assert (weights - other[layer][0, head]).abs().max() > 1e-2


# ---------------------------------------------------------------------------------------------------- heat


def assert_sums_to(parts: pd.DataFrame, heads: pd.DataFrame, *, atol: float = 1e-4) -> None:
    sums = parts.groupby(HEAD)["score"].sum()
    wanted = heads.set_index(HEAD)["score"]
    missed = (sums.reindex(wanted.index) - wanted).abs()
    assert missed.max() <= atol, f"{missed.idxmax()}: missed by {missed.max():.3g} nats"


@pytest.mark.parametrize("tokens", ["first", "sum"])
@pytest.mark.parametrize("arch", ARCHS)
def test_the_heat_of_a_head_sums_to_its_score(arch: Arch, tokens: str) -> None:
    seen, attr = looked(arch, tokens), attributed(arch, tokens)
    scores = attr.heads.set_index(HEAD)["score"]
    assert seen.heads["score"].tolist() == [
        scores[key] for key in seen.heads[HEAD].itertuples(index=False, name=None)
    ]
    assert_sums_to(seen.heat, seen.heads)
    assert seen.gap == pytest.approx(seen.heat["score"].sum() - seen.heads["score"].sum(), abs=1e-12)
    assert len(seen.heat) == len(seen.heads) * len(attr.ids)
    assert seen.tokens == attr.tokens


def test_what_positions_add_alone_does_not_sum_and_the_test_sees_it() -> None:
    attr, seen = attributed("gpt2"), looked("gpt2")
    keys = pd.MultiIndex.from_frame(seen.heads[HEAD])
    alone = attr.head_positions[pd.MultiIndex.from_frame(attr.head_positions[HEAD]).isin(keys)]
    with pytest.raises(AssertionError, match="missed by"):
        assert_sums_to(alone, seen.heads)
    with pytest.raises(AssertionError, match="missed by"):
        assert_sums_to(seen.heat.iloc[1:], seen.heads)


def naive_heat(plain: PlainReads, target: int, layer: int, head: int, *, steps: int = 400) -> list[float]:
    """The definition: central differences of logp along v_pos, at the midpoints of the way from base to base + v."""
    kv = head // (plain.A.shape[1] // plain.v.shape[2])
    weights, values = plain.A[layer, head], plain.v[layer, :, kv]
    parts = (weights[:, None] * values) @ plain.W_O[layer, head]
    sigma, eps = plain.sigma(), 1e-4

    def logp(z: torch.Tensor) -> float:
        return plain.logp(z, target, biases="keep", sigma=sigma)

    way = [plain.x_pre[layer] + (k + 0.5) / steps * parts.sum(0) for k in range(steps)]
    return [
        sum(logp(z + eps * part) - logp(z - eps * part) for z in way) / (2 * eps * steps) for part in parts
    ]


@pytest.mark.parametrize("arch", ["gpt2", "llama-gqa"])
def test_the_heat_is_its_definition(arch: Arch) -> None:
    attr, seen = attributed(arch), looked(arch)
    plain = plain_run(tiny_folder(arch), list(attr.ids))
    for layer, head in seen.heads.head(2)[HEAD].itertuples(index=False, name=None):
        rows = seen.heat[(seen.heat["layer"] == layer) & (seen.heat["head"] == head)]["score"].tolist()
        assert rows == pytest.approx(naive_heat(plain, attr.target_id, layer, head), abs=1e-4)
        assert rows != pytest.approx(naive_heat(plain, attr.target_id, layer, (head + 1) % 4), abs=1e-2)


def test_a_head_that_settles_the_prediction_alone_is_divided_too() -> None:
    generator = torch.Generator().manual_seed(0)
    W_U = torch.randn(16, 300, generator=generator, dtype=torch.float64)
    B = Projection(W_U=W_U, scale=torch.ones(16).double(), centre=True, constant=None, sigma=1.0)
    base, parts = (
        torch.randn(2, 16, generator=generator).double(),
        torch.randn(2, 5, 16, generator=generator).double(),
    )
    log_p = B.log_probs(base)
    for size, atol in ((0.1, 1e-9), (1.0, 1e-6), (3.0, 1e-3)):
        heat = divided(B, log_p, size * parts, target=7)
        scores = inc_rows(B, size * parts.sum(dim=1), torch.arange(2), log_p, target=7)
        assert heat.sum(dim=1).tolist() == pytest.approx(scores.tolist(), abs=atol)


# ----------------------------------------------------------------------------------------------- which, where


def test_heads_are_the_strongest_of_the_circuit() -> None:
    attr, model = attributed("gpt2"), tiny_model("gpt2")
    named = {node["id"]: abs(node["score"]) for node in attr.circuit()["nodes"] if node["kind"] == "head"}
    seen = head_attention(model, attr, k=2)
    ids = [f"head:{row.layer}.{row.head}" for row in seen.heads.itertuples()]
    assert ids == sorted(named, key=lambda name: -named[name])[:2]
    assert len(head_attention(model, attr, k=100).heads) == len(named)
    for k in (0, -1, 1.5):
        with pytest.raises(InputError, match="k: expected"):
            head_attention(model, attr, k=k)  # type: ignore[arg-type]


def test_the_model_is_the_attributed_one_inside_the_same_edit() -> None:
    model = tiny_model("gpt2")

    def steer(tensor: torch.Tensor, hook: object) -> torch.Tensor:
        return 3 * tensor

    with model.hooks([("blocks.0.hook_attn_out", steer)]):
        edited = attribute(model, PROMPT, TARGET, top_k=20)
        seen = head_attention(model, edited)
    assert_sums_to(seen.heat, seen.heads)
    layer, head = seen.heads[seen.heads["layer"] > 0].iloc[0][HEAD].astype(int)
    unedited = plain_patterns("gpt2", edited.ids)[layer][0, head]
    assert (pattern(seen, layer, head) - unedited).abs().max() > 1e-3  # what the edited model does
    for other in (model, tiny_model("llama")):
        with pytest.raises(InputError, match="otherwise edited"):
            head_attention(other, edited)


def test_it_is_saved_loaded_and_shown_as_text(tmp_path: Path) -> None:
    seen = looked("gpt2")
    assert HeadAttention.load(seen.save(tmp_path / "a")).equals(seen)
    labels = [label.get_text() for label in seen.plot().axes.get_yticklabels()]
    assert labels == ["all", *(f"L{row.layer} H{row.head}" for row in seen.heads.itertuples())]
    hostile = HeadAttention(
        heat=seen.heat,
        patterns=seen.patterns,
        heads=seen.heads,
        tokens=("<script>alert(1)</script>", "\u202e", *seen.tokens[2:]),
        target="<b>",
        gap=0.0,
    )
    shown = hostile._repr_html_()
    assert "<script>" not in shown
    assert "<b>" not in shown
    assert "&lt;script&gt;" in shown
    assert "\u202e" not in shown
    assert f"{seen.heads['score'].sum():+.3f}" in shown
