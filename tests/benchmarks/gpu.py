"""What one device does with the papers' models: attribution, ROME and MEGA, prompts a second, bandwidth, memory.

Random weights of GPT2-XL's and LLaMA2-7B's shape in bf16, and the embedded models in fp32; with `tiny` small random
shapes instead, so that the same code runs on a CPU in a minute. For each model a row a reading:

- attribution of one prompt, top 300: seconds, peak bytes above the weights, and the share of the bandwidth limit: what
  reading all weights once and the unembedding once more takes at the bandwidth of a copy, over its own seconds;
- many prompts, top 30: prompts a second together and one by one;
- ROME: seconds an edit (second moments of a few texts, so that nothing is fetched), and its peak;
- MEGA: seconds a fit, and tokens a second of generation under the edit and without it.

`tests.benchmarks.gpu_table` makes the table of docs/benchmarks.md of them.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from typing import Any

import torch

import mechedit as me
from experiments.memory import watched
from mechedit.editors import MEGA, ROME, EditBook
from mechedit.editors.weights.corpus import text_corpus
from mechedit.editors.weights.covariance import covariances
from mechedit.models.hooked import HookedModel
from tests.benchmarks.gpu_table import FULL
from tests.benchmarks.nlka import PROMPT, TARGET
from tests.benchmarks.shapes import about, bench_model, clock

__all__ = ["bench_gpu"]

Row = dict[str, Any]
TINY = (("gpt2-tiny", "bfloat16"), ("llama-tiny", "bfloat16"), ("factworld", "float32"))


def bench_gpu(*, device: str = "cuda", tiny: bool = False) -> dict[str, Any]:
    """All rows, and what they were measured on."""
    rows: list[Row] = []
    facts: dict[str, Any] = {}
    for name, dtype in TINY if tiny else FULL:
        embedded = name.startswith("factworld")
        model = bench_model(name, name if embedded else "", device=device, dtype=dtype)
        facts = about(model)
        for reading, value, unit in _readings(model, few=tiny):
            rows.append({"model": name, "dtype": dtype, "reading": reading, "value": value, "unit": unit})
        del model
    kept = ("device", "clock", "threads", "torch", "transformers", "machine", "date")
    return {"tiny": tiny, **{key: facts[key] for key in kept}, "rows": rows}


def _readings(model: HookedModel, *, few: bool) -> Iterator[tuple[str, float, str]]:
    """Reading, value, unit."""
    repeats = 1 if few else 5
    with watched(model.device) as peak:
        me.attribute(model, PROMPT, TARGET, top_k=300)
    seconds = _median(model, lambda: me.attribute(model, PROMPT, TARGET, top_k=300), repeats)
    bytes_read = sum(weight.nbytes for weight in model.hf.parameters()) + model.W_U.nbytes
    yield "attribution, top 300", seconds, "s"
    yield "attribution, peak above the weights", peak[0] / 1e6, "MB"
    yield "attribution, share of the bandwidth limit", bytes_read / bandwidth(model.device) / seconds, ""
    many = _many(model, few)
    yield "attribute_many, top 30, together", many["together"], "prompts/s"
    yield "attribute_many, top 30, one by one", many["one_by_one"], "prompts/s"
    yield from _rome(model, few)
    yield from _mega(model, repeats)


def _many(model: HookedModel, few: bool) -> dict[str, float]:
    facts = me.factworld.edits(4 if few else 32)
    texts, targets = [fact.rewrite_prompt for fact in facts], [fact.target_true for fact in facts]
    ways: dict[str, Callable[[], object]] = {
        "together": lambda: me.attribute_many(model, texts, targets, top_k=30, progress=False),
        "one_by_one": lambda: [
            me.attribute(model, text, target, top_k=30) for text, target in zip(texts, targets, strict=True)
        ],
    }
    return {name: len(facts) / _median(model, call, 1) for name, call in ways.items()}


def _rome(model: HookedModel, few: bool) -> Iterator[tuple[str, float, str]]:
    """With the second moments of a few texts, which say what an edit costs and not how good it is."""
    layer, facts = model.shape.n_layers // 3, me.factworld.edits(24)
    corpus = text_corpus([fact.rewrite_prompt for fact in facts], source="prompts")
    moments = covariances(model, corpus, layers=[layer], progress=False)[layer]
    options: dict[str, Any] = {"lr": 0.5, "weight_decay": 0.5, "kl_factor": 0.0625, "clamp": 4.0}
    steps, contexts = (2, ((2, 2),)) if few else (20, ((10, 5), (10, 10)))
    editor = ROME(layer=layer, covariance=moments, steps=steps, contexts=contexts, **options)
    editor.change(model, facts[0])  # warm: the weights' hash, the contexts
    with watched(model.device) as peak:
        seconds = _median(model, lambda: editor.change(model, facts[1]), 1)
    yield "ROME, one edit", seconds, "s"
    yield "ROME, peak above the weights", peak[0] / 1e6, "MB"


def _mega(model: HookedModel, repeats: int) -> Iterator[tuple[str, float, str]]:
    half, fact = model.shape.n_layers // 2, me.factworld.edits(1)[0]
    editor = MEGA(window=(half, half + 2), alpha=1.0, rank=0, gate="always")
    edit = editor.fit(model, fact)
    yield "MEGA, one fit", _median(model, lambda: editor.fit(model, fact), repeats), "s"
    n_tokens = 4 if repeats == 1 else 16

    def generate() -> None:
        model.generate([fact.rewrite_prompt], max_new_tokens=n_tokens)

    with EditBook.of(model, [edit]).apply(model):
        yield "MEGA, generation under the edit", n_tokens / _median(model, generate, repeats), "tokens/s"
    yield "generation without an edit", n_tokens / _median(model, generate, repeats), "tokens/s"


def bandwidth(device: torch.device) -> float:
    """Bytes a second that the device reads and writes in a copy of 256 MB (CPU: 64 MB)."""
    source = torch.ones((16 if device.type == "cpu" else 64) * 2**20, device=device)
    into, now = torch.empty_like(source), clock(device)
    spent: list[float] = []
    for _ in range(5):
        began = now()
        into.copy_(source)
        spent.append(now() - began)
    return 2 * source.nbytes / min(spent[1:])


def _median(model: HookedModel, call: Callable[[], object], repeats: int) -> float:
    """Median seconds of a call that was made once before."""
    call()
    now = clock(model.device)
    spent: list[float] = []
    for _ in range(repeats):
        began = now()
        call()
        spent.append(now() - began)
    return statistics.median(spent)
