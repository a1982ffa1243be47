"""Text from a hooked model: greedy or top-k sampling, with a KV cache and whatever hooks are active.

Steps, for each batch of prompts padded on the left:

1. one forward pass over the prompts fills the cache and gives the first token of each;
2. one pass of a single position per further token, with mask and positions that continue those of the prompt;
3. a row ends at an end token, unless it is to continue past it; the batch ends when all rows have, or after
   `max_new_tokens`.

Every prompt draws from a generator of its own, seeded by the seed and its place in the list, so the text does not
depend on the batch it ran in.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from mechedit.models.bridged import BridgedModel
from reports.errors import InputError

__all__ = ["generate"]


def generate(
    model: BridgedModel,
    prompts: Sequence[torch.Tensor],
    *,
    max_new_tokens: int,
    top_k: int | None,
    seed: int,
    temperature: float,
    batch_size: int,
    past_end: bool = False,
) -> list[str]:
    """The text behind each prompt, without the prompt; greedy where `top_k` is None (see `HookedModel.generate`).

    Args:
        model: Any bridged model.
        prompts: Ids [T] of each.
        max_new_tokens: The largest number of tokens of a text.
        top_k: How many of the likeliest tokens are drawn from.
        seed: Seeds the generator of every prompt, with its place in the list.
        temperature: Divides the logits before sampling.
        batch_size: Prompts that run together.
        past_end: An end token does not end the text, so that every text has `max_new_tokens` tokens.

    Raises:
        InputError: An option below its least value, or prompt and new tokens longer than the model's context.
    """
    if max_new_tokens < 1 or batch_size < 1 or temperature <= 0 or (top_k is not None and top_k < 1):
        raise InputError(
            "generate: expected max_new_tokens, batch_size and top_k of 1 or more and a temperature above 0, found "
            f"{max_new_tokens}, {batch_size}, {top_k}, {temperature}"
        )
    longest = max((len(ids) for ids in prompts), default=0) + max_new_tokens
    if model.n_ctx is not None and longest > model.n_ctx:
        raise InputError(
            f"max_new_tokens: prompt and new tokens are {longest} together, the model takes {model.n_ctx}; "
            "ask for fewer"
        )
    ends = set() if past_end else _end_tokens(model)
    dice = [torch.Generator().manual_seed(seed + i) for i in range(len(prompts))]
    texts = []
    for start in range(0, len(prompts), batch_size):
        batch = prompts[start : start + batch_size]
        new = _extend(
            model, batch, max_new_tokens, top_k, temperature, dice[start : start + batch_size], ends
        )
        texts += [_text(model, ids, row) for ids, row in zip(batch, new, strict=True)]
    return texts


@torch.no_grad()
def _extend(
    model: BridgedModel,
    prompts: Sequence[torch.Tensor],
    max_new_tokens: int,
    top_k: int | None,
    temperature: float,
    dice: Sequence[torch.Generator],
    ends: set[int],
) -> list[list[int]]:
    """The new ids of each prompt, up to one of `ends`, without it."""
    ids, mask = model.pad(prompts)
    new: list[list[int]] = [[] for _ in prompts]
    open_rows = set(range(len(prompts)))
    cache = None
    for _ in range(max_new_tokens):
        logits, cache = model.run(ids, mask, use_cache=True, past_key_values=cache, logits_to_keep=1)
        chosen = _choose(logits[:, -1], top_k, temperature, dice)
        for row in tuple(open_rows):
            token = int(chosen[row])
            if token in ends:
                open_rows.discard(row)
            else:
                new[row].append(token)
        if not open_rows:
            break
        ids = chosen[:, None].to(model.device)
        mask = torch.cat([mask, torch.ones_like(ids)], dim=1)
    return new


def _choose(
    logits: torch.Tensor, top_k: int | None, temperature: float, dice: Sequence[torch.Generator]
) -> torch.Tensor:
    """One token of each row of logits [B, V], drawn on the CPU, so that every device draws the same."""
    if top_k is None:
        return logits.argmax(-1).cpu()
    values, tokens = logits.float().cpu().topk(min(top_k, logits.shape[-1]), dim=-1)
    chances = (values / temperature).softmax(-1)
    drawn = [torch.multinomial(row, 1, generator=die) for row, die in zip(chances, dice, strict=True)]
    return tokens.gather(-1, torch.stack(drawn))[:, 0]


def _end_tokens(model: BridgedModel) -> set[int]:
    """The tokens that end a text: the tokenizer's, and those of the checkpoint's generation config."""
    configured = getattr(getattr(model.hf, "generation_config", None), "eos_token_id", None)
    listed = configured if isinstance(configured, list) else [configured]
    return {int(token) for token in [model.tokenizer.eos_token_id, *listed] if token is not None}


def _text(model: BridgedModel, prompt: torch.Tensor, new: list[int]) -> str:
    """Decoded behind the prompt: some tokenizers drop the space before a text's first word."""
    head = prompt.tolist()
    before = str(model.tokenizer.decode(head, skip_special_tokens=True))
    whole = str(model.tokenizer.decode(head + new, skip_special_tokens=True))
    if whole.startswith(before):
        return whole[len(before) :]
    return str(model.tokenizer.decode(new, skip_special_tokens=True))
