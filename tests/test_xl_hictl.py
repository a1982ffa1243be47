"""HiCTL: both levels against naive loops in float64, values and gradients, each with a version that must differ."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from reports.errors import InputError
from tests.xl_tiny import Arch, tiny_encoder
from xlprobe.cli import main
from xlprobe.data.corpora import Bitext
from xlprobe.encoders.encoder import Encoder, load_encoder
from xlprobe.langworld.world import bitext
from xlprobe.probes.gradient_stream import Layout, Mean, probing
from xlprobe.recipes.page import write_page
from xlprobe.training.alignment import AlignmentLoss, align, retrieval
from xlprobe.training.cached_contrast import Vectors
from xlprobe.training.hierarchical import DRAWN, HICTL, bag_loss, hard_contrastive, word_contrastive
from xlprobe.training.loop import Training
from xlprobe.training.objectives import contrastive, objective_loss
from xlprobe.transfer.laboratory import Sizes
from xlprobe.transfer.study import StudyConfig, transfer_study
from xlprobe.transfer.world_lab import WorldLab

WORDS = ("Anna", "Keller", "speaks", "Rome", "Berlin", "Paris", "was", "born", "in", "She")
SOURCE = tuple(tuple(WORDS[(i + j * (1 + i // 10)) % 10] for j in range(2 + i % 5)) for i in range(14))
TARGET = tuple(
    tuple(WORDS[(3 * i + j * (1 + i // 10)) % 10] + "s" for j in range(2 + i % 4)) for i in range(14)
)
PAIRS = Bitext(SOURCE, TARGET)
ROWS = torch.arange(14)
ARCHITECTURES: tuple[Arch, ...] = (
    "xlm-roberta",
    "bert",
    "distilbert",
    "xlm-roberta-xl",
    "modernbert",
    "deberta-v2",
)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def unit(v: Tensor) -> Tensor:
    return v / v.norm()


def same_gradient(loss: Callable[..., Tensor], naive: Callable[..., Tensor], *inputs: Tensor) -> bool:
    """Whether both have the value and the gradients to all inputs, up to float64's rounding."""
    leaves = [tensor.clone().requires_grad_(True) for tensor in inputs]
    ends = []
    for function in (loss, naive):
        value = function(*leaves)
        ends.append((value.detach(), *torch.autograd.grad(value, leaves)))
    return all(torch.allclose(a, b, rtol=1e-9, atol=1e-11) for a, b in zip(*ends, strict=True))


# -- sentences ---------------------------------------------------------------------------------------------------


def naive_sentences(
    x: Tensor,
    y: Tensor,
    *,
    slack: float = 0.9,
    both: bool = True,
    same: AbstractSet[frozenset[int]] = frozenset(),
) -> Tensor:
    """Query by query, every negative moved as a vector; without `both` the negatives are the other language's alone."""
    z, n = [unit(v) for v in (*x, *y)], len(x)

    def negatives(i: int) -> list[int]:
        partner = (i + n) % (2 * n)
        there = [j for j in range(2 * n) if j not in (i, partner) and frozenset((i % n, j % n)) not in same]
        return there if both else [j for j in there if (j < n) != (i < n)]

    fixed, certain, losses = [v.detach() for v in z], 0.0, []
    for i in range(2 * n):
        right = math.exp(float(fixed[i] @ fixed[(i + n) % (2 * n)]) / 0.1)
        rest = sum(math.exp(float(fixed[i] @ fixed[j]) / 0.1) for j in negatives(i))
        certain += right / (right + rest) / (2 * n)
    for i in range(2 * n):
        partner = z[(i + n) % (2 * n)]
        scores = [z[i] @ partner / 0.1]
        for j in negatives(i):
            near, far = (float((fixed[i] - fixed[k]).norm()) for k in ((i + n) % (2 * n), j))
            share = (near / far) ** (slack * certain) if far > near else 1.0
            assert share * far >= min(near, far) - 1e-12  # never nearer than the translation
            moved = z[i] + share * (z[j] - z[i])
            scores.append(z[i] @ moved / 0.1)
        losses.append(torch.stack(scores).exp().sum().log() - scores[0])
    return torch.stack(losses).mean()


X = random(5, 7)
Y = X + 0.8 * random(5, 7, seed=1)


def test_the_sentence_level_is_the_naive_one() -> None:
    assert same_gradient(hard_contrastive, naive_sentences, X, Y)
    far = random(5, 7, seed=2)  # translations farther than some negatives: these stay where they are
    assert same_gradient(hard_contrastive, naive_sentences, X, far)


@pytest.mark.parametrize("wrong", [{"slack": 0.0}, {"slack": 0.5}, {"both": False}])
def test_its_oracle_fails_on_other_negatives(wrong: dict[str, Any]) -> None:
    assert not same_gradient(hard_contrastive, lambda x, y: naive_sentences(x, y, **wrong), X, Y)


def test_negatives_as_they_are_give_the_plain_contrast_and_moved_ones_a_harder() -> None:
    plain = naive_sentences(X, Y, slack=0.0)
    assert float(plain) == pytest.approx(float(contrastive(X, Y)), abs=1e-6)
    assert float(hard_contrastive(X, Y)) > float(plain)


def test_a_sentence_that_occurs_again_is_no_negative() -> None:
    x, y = torch.cat([X, X[:1]]), torch.cat([Y, Y[:1]])
    again = torch.eye(6, dtype=torch.bool)
    again[0, 5] = again[5, 0] = True
    known = {frozenset((0, 5))}
    assert same_gradient(
        lambda a, b: hard_contrastive(a, b, same=again), lambda a, b: naive_sentences(a, b, same=known), x, y
    )
    assert not same_gradient(hard_contrastive, lambda a, b: naive_sentences(a, b, same=known), x, y)


def test_equal_and_opposite_vectors_have_finite_gradients() -> None:
    for y in (X, -X, X[:1].repeat(5, 1)):
        leaves = [X.clone().requires_grad_(True), y.clone().requires_grad_(True)]
        assert all(bool(g.isfinite().all()) for g in torch.autograd.grad(hard_contrastive(*leaves), leaves))


# -- words -------------------------------------------------------------------------------------------------------

BAG = torch.tensor([[1, 1, 0, 0, 1], [0, 1, 1, 0, 0], [0, 0, 0, 1, 0]], dtype=torch.bool)
KNOWN = torch.tensor([[1, 0, 0, 0], [0, 0, 0, 0], [0, 1, 1, 0]], dtype=torch.bool)
INPUTS = (random(3, 6, seed=3), random(5, 6, seed=4), random(4, 6, seed=5))


def naive_words(
    queries: Tensor, words: Tensor, drawn: Tensor, *, known: bool = True, alone: bool = True
) -> Tensor:
    """Word by word; wrong without `known` (words of the bag as negatives) or `alone` (one softmax over the bag)."""
    by_sentence = []
    for i, query in enumerate(queries):
        own = [unit(query) @ unit(words[w]) / 0.1 for w in range(5) if BAG[i, w]]
        against = [unit(query) @ unit(drawn[v]) / 0.1 for v in range(4) if not (known and KNOWN[i, v])]
        losses = []
        for score in own:
            below = [score, *against] if alone else [*own, *against]
            losses.append(torch.stack(below).exp().sum().log() - score)
        by_sentence.append(torch.stack(losses).mean())
    return torch.stack(by_sentence).mean()


def words_loss(queries: Tensor, words: Tensor, drawn: Tensor) -> Tensor:
    return word_contrastive(queries, words, drawn, bag=BAG, known=KNOWN)


def test_the_word_level_is_the_naive_one() -> None:
    assert same_gradient(words_loss, naive_words, *INPUTS)


@pytest.mark.parametrize("wrong", [{"known": False}, {"alone": False}])
def test_its_oracle_fails_on_other_words(wrong: dict[str, Any]) -> None:
    assert not same_gradient(words_loss, lambda *inputs: naive_words(*inputs, **wrong), *INPUTS)


def test_a_sentence_without_words_or_negatives_is_refused() -> None:
    with pytest.raises(InputError, match="needs a word for each sentence, found none for sentence 1"):
        word_contrastive(*INPUTS, bag=BAG & torch.tensor([[True], [False], [True]]), known=KNOWN)
    with pytest.raises(InputError, match="a drawn word outside its bag for each sentence"):
        word_contrastive(*INPUTS, bag=BAG, known=torch.ones_like(KNOWN))


# -- on an encoder -----------------------------------------------------------------------------------------------


def naive_on_an_encoder(
    encoder: Encoder, pairs: Bitext, vectors: Vectors, *, sides: tuple[int, ...] = (0, 1)
) -> tuple[float, float]:
    """(sentence level, word level), a sentence at a time; `sides` are those whose words are in the bag."""
    n, layer = len(pairs), vectors.at(encoder)
    states, bags = [], []
    specials = set(encoder.tokenizer.all_special_ids)
    for words in (*pairs.source, *pairs.target):
        batch = encoder.encode([words])
        seen = encoder.states(batch)[layer][0]
        content = batch.word_ids[0] >= 0
        states.append(seen[0] if vectors.pooling == "first" else seen[content].mean(0))
        bags.append(
            {t for t, c in zip(batch.input_ids[0].tolist(), content.tolist(), strict=True) if c} - specials
        )
    table: Any = encoder.model.get_input_embeddings().weight
    drawn = [v for v in torch.randperm(len(encoder.tokenizer)).tolist() if v not in specials][:DRAWN]
    total = 0.0
    for i, state in enumerate(states):
        bag = set().union(*(bags[i % n + side * n] for side in sides))
        against = [float(unit(state) @ unit(table[v])) / 0.1 for v in drawn if v not in bag]
        own = [float(unit(state) @ unit(table[w])) / 0.1 for w in bag]
        below = sum(map(math.exp, against))
        total += sum(math.log(math.exp(s) + below) - s for s in own) / len(own)
    same = {
        frozenset((i, j))
        for i in range(n)
        for j in range(n)
        if i != j and {pairs.source[i], pairs.target[i]} & {pairs.source[j], pairs.target[j]}
    }
    x, y = torch.stack(states[:n]).double(), torch.stack(states[n:]).double()
    return float(naive_sentences(x, y, same=same)), total / (2 * n)


def pairs_of(text: Bitext) -> list[Any]:
    return [(a, b, ()) for a, b in zip(text.source, text.target, strict=True)]


@torch.no_grad()
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_both_levels_on_an_encoder_are_the_naive_ones(arch: Arch) -> None:
    encoder = tiny_encoder(arch)
    for vectors in (Vectors(pooling="first"), Vectors(3), Vectors(1)):
        torch.manual_seed(3)
        wanted = naive_on_an_encoder(encoder, PAIRS, vectors)
        for objective, value in zip(("hictl_sentence", "hictl_word"), wanted, strict=True):
            torch.manual_seed(3)
            loss = objective_loss(encoder, objective, pairs_of(PAIRS), vectors=vectors)
            assert float(loss) == pytest.approx(value, rel=1e-4)
    torch.manual_seed(3)
    _, one_side = naive_on_an_encoder(encoder, PAIRS, Vectors(1), sides=(0,))
    assert one_side != pytest.approx(wanted[1], rel=1e-3)  # the oracle fails without the translation's words


@torch.no_grad()
def test_hictl_is_the_sum_of_its_terms_and_weights_count() -> None:
    encoder = tiny_encoder()

    def value(objective: Any) -> float:
        torch.manual_seed(5)
        return float(AlignmentLoss(encoder, PAIRS, objective)(ROWS))

    terms = {"hictl_sentence": 1.0, "hictl_word": 1.0, "mlm": 1.0}
    assert value("hictl") == pytest.approx(value(terms), rel=1e-6)
    weighted = {"hictl_sentence": 2.0, "hictl_word": 0.5}
    assert value(weighted) == pytest.approx(2 * value("hictl_sentence") + 0.5 * value("hictl_word"), rel=1e-6)
    assert value(weighted) != pytest.approx(value({"hictl_sentence": 1.0, "hictl_word": 0.5}), rel=1e-3)


@torch.no_grad()
def test_without_an_lm_head_it_is_the_contrastive_terms_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    headless = tiny_encoder().copy()
    headless.lm_head = None
    with caplog.at_level(logging.WARNING, logger="xlprobe"):
        module = AlignmentLoss(headless, PAIRS, "hictl")
    assert "has no LM head; hictl is its two contrastive terms" in caplog.text
    torch.manual_seed(5)
    whole = float(module(ROWS))
    torch.manual_seed(5)
    assert whole == pytest.approx(
        float(AlignmentLoss(headless, PAIRS, {"hictl_sentence": 1.0, "hictl_word": 1.0})(ROWS)), rel=1e-6
    )


def gradient(module: AlignmentLoss) -> tuple[Tensor, Tensor]:
    parameters = list(module.model.parameters())
    torch.manual_seed(0)
    loss = module(ROWS)
    parts = torch.autograd.grad(loss, parameters, allow_unused=True)
    flat = [
        torch.zeros_like(p).flatten() if g is None else g.flatten()
        for p, g in zip(parameters, parts, strict=True)
    ]
    return loss.detach(), torch.cat(flat)


@pytest.mark.parametrize("objective", HICTL)
@pytest.mark.parametrize("pooling", ["mean", "first"])
def test_parts_give_the_gradient_of_the_whole_batch(objective: str, pooling: Any) -> None:
    encoder = tiny_encoder()
    whole, parts, fewer = (
        gradient(AlignmentLoss(encoder, text, objective, vectors=Vectors(pooling=pooling, micro=n)))
        for text, n in ((PAIRS, 0), (PAIRS, 5), (Bitext(SOURCE[::-1], TARGET), 5))
    )
    assert torch.allclose(whole[0], parts[0], rtol=1e-5)
    assert float((whole[1] - parts[1]).norm() / whole[1].norm()) < 1e-5
    assert float((whole[1] - fewer[1]).norm() / whole[1].norm()) > 1e-2


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("objective", HICTL)
def test_gradients_stream_over_it_as_autograd_gives_them(arch: Arch, objective: str) -> None:
    encoder = tiny_encoder(arch)
    module = AlignmentLoss(encoder, PAIRS, objective)
    layout = Layout.of(encoder.model, encoder.parameter_table())
    mean = Mean(layout, objective)
    heads = [module.lm_head] if module.lm_head is not None else []
    with probing(layout, encoder.model, *heads):
        torch.manual_seed(0)
        mean.add(module(ROWS))
    _, wanted = gradient(module)
    parameters = list(encoder.model.parameters())
    parts = wanted.split([parameter.numel() for parameter in parameters])
    named = {id(parameter): part for parameter, part in zip(parameters, parts, strict=True)}
    in_order = torch.cat([named[id(parameter)] for parameter in layout.parameters])
    assert torch.allclose(mean.close().flat, in_order, rtol=1e-4, atol=1e-6)


def test_embeddings_of_another_width_are_refused() -> None:
    encoder = tiny_encoder()
    with pytest.raises(InputError, match="input embeddings of their width 16, found 32"):
        bag_loss(encoder, encoder.encode(["Rome", "Paris"]), torch.ones(2, 16))


# -- on pages ----------------------------------------------------------------------------------------------------


def test_every_page_of_it_says_what_is_from_memory_and_no_other_page_does(tmp_path: Path) -> None:
    said = "is written from the field"
    world = load_encoder("langworld", device="cpu")
    for objective in ("sentence", "hictl_word"):
        out = tmp_path / objective
        command = f"align --objective {objective}=0.5 --pairs 24 --held-out 8 --steps 1 --batch 8 --quiet --out {out}"
        assert main(command.split()) == 0
        command = f"gradients --objective {objective} --batches 2 --batch 8 --head-steps 1 --quiet --out {out}-probe"
        assert main(command.split()) == 0
        sizes = Sizes(16, 16, 8, 8, align_steps=1, finetune_steps=1, head_steps=1, probe_batches=2, batch=8)
        plan = StudyConfig(("source-half",), (objective,), ("topic",), seeds=1, shuffled=False)
        folder = tmp_path / f"{objective}-study"
        write_page(transfer_study(WorldLab(world, sizes), plan, folder, progress=False), folder)
        for page in (out, Path(f"{out}-probe"), folder):
            assert (said in (page / "report.html").read_text()) == (objective != "sentence"), page


# -- on the embedded languages -----------------------------------------------------------------------------------


def test_hictl_aligns_translations_and_shuffled_pairs_do_not() -> None:
    encoder = load_encoder("langworld", device="cpu")
    pairs, held_out = bitext("words", 800), bitext("words", 200, "held_out")
    wrong = Bitext(pairs.source, pairs.target[1:] + pairs.target[:1])
    training = Training(steps=60, batch=24, lr=1e-3, warmup=10)
    before = retrieval(encoder, held_out, progress=False)
    after, shuffled = (
        retrieval(
            align(encoder, text, objective="hictl", training=training, progress=False),
            held_out,
            progress=False,
        )
        for text in (pairs, wrong)
    )
    assert after >= before + 0.2
    assert shuffled <= before + 0.05
