"""Attribution against a naive loop, conservation under edits, and the result object."""

from __future__ import annotations

import dataclasses
import json
import math
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from mechedit.attribution import (
    Attribution,
    attribute,
    attribution_json,
    contrast,
    nlka,
    projection,
    scores,
    terms,
)
from mechedit.attribution.projection import Projection
from mechedit.attribution.ranking.neurons import Ranked, attention_index
from mechedit.attribution.scores import inc_rows, inc_scaled
from mechedit.attribution.units import UNITS
from mechedit.models.hooked import HookedModel, load_model
from reports.circuit import draw, read
from reports.errors import InputError
from tests.nlka_oracle import Key, Plain, PlainReads, Unit, naive_scores, plain_run
from tests.tiny import ARCHS, Arch, tiny_folder, tiny_model

PROMPT, TARGET = "The mother tongue of Anna is", " French"
ORACLE_UNITS: tuple[Unit, ...] = ("layers", "heads", "head_positions", "mlp_neurons", "attn_neurons")


@cache
def attributed(arch: Arch, biases: str = "keep", sign: str = "promote") -> Attribution:
    return attribute(tiny_model(arch), PROMPT, TARGET, top_k="all", biases=biases, sign=sign)  # type: ignore[arg-type]


@cache
def plain(arch: Arch) -> PlainReads:
    return plain_run(tiny_folder(arch), list(attributed(arch).ids))


def rows(frame: pd.DataFrame, unit: str) -> dict[Key, float]:
    return dict(zip(frame[list(UNITS[unit])].itertuples(index=False, name=None), frame["score"], strict=True))


def assert_same_scores(actual: dict[Key, float], expected: dict[Key, float], *, atol: float = 1e-4) -> None:
    assert actual.keys() == expected.keys()
    worst = max(expected, key=lambda key: abs(actual[key] - expected[key]))
    assert abs(actual[worst] - expected[worst]) <= atol, f"{worst}: {actual[worst]} against {expected[worst]}"


# ------------------------------------------------------------------------------------------ against the
# oracle


@pytest.mark.parametrize(
    ("arch", "biases"), [*((arch, "keep") for arch in ARCHS), ("gpt2", "drop"), ("llama", "drop")]
)
def test_every_score_is_that_of_the_naive_loop(arch: Arch, biases: str) -> None:
    attr = attributed(arch, biases)
    expected = naive_scores(plain(arch), attr.target_id, biases=biases)
    for unit in ORACLE_UNITS:
        assert_same_scores(rows(getattr(attr, unit), unit), expected[unit])
    assert attr.certificate["total"] == len(expected["mlp_neurons"]) + len(expected["attn_neurons"])
    assert attr.sigma == pytest.approx(float(plain(arch).sigma()), rel=1e-5)


@pytest.mark.parametrize("arch", ARCHS)
def test_the_oracle_fails_on_a_wrong_scale_and_on_one_wrong_score(arch: Arch) -> None:
    attr = attributed(arch)
    actual = rows(attr.mlp_neurons, "mlp_neurons")
    sigma = plain(arch).sigma() * 1.02
    rescaled = naive_scores(plain(arch), attr.target_id, biases="keep", sigma=sigma)
    with pytest.raises(AssertionError, match="against"):
        assert_same_scores(actual, rescaled["mlp_neurons"])
    shifted = dict(actual)
    shifted[next(iter(shifted))] += 2e-4
    with pytest.raises(AssertionError, match="against"):
        assert_same_scores(shifted, actual)


def test_the_oracle_tells_the_conventions_of_the_biases_apart() -> None:
    kept, dropped = attributed("gpt2"), attributed("gpt2", "drop")
    expected = naive_scores(plain("gpt2"), kept.target_id, biases="keep")
    with pytest.raises(AssertionError, match="against"):
        assert_same_scores(rows(dropped.mlp_neurons, "mlp_neurons"), expected["mlp_neurons"])


@pytest.mark.shared
def test_a_trained_model_is_attributed_as_by_the_naive_loop(shared_dir: Path) -> None:
    folder = shared_dir / "models" / "stories260K"
    model = load_model(str(folder), device="cpu")
    prompt = "Once upon a time, there was a little girl named"
    attr = attribute(model, prompt, " Lily", top_k="all")
    reference = plain_run(folder, list(attr.ids))
    expected = naive_scores(reference, attr.target_id, biases="keep")
    for unit in ORACLE_UNITS:
        assert_same_scores(rows(getattr(attr, unit), unit), expected[unit])
    assert attr.logp == pytest.approx(own_logp(model, prompt, attr.target_id), abs=1e-4)
    assert_sums_up(attr)


# ------------------------------------------------------------------------------------------ conservation


def own_logp(model: HookedModel, prompt: str, token: int) -> float:
    return float(model.logits([prompt])[0].double().log_softmax(-1)[token])


def assert_sums_up(attr: Attribution, *, gap: float = 1e-4) -> None:
    total = attr.embedding_logp + attr.layers["score"].sum() + attr.completeness_gap
    assert total == pytest.approx(attr.logp, abs=1e-9)
    assert abs(attr.completeness_gap) < gap


@pytest.mark.parametrize("arch", ARCHS)
def test_layer_scores_sum_to_the_models_own_log_probability(arch: Arch) -> None:
    attr = attributed(arch)
    assert attr.logp == pytest.approx(own_logp(tiny_model(arch), PROMPT, attr.target_id), abs=1e-4)
    assert attr.layers["module"].tolist() == ["attn", "mlp"] * tiny_model(arch).shape.n_layers
    assert_sums_up(attr)
    assert_sums_up(attributed(arch, "drop"))


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize(("point", "module"), [("hook_attn_out", "steer"), ("hook_mlp_out", "steer_mlp")])
def test_a_steering_term_has_its_own_row_and_nothing_is_lost(arch: Arch, point: str, module: str) -> None:
    model = tiny_model(arch)
    term = torch.linspace(-1, 1, model.shape.d_model).square()

    def steer(tensor: torch.Tensor, hook: object) -> torch.Tensor:
        return tensor + term

    with model.hooks([(f"blocks.1.{point}", steer)]):
        attr = attribute(model, PROMPT, TARGET, top_k="all")
        view = model.residual_view(torch.tensor(attr.ids))
    expected_modules = ["attn", "mlp"] * model.shape.n_layers
    expected_modules.insert(3 if module == "steer" else 4, module)
    assert attr.layers["module"].tolist() == expected_modules
    assert attr.logp == pytest.approx(float(view.logits.double().log_softmax(-1)[attr.target_id]), abs=1e-4)
    assert_sums_up(attr)
    after = (view.resid_mid[1] if module == "steer" else view.resid_pre[2]).double()
    record = dataclasses.replace(plain(arch), x_final=view.resid_final.double())
    states = (after, after - term.double())
    steered, unsteered = (record.logp(z, attr.target_id, biases="keep", sigma=record.sigma()) for z in states)
    score = attr.layers.loc[attr.layers["module"] == module, "score"].item()
    assert score == pytest.approx(steered - unsteered, abs=1e-4)
    assert abs(score) > 1e-3  # else the row above proves nothing
    drawn = draw(read(attr.circuit()))
    assert "steering" in drawn.svg
    assert [node["score"] for node in attr.circuit()["nodes"] if node["id"] == f"{module}:1"] == [score]


def test_a_change_between_the_sub_layers_shows_as_a_gap() -> None:
    """The gap is measured, not assumed: a residual that something else moved does not sum up."""
    model = tiny_model("gpt2")

    def shift(tensor: torch.Tensor, hook: object) -> torch.Tensor:
        return tensor + 1.0 * torch.arange(tensor.shape[-1])

    with model.hooks([("ln_final.hook_in", shift)]):
        attr = attribute(model, PROMPT, TARGET, top_k=1)
    assert abs(attr.completeness_gap) > 1e-2


@pytest.mark.parametrize("arch", ARCHS)
def test_the_contrast_is_the_difference_of_two_attributions(arch: Arch) -> None:
    model = tiny_model(arch)
    frame = contrast(model, PROMPT, " Dutch", TARGET).layers
    new = attribute(model, PROMPT, " Dutch", top_k=1).layers
    old = attributed(arch).layers
    assert frame[["layer", "module"]].equals(old[["layer", "module"]])
    assert (frame["score"] - (new["score"] - old["score"])).abs().max() < 1e-6
    with pytest.raises(InputError, match="start alike"):
        contrast(model, PROMPT, TARGET, TARGET)


# ------------------------------------------------------------------------------------------ ranking and
# options


@pytest.mark.parametrize("sign", ["promote", "suppress"])
def test_top_k_is_the_head_of_the_full_ranking(sign: str) -> None:
    everything = attributed("llama-gqa", sign=sign)
    few = attribute(tiny_model("llama-gqa"), PROMPT, TARGET, top_k=7, sign=sign)  # type: ignore[arg-type]
    for unit in ("mlp_neurons", "attn_neurons", "query_neurons"):
        expected = getattr(everything, unit).head(7)
        pd.testing.assert_frame_equal(getattr(few, unit), expected)
        scores = expected["score"].to_numpy()
        assert (scores[:-1] >= scores[1:]).all() if sign == "promote" else (scores[:-1] <= scores[1:]).all()
    assert few.mlp_neurons["score"].iloc[0] * (1 if sign == "promote" else -1) > 0
    assert few.top(3).equals(few.mlp_neurons.head(3))
    best = max if sign == "promote" else min
    assert few.top(1, "heads")["score"].item() == best(few.heads["score"])


def test_a_ranking_keeps_the_order_of_layers_among_equal_scores() -> None:
    tied = [nlka_ranked(layer, [1.0, 2.0, 1.0]) for layer in (0, 1)]
    ranked = Ranked.best(tied, k=None, sign="promote")
    assert list(zip(ranked.layer.tolist(), ranked.index.tolist(), strict=True)) == [
        *((0, 1), (1, 1)),
        *((0, 0), (0, 2), (1, 0), (1, 2)),
    ]


def test_the_place_of_an_attention_neuron_is_one_number_and_back() -> None:
    sizes = {"width": 3, "length": 5}
    head, dim, pos = torch.cartesian_prod(torch.arange(2), torch.arange(3), torch.arange(5)).unbind(1)
    index = attention_index(head, dim, pos, **sizes)
    assert index.tolist() == list(range(30))
    places = Ranked(index.double(), index * 0, index).places(**sizes)
    assert [place.tolist() for place in places] == [head.tolist(), dim.tolist(), pos.tolist()]


def nlka_ranked(layer: int, values: list[float]) -> Ranked:
    return Ranked.of_layer(layer, torch.tensor(values, dtype=torch.float64))


class Largest(TorchDispatchMode):
    """The largest tensor, in bytes, that has the vocabulary as an axis, over all operations."""

    def __init__(self, d_vocab: int) -> None:
        super().__init__()
        self.d_vocab, self.bytes = d_vocab, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if torch.is_tensor(result) and result.dim() > 1 and result.shape[-1] == self.d_vocab:
            self.bytes = max(self.bytes, result.numel() * result.element_size())
        return result


def test_scores_do_not_depend_on_the_memory_budget_and_keep_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    arch: Arch = "gpt2-untied"
    model = tiny_model(arch)
    W_U_bytes, bases = model.W_U.numel() * 4, 2 * (model.shape.n_layers + 1) * model.shape.d_vocab * 4
    budget = 100_000
    assert (
        W_U_bytes < budget
    )  # W_U itself is the model's; were it larger, the measurement below would count it
    with Largest(model.shape.d_vocab) as free:
        attribute(model, PROMPT, TARGET, top_k=5)
    for module in (projection, scores, terms):
        monkeypatch.setattr(module, "BLOCK_BYTES", budget)
    with Largest(model.shape.d_vocab) as bounded:
        attr = attribute(model, PROMPT, TARGET, top_k="all")
    assert bounded.bytes <= max(budget, bases) < free.bytes
    for unit in UNITS:
        actual, expected = (rows(getattr(a, unit), unit) for a in (attr, attributed(arch)))
        assert_same_scores(actual, expected, atol=1e-5)


def test_a_bf16_model_is_scored_in_fp32() -> None:
    model = load_model(str(tiny_folder("llama-gqa")), device="cpu", dtype="bfloat16")
    attr = attribute(model, PROMPT, TARGET, top_k="all")
    view = model.residual_view(torch.tensor(attr.ids))
    record = Plain(
        x_pre=view.resid_pre.double(),
        a=view.attn_out.double(),
        f=view.mlp_out.double(),
        x_final=view.resid_final.double(),
        A=view.pattern.double(),
        v=view.v.double(),
        m=view.mlp_post.double(),
        x_all=view.resid_pre_all.double(),
        W_O=torch.stack([model.W_O(n) for n in range(3)]).double(),
        W_V=plain("llama-gqa").W_V,
        W_out=torch.stack([model.W_out(n) for n in range(3)]).double(),
        ln1=plain("llama-gqa").ln1,
        gamma=model.final_norm.weight.double(),
        beta=None,
        eps=model.final_norm.eps,
        W_U=model.W_U.double(),
    )
    # only what is added to x_pre: x_mid is rounded to bf16 in the stream, and the oracle adds without
    # rounding
    expected = naive_scores(record, attr.target_id, biases="keep")
    assert set(attr.layers["module"]) == {"attn", "mlp"}
    for unit in ("heads", "head_positions", "attn_neurons"):
        assert_same_scores(rows(getattr(attr, unit), unit), expected[unit])
    assert_sums_up(attr, gap=0.2)


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("top_k", 0, "top_k: expected an integer of at least 1 or 'all', found 0"),
        ("top_k", True, "top_k"),
        ("top_k", 2.0, "top_k"),
        ("top_k", "some", "top_k"),
        ("sign", "both", "sign: expected one of promote, suppress, found 'both'"),
        ("method", "guess", "method: expected one of exhaustive"),
        ("biases", "half", "biases: expected one of keep, drop"),
    ],
)
def test_an_unknown_option_is_refused(option: str, value: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        attribute(tiny_model("gpt2"), PROMPT, TARGET, **{option: value})


def test_a_target_of_nothing_and_a_model_that_overflows_are_refused() -> None:
    with pytest.raises(InputError, match="target"):
        attribute(tiny_model("gpt2"), PROMPT, "")
    model = tiny_model("gpt2")

    def explode(tensor: torch.Tensor, hook: object) -> torch.Tensor:
        return tensor * math.inf

    with (
        model.hooks([("blocks.1.hook_mlp_out", explode)]),
        pytest.raises(InputError, match="expected a finite forward pass"),
    ):
        attribute(model, PROMPT, TARGET)


# ------------------------------------------------------------------------------------------ the tensor
# functions


def some_projection(*, centre: bool, seed: int = 0, d_model: int = 8, d_vocab: int = 50) -> Projection:
    generator = torch.Generator().manual_seed(seed)
    W_U = torch.randn(d_model, d_vocab, generator=generator)
    scale = torch.rand(d_model, generator=generator, dtype=torch.float64) + 0.5
    constant = torch.randn(d_vocab, generator=generator, dtype=torch.float64)
    return Projection(W_U=W_U, scale=scale, centre=centre, constant=constant, sigma=1.0)


def inc_scaled_once(
    B: Projection, log_p: torch.Tensor, vectors: torch.Tensor, *, target: int
) -> torch.Tensor:
    ones = torch.ones(len(vectors), 1, dtype=torch.float64)
    return inc_scaled(B, log_p, vectors, ones, target=target)[:, 0]


def inc_rows_of_one_base(
    B: Projection, log_p: torch.Tensor, vectors: torch.Tensor, *, target: int
) -> torch.Tensor:
    base = torch.zeros(len(vectors), dtype=torch.long)
    return inc_rows(B, vectors, base, log_p[None].to(B.dtype), target=target)


INC = pytest.mark.parametrize("inc", [inc_scaled_once, inc_rows_of_one_base])


@INC
@pytest.mark.parametrize("size", [1e-4, 1.0, 30.0, 1000.0])
@pytest.mark.parametrize("centre", [True, False])
def test_inc_holds_for_tiny_and_for_huge_vectors(size: float, centre: bool, inc: Any) -> None:
    """Tiny ones lose their score to cancellation, huge ones overflow exp, where either is done carelessly."""
    B = some_projection(centre=centre)
    generator = torch.Generator().manual_seed(1)
    vectors = size * torch.randn(40, 8, generator=generator)
    base = torch.randn(8, generator=generator)
    actual = inc(B, B.log_probs(base[None])[0], vectors, target=3)
    states = base.double() + vectors.double()
    exact = torch.stack([B.log_probs(z[None])[0, 3] for z in states]) - B.log_probs(base[None])[0, 3]
    assert (actual - exact).abs().max() <= 1e-5 * max(size, 1e-2)
    assert torch.isfinite(actual).all()


@INC
def test_a_unit_that_settles_the_prediction_alone_is_scored_exactly(inc: Any) -> None:
    B = Projection(W_U=torch.eye(3), scale=torch.ones(3).double(), centre=False, constant=None, sigma=1.0)
    base = torch.tensor([0.0, 9.0, 0.0])
    log_p = B.log_probs(base[None])[0]
    actual = inc(B, log_p, torch.tensor([[19.0, 0.0, 0.0]]), target=0).item()
    assert actual == pytest.approx(
        float(B.log_probs(torch.tensor([[19.0, 9.0, 0.0]]))[0, 0] - log_p[0]), abs=1e-6
    )


def test_scaled_directions_are_vectors() -> None:
    B = some_projection(centre=True)
    generator = torch.Generator().manual_seed(2)
    directions, coefficients = torch.randn(6, 8, generator=generator), torch.randn(6, 5, generator=generator)
    log_p = B.log_probs(torch.randn(1, 8, generator=generator))[0]
    actual = inc_scaled(B, log_p, directions, coefficients, target=0)
    vectors = (coefficients[:, :, None] * directions[:, None]).flatten(0, 1)
    assert torch.allclose(actual.flatten(), inc_scaled_once(B, log_p, vectors, target=0), atol=1e-6)


@pytest.mark.parametrize("centre", [True, False])
def test_a_column_of_the_projection_is_the_gradient_of_its_logit(centre: bool) -> None:
    B = some_projection(centre=centre)
    z = torch.randn(8, generator=torch.Generator().manual_seed(3)).double().requires_grad_()
    logit = (B.normalise(z[None]) @ B.W_U.double())[0, 4]
    assert torch.allclose(B.column(4), torch.autograd.grad(logit, z)[0])


# ------------------------------------------------------------------------------------------ the result


def test_a_result_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    attr = attribute(tiny_model("llama-gqa"), PROMPT, TARGET, top_k=9)
    again = Attribution.load(attr.save(tmp_path / "attr"))
    assert again.equals(attr)
    assert again.circuit() == attr.circuit()
    assert again.tokens == attr.tokens
    changed = dataclasses.replace(attr, logp=attr.logp + 1)
    assert not changed.equals(attr)


def test_the_tidy_frame_holds_every_row_once() -> None:
    attr = attribute(tiny_model("gpt2"), PROMPT, TARGET, top_k=4)
    frame = attr.to_frame()
    assert frame["unit"].value_counts().to_dict() == {unit: len(getattr(attr, unit)) for unit in UNITS}
    assert frame.columns.tolist() == ["unit", "layer", "module", "head", "neuron", "dim", "pos", "score"]
    part = frame[frame["unit"] == "attn_neurons"][["layer", "head", "dim", "pos", "score"]]
    assert (part.to_numpy() == attr.attn_neurons.to_numpy()).all()
    assert frame.loc[frame["unit"] == "layers", "head"].isna().all()
    assert frame["score"].notna().all()


def test_json_rows_have_the_frames_columns_and_survive_json() -> None:
    attr = attribute(tiny_model("gpt2"), PROMPT, TARGET, top_k=4, biases="drop")
    data = json.loads(json.dumps(attribution_json(attr), allow_nan=False))
    assert data["ids"] == list(attr.ids)
    assert data["biases"] == "drop"
    assert data["method"] == "certified"
    for unit, columns in UNITS.items():
        assert [set(row) for row in data[unit]] == [{*columns, "score"}] * len(getattr(attr, unit))
    total = data["embedding_logp"] + sum(row["score"] for row in data["layers"]) + data["completeness_gap"]
    assert total == pytest.approx(data["logp"], abs=1e-9)


def test_promotes_reads_each_neuron_through_the_projection() -> None:
    arch: Arch = "gpt2"
    attr = attribute(tiny_model(arch), PROMPT, TARGET, top_k=3)
    assert len(attr.promotes) == 3 * 2 * 5
    record = plain(arch)
    for layer, neuron in attr.mlp_neurons[["layer", "neuron"]].itertuples(index=False, name=None):
        vector = record.m[layer, -1, neuron] * record.W_out[layer, neuron]
        added = ((vector - vector.mean()) / record.sigma() * record.gamma) @ record.W_U
        tokens = attr.promotes[(attr.promotes["layer"] == layer) & (attr.promotes["neuron"] == neuron)]
        up, down = (tokens[tokens["side"] == side] for side in ("promotes", "demotes"))
        assert up["token_id"].tolist() == added.topk(5).indices.tolist()
        assert down["token_id"].tolist() == added.topk(5, largest=False).indices.tolist()
        assert up["logit"].tolist() == pytest.approx(added.topk(5).values.tolist(), abs=1e-4)
        assert up["rank"].tolist() == list(range(5))


def test_tokens_keep_their_space_and_broken_bytes_their_name() -> None:
    model = tiny_model("gpt2")
    attr = attribute(model, "The city of Zürich lies in", " Paris", top_k=1)
    assert "".join(attr.tokens[:2]).startswith("The")
    assert any(token.startswith(" ") for token in attr.tokens)
    assert not any("\ufffd" in token for token in attr.tokens)
    assert attr.target_token.startswith(" ")


def test_html_escapes_what_the_user_wrote() -> None:
    attr = attribute(tiny_model("gpt2"), "<script>alert(1)</script> is", " <b>", top_k=2)
    html = attr._repr_html_()
    assert "<script>" not in html
    assert "&lt;" in html
    assert repr(attr).startswith("Attribution(")


def test_plot_draws_the_layers() -> None:
    axes = attributed("gpt2").plot().axes
    assert len(axes.get_lines()) >= 2


def test_top_refuses_what_it_cannot_rank() -> None:
    attr = attributed("gpt2")
    with pytest.raises(InputError, match="unit: expected one of layers, heads"):
        attr.top(3, "neurons")
    with pytest.raises(InputError, match="k: expected"):
        attr.top(0)


def test_provenance_names_model_prompt_and_precision() -> None:
    actual = attributed("gpt2").provenance
    assert actual["model"]["hash"] == tiny_model("gpt2").hash
    assert actual["data"] == {"prompt": PROMPT, "target": TARGET, "space": "auto"}
    assert actual["dtype"] == "float32"


# ------------------------------------------------------------------------------------------ the circuit


def test_a_circuit_is_a_graph_whose_edges_lead_somewhere() -> None:
    attr = attributed("gpt2")
    graph = json.loads(json.dumps(attr.circuit(), allow_nan=False))
    ids = [node["id"] for node in graph["nodes"]]
    assert len(ids) == len(set(ids))
    assert {edge[end] for edge in graph["edges"] for end in ("source", "target")} <= set(ids)
    assert graph["schema_version"] == 2
    assert graph["target"] == attr.target_token
    heads = attr.heads.set_index(["layer", "head"])["score"]
    places = attr.head_positions.set_index(["layer", "head", "pos"])["score"]
    by_id = {node["id"]: node for node in graph["nodes"]}
    for edge in graph["edges"]:
        if edge["source"].startswith("head:"):
            layer, head = map(int, edge["source"].removeprefix("head:").split("."))
            assert edge["score"] == by_id[edge["source"]]["score"] == heads[layer, head]
        if edge["target"].startswith("head:") and edge["source"].startswith("token:"):
            layer, head = map(int, edge["target"].removeprefix("head:").split("."))
            assert edge["score"] == places[layer, head, by_id[edge["source"]]["pos"]]
    assert read(graph).target == attr.target_token
    promoted = [node["promotes"] for node in graph["nodes"] if node["kind"] == "neuron"]
    assert promoted
    assert all(len(tokens) == 5 for tokens in promoted)


def test_a_circuit_states_the_share_that_it_keeps() -> None:
    attr = attributed("llama")
    scores = pd.concat([attr.head_positions["score"], attr.mlp_neurons["score"]]).abs()
    for share, limit in ((0.2, 1000), (0.9, 1000), (1.0, 10_000), (0.9, 5)):
        graph = attr.circuit(share=share, max_units=limit)
        kept = scores.nlargest(graph["units"]).sum() / scores.sum()
        assert graph["share"] == pytest.approx(kept)
        assert graph["units"] <= limit
        assert graph["units"] == limit or graph["share"] >= share - 1e-9
        assert graph["units_total"] == len(scores)
    assert attr.circuit(share=0.2)["units"] < attr.circuit(share=0.5, max_units=1000)["units"]
    for share in (0.0, 1.5, math.nan):
        with pytest.raises(InputError, match="share"):
            attr.circuit(share=share)
    with pytest.raises(InputError, match="max_units"):
        attr.circuit(max_units=0)


def test_equal_tokens_stay_apart_in_a_circuit() -> None:
    attr = attribute(tiny_model("gpt2"), "Rome Rome Rome Rome is", " Rome", top_k=5)
    graph = attr.circuit(share=1.0, max_units=10_000)
    tokens = [node for node in graph["nodes"] if node["kind"] == "token"]
    assert [node["pos"] for node in tokens] == list(range(len(attr.ids)))
    assert [node["label"] for node in tokens] == list(attr.tokens)


def test_the_modules_public_limits_are_stated() -> None:
    assert attributed("gpt2").certificate["tolerance"] == nlka.TOLERANCE[torch.float32]
    assert projection.BLOCK_BYTES == 64 * 2**20
