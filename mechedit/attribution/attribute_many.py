"""Attribution of many prompts: what prompts can share is done once a batch.

1. All pairs are read as tokens, so that a bad one is refused before anything is run or written.
2. Prompts of like length share a forward pass, padded on the left under a mask, at most `max_tokens` tokens of it.
3. The residual states of several prompts share a product with the vocabulary: each prompt has its own σ, but that is a
   factor of the rows (`projection.stacked_logits`).
4. Neurons are ranked prompt by prompt: which of them are scored depends on the prompt's own bounds.
5. With `out`, each result becomes a file of a run folder as soon as it is known; the same call resumes the run.

Batch mates and padding change nothing but rounding: a score is within 1e-5 of `attribute`'s (fp32).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from experiments.cases import settings_digest
from experiments.progress import track
from experiments.runs import RunFolder
from mechedit.attribution.attributions import Attributions, SavedAttributions, to_case
from mechedit.attribution.nlka import attributed
from mechedit.attribution.options import Method, Options
from mechedit.attribution.passes import TargetTokens, read_passes, scored_tokens
from mechedit.attribution.projection import BLOCK_BYTES, Biases
from mechedit.attribution.ranking.neurons import Sign
from mechedit.attribution.result import Attribution
from mechedit.data.joining import Space
from mechedit.models.batching import token_batches
from mechedit.models.hooked import HookedModel
from mechedit.models.prompts import Prompt, is_conversation, recorded
from mechedit.models.residual import view_residuals
from reports.errors import InputError

__all__ = ["attribute_many"]

#: Tokens of one forward pass, padding counted.
MAX_TOKENS = 1024
#: Log-probabilities that the bases of one product with the vocabulary may take, unless one prompt's are more.
_BASES_BYTES = 4 * BLOCK_BYTES


@dataclass(frozen=True, eq=False)
class _Case:
    """One pair: its place in the list, its texts, the ids of prompt and target, how many go with its first text."""

    index: int
    prompt: Prompt
    target: str
    ids: Tensor
    target_ids: Tensor
    first: int
    space: Space

    def sequences(self, options: Options) -> list[Tensor]:
        """The ids of each pass: the prompt, and behind it the target's tokens so far."""
        n = len(self.target_ids) if options.tokens == "sum" else self.first
        return [torch.cat([self.ids, self.target_ids[:i]]) for i in range(n)]


def attribute_many(
    model: HookedModel,
    prompts: Sequence[Prompt],
    targets: Sequence[str],
    *,
    top_k: int | Literal["all"] = 300,
    sign: Sign = "promote",
    method: Method = "certified",
    biases: Biases = "keep",
    tokens: TargetTokens = "first",
    max_tokens: int = MAX_TOKENS,
    out: str | os.PathLike[str] | None = None,
    progress: bool = True,
    space: Space = "auto",
) -> Attributions:
    """`attribute` of each prompt with its target, in order, as one result: index it, or take its table (`summary`).

    Args:
        model: The model, as it is now.
        prompts: Texts, lists of messages, or ids of each.
        targets: As many texts.
        top_k: As in `attribute`, and so are sign, method, biases, tokens and space.
        sign: Which scores are ranked first.
        method: How the ranking is found.
        biases: Whether they are part of the logits.
        tokens: Which tokens of the target are scored.
        max_tokens: Of one forward pass, padding counted, each about 4 · n_layers · (2 d_model + d_mlp) bytes; a prompt
            that is longer runs alone.
        out: A run folder, one file a pair, which the same call resumes; results are then read from it one at a time.
        progress: Whether it is shown.
        space: As in `attribute`.

    Raises:
        InputError: As `attribute`, with the index of the pair; no pairs, or not as many targets as prompts; `out` is of
            another run, or the model has hooks, which no file would tell: leave `out` away and save each result.

    >>> import mechedit as me
    >>> model = me.load_model("factworld")
    >>> prompts, targets = ["The capital of France is", "The capital of Spain is"], [" Paris", " Madrid"]
    >>> results = attribute_many(model, prompts, targets, top_k=5, progress=False)
    >>> [attr.target_token for attr in results], results.to_frame()["case"].unique().tolist()
    ([' Paris', ' Madrid'], [0, 1])
    """
    _check_max_tokens(max_tokens)
    options = Options(top_k=top_k, sign=sign, method=method, biases=biases, tokens=tokens)
    cases = _cases(model, prompts, targets, options, space)
    run = None if out is None else _run_folder(model, cases, options, out, space)
    left = [case for case in cases if run is None or run.find_case(case.index) is None]
    results: dict[int, Attribution] = {}
    pairs = _attributions(model, left, options, max_tokens)
    for case, attr in track(pairs, total=len(left), label="attribution", progress=progress, unit="prompt"):
        if run is None:
            results[case.index] = attr
        else:
            run.write_case(case.index, to_case(attr))
    if run is None:
        return Attributions([results[case.index] for case in cases])
    if not run.finished:
        run.finish({"n": len(cases)})
    return SavedAttributions(run, len(cases))


def _check_max_tokens(max_tokens: object) -> None:
    if isinstance(max_tokens, bool) or not isinstance(max_tokens, int) or max_tokens < 1:
        raise InputError(f"max_tokens: expected an integer of at least 1, found {max_tokens!r}")


@torch.no_grad()
def _attributions(
    model: HookedModel, cases: Sequence[_Case], options: Options, max_tokens: int
) -> Iterator[tuple[_Case, Attribution]]:
    """Steps 2 to 4, batch by batch."""
    sequences = [case.sequences(options) for case in cases]
    shapes = [(len(rows), len(rows[-1])) for rows in sequences]
    base_bytes = 2 * model.shape.n_layers * model.shape.d_vocab * 4
    for batch in token_batches(shapes, max_tokens):
        views = iter(view_residuals(model, [ids for i in batch for ids in sequences[i]]))
        views_of = {i: [next(views) for _ in sequences[i]] for i in batch}
        size = max(1, _BASES_BYTES // (base_bytes * max(len(sequences[i]) for i in batch)))
        for start in range(0, len(batch), size):
            chosen = batch[start : start + size]
            tokens = [int(token) for i in chosen for token in cases[i].target_ids[: len(sequences[i])]]
            flat = [view for i in chosen for view in views_of[i]]
            passes = iter(read_passes(model, flat, tokens, biases=options.biases))
            for i in chosen:
                case, case_passes = cases[i], [next(passes) for _ in sequences[i]]
                ids = tuple(case.target_ids.tolist())
                yield (
                    case,
                    attributed(
                        model,
                        case_passes,
                        ids,
                        prompt=case.prompt,
                        target=case.target,
                        options=options,
                        space=case.space,
                    ),
                )


def _cases(
    model: HookedModel, prompts: Sequence[Prompt], targets: Sequence[str], options: Options, space: Space
) -> list[_Case]:
    if isinstance(prompts, str) or is_conversation(prompts):
        raise InputError(f"prompts: expected a list of prompts, found one, {prompts!r:.60}")
    if isinstance(targets, str) or not all(isinstance(text, str) for text in targets):
        raise InputError(f"targets: expected a list of texts, found {targets!r:.60}")
    if not prompts or len(prompts) != len(targets):
        raise InputError(
            f"prompts, targets: expected as many of each, at least one; found {len(prompts)} and {len(targets)}"
        )
    cases = []
    for index, (prompt, target) in enumerate(zip(prompts, targets, strict=True)):
        try:
            ids, target_ids = model.continuation(prompt, target, space=space)
        except InputError as error:
            raise InputError(f"pair {index}: {error}") from error
        first = scored_tokens(model, target_ids.tolist(), "first")
        case = _Case(index, prompt, target, ids, target_ids, first, space)
        longest = len(case.sequences(options)[-1])
        if model.n_ctx is not None and longest > model.n_ctx:
            raise InputError(
                f"pair {index}: expected at most {model.n_ctx} tokens, found {longest}; shorten it"
            )
        cases.append(case)
    return cases


def _run_folder(
    model: HookedModel,
    cases: Sequence[_Case],
    options: Options,
    out: str | os.PathLike[str],
    space: Space,
) -> RunFolder:
    """Opened or resumed; its configuration and provenance hold all that the results depend on."""
    if hooked := [name for name, point in model.bridge.hook_dict.items() if point.has_hooks()]:
        raise InputError(
            f"out: expected a model without hooks, found one at {hooked[0]}: a run folder could not tell its results "
            "from the unedited model's; leave out=None and save each result"
        )
    pairs = [
        [recorded(case.prompt), case.target, case.ids.tolist(), case.target_ids.tolist()] for case in cases
    ]
    digest = settings_digest(*pairs)
    config: dict[str, Any] = {"command": "attribute_many", "n": len(cases), **asdict(options)}
    # A run is resumed only under the same configuration. Earlier versions had an option `tolerance`, 0 for exact
    # scores: it stays part of the configuration, so that a run that they began can be finished.
    config["tolerance"] = 0.0
    # Earlier versions scored a bare space alone.
    config |= {"space": space} if space != "auto" else {}
    config |= (
        {"through": "text"} if options.tokens == "first" and any(case.first > 1 for case in cases) else {}
    )
    return RunFolder.open(out, config, provenance=model.provenance(data={"pairs": digest}, seeds={}))
