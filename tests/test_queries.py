"""Query neurons and query layers against a naive loop, their conservation, and what hooks added."""

from __future__ import annotations

import dataclasses
from functools import cache
from typing import Any

import pandas as pd
import pytest
import torch

from mechedit.attribution import Attribution, attribute
from mechedit.attribution.circuits import keys, query
from mechedit.attribution.circuits.keys import attention_keys, mlp_keys
from mechedit.attribution.circuits.query import Source, key_weights, layer_reads
from mechedit.attribution.circuits.writers import Readers, neuron_reads
from mechedit.attribution.passes import run_passes
from mechedit.attribution.ranking.neurons import exhaustive
from mechedit.attribution.terms import layer_terms
from tests.nlka_oracle import Key, PlainReads, naive_queries, naive_shares, plain_run
from tests.tiny import ARCHS, Arch, tiny_folder, tiny_model

PROMPT, TARGET = "The mother tongue of Anna is", " French"
KINDS = {"attn": ("attn_neurons", "query_neurons", "query_layers")}
KINDS["mlp"] = ("mlp_neurons", "mlp_query_neurons", "mlp_query_layers")


@cache
def attributed(arch: Arch, biases: str = "keep", tokens: str = "first") -> Attribution:
    return attribute(tiny_model(arch), PROMPT, TARGET, top_k="all", biases=biases, tokens=tokens)  # type: ignore[arg-type]


@cache
def plain(arch: Arch) -> PlainReads:
    return plain_run(tiny_folder(arch), list(attributed(arch).ids))


def rows(frame: pd.DataFrame) -> dict[Key, float]:
    return {tuple(row[:-1]): row[-1] for row in frame.itertuples(index=False, name=None)}


def best(attr: Attribution, unit: str) -> list[tuple[Key, float]]:
    return [(tuple(map(int, key)), score) for key, score in rows(attr.top(query.N_VALUES, unit)).items()]


def assert_same(actual: dict[Key, float], expected: dict[Key, float], *, rtol: float = 1e-3) -> None:
    assert actual.keys() == expected.keys()
    scale = max(map(abs, expected.values()))  # without the guard a tiny denominator enlarges everything
    worst = max(expected, key=lambda key: abs(actual[key] - expected[key]))
    assert abs(actual[worst] - expected[worst]) <= rtol * scale, (
        f"{worst}: {actual[worst]} against {expected[worst]}"
    )


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("biases", ["keep", "drop"])
@pytest.mark.parametrize("kind", KINDS)
def test_query_neurons_and_layers_are_those_of_the_naive_loop(arch: Arch, biases: str, kind: str) -> None:
    attr = attributed(arch, biases)
    values, neurons, layers = KINDS[kind]
    kept = biases == "keep"
    expected = naive_queries(plain(arch), best(attr, values), guard=keys.GUARD if kept else 0.0, centre=kept)
    assert_same(rows(getattr(attr, neurons)), expected[0])
    assert_same(rows(getattr(attr, layers)), expected[1])
    account = attr.certificate["query" if kind == "attn" else "mlp_query"]
    assert account["guard"] == (keys.GUARD if kept else 0.0)
    assert account["values"] == query.N_VALUES
    assert account["keys"] == query.N_VALUES * (2 if kind == "mlp" and arch.startswith("llama") else 1)
    assert (account["pass"], account["passes"]) == (0, 1)


@pytest.mark.parametrize(("arch", "kind"), [("gpt2", "attn"), ("gpt2", "mlp"), ("llama-gqa", "mlp")])
def test_the_oracle_fails_on_another_key(arch: Arch, kind: str) -> None:
    """GPT-2: the mean that LayerNorm takes off; LLaMA: the gate's key in the up key's place."""
    attr = attributed(arch)
    values, neurons, _ = KINDS[kind]
    record = plain(arch)
    if arch == "llama-gqa":
        record = dataclasses.replace(record, W_keys=record.W_keys[:1])
    wrong, _ = naive_queries(record, best(attr, values), guard=keys.GUARD, centre=arch != "gpt2")
    with pytest.raises(AssertionError, match="against"):
        assert_same(rows(getattr(attr, neurons)), wrong)


def test_the_guard_changes_the_scores_and_the_naive_loop_sees_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keys, "GUARD", 0.3)
    attr = attribute(tiny_model("llama-gqa"), PROMPT, TARGET, top_k="all")
    for kind, (values, neurons, layers) in KINDS.items():
        assert attr.certificate["query" if kind == "attn" else "mlp_query"]["below_guard"] > 0
        guarded, unguarded = (
            naive_queries(plain("llama-gqa"), best(attr, values), guard=guard, centre=True)
            for guard in (0.3, 0.0)
        )
        assert_same(rows(getattr(attr, neurons)), guarded[0])
        assert_same(rows(getattr(attr, layers)), guarded[1])
        with pytest.raises(AssertionError, match="against"):
            assert_same(rows(getattr(attr, neurons)), unguarded[0], rtol=1e-2)


# ------------------------------------------------------------------------------------------ conservation


def reads(arch: Arch, *, centre: bool = True) -> tuple[list[Source], keys.Keys]:
    model = tiny_model(arch)
    passes, _ = run_passes(model, PROMPT, TARGET, tokens="first", biases="keep")
    view, terms = passes[0].view, passes[0].terms
    ranking = exhaustive(passes, k=query.N_VALUES, sign="promote")
    joined = attention_keys(model, view, ranking.attn, centre=centre).join(
        mlp_keys(model, view, ranking.mlp, centre=centre)
    )
    return layer_reads(model, view, terms, joined), joined


def assert_conserved(sources: list[Source], of: keys.Keys) -> None:
    shares = torch.stack([source.read for source in sources]) / of.read
    enlarged = shares.abs().sum(dim=0)  # rounding grows with what cancels
    assert ((shares.sum(dim=0) - 1).abs() <= 1e-5 * enlarged).all(), "shares do not sum to 1"


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("centre", [True, False])
def test_the_shares_of_a_read_sum_to_one_and_guarded_ones_to_less(arch: Arch, centre: bool) -> None:
    sources, of = reads(arch, centre=centre)
    assert_conserved(sources, of)
    guarded = torch.stack([source.read for source in sources]).sum(dim=0) / of.denominators(guard=True)
    assert ((guarded - 1).abs() < 1e-3).logical_or(of.read.abs() < of.least).all()
    assert (guarded[of.read.abs() < of.least] < 1).all()
    weights = key_weights(of, guard=False)
    total = torch.stack([source.read @ weights for source in sources]).sum(dim=0)
    score = torch.stack([of.score[~of.mid].sum(), (of.score * of.weight)[of.mid].sum()])
    assert torch.allclose(total, score, rtol=1e-3)


def test_conservation_fails_where_a_source_is_left_out() -> None:
    sources, of = reads("llama-gqa")
    attention = next(source for source in sources if (source.layer, source.module) == (2, "attn"))
    inside = of.mid & (of.layer == 2)  # an FFN neuron reads its own layer's attention
    assert (attention.read[inside] != 0).any()
    with pytest.raises(AssertionError, match="do not sum to 1"):
        assert_conserved([source for source in sources if source is not attention], of)


@pytest.mark.parametrize("arch", ARCHS)
def test_own_parts_alone_make_up_the_read_where_nothing_steers(arch: Arch) -> None:
    """Not by construction: neurons and biases are summed up, the stream's differences are not used."""
    model, (sources, of) = tiny_model(arch), reads(arch)
    passes, _ = run_passes(model, PROMPT, TARGET, tokens="first", biases="keep")
    assert {source.module for source in sources} == {"embed", "attn", "mlp"}
    everything = Readers(of.key.double(), of.pos)
    for source in sources:
        if source.module != "mlp":
            continue
        neurons = neuron_reads(model, passes[0].view, passes[0].terms[source.layer], everything)
        bias = model.b_out(source.layer)
        own = neurons.double().sum(1) + (0 if bias is None else everything.key @ bias.double())
        later = of.layer > source.layer
        assert torch.allclose(own[later], source.read[later], atol=1e-4)
        assert (source.read[~later] == 0).all()


@pytest.mark.parametrize("arch", ["gpt2", "llama-gqa"])
@pytest.mark.parametrize(("point", "module"), [("hook_attn_out", "steer"), ("hook_mlp_out", "steer_mlp")])
def test_steering_at_an_earlier_position_is_a_source_of_its_own(arch: Arch, point: str, module: str) -> None:
    model = tiny_model(arch)
    term = 3 * torch.linspace(-1, 1, model.shape.d_model).square()

    def steer(tensor: torch.Tensor, hook: object) -> torch.Tensor:
        changed = tensor.clone()
        changed[:, 1] += term
        return changed

    with model.hooks([(f"blocks.0.{point}", steer)]):
        sources, of = reads(arch)
    assert_conserved(sources, of)
    (steered,) = [source for source in sources if source.module == module]
    read = of.key.double() @ term.double()
    there = (of.pos == 1) & (of.layer > 0)
    assert there.any()
    assert torch.allclose(steered.read[there], read[there], atol=1e-4)
    assert (steered.read[~there].abs() < 1e-4).all()


# ------------------------------------------------------------------------------------------ the result


def test_one_value_neurons_share_is_what_the_naive_loop_says() -> None:
    sources, of = reads("gpt2")
    attr = attributed("gpt2")
    value, _ = best(attr, "attn_neurons")[0]
    expected = naive_shares(plain("gpt2"), value, guard=0.0, centre=True)
    for source in sources:
        name: Key = ("embed",) if source.module == "embed" else (source.module, source.layer)
        assert float(source.read[0] / of.read[0]) == pytest.approx(expected.get(name, 0.0), abs=1e-3)


def test_queries_of_several_tokens_are_read_in_the_last_pass_and_it_says_so() -> None:
    target = " French Dutch"
    attr = attribute(tiny_model("gpt2"), PROMPT, target, top_k=5, tokens="sum")
    passes = len(attr.target_ids)
    assert passes > 1
    for name in ("query", "mlp_query"):
        assert (attr.certificate[name]["pass"], attr.certificate[name]["passes"]) == (passes - 1, passes)


def test_query_frames_hold_top_k_rows_and_all_layers() -> None:
    attr = attribute(tiny_model("llama"), PROMPT, TARGET, top_k=4)
    assert len(attr.query_neurons) == len(attr.mlp_query_neurons) == 4
    for frame in (attr.query_layers, attr.mlp_query_layers):
        assert frame[["layer", "module"]].iloc[0].tolist() == [-1, "embed"]
        assert len(frame) == 1 + 2 * tiny_model("llama").shape.n_layers
    everything = attributed("llama")
    pd.testing.assert_frame_equal(attr.mlp_query_neurons, everything.mlp_query_neurons.head(4))


def test_a_bf16_model_has_no_steering_out_of_rounding() -> None:
    from mechedit.models.hooked import load_model

    model: Any = load_model(str(tiny_folder("llama-gqa")), device="cpu", dtype="bfloat16")
    attr = attribute(model, PROMPT, TARGET, top_k=5)
    assert set(attr.query_layers["module"]) == {"embed", "attn", "mlp"}
    assert len(list(layer_terms(model, model.residual_view(torch.tensor(attr.ids))))) == 3
