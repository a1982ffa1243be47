"""Alignment: each loss against a naive version, links, frozen layers, early stop, resume, refusals."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from reports.errors import InputError
from tests.xl_tiny import tiny_encoder
from xlprobe.data.corpora import Bitext
from xlprobe.training.alignment import AlignmentLoss, align, l2_loss, retrieval
from xlprobe.training.links import argmax_links, mutual_argmax, usable_links
from xlprobe.training.loop import Sampler, Training, TrainingError, train
from xlprobe.training.objectives import contrastive, objective_loss, probe_layer
from xlprobe.training.pretrain import IGNORE, mask_tokens

WORDS = [
    "Anna",
    "Keller",
    "works",
    "Berlin",
    "speaks",
    "German",
    "Rome",
    "city",
    "Paris",
    "France",
    "lived",
    "girl",
]
PAIRS = Bitext(
    source=tuple((a, b, "is") for a, b in itertools.islice(itertools.permutations(WORDS, 2), 24)),
    target=tuple((b, "ist", a[::-1]) for a, b in itertools.islice(itertools.permutations(WORDS, 2), 24)),
    links=tuple(((0, 2), (1, 0), (2, 1)) for _ in range(24)),
)
SHORT = Training(steps=6, batch=8, lr=1e-3)


def naive_contrastive(x: Tensor, y: Tensor, temperature: float) -> float:
    """Row by row, in plain Python."""
    z = [v / v.norm() for v in (*x, *y)]
    n, total = len(x), 0.0
    for i in range(2 * n):
        scores = {j: float(z[i] @ z[j]) / temperature for j in range(2 * n) if j != i}
        partner = i + n if i < n else i - n
        total -= scores[partner] - math.log(sum(math.exp(s) for s in scores.values()))
    return total / (2 * n)


def test_contrastive_is_the_naive_loss_and_the_wrong_partner_is_not() -> None:
    x, y = torch.randn(5, 7, generator=torch.Generator().manual_seed(0)).double(), torch.eye(5, 7).double()
    assert float(contrastive(x, y)) == pytest.approx(naive_contrastive(x, y, 0.1), abs=1e-6)
    assert float(contrastive(x, y.roll(1, 0))) != pytest.approx(naive_contrastive(x, y, 0.1), abs=1e-3)


def hidden(words: tuple[str, ...]) -> tuple[Tensor, Tensor]:
    """(states of the layer [T, d], word numbers [T]) of one sentence alone."""
    encoder = tiny_encoder()
    batch = encoder.encode([words])
    return encoder.states(batch)[probe_layer(encoder.n_layers)][0].detach(), batch.word_ids[0]


@torch.no_grad()
def test_sentence_loss_is_the_naive_one() -> None:
    rows = range(4)
    means = []
    for side in (PAIRS.source, PAIRS.target):
        found = [hidden(side[i]) for i in rows]
        means.append(torch.stack([states[numbers >= 0].mean(0) for states, numbers in found]))
    pairs = [(PAIRS.source[i], PAIRS.target[i], ()) for i in rows]
    loss = objective_loss(tiny_encoder(), "sentence", pairs).detach()
    assert float(loss) == pytest.approx(naive_contrastive(means[0], means[1], 0.1), abs=1e-4)


def word_vectors_naively(side: int, n: int) -> Tensor:
    vectors = []
    for i in range(n):
        states, numbers = hidden((PAIRS.source, PAIRS.target)[side][i])
        for link in usable_links(PAIRS)[i]:
            vectors.append(states[numbers == link[side]].mean(0))
    return torch.stack(vectors)


@torch.no_grad()
def test_token_loss_is_the_naive_one_behind_a_projection() -> None:
    encoder, projection = tiny_encoder(), nn.Linear(32, 8)
    pairs = list(zip(PAIRS.source, PAIRS.target, usable_links(PAIRS), strict=True))[:3]
    x, y = (projection(word_vectors_naively(side, 3)).detach() for side in (0, 1))
    loss = objective_loss(encoder, "token", pairs, head=projection).detach()
    assert float(loss.detach()) == pytest.approx(naive_contrastive(x, y, 0.1), abs=1e-4)


@torch.no_grad()
def test_l2_is_the_naive_one_and_its_pull_grows_with_the_way() -> None:
    encoder = tiny_encoder().copy()
    pairs = list(zip(PAIRS.source, PAIRS.target, usable_links(PAIRS), strict=True))[:3]
    x, y = (word_vectors_naively(side, 3) for side in (0, 1))
    assert float(l2_loss(encoder, pairs).detach()) == pytest.approx(
        float(((x - y) ** 2).sum(1).mean()), rel=1e-4
    )
    module = AlignmentLoss(encoder, PAIRS, "l2")
    rows = torch.arange(3)
    assert float(module(rows).detach()) == pytest.approx(float(l2_loss(encoder, pairs).detach()), rel=1e-5)
    # above the layer that the distance looks at
    weight = dict(encoder.model.named_parameters())["encoder.layer.2.output.dense.weight"]
    with torch.no_grad():
        weight.add_(0.1)
    assert float((module(rows) - l2_loss(encoder, pairs)).detach()) == pytest.approx(
        0.01 * weight.numel(), rel=1e-3
    )


@pytest.mark.parametrize("objective", ["mlm", "tlm"])
@torch.no_grad()
def test_masked_losses_are_the_naive_ones(objective: str) -> None:
    encoder, pairs = tiny_encoder(), [(PAIRS.source[i], PAIRS.target[i], ()) for i in range(6)]
    with torch.random.fork_rng():
        torch.manual_seed(5)
        loss = objective_loss(encoder, objective, pairs)
        torch.manual_seed(5)
        if objective == "tlm":
            swap = torch.rand(6) < 0.5
            texts = [[*b, *a] if s else [*a, *b] for (a, b, _), s in zip(pairs, swap, strict=True)]
        else:
            texts = [list(a) for a, _, _ in pairs] + [list(b) for _, b, _ in pairs]
        masked, labels = mask_tokens(encoder.encode(texts), encoder.tokenizer)
    logits = encoder.lm_head(encoder.forward(masked)) if encoder.lm_head else None
    assert logits is not None
    total, n = 0.0, 0
    for row, at in (labels != IGNORE).nonzero().tolist():
        total -= float(logits[row, at].log_softmax(-1)[labels[row, at]].detach())
        n += 1
    assert n > 0
    assert float(loss.detach()) == pytest.approx(total / n, abs=1e-4)


def test_masks_are_80_10_10_of_15_percent_of_the_content() -> None:
    encoder = tiny_encoder()
    batch = encoder.encode([WORDS] * 600)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        masked, labels = mask_tokens(batch, encoder.tokenizer)
    chosen = labels != IGNORE
    assert not bool((chosen & ~batch.content).any())
    assert float(chosen.sum() / batch.content.sum()) == pytest.approx(0.15, abs=0.01)
    masks = masked.input_ids[chosen] == encoder.tokenizer.mask_token_id
    same = masked.input_ids[chosen] == labels[chosen]
    assert float(masks.float().mean()) == pytest.approx(0.8, abs=0.02)
    assert float(same.float().mean()) == pytest.approx(0.1, abs=0.02)
    assert torch.equal(masked.input_ids[~chosen], batch.input_ids[~chosen])


# ------------------------------------------------------------------------------------------ links


def test_mutual_argmax_against_a_double_loop() -> None:
    generator = torch.Generator().manual_seed(1)
    x, y = torch.randn(6, 4, generator=generator), torch.randn(5, 4, generator=generator)
    scores = torch.nn.functional.cosine_similarity(x[:, None], y[None], dim=-1)
    naive = [
        (i, j)
        for i in range(6)
        for j in range(5)
        if scores[i, j] == scores[i].max() and scores[i, j] == scores[:, j].max() and scores[i, j] > 0
    ]
    assert list(mutual_argmax(x, y)) == naive


def test_an_encoder_links_a_sentence_to_itself() -> None:
    same = Bitext(PAIRS.source[:3], PAIRS.source[:3])
    assert argmax_links(tiny_encoder(), same).links == (((0, 0), (1, 1), (2, 2)),) * 3


# ------------------------------------------------------------------------------------------ align


@pytest.mark.parametrize(
    "objective", ["mlm", "sentence", "token", "tlm", "l2", {"sentence": 1.0, "mlm": 0.5}]
)
def test_align_is_deterministic_and_leaves_the_encoder_alone(objective: str | dict[str, float]) -> None:
    encoder = tiny_encoder()
    before = encoder.hash
    once, twice = (
        align(encoder, PAIRS, objective=objective, training=SHORT, progress=False) for _ in range(2)
    )
    assert once.hash == twice.hash != before == encoder.hash
    other = Training(steps=6, batch=8, lr=1e-3, seed=1)
    assert align(encoder, PAIRS, objective=objective, training=other, progress=False).hash != once.hash


@torch.no_grad()
def test_a_weighted_sum_is_one() -> None:
    encoder, rows = tiny_encoder().copy(), torch.arange(8)
    one, two = (float(AlignmentLoss(encoder, PAIRS, name)(rows).detach()) for name in ("sentence", "token"))
    both = float(AlignmentLoss(encoder, PAIRS, {"sentence": 2.0, "token": 0.25})(rows).detach())
    assert both == pytest.approx(2 * one + 0.25 * two, rel=1e-5)


def test_frozen_layers_stay() -> None:
    encoder = tiny_encoder()
    aligned = align(encoder, PAIRS, training=SHORT, freeze=(0, 1), progress=False)
    table = encoder.parameter_table()
    after, before = dict(aligned.model.named_parameters()), dict(encoder.model.named_parameters())
    changed = {
        int(layer)
        for name, layer in zip(table["name"], table["layer"], strict=True)
        if not torch.equal(after[name], before[name])
    }
    assert changed == {2}  # layer 3 lies above the layer that is aligned
    assert all(p.requires_grad for p in aligned.model.parameters())


def test_alignment_raises_retrieval_and_the_early_stop_keeps_the_best() -> None:
    encoder, longer = tiny_encoder(), Training(steps=60, batch=12, lr=2e-3)
    aligned = align(
        encoder, PAIRS, training=longer, held_out=PAIRS, check_every=10, patience=2, progress=False
    )
    assert retrieval(aligned, PAIRS) > retrieval(encoder, PAIRS) + 0.2


def test_a_run_that_was_stopped_ends_as_one_that_was_not(tmp_path: Path) -> None:
    encoder = tiny_encoder()
    whole = encoder.copy()
    whole_losses = train(AlignmentLoss(whole, PAIRS, "token"), SHORT, n_items=24, progress=False)
    part = encoder.copy()
    module = AlignmentLoss(part, PAIRS, "token")

    def interrupt(step: int, _: float) -> bool:
        if step == 3:
            raise KeyboardInterrupt
        return False

    with pytest.raises(KeyboardInterrupt):
        train(module, SHORT, n_items=24, folder=tmp_path, save_every=3, watch=interrupt, progress=False)
    again = encoder.copy()
    losses = train(
        AlignmentLoss(again, PAIRS, "token"), SHORT, n_items=24, folder=tmp_path, save_every=3, progress=False
    )
    assert losses == whole_losses
    assert again.hash == whole.hash != part.hash
    with pytest.raises(InputError, match=r"training\.steps is 6 there and 7 here"):
        align(encoder, PAIRS, training=Training(steps=7, batch=8, lr=1e-3), folder=tmp_path, progress=False)


def test_a_loss_that_is_not_finite_stops_and_keeps_the_state(tmp_path: Path) -> None:
    class Bad(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.calls = nn.Parameter(torch.ones(2)), 0

        def forward(self, rows: Tensor) -> Tensor:
            self.calls += 1
            return self.weight.sum() * (float("nan") if self.calls == 4 else 1.0)

    module = Bad()
    with pytest.raises(TrainingError, match=r"found nan at step 3; the last checkpoint is kept in .*smaller"):
        train(module, SHORT, n_items=8, folder=tmp_path, save_every=2, progress=False)
    assert bool(module.weight.isfinite().all())
    again = Bad()
    again.calls = 4  # behind the bad one
    losses = train(again, SHORT, n_items=8, folder=tmp_path, progress=False)
    assert (again.calls, len(losses)) == (8, 6)  # four steps more


def test_every_item_comes_once_an_epoch_also_by_length() -> None:
    for lengths in (None, torch.arange(12) % 5):
        sampler = Sampler(12, 4, seed=3, lengths=lengths)
        for epoch in range(2):
            rows = torch.cat([sampler.rows(3 * epoch + step) for step in range(3)])
            assert sorted(rows.tolist()) == list(range(12))
    assert not torch.equal(Sampler(12, 4, seed=3).rows(0), Sampler(12, 4, seed=4).rows(0))


def test_training_leaves_the_callers_random_state() -> None:
    state = torch.random.get_rng_state()
    align(tiny_encoder(), PAIRS, training=SHORT, progress=False)
    assert torch.equal(state, torch.random.get_rng_state())


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"objective": "nonsense"}, "expected one of mlm"),
        ({"objective": {"mlm": -1.0}}, "weight above 0"),
        ({"objective": {}}, "found none"),
        ({"freeze": (9,)}, "layers 0 to 3"),
        ({"freeze": (0, 1, 2, 3)}, "every parameter is frozen"),
    ],
)
def test_refusals(options: dict[str, object], match: str) -> None:
    with pytest.raises(InputError, match=match):
        align(tiny_encoder(), PAIRS, training=SHORT, progress=False, **options)  # type: ignore[arg-type]


def test_a_bitext_without_pairs_or_links_is_refused() -> None:
    with pytest.raises(InputError, match="at least one pair"):
        align(tiny_encoder(), Bitext((), ()), progress=False)
    copies = Bitext((("Rome",),), (("Rome",),), (((0, 0),),))
    with pytest.raises(InputError, match="no one-to-one link"):
        align(tiny_encoder(), copies, objective="token", progress=False)


def test_an_encoder_without_lm_head_cannot_mask() -> None:
    encoder = tiny_encoder().copy()
    encoder.lm_head = None
    with pytest.raises(InputError, match="mlm needs an LM head"):
        align(encoder, PAIRS, objective="mlm", progress=False)
