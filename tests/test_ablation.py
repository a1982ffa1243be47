"""Ablation by hooks against edited weights and an edited key-value cache; its controls, intervals and errors."""

from __future__ import annotations

import math
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from mechedit.attribution import Attribution, attribute
from mechedit.faithfulness import Ablation, ablate
from mechedit.faithfulness.ablate import random_like
from mechedit.faithfulness.intervention import Means, Neurons, logp_without, mean_activations
from mechedit.models.hooked import HookedModel
from reports.errors import InputError
from tests.tiny import ARCHS, Arch, tiny_folder, tiny_model

PROMPT, TARGET = "The mother tongue of Anna is", " French"
OTHERS = ["Tim Duncan plays the sport of", "She was born in"]
KS = (1, 3, 8)


@torch.no_grad()
def naive_without(
    folder: Path, ids: Tensor, target: int, neurons: Neurons, *, means: Means | None = None
) -> float:
    """The plain model runs on all tokens but the last; then weights and cached values are edited for the last one.

    What is edited before the last token alone is edited at the last position alone. A cached value belongs to a KV
    head, so its ablated neurons must be those of all query heads that share it.
    """
    hf: Any = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").double().eval()
    gpt2 = hf.config.model_type == "gpt2"
    blocks = hf.transformer.h if gpt2 else hf.model.layers
    heads = hf.config.num_attention_heads
    kv_heads = getattr(hf.config, "num_key_value_heads", heads)
    width = hf.config.hidden_size // heads
    past = hf(ids[None, :-1], use_cache=True).past_key_values
    for layer, neuron in neurons.mlp:
        out = blocks[layer].mlp.c_proj if gpt2 else blocks[layer].mlp.down_proj
        row = out.weight[neuron] if gpt2 else out.weight[:, neuron]
        if means is not None:
            assert gpt2, "needs an output bias"
            out.bias += means.mlp[layer, neuron].double() * row
        row.zero_()
    for layer, head, dim, pos in neurons.attn:
        kv = head // (heads // kv_heads)
        value = 0.0 if means is None else float(means.attn[layer, kv, dim])
        if pos < len(ids) - 1:
            past.layers[layer].values[0, kv, pos, dim] = value
        elif gpt2:
            column = 2 * hf.config.hidden_size + kv * width + dim
            blocks[layer].attn.c_attn.weight[:, column] = 0.0
            blocks[layer].attn.c_attn.bias[column] = value
        else:
            assert means is None, "needs a value bias"
            blocks[layer].self_attn.v_proj.weight[kv * width + dim] = 0.0
    logits = hf(ids[None, -1:], past_key_values=past, use_cache=True).logits[0, -1]
    return float(logits.log_softmax(-1)[target])


def random_sets(arch: Arch, length: int, *, n: int, seed: int = 0) -> list[Neurons]:
    """Random sets in which a value is ablated for all query heads of its KV head."""
    rng, s = np.random.default_rng(seed), tiny_model(arch).shape
    group = s.n_heads // s.n_kv_heads
    sets = []
    for _ in range(n):
        mlp = {(int(rng.integers(s.n_layers)), int(rng.integers(s.d_mlp))) for _ in range(12)}
        values = {
            tuple(int(rng.integers(size)) for size in (s.n_layers, s.n_kv_heads, s.d_head, length))
            for _ in range(8)
        } | {(s.n_layers - 1, 0, 0, length - 1)}
        attn = [
            (layer, kv * group + head, dim, pos) for layer, kv, dim, pos in values for head in range(group)
        ]
        sets += [Neurons(sorted(mlp)), Neurons(attn=attn), Neurons(sorted(mlp), attn)]
    return sets


def assert_same(actual: Tensor, expected: list[float], *, atol: float = 1e-4) -> None:
    worst = max(range(len(expected)), key=lambda i: abs(float(actual[i]) - expected[i]))
    assert abs(float(actual[worst]) - expected[worst]) <= atol, (
        f"{worst}: {actual[worst]} against {expected[worst]}"
    )


def tokens(arch: Arch) -> tuple[Tensor, int]:
    ids, target = tiny_model(arch).continuation(PROMPT, TARGET)
    return ids, int(target[0])


# --------------------------------------------------------------------------------------- against the oracle


@pytest.mark.parametrize("arch", ARCHS)
def test_ablation_by_hooks_is_the_edit_of_weights_and_cached_values(arch: Arch) -> None:
    ids, target = tokens(arch)
    sets = [Neurons(), *random_sets(arch, len(ids), n=3)]
    actual = logp_without(tiny_model(arch), ids, target, sets=sets, batch_size=4)
    expected = [naive_without(tiny_folder(arch), ids, target, neurons) for neurons in sets]
    assert_same(actual, expected)
    assert min(abs(x - expected[0]) for x in expected[1:]) > 1e-3  # every set does something


def test_mean_ablation_is_the_edit_with_the_means_in_place() -> None:
    ids, target = tokens("gpt2")
    means = mean_activations(tiny_model("gpt2"), OTHERS)
    sets = random_sets("gpt2", len(ids), n=3)
    actual = logp_without(tiny_model("gpt2"), ids, target, sets=sets, means=means)
    assert_same(
        actual, [naive_without(tiny_folder("gpt2"), ids, target, neurons, means=means) for neurons in sets]
    )
    zeroed = [naive_without(tiny_folder("gpt2"), ids, target, neurons) for neurons in sets]
    with pytest.raises(AssertionError, match="against"):
        assert_same(actual, zeroed)


@pytest.mark.parametrize("arch", ["gpt2", "llama-gqa"])
def test_the_oracle_fails_on_another_neuron_and_on_another_position(arch: Arch) -> None:
    ids, target = tokens(arch)
    neurons = random_sets(arch, len(ids), n=1)[2]
    actual = logp_without(tiny_model(arch), ids, target, sets=[neurons])
    folder = tiny_folder(arch)
    with pytest.raises(AssertionError, match="against"):
        assert_same(actual, [naive_without(folder, ids, target, Neurons(neurons.mlp[1:], neurons.attn))])
    moved = [(layer, head, dim, (pos + 1) % len(ids)) for layer, head, dim, pos in neurons.attn]
    with pytest.raises(AssertionError, match="against"):
        assert_same(actual, [naive_without(folder, ids, target, Neurons(neurons.mlp, moved))])


def test_a_grouped_value_is_lost_to_one_query_head_alone() -> None:
    """By conservation: without (h, j, pos), z[h, j] is lower by A[h, pos] · V[pos, kv, j] and no other z changes."""
    model = tiny_model("llama-gqa")
    ids, target = tokens("llama-gqa")
    layer, head, dim, pos = model.shape.n_layers - 1, 1, 2, 1
    view = model.residual_view(ids)
    removed = (
        view.pattern[layer, head, pos] * view.v[layer, pos, head // 2, dim] * model.W_O(layer)[head, dim]
    )

    def subtract(attn_out: Tensor, hook: object) -> Tensor:
        changed = attn_out.clone()
        changed[0, -1] -= removed
        return changed

    with model.hooks([(f"blocks.{layer}.hook_attn_out", subtract)]):
        logits = model.forward(ids[None], torch.ones_like(ids)[None])[0, -1]
    expected = float(logits.double().log_softmax(-1)[target])
    actual = logp_without(model, ids, target, sets=[Neurons(attn=[(layer, head, dim, pos)])])
    assert_same(actual, [expected], atol=1e-5)


def test_only_the_last_position_loses_a_neuron() -> None:
    """An output row that is zero at all positions is another intervention, but in the last layer the same."""
    ids, target = tokens("gpt2")
    for layer, same in ((0, False), (tiny_model("gpt2").shape.n_layers - 1, True)):
        neurons = Neurons(mlp=[(layer, i) for i in range(40)])
        actual = float(logp_without(tiny_model("gpt2"), ids, target, sets=[neurons])[0])
        hf: Any = AutoModelForCausalLM.from_pretrained(tiny_folder("gpt2")).eval().requires_grad_(False)
        hf.transformer.h[layer].mlp.c_proj.weight[:40] = 0.0
        everywhere = float(hf(ids[None]).logits[0, -1].log_softmax(-1)[target])
        assert (abs(actual - everywhere) < 1e-4) is same


def test_rows_of_a_batch_do_not_touch_each_other() -> None:
    ids, target = tokens("llama")
    sets = random_sets("llama", len(ids), n=2)
    together = logp_without(tiny_model("llama"), ids, target, sets=sets)
    for value, alone in zip(together, sets, strict=True):
        assert_same(logp_without(tiny_model("llama"), ids, target, sets=[alone]), [float(value)], atol=1e-5)


# ------------------------------------------------------------------------------------------- the comparison


@cache
def attributed(arch: Arch, **options: Any) -> Attribution:
    return attribute(tiny_model(arch), PROMPT, TARGET, top_k=10, **options)


@cache
def ablated() -> Ablation:
    return ablate(tiny_model("gpt2"), attributed("gpt2"), KS, draws=4)


def test_each_case_is_the_ablation_of_the_ranked_neurons() -> None:
    attr, model = attributed("gpt2"), tiny_model("gpt2")
    low = attribute(model, PROMPT, TARGET, top_k=10, sign="suppress")
    ids, target = tokens("gpt2")
    base = naive_without(tiny_folder("gpt2"), ids, target, Neurons())
    for name, source in (("top", attr), ("bottom", low)):
        for k in KS:
            mlp = [(int(a), int(b)) for a, b in source.mlp_neurons[["layer", "neuron"]].head(k).to_numpy()]
            attn: Any = [
                tuple(map(int, place))
                for place in source.attn_neurons[["layer", "head", "dim", "pos"]].head(k).to_numpy()
            ]
            expected = naive_without(tiny_folder("gpt2"), ids, target, Neurons(mlp, attn)) - base
            curve = ablated().curve.set_index(["kind", "neurons", "k"])
            assert curve.loc[("both", name, k), "delta"] == pytest.approx(expected, abs=1e-4)


def test_random_sets_have_the_layers_of_the_ranked_ones_and_follow_the_seed() -> None:
    neurons = Neurons([(0, 1), (2, 5), (2, 6)], [(1, 0, 0, 0), (1, 0, 0, 1)])
    sizes: dict[str, Any] = {"d_mlp": 9, "heads": (2, 3), "length": 4}
    drawn = [random_like(neurons, rng=np.random.default_rng(seed), **sizes) for seed in (0, 0, 1)]
    for copy in drawn:
        assert Counter(place[0] for place in copy.mlp) == {0: 1, 2: 2}
        assert Counter(place[0] for place in copy.attn) == {1: 2}
        assert len(set(copy.mlp)) == 3
        assert len(set(copy.attn)) == 2
    assert drawn[0] == drawn[1] != drawn[2]


def test_curve_and_differences_are_the_means_of_the_cases() -> None:
    ablation = ablated()
    assert set(ablation.curve["n"]) == {1}
    cases = ablation.cases
    assert len(cases) == 3 * len(KS) * (4 + 2)
    for row in ablation.differences.to_dict("records"):
        group = cases[(cases["kind"] == row["kind"]) & (cases["k"] == row["k"])]
        means = group.groupby("neurons")["delta"].mean()
        assert row["delta"] == pytest.approx(means["top"] - means[row["against"]], abs=1e-9)
        assert math.isfinite(row["low"]) is (row["against"] == "random")  # one prompt: over draws
    assert ablation.draws == 4
    assert ablation.ablated == "zero"


def test_options_change_something() -> None:
    model, attr = tiny_model("gpt2"), attributed("gpt2")
    first = ablated().cases["delta"].to_numpy()
    again = ablate(model, attr, KS, draws=4).cases["delta"].to_numpy()
    assert np.array_equal(first, again)
    mean = ablate(model, attr, KS, draws=4, mean_over=OTHERS)
    assert mean.ablated == "mean"
    assert not np.allclose(first, mean.cases["delta"])
    assert not np.allclose(first, ablate(model, attr, KS, draws=4, seed=1).cases["delta"])


def test_several_prompts_are_bootstrapped_over_prompts() -> None:
    model = tiny_model("gpt2")
    attrs = [attributed("gpt2"), attribute(model, OTHERS[0], " basketball", top_k=10)]
    ablation = ablate(model, attrs, 3, draws=2)
    assert ablation.n == 2
    alone = [ablate(model, attr, 3, draws=2).curve for attr in attrs]
    top = (ablation.curve["kind"] == "both") & (ablation.curve["neurons"] == "top")
    deltas = [float(curve.loc[top, "delta"].iloc[0]) for curve in alone]
    row = ablation.curve[top].iloc[0]
    assert row["delta"] == pytest.approx(np.mean(deltas), abs=1e-6)
    assert row["low"] == pytest.approx(min(deltas), abs=1e-6)
    assert row["high"] == pytest.approx(max(deltas), abs=1e-6)


def test_a_target_scored_as_a_sum_loses_the_neurons_in_every_pass() -> None:
    model = tiny_model("gpt2")
    attr = attribute(model, PROMPT, " Danielle Darrieux", top_k=4, tokens="sum")
    assert len(attr.target_ids) > 1
    ablation = ablate(model, attr, 4, draws=1)
    assert ablation.logp == pytest.approx(attr.logp, abs=1e-3)
    length = len(attr.ids) - len(attr.target_ids) + 1
    attn: Any = [
        tuple(map(int, place)) for place in attr.attn_neurons[["layer", "head", "dim", "pos"]].to_numpy()
    ]
    total = 0.0
    for n, token in enumerate(attr.target_ids):
        ids = torch.tensor(attr.ids[: length + n])
        there = Neurons(attn=[place for place in attn if place[3] < len(ids)])
        total += naive_without(tiny_folder("gpt2"), ids, token, there) - naive_without(
            tiny_folder("gpt2"), ids, token, Neurons()
        )
    curve = ablation.curve.set_index(["kind", "neurons"])
    assert curve.loc[("attn", "top"), "delta"] == pytest.approx(total, abs=2e-4)


def test_a_saved_ablation_is_the_same_and_is_drawn(tmp_path: Path) -> None:
    again = Ablation.load(ablated().save(tmp_path / "ablation"))
    assert again.equals(ablated())
    assert [line.get_label() for line in again.plot(kind="mlp").axes.get_lines()][1:] == [
        "top",
        "random",
        "bottom",
    ]
    with pytest.raises(InputError, match="kind: expected one of mlp, attn, both"):
        again.plot(kind="heads")


# --------------------------------------------------------------------------------------------------- errors


def test_what_cannot_be_ablated_is_refused() -> None:
    model, attr = tiny_model("gpt2"), attributed("gpt2")
    wrong: list[Any] = [0, 11, True, [], "3"]
    for k in wrong:
        with pytest.raises(InputError, match="k: expected integers from 1 to 10"):
            ablate(model, attr, k)
    with pytest.raises(InputError, match="draws"):
        ablate(model, attr, 1, draws=0)
    with pytest.raises(InputError, match="model: expected the attributed one"):
        ablate(tiny_model("gpt2-untied"), attr, 1)
    with pytest.raises(InputError, match="prompts: expected a list"):
        ablate(model, attr, 1, mean_over="one text")
    suppress = attributed("gpt2", sign="suppress")
    with pytest.raises(InputError, match="expected one sign"):
        ablate(model, [attr, suppress], 1)
    with pytest.raises(InputError, match=r"expected mlp neurons below \(3, 128\), found \(3, 0\)"):
        logp_without(model, torch.tensor([1, 2]), 0, sets=[Neurons(mlp=[(3, 0)])])
    with pytest.raises(InputError, match="twice"):
        logp_without(model, torch.tensor([1, 2]), 0, sets=[Neurons(mlp=[(0, 0), (0, 0)])])


def test_another_edit_than_the_attributed_one_is_refused() -> None:
    model, attr = tiny_model("gpt2"), attributed("gpt2")

    def steer(attn_out: Tensor, hook: object) -> Tensor:
        return attn_out + torch.linspace(-1, 1, attn_out.shape[-1])  # a constant would be centred away

    with (
        model.hooks([("blocks.1.hook_attn_out", steer)]),
        pytest.raises(InputError, match="its hooks are others than they were"),
    ):
        ablate(model, attr, 1)


def test_within_an_edit_its_own_attribution_is_ablated() -> None:
    model = tiny_model("gpt2")

    def steer(attn_out: Tensor, hook: object) -> Tensor:
        return attn_out + torch.linspace(-1, 1, attn_out.shape[-1])

    with model.hooks([("blocks.1.hook_attn_out", steer)]):
        attr = attribute(model, PROMPT, TARGET, top_k=3)
        ablation = ablate(model, attr, 3, draws=1)
    assert ablation.logp == pytest.approx(attr.logp, abs=1e-4)


def test_top_neurons_of_the_trained_model_carry_the_fact(factworld_gpt2: HookedModel) -> None:
    from mechedit.factworld import edits

    facts = edits(6)
    attrs = [attribute(factworld_gpt2, fact.rewrite_prompt, fact.target_true, top_k=30) for fact in facts]
    ablation = ablate(factworld_gpt2, attrs, 30, draws=3)
    against = ablation.differences.set_index(["kind", "against"])
    for kind in ("mlp", "attn", "both"):
        assert against.loc[(kind, "random"), "high"] < 0
        assert against.loc[(kind, "bottom"), "high"] < 0
