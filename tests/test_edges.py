"""Every edge below a value neuron, by really taking the source out of the receiver's input in the running model."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from mechedit.attribution import Attribution, attribute
from mechedit.attribution.circuits.edges import EDGES
from mechedit.models.hooked import HookedModel, load_model
from tests.nlka_oracle import PlainReads, plain_run
from tests.tiny import Arch, tiny_folder

PROMPT, TARGET = "The mother tongue of Anna is", " French"
THREE: tuple[Arch, ...] = ("gpt2", "llama", "llama-gqa")


@cache
def double(arch: Arch) -> tuple[HookedModel, Attribution, PlainReads]:
    model = load_model(str(tiny_folder(arch)), device="cpu", dtype="float64")
    attr = attribute(model, PROMPT, TARGET, top_k=30)
    return model, attr, plain_run(tiny_folder(arch), list(attr.ids))


def edges(arch: Arch, target: str) -> list[Any]:
    """Some from both kinds of source, the strongest first."""
    frame = double(arch)[1].reads.sort_values("score", key=abs, ascending=False)
    frame = frame[frame["target"] == target]
    return list(frame.groupby("source", sort=False).head(8).itertuples())


def written(plain: PlainReads, edge: Any) -> Tensor:
    """What the source wrote at the position where it is read."""
    if edge.source == "embed":
        return plain.x_all[0, edge.pos]
    m = plain.m[edge.source_layer, edge.pos, edge.source_neuron]
    return m * plain.W_out[edge.source_layer, edge.source_neuron]


def measured(arch: Arch, edge: Any, point: str, change: Tensor, *, keep: float = 1.0) -> dict[str, float]:
    """Run with the receiver's norm fed (`hook_in`) or answering (`hook_out`) `keep` · value − change at the edge's
    position, and read the receiver: v, or up, gate and post; `sigma` is the norm's own at what it was fed."""
    model = double(arch)[0]
    attention = edge.target == "attn"
    block = f"blocks.{edge.layer}"
    measures: dict[str, float] = {}

    def patch(tensor: Tensor, hook: object) -> Tensor:
        patched = tensor.clone()
        patched[:, edge.pos] = keep * patched[:, edge.pos] - change
        norm = model.norm1(edge.layer) if attention else model.norm2(edge.layer)
        measures["sigma"] = float(norm.scale(patched[0, edge.pos]))
        return patched

    def take(name: str, unit: int) -> Any:
        return lambda tensor, hook: measures.update({name: float(tensor[0, edge.pos].flatten()[unit])})

    hooks: list[Any] = [(f"{block}.{'ln1' if attention else 'ln2'}.{point}", patch)]
    if attention:
        group = model.shape.n_heads // model.shape.n_kv_heads
        hooks.append((f"{block}.attn.hook_v", take("v", edge.head // group * model.shape.d_head + edge.dim)))
    else:
        hooks.append((f"{block}.mlp.in.hook_out", take("up", edge.neuron)))
        hooks.append((f"{block}.mlp.hook_post", take("post", edge.neuron)))
        if model.shape.gated:
            hooks.append((f"{block}.mlp.gate.hook_out", take("gate", edge.neuron)))
    ids = torch.tensor([double(arch)[1].ids])
    with model.hooks(hooks), torch.no_grad():
        model.forward(ids, torch.ones_like(ids))
    return measures


def assert_read(arch: Arch, edge: Any, vector: Tensor) -> None:
    """The share of the read that is gone, over the model's own projection; its constant is the answer to zeros."""
    nothing = torch.zeros_like(vector)
    before, after = (measured(arch, edge, "hook_in", change) for change in (nothing, vector))
    constant = measured(arch, edge, "hook_in", nothing, keep=0.0)
    names = {"v": edge.read} if edge.target == "attn" else {"up": edge.read}
    if "gate" in before:
        names["gate"] = edge.read_gate
    for name, share in names.items():
        reads = [(run[name] - constant[name]) * run["sigma"] for run in (before, after)]
        gone = (reads[0] - reads[1]) / reads[0]
        assert abs(gone - share) <= 1e-5 * max(1.0, abs(share)), f"{edge}: {gone} gone, {share} promised"


@pytest.mark.parametrize("arch", THREE)
@pytest.mark.parametrize("target", ["attn", "mlp", "query"])
def test_the_read_falls_by_exactly_the_edges_share(arch: Arch, target: str) -> None:
    strongest = edges(arch, target)
    assert len(strongest) >= 8
    for edge in strongest:
        assert_read(arch, edge, written(double(arch)[2], edge))


@pytest.mark.parametrize("arch", ["gpt2", "llama-gqa"])
def test_the_intervention_fails_on_another_source(arch: Arch) -> None:
    edge = next(edge for edge in edges(arch, "attn") if edge.source == "mlp")
    other = edge._replace(source_neuron=(edge.source_neuron + 1) % 90)
    with pytest.raises(AssertionError, match="promised"):
        assert_read(arch, edge, written(double(arch)[2], other))


def still(arch: Arch, edge: Any, t: float) -> Tensor:
    """What the norm's output loses, its scale held still, where t times the source is taken out of its input."""
    model, _, plain = double(arch)
    norm = model.norm1(edge.layer) if edge.target == "attn" else model.norm2(edge.layer)
    x = (plain.x_all if edge.target == "attn" else plain.x_mid_all)[edge.layer, edge.pos]
    return t * norm.centre(written(plain, edge)) / norm.scale(x) * norm.weight


@pytest.mark.parametrize("arch", THREE)
@pytest.mark.parametrize("target", ["attn", "mlp", "query"])
def test_the_coefficient_falls_by_the_edges_fraction_to_first_order(arch: Arch, target: str) -> None:
    name = "v" if target == "attn" else "post"
    for edge in edges(arch, target):
        full = measured(arch, edge, "hook_out", still(arch, edge, 0.0))[name]
        for t in (1.0,) if target == "attn" else (1e-4, 1e-5):
            gone = 1 - measured(arch, edge, "hook_out", still(arch, edge, t))[name] / full
            allowed = 1e-5 * abs(edge.fraction) if target == "attn" else 1e3 * t * t
            assert abs(gone - t * edge.fraction) <= allowed + 1e-9, edge


@pytest.mark.parametrize("arch", THREE)
@pytest.mark.parametrize("target", ["attn", "mlp"])
def test_the_score_falls_by_the_edges_or_by_concavity_less(arch: Arch, target: str) -> None:
    """f of the coefficient gone, 0 < f < 1: the score falls by f · s at most, and by f of the tangent's at least."""
    _, attr, plain = double(arch)
    name, n = ("v", 0) if target == "attn" else ("post", 0)
    for edge in edges(arch, target):
        t = 0.5 * min(1.0, abs(1 / edge.fraction)) * (1 if edge.fraction > 0 else -1)
        full = measured(arch, edge, "hook_out", still(arch, edge, 0.0))[name]
        gone = 1 - measured(arch, edge, "hook_out", still(arch, edge, t))[name] / full
        if not 1e-3 < gone < 1:
            continue
        n += 1
        if target == "attn":
            direction = plain.W_O[edge.layer, edge.head, edge.dim] * plain.A[edge.layer, edge.head, edge.pos]
            base = plain.x_pre[edge.layer]
        else:
            direction, base = (
                plain.W_out[edge.layer, edge.neuron],
                plain.x_pre[edge.layer] + plain.a[edge.layer],
            )

        def inc(part: float, base: Tensor = base, vector: Tensor = direction * full) -> float:
            at = [
                plain.logp(z, attr.target_id, biases="keep", sigma=plain.sigma())
                for z in (base, base + part * vector)
            ]
            return at[1] - at[0]

        assert inc(1.0) == pytest.approx(edge.target_score, abs=1e-5)
        tangent = (inc(1 + 1e-4) - inc(1 - 1e-4)) / 2e-4
        drop = inc(1.0) - inc(1 - gone)
        assert gone * tangent - 1e-5 <= drop <= gone * edge.target_score + 1e-5, edge
    assert n >= 5


def test_an_edges_score_is_its_fraction_of_the_receivers_and_a_query_neurons_the_sum_of_its_edges() -> None:
    _, attr, _ = double("llama-gqa")
    frame = attr.reads
    assert (frame["score"] - frame["fraction"] * frame["target_score"]).abs().max() < 1e-9
    place = ["layer", "neuron", "pos"]
    scores = frame[frame["target"] == "query"].set_index(place)["target_score"].sort_index()
    summed = frame[frame["source"] == "mlp"].groupby(["source_layer", "source_neuron", "pos"])["score"].sum()
    assert scores.tolist() == pytest.approx(summed.sort_index().tolist())
    assert list(scores.index) == list(summed.sort_index().index)


@pytest.mark.parametrize("arch", THREE)
def test_the_strongest_of_all_pairs_are_kept_and_the_rest_is_counted(arch: Arch) -> None:
    """Against a loop over value neurons and all FFN neurons before them; attention is linear, so shares will do."""
    _, attr, plain = double(arch)
    kept_edges = attr.reads[(attr.reads["target"] == "attn") & (attr.reads["source"] == "mlp")]
    kept = {
        (row.layer, row.head, row.dim, row.pos, row.source_layer, row.source_neuron): row.score
        for row in kept_edges.itertuples()
    }
    least, total = kept_edges["score"].abs().min(), 0.0
    for row in attr.attn_neurons.itertuples():
        key = plain.W_V[row.layer, :, row.head * plain.v.shape[2] // plain.A.shape[1], row.dim]
        key = key * plain.ln1[row.layer]
        centred = key - key.mean() if plain.beta is not None else key
        x = plain.x_all[row.layer, row.pos]
        power = (x - x.mean()).square().mean() if plain.beta is not None else x.square().mean()
        group = plain.A.shape[1] // plain.v.shape[2]
        v = plain.v[row.layer, row.pos, row.head // group, row.dim]
        for layer in range(row.layer):
            wrote = (plain.m[layer, row.pos][:, None] * plain.W_out[layer]) @ centred
            scores = row.score * wrote / (power + plain.eps).sqrt() / v
            total += float(scores.abs().sum())
            for i, score in enumerate(scores.tolist()):
                name = (row.layer, row.head, row.dim, row.pos, layer, i)
                if abs(score) > least * (1 + 1e-4):
                    assert kept[name] == pytest.approx(score, rel=1e-3)
                elif abs(score) < least * (1 - 1e-4):
                    assert name not in kept
    account = attr.certificate["reads"]
    assert len(kept_edges) == EDGES
    assert account["edges"] == 2 * EDGES < account["edges_total"]
    assert account["total"]["attn"] == pytest.approx(total, rel=1e-3)
