"""Tokens read off a KV cache and off embeddings: against the ids that were put in."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from mechedit.editors.steering.cached_tokens import cached_ids, embedded_ids
from mechedit.models.embedded import FOLDERS


@pytest.fixture(scope="module", params=sorted(FOLDERS))
def hf(request: Any) -> Any:
    return AutoModelForCausalLM.from_pretrained(FOLDERS[request.param]).eval()


@torch.no_grad()
def test_a_cache_says_which_tokens_it_holds(hf: Any) -> None:
    ids = torch.randint(hf.config.vocab_size, (3, 9), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1, :4] = 0
    cache = hf(ids, attention_mask=mask, use_cache=True).past_key_values
    assert torch.equal(cached_ids(hf.base_model, cache, mask.bool(), 0), ids.where(mask.bool(), -1))
    assert torch.equal(cached_ids(hf.base_model, cache, mask.bool(), 5), ids[:, 5:])
    counted = (mask.cumsum(1) - 1).clamp(min=0)
    cache = hf(ids, attention_mask=mask, position_ids=counted, use_cache=True).past_key_values
    assert torch.equal(cached_ids(hf.base_model, cache, mask.bool(), 4), ids[:, 4:])


@torch.no_grad()
def test_what_is_no_token_stays_unknown(hf: Any) -> None:
    ids = torch.arange(6)[None] + 40
    vectors = hf.get_input_embeddings()(ids)
    vectors[0, 2] = vectors[0, 2:4].mean(0)
    cache = hf(inputs_embeds=vectors, use_cache=True).past_key_values
    expected = torch.tensor([[40, 41, -1, 43, 44, 45]])
    assert torch.equal(cached_ids(hf.base_model, cache, torch.ones(1, 6).bool(), 0), expected)
    assert torch.equal(embedded_ids(hf.get_input_embeddings(), vectors), expected)


@torch.no_grad()
def test_of_two_tokens_with_one_embedding_neither_is_named() -> None:
    table = torch.nn.Embedding(9, 4)
    table.weight[3] = table.weight[5]
    assert embedded_ids(table, table(torch.tensor([[3, 4]]))).tolist() == [[-1, 4]]
