"""Streamed gradients against autograd.grad lists, closed forms, enumeration, and a step really taken."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from reports.errors import InputError
from tests.xl_tiny import Arch, tiny_encoder
from xlprobe.encoders.encoder import Encoder
from xlprobe.probes.gradient_stream import Layout, Loss, Mean, dot, probing
from xlprobe.probes.gradients import Gradients, gradients, mean_gradient

TEXTS = [
    "Anna Keller works as a teacher in Berlin",
    "She was born in Rome",
    "The Eiffel Tower is located in the city of Paris , the capital of France",
    "Lily",
    "Tim Duncan plays the sport of basketball",
    "The Space Needle stands in Seattle , and the Colosseum stands in Rome",
]


def double(arch: Arch = "xlm-roberta") -> Encoder:
    encoder = tiny_encoder(arch).copy()
    encoder.model.double()
    return encoder


def loss_of(encoder: Encoder, name: str, seed: int, *, scale: float = 1.0, texts: list[str] = TEXTS) -> Loss:
    """The variance of one random direction of the content states: no meaning, but every parameter takes part."""
    direction = torch.randn(
        encoder.d_model, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )
    pairs = [encoder.encode(pair) for pair in itertools.combinations(texts, 2)][:8]

    def of(batch: Any) -> Tensor:
        return scale * (encoder.forward(batch)[batch.content] @ direction.to(encoder.dtype)).square().mean()

    return Loss(name, pairs, of)


def naive(encoder: Encoder, loss: Loss, *, mode: Callable[[nn.Module], Any] = nn.Module.eval) -> list[Tensor]:
    """Each batch's gradient, flat, by a list of autograd.grad."""
    mode(encoder.model)
    parameters = list(encoder.model.parameters())
    return [
        torch.cat(
            [
                torch.zeros_like(p).reshape(-1) if g is None else g.reshape(-1)
                for p, g in zip(
                    parameters,
                    torch.autograd.grad(loss.of(batch), parameters, allow_unused=True),
                    strict=True,
                )
            ]
        )
        for batch in loss.batches
    ]


def cosine(a: Tensor, b: Tensor) -> float:
    return float(a @ b / (a.norm() * b.norm()))


# -- the stream against autograd -----------------------------------------------------------------------------


@pytest.mark.parametrize("arch", ["xlm-roberta", "roberta", "bert"])
def test_streamed_means_equal_lists_of_gradients(arch: Arch) -> None:
    encoder = double(arch)
    loss = loss_of(encoder, "task", 0)
    layout = Layout.of(encoder.model, encoder.parameter_table())
    other = torch.randn(layout.numel, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    mean = Mean(layout, "task")
    with probing(layout, encoder.model):
        for batch in loss.batches:
            mean.add(loss.of(batch), against=other)
    each = torch.stack(naive(encoder, loss))
    assert torch.allclose(mean.close().flat, each.mean(0), rtol=1e-10, atol=1e-12)
    assert torch.allclose(torch.stack(mean.squares).sum(1), each.square().sum(1), rtol=1e-9)
    assert torch.allclose(torch.stack(mean.along).sum(1), each @ other, rtol=1e-9, atol=1e-9)
    cells = layout.dots(mean.flat, other)
    assert float(cells.sum()) == pytest.approx(float(each.mean(0) @ other), rel=1e-9)


def test_the_list_oracle_can_fail() -> None:
    """With dropout on, the same comparison tells the two apart."""
    encoder = double()
    for module in encoder.model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.3
    loss = loss_of(encoder, "task", 0)
    wrong = torch.stack(naive(encoder, loss, mode=nn.Module.train)).mean(0)
    encoder.model.train()
    layout = Layout.of(encoder.model, encoder.parameter_table())
    mean = Mean(layout, "task")
    with probing(layout, encoder.model):
        for batch in loss.batches:
            mean.add(loss.of(batch))
    assert not torch.allclose(mean.close().flat, wrong, rtol=1e-2, atol=1e-6)
    assert torch.allclose(mean.flat, torch.stack(naive(encoder, loss)).mean(0), rtol=1e-10, atol=1e-12)


def test_cosines_equal_those_of_flattened_lists() -> None:
    encoder = double()
    task, align = loss_of(encoder, "task", 0), loss_of(encoder, "sentence", 1)
    target, shuffled = loss_of(encoder, "target", 2), loss_of(encoder, "shuffled", 3)
    grads = gradients(
        encoder, task=task, alignment=align, target=target, shuffled=shuffled, steps=(), progress=False
    )
    flat = {loss.name: torch.stack(naive(encoder, loss)).mean(0) for loss in (task, align, target, shuffled)}
    table = encoder.parameter_table()
    inner = torch.cat(
        [torch.full((n,), layer > 0) for n, layer in zip(table["numel"], table["layer"], strict=True)]
    )
    row = grads.encoder
    for column, a, b in [
        ("cosine", "task", "sentence"),
        ("source_target", "task", "target"),
        ("shuffled", "task", "shuffled"),
        ("align_shuffled", "sentence", "shuffled"),
    ]:
        assert row[column] == pytest.approx(cosine(flat[a][inner], flat[b][inner]), abs=1e-9), column
    assert row["cosine"] != pytest.approx(
        cosine(flat["task"], flat["sentence"]), abs=1e-6
    )  # embeddings apart
    query = torch.cat(
        [
            torch.full((n,), (layer, group) == (2, "query"))
            for n, layer, group in zip(table["numel"], table["layer"], table["group"], strict=True)
        ]
    )
    cell = grads.cells.query("scope == 'cell' and layer == 2 and group == 'query'").iloc[0]
    assert cell["cosine"] == pytest.approx(cosine(flat["task"][query], flat["sentence"][query]), abs=1e-9)
    assert cell["random_sd"] == pytest.approx(1 / math.sqrt(int(query.sum())))


def test_a_yardstick_that_is_known_already_gives_the_same_table() -> None:
    encoder = double()
    task, align, other = (loss_of(encoder, name, seed) for name, seed in (("t", 0), ("a", 1), ("o", 2)))
    found = [
        gradients(
            encoder, task=task, alignment=align, target=other, shuffled=shuffled, steps=(), progress=False
        )
        for shuffled in (other, mean_gradient(encoder, other), mean_gradient(encoder, align))
    ]
    pd.testing.assert_frame_equal(found[0].cells, found[1].cells)
    assert found[0].n == found[1].n
    assert found[0].loss == found[1].loss
    assert not found[0].cells["shuffled"].equals(found[2].cells["shuffled"])


def test_a_loss_has_cosine_1_with_itself_and_minus_1_with_its_negative() -> None:
    encoder = double()
    same = gradients(
        encoder,
        task=loss_of(encoder, "a", 0),
        alignment=loss_of(encoder, "b", 0, scale=3),
        steps=(),
        progress=False,
    )
    against = gradients(
        encoder,
        task=loss_of(encoder, "a", 0),
        alignment=loss_of(encoder, "b", 0, scale=-1),
        steps=(),
        progress=False,
    )
    assert same.cells["cosine"].to_numpy() == pytest.approx(1)
    assert same.cells["ratio"].to_numpy() == pytest.approx(3)
    assert against.cells["cosine"].to_numpy() == pytest.approx(-1)


def test_pieces_recombine_to_the_whole_encoder() -> None:
    encoder = double()
    grads = gradients(
        encoder,
        task=loss_of(encoder, "a", 0),
        alignment=loss_of(encoder, "b", 1),
        steps=(),
        progress=False,
    )
    whole = grads.encoder
    for scope in ("cell", "layer", "group"):
        rows = grads.scope(scope)
        rows = rows[(rows["layer"] != 0).fillna(True) & (rows["group"] != "embeddings")]
        product = (rows["cosine"] * rows["task_norm"] * rows["align_norm"]).sum()
        norms = [math.sqrt((rows[name] ** 2).sum()) for name in ("task_norm", "align_norm")]
        assert product / math.prod(norms) == pytest.approx(whole["cosine"], abs=1e-12)
        assert int(rows["numel"].sum()) == whole["numel"]


def sentence_loss(encoder: Encoder, layer: int, seed: int) -> Loss:
    """As `loss_of`, but on the states of one layer: it reaches no block above."""
    direction = torch.randn(
        encoder.d_model, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )
    pairs = [encoder.encode(pair) for pair in itertools.combinations(TEXTS, 2)][:8]

    def of(batch: Any) -> Tensor:
        return (encoder.state(batch, layer)[batch.content] @ direction.to(encoder.dtype)).square().mean()

    return Loss("sentence", pairs, of)


@pytest.mark.parametrize("layer", [1, 2])
def test_the_encoders_row_is_over_the_blocks_that_both_losses_reach(layer: int) -> None:
    """Against lists of gradients: the shared blocks, all of them, and the blocks up to each layer."""
    encoder = double()
    task, align = loss_of(encoder, "task", 0), sentence_loss(encoder, layer, 1)
    grads = gradients(encoder, task=task, alignment=align, steps=(), progress=False)
    flat = {loss.name: torch.stack(naive(encoder, loss)).mean(0) for loss in (task, align)}
    table = encoder.parameter_table()
    at = torch.tensor(table["layer"].repeat(table["numel"]).to_numpy())
    query = torch.tensor((table["group"] == "query").repeat(table["numel"]).to_numpy())

    def expected(keep: Tensor) -> dict[str, float]:
        a, b = flat["task"][keep], flat["sentence"][keep]
        return {"cosine": cosine(a, b), "ratio": float(b.norm() / a.norm()), "task_norm": float(a.norm())}

    whole = grads.scope("whole")
    rows = [
        (grads.encoder, (at > 0) & (at <= layer), 1.0),
        (whole[whole["group"] == "all"].iloc[0], at > 0, layer / 3),
        (grads.scope("group").query("group == 'query'").iloc[0], query & (at <= layer), 1.0),
        (whole[whole["group"] == "query"].iloc[0], query, layer / 3),
        *(
            (grads.scope("through").query("layer == @n").iloc[0], (at > 0) & (at <= n), None)
            for n in (1, 2, 3)
        ),
    ]
    for row, keep, reach in rows:
        for name, value in expected(keep).items():
            assert row[name] == pytest.approx(value, rel=1e-9), (row["scope"], name)
        assert row["numel"] == int(keep.sum())
        assert row["task_reach"] == 1.0
        if reach is not None:
            assert row["align_reach"] == pytest.approx(reach)
    assert abs(grads.encoder["cosine"]) > abs(rows[1][0]["cosine"]) * 1.02  # the two are told apart
    # what is measured on the batches' spread, by the same gradients on the shared blocks alone
    keep = (at > 0) & (at <= layer)
    each = {loss.name: torch.stack(naive(encoder, loss))[:, keep] for loss in (task, align)}
    halves = each["task"] @ each["task"].T
    p = float((halves.sum() - halves.trace()) / (8 * 7))
    q = float(halves.trace() / 8)
    assert grads.encoder["task_halves"] == pytest.approx(p / (q / 4 + 3 / 4 * p), rel=1e-9)


def test_losses_that_share_no_parameter_have_no_cosine() -> None:
    encoder = double()
    model: Any = encoder.model
    weight = model.encoder.layer[2].output.dense.weight
    pairs = [encoder.encode([text]) for text in TEXTS]
    top = Loss("top", pairs, lambda batch: (weight * len(batch.input_ids)).square().mean())
    grads = gradients(encoder, task=top, alignment=sentence_loss(encoder, 1, 0), steps=(), progress=False)
    assert math.isnan(grads.encoder["cosine"])
    assert grads.encoder["numel"] == 0
    assert grads.scope("whole")["cosine"].iloc[0] == pytest.approx(0)


class Linear:
    """f(x) = W x, with losses aᵀ W x: gradients are outer products, angles known in closed form."""

    def __init__(self) -> None:
        self.model = nn.Linear(3, 2, bias=False, dtype=torch.float64)

    def parameter_table(self) -> pd.DataFrame:
        return pd.DataFrame({"name": ["weight"], "layer": [1], "group": ["query"], "numel": [6]})

    def loss(self, name: str, a: list[float], xs: list[list[float]]) -> Loss:
        out, inputs = (torch.tensor(v, dtype=torch.float64) for v in (a, xs))
        return Loss(name, list(inputs), lambda x: out @ self.model(x))


def test_linear_model_has_the_angle_of_the_closed_form() -> None:
    toy: Any = Linear()
    a, x, b, y = [1.0, 2.0], [1.0, 0.0, 1.0], [2.0, -0.5], [0.5, 1.0, 2.0]
    grads = gradients(
        toy,
        task=toy.loss("a", a, [x, x]),
        alignment=toy.loss("b", b, [y, y]),
        steps=(1e-2,),
        progress=False,
    )
    va, vx, vb, vy = (torch.tensor(v, dtype=torch.float64) for v in (a, x, b, y))
    assert grads.encoder["cosine"] == pytest.approx(cosine(va, vb) * cosine(vx, vy), abs=1e-12)
    assert grads.encoder["task_norm"] == pytest.approx(float(va.norm() * vx.norm()))
    # a linear loss has no second order: prediction, step and symmetric step agree to the last digits
    row = grads.first_order.iloc[0]
    assert row["measured"] == pytest.approx(row["predicted"], rel=1e-9)
    assert row["symmetric"] == pytest.approx(row["predicted"], rel=1e-9)


# -- noise ---------------------------------------------------------------------------------------------------


def test_moments_equal_enumeration_over_all_halves() -> None:
    """p, and the halves' cosine as the mean dot over the mean norm, over every way to halve six batches."""
    toy: Any = Linear()
    xs = torch.randn(6, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 0.5
    grads = gradients(
        toy,
        task=toy.loss("a", [1.0, 2.0], xs.tolist()),
        alignment=toy.loss("b", [2.0, 1.0], xs.tolist()),
        steps=(),
        progress=False,
    )
    each = [torch.outer(torch.tensor([1.0, 2.0], dtype=torch.float64), x).reshape(-1) for x in xs]
    dots, norms = [], []
    for half in itertools.combinations(range(6), 3):
        rest = [i for i in range(6) if i not in half]
        first, second = (torch.stack([each[i] for i in rows]).mean(0) for rows in (half, rest))
        dots.append(float(first @ second))
        norms.append(float(first.square().sum()))
    assert grads.encoder["task_halves"] == pytest.approx(sum(dots) / sum(norms), abs=1e-12)


def test_batches_needed_are_enough_and_half_of_them_are_not() -> None:
    """Gradients e + noise: the mean of the named number of batches has the named cosine with e."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(4000, 30, generator=generator, dtype=torch.float64)
    rows = noise + 2 * torch.eye(30, dtype=torch.float64)[0]
    layout_free = Mean.__new__(Mean)
    layout_free.losses = [0.0] * len(rows)
    layout_free.squares = list(rows.square().sum(1, keepdim=True))
    moments = layout_free.moments([0], float(rows.mean(0).square().sum()))
    assert moments.signal == pytest.approx(4, rel=0.1)
    needed = round(moments.batches_for(0.95))
    reached = [cosine(part.mean(0), torch.eye(30, dtype=torch.float64)[0]) for part in rows.split(needed)]
    half = [cosine(part.mean(0), torch.eye(30, dtype=torch.float64)[0]) for part in rows.split(needed // 2)]
    assert math.fsum(reached) / len(reached) == pytest.approx(0.95, abs=0.01)
    assert math.fsum(half) / len(half) < 0.93


def test_interval_covers_the_true_cosine() -> None:
    """Of 200 probes of noisy linear losses about 95 in a hundred hold the angle of the noiseless ones."""
    toy: Any = Linear()
    generator = torch.Generator().manual_seed(0)
    x, y = torch.tensor([1.0, 0.5, 0.0]), torch.tensor([0.2, 1.0, -0.5])
    truth = cosine(torch.tensor([1.0, 2.0]), torch.tensor([2.0, 1.0])) * cosine(x, y)
    held, corrected = 0, []
    for _ in range(200):
        xs, ys = (v + 0.7 * torch.randn(24, 3, generator=generator) for v in (x, y))
        row = gradients(
            toy,
            task=toy.loss("a", [1.0, 2.0], xs.tolist()),
            alignment=toy.loss("b", [2.0, 1.0], ys.tolist()),
            steps=(),
            progress=False,
        ).encoder
        held += row["low"] <= truth <= row["high"]
        corrected.append(row["corrected"])
    assert 178 <= held <= 199
    assert math.fsum(corrected) / len(corrected) == pytest.approx(truth, abs=0.02)


# -- first order ---------------------------------------------------------------------------------------------


def test_a_step_changes_the_task_as_the_gradients_say_and_is_undone() -> None:
    encoder = double()
    before = {name: weight.clone() for name, weight in encoder.model.state_dict().items()}
    task, align = loss_of(encoder, "task", 0), loss_of(encoder, "align", 1)
    grads = gradients(encoder, task=task, alignment=align, steps=(1e-6, 1e-3), progress=False)
    small, large = grads.first_order.to_dict("records")
    assert small["measured"] == pytest.approx(small["predicted"], rel=1e-2)
    assert small["symmetric"] == pytest.approx(small["predicted"], rel=1e-5)
    assert abs(large["symmetric"] / large["predicted"] - 1) > abs(small["symmetric"] / small["predicted"] - 1)
    assert all(torch.equal(weight, before[name]) for name, weight in encoder.model.state_dict().items())


def test_the_step_tells_a_wrong_gradient() -> None:
    """The prediction of another loss's gradient does not meet this loss's change."""
    encoder = double()
    task, align, other = (loss_of(encoder, name, seed) for name, seed in (("t", 0), ("a", 1), ("o", 5)))
    right = gradients(encoder, task=task, alignment=align, steps=(1e-5,), progress=False).first_order.iloc[0]
    wrong = gradients(encoder, task=other, alignment=align, steps=(1e-5,), progress=False).first_order.iloc[0]
    assert right["symmetric"] != pytest.approx(wrong["predicted"], rel=1e-2)


# -- what is left behind, what is refused ----------------------------------------------------------------------


def test_the_probe_leaves_no_trace_on_the_model_and_its_heads() -> None:
    encoder = double()
    model: Any = encoder.model
    head = nn.Sequential(nn.Dropout(0.5), nn.Linear(encoder.d_model, 2)).double().train()
    frozen = model.encoder.layer[0].attention.self.query.weight
    frozen.requires_grad_(False)
    kept = torch.ones_like(model.embeddings.word_embeddings.weight)
    model.embeddings.word_embeddings.weight.grad = kept
    pairs = [encoder.encode([text]) for text in TEXTS]
    loss = Loss("head", pairs, lambda batch: head(encoder.forward(batch)).square().mean(), (head,))
    grads = gradients(encoder, task=loss, alignment=loss, progress=False)
    assert grads.encoder["cosine"] == pytest.approx(1)  # the head's dropout was off
    assert head.training
    assert head[0].training
    assert not model.training
    assert not frozen.requires_grad
    assert all(p.grad is None for p in head.parameters())
    assert model.embeddings.word_embeddings.weight.grad is kept
    assert not model.embeddings.word_embeddings.sparse


def test_a_loss_that_is_not_finite_is_named_with_its_batch() -> None:
    encoder = double()
    model: Any = encoder.model
    loss = loss_of(encoder, "task", 0)
    bad = Loss(
        "sentence", loss.batches, lambda batch: loss.of(batch) * (math.nan if batch is loss.batches[3] else 1)
    )
    with pytest.raises(InputError, match="sentence: the loss of batch 3: expected a finite number"):
        gradients(encoder, task=loss, alignment=bad, progress=False)
    assert not model.embeddings.word_embeddings.sparse
    with pytest.raises(InputError, match="at least 2 batches"):
        gradients(encoder, task=loss, alignment=Loss("one", loss.batches[:1], loss.of), progress=False)
    with pytest.raises(InputError, match="without graph"):
        gradients(
            encoder, task=loss, alignment=Loss("c", [1, 2], lambda _: torch.tensor(1.0)), progress=False
        )


def test_half_precision_sums_in_single_precision() -> None:
    encoder = tiny_encoder().copy()
    encoder.model.bfloat16()
    loss = loss_of(encoder, "task", 0)
    layout = Layout.of(encoder.model, encoder.parameter_table())
    assert Mean(layout, "task").flat.dtype == torch.float32
    grads = gradients(encoder, task=loss, alignment=loss, progress=False)
    assert grads.encoder["cosine"] == pytest.approx(1, abs=1e-5)
    assert grads.first_order.empty


def test_a_table_that_does_not_fit_is_refused() -> None:
    encoder = double()
    table = encoder.parameter_table()
    with pytest.raises(InputError, match="twice"):
        Layout.of(encoder.model, pd.concat([table, table.head(1)]))
    with pytest.raises(InputError, match="is no parameter"):
        Layout.of(encoder.model, table.assign(name=table["name"] + "x"))


def test_dot_of_long_vectors_keeps_its_digits() -> None:
    long = torch.rand(2_400_001, generator=torch.Generator().manual_seed(0))
    exact = float(long.double() @ long.double())
    assert float(dot(long, long)) == pytest.approx(exact, rel=1e-7)


def test_result_round_trip(tmp_path: Path) -> None:
    encoder = double()
    grads = gradients(
        encoder, task=loss_of(encoder, "a", 0), alignment=loss_of(encoder, "b", 1), progress=False
    )
    again = Gradients.load(grads.save(tmp_path / "grads"))
    assert again.equals(grads)
    assert again.encoder["cosine"] == grads.encoder["cosine"]
    known = grads.cells["scope"].isin(["cell", "layer", "group", "encoder"])  # as an earlier version saved it
    older = grads.cells[known].drop(columns=["task_reach", "align_reach"])
    old = Gradients.load(replace(grads, cells=older).save(tmp_path / "old"))
    assert old.encoder["cosine"] == grads.encoder["cosine"]
    with pytest.raises(InputError, match="expected one of cell, layer, group, encoder, found 'whole'"):
        old.scope("whole")
    with pytest.raises(InputError, match="scope"):
        again.scope("head")
