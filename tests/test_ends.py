"""The last tokens of prompts, run again: against whole passes, with and without hooks."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mechedit.models.ends import EndBatch, PromptEnds
from mechedit.models.hooking import Hook, in_block
from tests.tiny import ARCHS, Arch, tiny_model

PROMPTS = [
    "one",
    "two three four",
    "five six seven eight nine ten",
    "a b",
    "the first of them is the last of all",
]


@pytest.mark.parametrize("arch", ARCHS)
def test_ends_give_the_logits_of_whole_passes_each_time(arch: Arch) -> None:
    model = tiny_model(arch)
    whole, ends = model.logits(PROMPTS), PromptEnds(model, PROMPTS, batch_size=3)
    for _ in range(2):
        assert torch.allclose(ends.logits(), whole, atol=1e-4)
    together = PromptEnds(model, PROMPTS, groups=[[4, 0, 2], [1, 3]])
    assert torch.allclose(together.logits(), whole, atol=1e-4)


@pytest.mark.parametrize("arch", ARCHS)
def test_a_hook_at_the_end_does_what_it_does_in_a_whole_pass(arch: Arch) -> None:
    model = tiny_model(arch)
    push = torch.randn(model.shape.d_model, generator=torch.Generator().manual_seed(0))

    def add(states: torch.Tensor, hook: object) -> torch.Tensor:
        moved = states.clone()
        moved[:, -1] += push
        return moved

    hooks: list[Hook] = [(in_block(1, "hook_attn_out"), add)]
    with model.hooks(hooks):
        whole = model.logits(PROMPTS)
    moved = PromptEnds(model, PROMPTS).logits(lambda batch: hooks)
    assert torch.allclose(moved, whole, atol=1e-4)
    assert not torch.allclose(moved, model.logits(PROMPTS), atol=1e-2)  # the push is seen


@pytest.mark.parametrize("arch", ARCHS)
def test_prompts_go_on_with_tokens_behind_them_and_nothing_before_runs_again(arch: Arch) -> None:
    model = tiny_model(arch)
    ends, ids = PromptEnds(model, PROMPTS, groups=[[4, 0, 2], [1, 3]]), model.encode(PROMPTS)
    rows, tokens = [2, 0, 3, 2, 1], [(5,), (7, 9, 11), (5,), (6, 5), ()]
    whole = model.logits(
        [
            torch.cat([ids[row], torch.tensor(more).to(ids[row])])
            for row, more in zip(rows, tokens, strict=True)
        ]
    )
    seen: list[int] = []
    run = model.run

    def counting(ids: torch.Tensor, mask: torch.Tensor, **options: Any) -> Any:
        seen.append(ids.numel())
        return run(ids, mask, **options)

    model.run = counting  # type: ignore[method-assign]
    try:
        further = ends.continued(rows, tokens)
    finally:
        del model.run
    assert sum(seen) == sum(map(len, tokens))  # of each prompt the old end and all but the new one
    for _ in range(2):
        assert torch.allclose(further.logits(), whole, atol=1e-4)
    assert torch.allclose(ends.logits(), model.logits(PROMPTS), atol=1e-4)  # these stay as they were
    others = ends.continued(rows, [(8, *more[1:]) if more else () for more in tokens])
    assert not torch.allclose(others.logits()[:4], whole[:4], atol=1e-2)


def test_rows_of_a_batch_are_those_of_the_list() -> None:
    model = tiny_model("llama")
    seen: list[int] = []

    def hooks(batch: EndBatch) -> list[Hook]:
        seen.extend(batch.rows)
        return []

    PromptEnds(model, PROMPTS).logits(hooks)
    assert sorted(seen) == list(range(len(PROMPTS)))
