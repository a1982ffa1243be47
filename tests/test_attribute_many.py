"""Many prompts at once: equal to one by one whatever the padding, streamed, resumed, refused where it would mislead."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

import mechedit as me
from experiments.runs import RunFolder
from mechedit.attribution import Attribution, attribute, attribute_many
from mechedit.attribution.attributions import Attributions, from_case, to_case
from mechedit.attribution.units import UNITS
from mechedit.models.batching import STRETCH, token_batches
from mechedit.models.hooked import HookedModel, load_model
from mechedit.models.residual import view_residual, view_residuals
from reports.errors import InputError, IntegrityError
from tests.tiny import ARCHS, SENTENCES, Arch, tiny_folder, tiny_model

PROMPTS = (
    "The mother tongue of Anna is",
    "Rome",
    "Once upon a time, there was a little girl named Lily who lived in",
    "Tim Duncan plays the sport of",
    "The Space Needle stands in Seattle, and the Colosseum stands in",
)
TARGETS = (" French", " Paris", " London", " basketball", " Rome")
PLAIN = (
    "ids",
    "tokens",
    "target",
    "target_id",
    "target_token",
    "target_ids",
    "target_scored",
    "sign",
    "biases",
)


def assert_same(many: Sequence[Attribution], one: Sequence[Attribution], *, atol: float) -> None:
    """Equal results: the same units, scores within `atol` (relative above 1 nat)."""
    assert len(many) == len(one)
    for a, b in zip(many, one, strict=True):
        assert all(getattr(a, name) == getattr(b, name) for name in PLAIN)
        assert a.provenance == b.provenance
        for name in ("logp", "embedding_logp", "prior_logp", "sigma"):
            assert getattr(a, name) == pytest.approx(getattr(b, name), rel=atol, abs=atol)
        for unit, keys in UNITS.items():
            left_scores, right_scores = (
                one[[*keys, "score"]].set_index(list(keys))["score"] for one in frames(a, b, unit)
            )
            shared = left_scores.index.intersection(right_scores.index)
            assert len(left_scores) == len(right_scores)
            left = [side.drop(shared) for side in (left_scores, right_scores)]
            difference = (left_scores[shared] - right_scores[shared]).abs() / right_scores[shared].abs().clip(
                lower=1
            )
            assert len(shared)
            assert difference.max() <= atol, f"{unit}: {difference.max()}"
            # at the edge of a top k, equal scores may change places
            for side in left:
                assert ((side - right_scores.iloc[-1]).abs() <= 2 * atol).all(), f"{unit}: {side}"


def frames(a: Attribution, b: Attribution, unit: str) -> tuple[Any, Any]:
    return getattr(a, unit), getattr(b, unit)


def one_by_one(model: HookedModel, pairs: Sequence[tuple[str, str]], **options: Any) -> list[Attribution]:
    return [attribute(model, prompt, target, **options) for prompt, target in pairs]


# ------------------------------------------------------------------------------------ equal to one by one


@pytest.mark.parametrize("name", ["factworld", "factworld-llama"])
def test_the_embedded_models_give_what_one_by_one_gives(
    name: str, factworld_gpt2: HookedModel, factworld_llama: HookedModel
) -> None:
    model = {"factworld": factworld_gpt2, "factworld-llama": factworld_llama}[name]
    facts = me.factworld.edits(6)
    prompts = [fact.rewrite_prompt for fact in facts]
    prompts[1] = f"{facts[3].rewrite_prompt} {facts[3].target_true}. {prompts[1]}"  # ragged
    targets = [fact.target_true for fact in facts]
    expected = one_by_one(model, list(zip(prompts, targets, strict=True)), top_k=40)
    results = attribute_many(model, prompts, targets, top_k=40, progress=False)
    assert_same(results, expected, atol=1e-5)
    with pytest.raises(AssertionError):
        assert_same(results, [*expected[1:], expected[0]], atol=1e-5)


#: Padding changes fp64 by nothing that shows; but LLaMA's softmax runs in fp32 whatever the weights.
ROUNDING = {"gpt2": 1e-9, "gpt2-untied": 1e-9, "llama": 2e-6, "llama-gqa": 2e-6}


@cache
def double(arch: Arch) -> HookedModel:
    return load_model(str(tiny_folder(arch)), device="cpu", dtype="float64")


@cache
def alone(arch: Arch, prompt: str, target: str, tokens: str) -> Attribution:
    return attribute(double(arch), prompt, target, top_k=12, tokens=tokens)  # type: ignore[arg-type]


@settings(max_examples=6, phases=(Phase.generate,))
@given(
    st.sampled_from(["gpt2", "llama-gqa"]),
    st.lists(
        st.tuples(st.sampled_from(SENTENCES), st.integers(1, 9), st.sampled_from(TARGETS)),
        min_size=1,
        max_size=5,
    ),
    st.sampled_from([1, 17, 64, 4096]),
    st.sampled_from(["first", "sum"]),
)
def test_ragged_prompts_in_any_batch_give_what_one_by_one_gives(
    arch: Arch, drawn: list[tuple[str, int, str]], max_tokens: int, tokens: Any
) -> None:
    pairs = [(" ".join(sentence.split()[:n]), target) for sentence, n, target in drawn]
    expected = [alone(arch, *pair, tokens) for pair in pairs]
    results = attribute_many(
        double(arch),
        *zip(*pairs, strict=True),
        top_k=12,
        tokens=tokens,
        max_tokens=max_tokens,
        progress=False,
    )
    assert_same(results, expected, atol=ROUNDING[arch])


def test_the_comparison_fails_where_padding_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    model = double("gpt2")
    expected = one_by_one(model, list(zip(PROMPTS, TARGETS, strict=True)), top_k=12)
    assert_same(attribute_many(model, PROMPTS, TARGETS, top_k=12, progress=False), expected, atol=1e-9)
    honest = HookedModel.pad

    def unmasked(self: HookedModel, sequences: Sequence[torch.Tensor], **options: Any) -> Any:
        ids, mask = honest(self, sequences, **options)
        return ids, torch.ones_like(mask)

    monkeypatch.setattr(HookedModel, "pad", unmasked)
    with pytest.raises(AssertionError):
        assert_same(attribute_many(model, PROMPTS, TARGETS, top_k=12, progress=False), expected, atol=1e-9)


@pytest.mark.parametrize(
    "options",
    [
        {"sign": "suppress", "biases": "drop"},
        {"method": "exhaustive", "top_k": 20},
        {"top_k": "all"},
    ],
)
def test_every_option_reaches_every_prompt(options: dict[str, Any]) -> None:
    model, options = tiny_model("llama-gqa"), {"top_k": 12, **options}
    results = attribute_many(model, PROMPTS[:3], TARGETS[:3], progress=False, **options)
    expected = one_by_one(model, list(zip(PROMPTS[:3], TARGETS[:3], strict=True)), **options)
    assert_same(results, expected, atol=1e-5)
    for a, b in zip(results, expected, strict=True):
        assert a.certificate["total"] == b.certificate["total"]


@pytest.mark.parametrize("arch", ARCHS)
def test_a_view_in_a_batch_is_the_view_alone(arch: Arch) -> None:
    model, atol = (
        double(arch),
        1e-9 if arch.startswith("gpt2") else 1e-4,
    )  # LLaMA's norms and softmax run in fp32
    sequences = [model.tokenize(prompt) for prompt in PROMPTS]
    for ids, view in zip(sequences, view_residuals(model, sequences), strict=True):
        expected = vars(view_residual(model, ids))
        for name, value in vars(view).items():
            if value is None:
                assert expected[name] is None
                continue
            assert value.shape == expected[name].shape, name
            assert torch.allclose(value.double(), expected[name].double(), rtol=0, atol=atol), name


def test_a_steering_edit_steers_each_prompt_of_a_batch(factworld_gpt2: HookedModel) -> None:
    model, facts = factworld_gpt2, me.factworld.edits(3)
    pairs = [(fact.rewrite_prompt, fact.target_new) for fact in facts]
    pairs.append((facts[0].rewrite_prompt, facts[0].target_true))
    mega = me.editors.MEGA(window=(3, 5), alpha=1.0, gate="always")
    plain = one_by_one(model, pairs[:1], top_k=5)
    with mega.apply(model, facts[0]) as edited:
        expected = one_by_one(edited, pairs, top_k=5)
        results = attribute_many(edited, *zip(*pairs, strict=True), top_k=5, progress=False)
    assert_same(results, expected, atol=1e-5)
    assert "steer" in set(results[0].layers["module"])
    assert results[0].logp > plain[0].logp


# ------------------------------------------------------------------------------------------ the run folder


def test_results_are_files_and_the_same_call_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("gpt2")
    call: dict[str, Any] = {"top_k": 6, "max_tokens": 12, "progress": False}
    whole = attribute_many(model, PROMPTS, TARGETS, out=tmp_path / "whole", **call)
    assert sorted(file.name for file in (tmp_path / "whole" / "cases").iterdir()) == [
        f"{i}.json" for i in range(5)
    ]
    assert (tmp_path / "whole" / "manifest.json").is_file()

    write, left = RunFolder.write_case, [3]

    def interrupted(self: RunFolder, case_id: int | str, obj: dict[str, Any]) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        write(self, case_id, obj)

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "write_case", interrupted)
        with pytest.raises(KeyboardInterrupt):
            attribute_many(model, PROMPTS, TARGETS, out=tmp_path / "part", **call)
    assert len(list((tmp_path / "part" / "cases").glob("*.json"))) == 3
    assert not (tmp_path / "part" / "manifest.json").exists()

    written: list[int | str] = []

    def counted(self: RunFolder, case_id: int | str, obj: dict[str, Any]) -> None:
        written.append(case_id)
        write(self, case_id, obj)

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "write_case", counted)
        resumed = attribute_many(model, PROMPTS, TARGETS, out=tmp_path / "part", **call)
    assert len(written) == 2
    assert_same(resumed, whole, atol=1e-5)
    listed = attribute_many(model, PROMPTS, TARGETS, **call)
    assert type(listed) is Attributions
    assert all(a.equals(b) for a, b in zip(whole, listed, strict=True))
    assert [attr.target for attr in whole[1:3]] == list(TARGETS[1:3])
    assert whole[-1].equals(whole[4])
    with pytest.raises(IndexError):
        whole[5]


def test_a_finished_run_is_read_and_left_as_it_is(tmp_path: Path) -> None:
    model = tiny_model("gpt2")
    first = attribute_many(model, PROMPTS[:2], TARGETS[:2], top_k=3, out=tmp_path / "run", progress=False)
    files = {file: file.read_bytes() for file in (tmp_path / "run").rglob("*") if file.is_file()}
    again = attribute_many(model, PROMPTS[:2], TARGETS[:2], top_k=3, out=tmp_path / "run", progress=False)
    assert files == {file: file.read_bytes() for file in (tmp_path / "run").rglob("*") if file.is_file()}
    assert again[0].equals(first[0])


def test_the_configuration_of_a_run_is_that_of_earlier_versions_so_that_theirs_can_be_finished(
    tmp_path: Path,
) -> None:
    model, out = tiny_model("gpt2"), tmp_path / "run"
    attribute_many(model, PROMPTS[:2], TARGETS[:2], top_k=3, out=out, progress=False)
    assert (out / "config.toml").read_text().splitlines() == [
        *('command = "attribute_many"', "n = 2", "top_k = 3", 'sign = "promote"', 'method = "certified"'),
        *('biases = "keep"', 'tokens = "first"', "tolerance = 0.0"),
    ]


def test_a_folder_of_another_run_is_refused(tmp_path: Path) -> None:
    model = tiny_model("gpt2")
    call: dict[str, Any] = {"out": tmp_path / "run", "progress": False}
    attribute_many(model, PROMPTS[:2], TARGETS[:2], top_k=3, **call)
    with pytest.raises(InputError, match="'top_k' is 3 there and 4 now"):
        attribute_many(model, PROMPTS[:2], TARGETS[:2], top_k=4, **call)
    with pytest.raises(InputError, match="pairs"):
        attribute_many(model, PROMPTS[:2], TARGETS[1:3], top_k=3, **call)
    with pytest.raises(InputError, match=r"model\.hash|model"):
        attribute_many(tiny_model("gpt2-untied"), PROMPTS[:2], TARGETS[:2], top_k=3, **call)


def test_a_result_survives_its_case_and_a_damaged_case_is_named() -> None:
    attr = attribute(tiny_model("llama"), PROMPTS[0], TARGETS[0], top_k=4)
    case = json.loads(json.dumps(to_case(attr)))
    assert from_case(Attribution, case, where="here").equals(attr)
    with pytest.raises(IntegrityError, match="here: expected kind 'attribution'"):
        from_case(Attribution, {**case, "kind": "other"}, where="here")
    del case["values"]["logp"]
    with pytest.raises(IntegrityError, match="here: not the fields"):
        from_case(Attribution, case, where="here")


# ----------------------------------------------------------------------------------- batches and refusals


@given(st.lists(st.tuples(st.integers(1, 4), st.integers(1, 60)), max_size=30), st.integers(1, 200))
def test_batches_keep_to_the_budget_and_leave_nothing_out(shapes: list[tuple[int, int]], budget: int) -> None:
    batches = list(token_batches(shapes, budget))
    assert sorted(i for batch in batches for i in batch) == list(range(len(shapes)))
    for batch in batches:
        rows, lengths = sum(shapes[i][0] for i in batch), [shapes[i][1] for i in batch]
        assert len(batch) == 1 or rows * max(lengths) <= budget
        assert max(lengths) <= STRETCH * min(lengths)


@pytest.mark.parametrize(
    ("prompts", "targets", "options", "message"),
    [
        ([], [], {}, "prompts, targets: expected as many of each, at least one; found 0 and 0"),
        (PROMPTS, TARGETS[:2], {}, "found 5 and 2"),
        ("Rome", "Rome", {}, "prompts: expected a list of prompts, found one, 'Rome'"),
        (["Rome", 7], ["Rome", "Rome"], {}, "pair 1: prompt: expected ids"),
        (PROMPTS, [*TARGETS[:4], " "], {}, "pair 4: target: expected a word"),
        (["Rome" + " Rome" * 200], ["Rome"], {}, "pair 0: expected at most 128 tokens"),
        (PROMPTS, TARGETS, {"max_tokens": 0}, "max_tokens: expected an integer of at least 1, found 0"),
        (PROMPTS, TARGETS, {"max_tokens": True}, "max_tokens"),
        (PROMPTS, TARGETS, {"sign": "both"}, "sign: expected one of"),
        (PROMPTS, TARGETS, {"top_k": 0}, "top_k"),
    ],
)
def test_bad_input_is_refused_and_nothing_is_written(
    tmp_path: Path, prompts: Any, targets: Any, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        attribute_many(tiny_model("gpt2"), prompts, targets, out=tmp_path / "run", progress=False, **options)
    assert not (tmp_path / "run").exists()


def test_hooks_that_no_file_would_say_are_refused(tmp_path: Path) -> None:
    model = tiny_model("gpt2")
    with (
        model.hooks([("blocks.1.hook_attn_out", lambda tensor, hook: tensor * 2)]),
        pytest.raises(InputError, match=r"out: expected a model without hooks, found one at blocks\.1"),
    ):
        attribute_many(model, PROMPTS, TARGETS, out=tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


def test_progress_shows_and_is_silent_where_asked(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("experiments.progress.SECONDS", 0.0)  # between two lines where there is no terminal
    model = tiny_model("gpt2")
    capsys.readouterr()  # what saving the model says
    attribute_many(model, PROMPTS[:2], TARGETS[:2], top_k=3, progress=False)
    assert capsys.readouterr().err == ""
    attribute_many(model, PROMPTS[:2], TARGETS[:2], top_k=3)
    assert "attribution: 100%" in capsys.readouterr().err
