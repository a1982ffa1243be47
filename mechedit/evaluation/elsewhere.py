"""What an edit costs elsewhere: the edited model beside the unedited one, on running text unrelated to the fact.

Steps:

1. `N_PASSAGES` passages of at most `LENGTH` tokens are taken from a text, evenly spread and cut at words: by default
   prose of this project's documentation (`running_text.txt`), else a text that the user names;
2. once, the unedited model p reads them: its distribution over the token behind each passage is kept;
3. for each edit, in one pass, the edited model q reads the same passages (but those whose words alone keep the gate of
   a steering edit shut: there q is p), and over them
   KL = mean of Σ_v p(v) · (log p(v) − log q(v)), in nats per token,
   Top1 = share of passages behind which the likeliest token is still the same.

A passage is read as a prompt, and only the token behind it counts: there a steering edit acts (if its gate opens), and
there it acts on no token before. So editors of every kind pay in the same coin; with all positions counted, a steered
model would be flattered by those that it never touches. What stands before every prompt (IKE) stands before these too.

The passages are the same for every fact: an interval over facts speaks of other facts, not of other text.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mechedit.editors.steering.steer import SteeredModel
from mechedit.editors.weights.corpus import open_corpus
from mechedit.evaluation.questions import N_PASSAGES
from mechedit.models.hooked import HookedModel
from reports.errors import InputError

__all__ = [
    "LENGTH",
    "N_PASSAGES",
    "TEXT",
    "Cost",
    "RunningText",
    "divergence_in_nats",
    "passages",
    "running_text",
]

LENGTH = 16
TEXT = Path(__file__).parent / "running_text.txt"
#: Characters of a long text from which passages are taken.
READ = 1_000_000


@dataclass(frozen=True)
class Cost:
    """What one edit costs on running text.

    Attributes:
        kl: Mean KL(unedited ‖ edited), in nats per token; NaN where nothing was measured or a logit is NaN.
        top1: Share of passages with the same likeliest token.
        n: Passages that were measured: those that the edited model's context holds.
        digest: Of the passages.
    """

    kl: float
    top1: float
    n: int
    digest: str = ""


@dataclass(frozen=True, eq=False)
class RunningText:
    """Passages, and what the unedited model says behind each of them.

    Attributes:
        unedited: The model that is compared with.
        texts: The passages.
        logps: The unedited model's log-probabilities [n, d_vocab], fp32 on the CPU.
        source: The text, as a reader knows it; "" for the project's own.
        digest: sha256 of the passages.
    """

    unedited: HookedModel
    texts: tuple[str, ...]
    logps: Tensor
    source: str
    digest: str

    def cost(self, edited: HookedModel) -> Cost:
        """Compares `edited` with the unedited model, in one pass over the passages where it may be another."""
        ids = edited.encode(self.texts)
        held = [i for i, row in enumerate(ids) if edited.n_ctx is None or len(row) <= edited.n_ctx]
        if not held:
            return Cost(math.nan, math.nan, 0, self.digest)
        before = self.logps[held]
        logps = before.clone()
        # An edit that steers the unedited model, and whose gate the words keep shut, is that model to the last bit.
        shut = [False] * len(ids)
        if isinstance(edited, SteeredModel) and edited.base is self.unedited:
            shut = edited.shut_by_words(self.texts)
        if read := [row for row, i in enumerate(held) if not shut[i]]:
            logps[read] = _logps(edited, [ids[held[row]] for row in read])
        if logps.isnan().any() or before.isnan().any():
            return Cost(math.nan, math.nan, len(held), self.digest)
        same = (before.argmax(-1) == logps.argmax(-1)).double().mean()
        return Cost(float(divergence_in_nats(before, logps).mean()), float(same), len(held), self.digest)


def running_text(model: HookedModel, text: str | os.PathLike[str] | None = None) -> RunningText:
    """Takes passages and asks the unedited `model`.

    Args:
        model: The unedited model.
        text: A UTF-8 file, a folder of files or a `datasets` name; None for the project's own text.

    Raises:
        InputError: There is no such text, or no word in it.

    >>> import mechedit as me
    >>> model = me.load_model("factworld")
    >>> cost = running_text(model).cost(model)
    >>> cost.kl, cost.top1, cost.n
    (0.0, 1.0, 24)
    """
    corpus = open_corpus(TEXT if text is None else text)
    parts, length = [], 0
    for document in corpus.documents():
        parts.append(document[: READ - length])
        length += len(parts[-1])
        if length >= READ:
            break
    taken = passages(model, " ".join(parts))
    if not taken:
        raise InputError(f"text: expected running text, found no word in {corpus.source}")
    digest = hashlib.sha256("\n".join(taken).encode()).hexdigest()
    return RunningText(
        model, taken, _logps(model, model.encode(taken)), "" if text is None else corpus.source, digest
    )


def passages(model: HookedModel, text: str) -> tuple[str, ...]:
    """At most `N_PASSAGES` passages of at most `LENGTH` tokens, evenly spread over `text` and not overlapping.

    A word that is longer by itself is cut.
    """
    words = text.split()
    n = min(N_PASSAGES, -(-len(words) // LENGTH))
    starts = [i * len(words) // n for i in range(n)]
    return tuple(
        _fitting(model, words[start : min(start + LENGTH, end)])
        for start, end in itertools.pairwise([*starts, len(words)])
    )


def divergence_in_nats(p: Tensor, q: Tensor) -> Tensor:
    """KL(p ‖ q) [...] of log-probabilities [..., V] in float64; what p rules out counts nothing.

    >>> half, sure = torch.tensor([0.5, 0.5]).log(), torch.tensor([1.0, 0.0]).log()
    >>> round(float(divergence_in_nats(sure, half)), 4), float(divergence_in_nats(half, half))
    (0.6931, 0.0)
    """
    p, q = p.double(), q.double()
    return torch.where(p == -math.inf, 0.0, p.exp() * (p - q)).sum(-1)


def _fitting(model: Any, words: list[str]) -> str:
    n_special = len(model.tokenize("a")) - len(model.tokenizer("a", add_special_tokens=False).input_ids)
    passage = " ".join(words)
    while len(model.tokenize(passage)) - n_special > LENGTH and len(passage) > 1:
        words = words[:-1]
        passage = " ".join(words) if words else passage[: len(passage) // 2]
    return passage


@torch.no_grad()
def _logps(model: HookedModel, ids: list[Tensor]) -> Tensor:
    return model.logits(ids, batch_size=N_PASSAGES).float().cpu().log_softmax(-1)
