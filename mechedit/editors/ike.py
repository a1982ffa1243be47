r"""IKE: edit by demonstrations before the prompt; no weight and no activation is touched.

Source: Zheng et al., "Can We Edit Factual Knowledge by In-Context Learning?", EMNLP 2023 (arXiv 2305.12740). The edited
model reads, before every prompt x,

    New Fact: p_1 o_1 \n Prompt: q_1 a_1 \n\n ... New Fact: p* o* \n Prompt: x

1. *Demonstrations* come from a pool of other edits, the most similar to the new fact last: cosine of sentence
   embeddings, which are the model's own mean hidden states at half depth, or those of a function such as
   `SentenceTransformer(...).encode`.
2. *Kinds*, 1 copy : 3 update : 4 retain as in the paper: the prompt after the demonstrated fact is the same (a = o), a
   paraphrase (a = o), or a neighbour's (a = what was true before).

Where the demonstrations asked for do not fit the model's context beside the fact's own prompts and `ROOM` tokens of an
answer, the least similar are left out, which is logged and counted (`PromptedModel.left_out`).

The edited model is one whose `tokenize` puts the demonstrations before a text. So whatever is asked of it in words,
`logits`, `generate`, `continuation`, `attribute`, sees them; ids that are passed in are taken as they are.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from mechedit.data.facts import FactEdit, facts_hash
from mechedit.data.prompts import demonstration, doubt, doubt_old
from mechedit.editors.base import as_facts, derive
from mechedit.editors.defaults import AUTO, Table, Tuned
from mechedit.factworld import edits
from mechedit.models.embedded import EMBEDDED
from mechedit.models.hooked import HookedModel
from mechedit.models.hooking import resid_post
from mechedit.models.states import mean_states
from reports.errors import InputError
from reports.text import clip

__all__ = ["IKE", "PromptedModel"]

KINDS = ("copy", "update", "retain", "update", "retain", "update", "retain", "retain")
EMBEDDED_POOL = 64
ROOM = 32  # tokens of the context that are kept for what is written behind a prompt
PROBE = "The capital of France is Paris."  # by which one function `embed` is told from another

log = logging.getLogger(__name__)

Embed = Callable[[list[str]], Any]


class PromptedModel(HookedModel):
    """A `HookedModel` that reads `prefix` before every text: the same interface, the same weights. Made by IKE.

    Attributes:
        prefix: The text.
        demonstrations: How many demonstrations it shows.
        left_out: How many more were asked for, and did not fit the model's context.
    """

    prefix: str
    demonstrations: int = 0
    left_out: int = 0

    @classmethod
    def over(
        cls, model: HookedModel, prefix: str, *, demonstrations: int = 0, left_out: int = 0
    ) -> PromptedModel:
        """A model that shares everything with `model` but how a text becomes ids."""
        prompted = derive(cls, model)
        prompted.prefix, prompted.demonstrations, prompted.left_out = prefix, demonstrations, left_out
        prompted._before = model._before + prefix
        return prompted

    def __repr__(self) -> str:
        return f"{super().__repr__()[:-1]}, behind the prefix {clip(self.prefix, 60)!r})"

    def save_pretrained(self, folder: str | Path) -> Path:
        """Is refused, because the edit is in the prompt.

        Raises:
            InputError: Always.
        """
        raise InputError(
            "save_pretrained: IKE changes no weight, so a checkpoint would be the unedited model; keep .prefix, the "
            "text that goes before every prompt"
        )


@dataclass(frozen=True)
class IKE(Tuned):
    """The editor; what is AUTO is chosen by the model (`ready`).

    Attributes:
        demonstrations: How many.
        pool: Edits to take them from, never about the edited subjects (None: the embedded world's for the embedded
            models, else none, and the new fact stands alone).
        embed: Sentences to vectors [n, d] for the retrieval, as `SentenceTransformer("all-MiniLM-L6-v2").encode`
            (None: the language model itself).

    >>> import mechedit as me
    >>> model, fact = me.load_model("factworld"), me.factworld.edits(1)[0]
    >>> with IKE().apply(model, fact) as edited:
    ...     edited.generate([fact.rewrite_prompt], max_new_tokens=3)[0].startswith(f" {fact.target_new}")
    True
    """

    demonstrations: int = AUTO
    pool: tuple[FactEdit, ...] | None = field(default=None, repr=False)
    embed: Embed | None = None
    name: str = "ike"

    DEFAULTS: ClassVar[Table] = {
        "gpt2-xl": {"demonstrations": 32},
        "llama-2-7b": {"demonstrations": 32},
        "smollm2-135m": {"demonstrations": 32},
        "factworld": {"demonstrations": 3},  # the embedded models were trained on two to four
        "factworld-llama": {"demonstrations": 3},
    }

    @contextlib.contextmanager
    def apply(self, model: HookedModel, facts: FactEdit | Sequence[FactEdit]) -> Iterator[PromptedModel]:
        """The model with the demonstrations before every prompt, as many as fit, for the length of the block.

        Raises:
            InputError: The new facts alone leave no room for a prompt in the model's context.
        """
        facts = as_facts(facts)
        shown = self.ready(model)._retrieve(model, facts)
        fitting = _fitting(model, facts, shown)
        left_out = len(shown) - len(fitting)
        if left_out:
            log.warning("ike: %d of %d demonstrations fit the context of %d tokens; the least similar are left out",
                        len(fitting), len(shown), model.n_ctx)  # fmt: skip
        yield PromptedModel.over(
            model, _prefix(facts, fitting), demonstrations=len(fitting), left_out=left_out
        )

    def reads(self, model: HookedModel) -> dict[str, Any]:
        """The pool that demonstrations come from, and what the function `embed` says of a sentence."""
        pool = self.pool if self.pool is not None else _embedded_pool(model)
        read: dict[str, Any] = {"pool": {"facts": len(pool), "sha256": facts_hash(pool)}}
        if self.embed is None:
            return read
        said = torch.as_tensor(self.embed([PROBE])).double().round(decimals=3) + 0.0
        return read | {"embed": {"probe": hashlib.sha256(said.cpu().numpy().tobytes()).hexdigest()}}

    def prefix(self, model: HookedModel, facts: FactEdit | Sequence[FactEdit]) -> str:
        """All that is to stand before a prompt: demonstrations, a copy of each further fact, and the last new fact."""
        facts = as_facts(facts)
        return _prefix(facts, self.ready(model)._retrieve(model, facts))

    def _retrieve(self, model: HookedModel, facts: Sequence[FactEdit]) -> list[tuple[FactEdit, str]]:
        """Demonstrated facts and their kinds, the nearest last."""
        if self.demonstrations < 0:
            raise InputError(f"demonstrations: expected 0 or more, found {self.demonstrations}")
        pool = self.pool if self.pool is not None else _embedded_pool(model)
        edited = {fact.subject for fact in facts}
        if not pool or not self.demonstrations:
            return []
        states = _embed(model, model.hash, tuple(_sentence(fact) for fact in pool), self.embed)
        wanted = _embed(model, model.hash, tuple(_sentence(fact) for fact in facts), self.embed)
        nearness = torch.nn.functional.cosine_similarity(states[:, None], wanted[None], dim=-1).amax(1)
        order = [int(i) for i in nearness.argsort(descending=True) if not _mentions(pool[int(i)], edited)]
        chosen = [(pool[i], KINDS[n % len(KINDS)]) for n, i in enumerate(order[: self.demonstrations])]
        return chosen[::-1]


def _prefix(facts: Sequence[FactEdit], demonstrated: Sequence[tuple[FactEdit, str]]) -> str:
    shown = [_demonstrate(fact, kind) for fact, kind in demonstrated]
    shown += [_demonstrate(fact, "copy") for fact in facts[:-1]]
    last = facts[-1]
    return "\n\n".join([*shown, demonstration(last.rewrite_prompt, last.target_new, "", space=last.space)])


def _fitting(
    model: HookedModel, facts: Sequence[FactEdit], demonstrated: Sequence[tuple[FactEdit, str]]
) -> Sequence[tuple[FactEdit, str]]:
    """The last of the demonstrated facts: as many as fit beside the longest prompt about `facts` that fits at all."""
    context = model.n_ctx
    if context is None:
        return demonstrated

    def room(first: int, prompt: str) -> int:
        """The tokens of the context that are left behind the prompt."""
        return context - len(model.tokenize(_prefix(facts, demonstrated[first:]) + prompt))

    alone = {prompt: room(len(demonstrated), prompt) for fact in facts for prompt in _prompts(fact)}
    if max(alone.values()) < 0:
        raise InputError(
            f"facts: expected new facts and a prompt of at most {context} tokens, the model's context, found "
            f"{context - max(alone.values())}; edit fewer at once"
        )
    longest = min((prompt for prompt in alone if alone[prompt] >= 0), key=alone.__getitem__)
    needed = min(ROOM, alone[longest])
    return demonstrated[next(i for i in range(len(demonstrated) + 1) if room(i, longest) >= needed) :]


def _prompts(fact: FactEdit) -> tuple[str, ...]:
    """Every prompt that an evaluation of the fact may put behind the demonstrations."""
    rewrite = fact.rewrite_prompt
    return (
        rewrite,
        *fact.paraphrase_prompts,
        *fact.neighborhood_prompts,
        *fact.generation_prompts,
        doubt(rewrite, fact.target_new, space=fact.space),
        doubt_old(rewrite, fact.target_new, fact.target_true, space=fact.space),
    )


def _mentions(fact: FactEdit, subjects: set[str]) -> bool:
    """Whether a demonstration of `fact` would speak of one of the subjects."""
    prompts = (fact.rewrite_prompt, *fact.paraphrase_prompts[:1], *fact.neighborhood_prompts[:1])
    return any(subject in prompt for subject in subjects for prompt in prompts)


def _demonstrate(fact: FactEdit, kind: str) -> str:
    """A fact shown as `kind`; as a copy where it has no prompt for that."""
    prompt, answer = fact.rewrite_prompt, fact.target_new
    if kind == "update" and fact.paraphrase_prompts:
        prompt = fact.paraphrase_prompts[0]
    elif kind == "retain" and fact.neighborhood_prompts:
        prompt, answer = fact.neighborhood_prompts[0], (*fact.neighborhood_answers, fact.target_true)[0]
    return demonstration(fact.rewrite_prompt, fact.target_new, prompt, answer, space=fact.space)


def _sentence(fact: FactEdit) -> str:
    return fact.stated(fact.target_new)


def _embedded_pool(model: HookedModel) -> tuple[FactEdit, ...]:
    return _world_pool() if model.source.removeprefix("embedded:") in EMBEDDED else ()


@lru_cache(maxsize=1)
def _world_pool() -> tuple[FactEdit, ...]:
    return tuple(edits(EMBEDDED_POOL, seed=2))


@lru_cache(maxsize=64)
def _embed(model: HookedModel, digest: str, texts: tuple[str, ...], embed: Embed | None) -> Tensor:
    """One vector a text [n, d]."""
    if embed is not None:
        return torch.as_tensor(embed(list(texts)))
    return mean_states(model, texts, [resid_post(model.shape.n_layers // 2)])[0].float()
