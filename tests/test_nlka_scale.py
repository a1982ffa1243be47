"""What a large model needs: temporaries within the memory budget, half-precision weights summed in fp32."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mechedit.attribution import attribute, exact_scores, projection, scores, terms
from mechedit.attribution.passes import run_passes
from mechedit.attribution.scores import inc_rows
from mechedit.models.hooked import HookedModel, load_model
from tests.tiny import build, tiny_model

PROMPT, TARGET = "Anna Keller works as a", " teacher"
BUDGET = 2**16


class Largest(TorchDispatchMode):
    """Remembers the size of the largest tensor made that has the vocabulary as one of several axes."""

    def __init__(self, d_vocab: int) -> None:
        super().__init__()
        self.d_vocab, self.bytes = d_vocab, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, torch.Tensor) and tensor.ndim > 1 and self.d_vocab in tensor.shape:
                self.bytes = max(self.bytes, tensor.numel() * tensor.element_size())
        return made


def largest(model: HookedModel, **options: Any) -> int:
    with Largest(model.shape.d_vocab) as seen:
        attribute(model, PROMPT, TARGET, **options)
    return seen.bytes


@pytest.mark.parametrize("options", [{}, {"method": "exhaustive"}, {"sign": "suppress"}])
def test_nothing_over_the_vocabulary_exceeds_the_budget(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MECHEDIT_CACHE", str(tmp_path))
    model = tiny_model("gpt2")
    for module in (exact_scores, projection, scores, terms):
        monkeypatch.setattr(module, "BLOCK_BYTES", BUDGET)
    assert 0 < largest(model, **options) <= BUDGET


def test_the_measure_of_memory_sees_a_block_that_is_too_large() -> None:
    model = tiny_model("gpt2")
    assert largest(model, method="exhaustive") > BUDGET


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_weights_are_summed_in_fp32(dtype: str, tmp_path: Path) -> None:
    """The same pass scored with the weights in fp64: fp32 sums are near, sums in the weights' own type are not."""
    model = load_model(build("gpt2", tmp_path), dtype=dtype)
    forward = run_passes(model, PROMPT, TARGET, tokens="first", biases="keep")[0][0]
    log_p = forward.acc.log_p.flatten(0, 1)
    vectors = torch.cat([term.heads() for term in forward.terms])
    base = 2 * torch.arange(len(forward.terms)).repeat_interleave(model.shape.n_heads)
    doubled = replace(forward.projection, W_U=model.W_U.double())
    exact = inc_rows(doubled, vectors, base, log_p.double(), target=forward.target)
    actual = inc_rows(forward.projection, vectors, base, log_p, target=forward.target)
    assert (actual - exact).abs().max() < 1e-5
    u = (forward.projection.normalise(vectors).to(model.dtype) @ model.W_U).double()
    rounded = u[:, forward.target] - torch.logsumexp(u + log_p[base].double(), dim=1)
    assert (rounded - exact).abs().max() > 1e-4


def test_a_bf16_model_attributes_as_its_fp32_copy(tmp_path: Path) -> None:
    """The forward pass rounds too: layer scores differ by its error, a few hundredths of the largest."""
    folder = build("llama-gqa", tmp_path)
    half, single = (attribute(load_model(folder, dtype=t), PROMPT, TARGET) for t in ("bfloat16", "float32"))
    size = single.layers["score"].abs().max()
    assert (half.layers["score"] - single.layers["score"]).abs().max() < 0.05 * size
    assert abs(half.completeness_gap) < 0.05 * size
