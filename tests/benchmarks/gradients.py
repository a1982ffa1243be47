"""What the gradient probe costs: against the two backward passes it cannot do without, and against plain lists.

On the XLM-R-base shape with random weights, all within one run, batches of both losses alternating so that a busy
machine slows all alike; medians over batches:

- *probe*: what `xlprobe.probes.gradients` does with one batch of each loss: forward, backward, norm of every
  parameter's gradient, its dot with the other loss's mean, sum;
- *two backwards*: forward and `loss.backward()` of the same two batches, gradients set to None before;
- *flatten*: what one writes by hand: `autograd.grad` as a list, one flat vector by `torch.cat`, norm, dot, sum.

The probe's last step (cosines from the means) is timed apart (`compare`) and shared over the run's batches in the
ratio. Memory: the peak of the resident set above its level once the model is there, in a process of its own for each
way, over the bytes of the two mean gradients that are compared.
"""

from __future__ import annotations

import gc
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import XLMRobertaConfig, XLMRobertaModel

from experiments.memory import watched
from xlprobe.encoders.encoder import load_encoder
from xlprobe.encoders.parameters import parameter_table
from xlprobe.probes.gradient_stream import Layout, Mean, dot, probing

__all__ = ["bench_gradients"]

# layers, width, heads, inner width, vocabulary
SHAPES = {"xlm-roberta-base": (12, 768, 12, 3072, 250002), "small": (4, 128, 4, 512, 2000)}
WAYS = ("probe", "backwards", "flatten")


def bench_gradients(
    *,
    shape: str = "xlm-roberta-base",
    model: str = "",
    batches: int = 4,
    batch_size: int = 8,
    tokens: int = 32,
) -> dict[str, Any]:
    """The benchmark as one dict: ratio_to_two_backwards, memory_ratio, speedup_vs_flatten, max_diff, and what they
    are made of; `batches` batches of each loss. max_diff is that of the cosine, cell by cell, from plain lists'."""
    bench = _Bench(model or shape, batch_size, tokens)
    seconds, max_diff = bench.times(batches)
    peaks = {way: _measured_apart(way, model or shape, batch_size, tokens) for way in WAYS}
    compared = 2 * bench.layout.numel * 4
    per_batch = seconds["probe"] + seconds["compare"] / batches
    return {
        "ratio_to_two_backwards": per_batch / seconds["backwards"],
        "memory_ratio": peaks["probe"] / compared,
        "speedup_vs_flatten": seconds["flatten"] / per_batch,
        "max_diff": max_diff,
        "seconds": seconds,
        "peak_bytes": peaks,
        "compared_bytes": compared,
        "memory_vs_flatten": peaks["probe"] / peaks["flatten"],
        "parameters": bench.layout.numel,
        "batches": batches,
        "batch": [batch_size, tokens],
        "shape": model or shape,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "machine": platform.machine(),
    }


def random_encoder(layers: int, width: int, heads: int, inner: int, vocabulary: int) -> XLMRobertaModel:
    """XLM-R of these sizes."""
    config = XLMRobertaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=inner,
        max_position_embeddings=514,
        type_vocab_size=1,
    )
    return XLMRobertaModel(config, add_pooling_layer=False).eval()


class _Bench:
    """An encoder, random or loaded, and two losses on it: of a token task, and contrastive over pairs of sentences."""

    def __init__(self, shape: str, batch_size: int, tokens: int) -> None:
        torch.manual_seed(0)
        self.model: Any = (
            random_encoder(*SHAPES[shape]) if shape in SHAPES else load_encoder(shape, device="cpu").model
        )
        width, vocabulary = self.model.config.hidden_size, self.model.config.vocab_size
        self.layout = Layout.of(self.model, parameter_table(self.model))
        self.head = nn.Linear(width, 17).requires_grad_(False)
        self.labels = torch.randint(17, (batch_size, tokens))
        self.size = (batch_size, tokens)
        self.vocabulary = vocabulary

    def batch(self) -> Tensor:
        """Random token ids [B, T]."""
        return torch.randint(5, self.vocabulary, self.size)

    def losses(self, ids: Tensor) -> tuple[Callable[[], Tensor], Callable[[], Tensor]]:
        """The task's and the alignment's loss of a batch; the first half of it translates the second."""

        def task() -> Tensor:
            logits = self.head(self.model(input_ids=ids).last_hidden_state)
            return nn.functional.cross_entropy(logits.flatten(0, 1), self.labels.flatten())

        def align() -> Tensor:
            vectors = nn.functional.normalize(self.model(input_ids=ids).last_hidden_state.mean(1), dim=1)
            half = len(ids) // 2
            scores = (vectors @ vectors.T / 0.1).fill_diagonal_(-1e9)
            partner = torch.cat([torch.arange(half, 2 * half), torch.arange(half)])
            return nn.functional.cross_entropy(scores, partner)

        return task, align

    def probe(self, means: dict[str, Mean], ids: Tensor) -> None:
        """One batch of each loss through the probe."""
        for name, opposite, loss in zip(means, reversed(means), self.losses(ids), strict=True):
            means[name].add(loss(), against=means[opposite].flat)

    def backwards(self, ids: Tensor) -> None:
        """The two passes that nothing can do without."""
        for loss in self.losses(ids):
            self.model.zero_grad(set_to_none=True)
            loss().backward()

    def flatten(self, sums: list[Tensor], ids: Tensor) -> None:
        """By hand: lists, flat vectors, a norm and a dot."""
        for index, loss in enumerate(self.losses(ids)):
            parts = torch.autograd.grad(loss(), list(self.model.parameters()))
            flat = torch.cat([part.reshape(-1) for part in parts])
            flat.norm(), torch.dot(flat, sums[1 - index])
            sums[index] += flat

    def times(self, batches: int) -> tuple[dict[str, float], float]:
        """Median seconds a batch of both losses, and the largest difference of a cell's cosine."""
        means = {name: Mean(self.layout, name) for name in ("task", "align")}
        sums = [torch.zeros(self.layout.numel) for _ in range(2)]
        spent: dict[str, list[float]] = {way: [] for way in WAYS}
        for _ in range(batches + 1):  # the first is a warm-up
            ids = self.batch()
            with probing(self.layout, self.model):
                spent["probe"].append(_seconds(lambda ids=ids: self.probe(means, ids)))  # type: ignore[misc]
            spent["backwards"].append(_seconds(lambda ids=ids: self.backwards(ids)))  # type: ignore[misc]
            self.model.zero_grad(set_to_none=True)
            spent["flatten"].append(_seconds(lambda ids=ids: self.flatten(sums, ids)))  # type: ignore[misc]
        seconds = {way: statistics.median(values[1:]) for way, values in spent.items()}
        began = time.perf_counter()
        task, align = (means[name].close().flat for name in ("task", "align"))
        cells = self.layout.dots(task, align), self.layout.dots(task, task), self.layout.dots(align, align)
        seconds["compare"] = time.perf_counter() - began
        return seconds, self.difference(cells, sums)

    def difference(self, cells: tuple[Tensor, Tensor, Tensor], sums: list[Tensor]) -> float:
        """The largest difference between a cell's cosine and that of the flat lists, the latter in float64."""
        cosines = cells[0] / (cells[1] * cells[2]).sqrt()
        worst = 0.0
        for cell in range(len(cosines)):
            spans = [s for c, s in zip(self.layout.cell, self.layout.slices, strict=True) if c == cell]
            a, b = (torch.cat([flat[start:end].double() for start, end in spans]) for flat in sums)
            worst = max(worst, abs(float(cosines[cell]) - float(a @ b / (a.norm() * b.norm()))))
        return worst


def _seconds(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


# -- memory ----------------------------------------------------------------------------------------------------


def _measured_apart(way: str, shape: str, batch_size: int, tokens: int) -> int:
    """The peak of one way in a process of its own."""
    command = [sys.executable, "-m", __name__, way, shape, str(batch_size), str(tokens)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(json.loads(done.stdout.splitlines()[-1])["peak"])


def _peak(way: str, bench: _Bench) -> int:
    """Bytes of the resident set above the model while two batches of both losses go `way`."""
    gc.collect()
    with watched() as peak:
        if way == "probe":
            means = {name: Mean(bench.layout, name) for name in ("task", "align")}
            with probing(bench.layout, bench.model):
                for _ in range(2):
                    bench.probe(means, bench.batch())
            dot(means["task"].close().flat, means["align"].close().flat)
        elif way == "flatten":
            sums = [torch.zeros(bench.layout.numel) for _ in range(2)]
            for _ in range(2):
                bench.flatten(sums, bench.batch())
        else:
            for _ in range(2):
                bench.backwards(bench.batch())
    return peak[0]


if __name__ == "__main__":
    peak_bytes = _peak(sys.argv[1], _Bench(sys.argv[2], int(sys.argv[3]), int(sys.argv[4])))
    sys.stdout.write(json.dumps({"peak": peak_bytes}) + "\n")
