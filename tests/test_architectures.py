"""Every supported family against oracles, and every refused one in one line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from transformer_lens.model_bridge import TransformerBridge
from transformers import AutoConfig, AutoModelForCausalLM

import mechedit as me
from mechedit.attribution.circuits.keys import GUARD
from mechedit.data.facts import FactEdit
from mechedit.editors import FT, MEGA, MEMIT, ROME, EditBook, LoRA
from mechedit.editors.contexts import contexts
from mechedit.editors.steering.sites import SiteName
from mechedit.editors.weights.corpus import text_corpus
from mechedit.editors.weights.covariance import Covariance, covariances
from mechedit.editors.weights.lora import query_value_modules, shared_twin
from mechedit.editors.weights.subject import edit_batch, subject_ids
from mechedit.editors.weights.upper_layers import mlp_output, upper_part
from mechedit.editors.weights.value_search import Search, find_delta
from mechedit.faithfulness.intervention import Neurons, logp_without
from mechedit.models import masks
from mechedit.models.ends import PromptEnds
from mechedit.models.hooked import HookedModel, load_model
from mechedit.models.hooking import post, resid_post
from mechedit.models.norms import norm_form
from mechedit.models.scoring import score_pairs
from mechedit.models.selfcheck import check_loaded, share_off
from mechedit.models.states import last_states
from mechedit.models.weights import checkpoint_weights
from reports.errors import InputError, IntegrityError
from tests.architecture_oracle import Family, family_run, queries
from tests.architectures import FAMILIES, REFUSED, WINDOW, folder_of, model_of, plain_of, save
from tests.benchmarks.edit import plain_delta
from tests.nlka_oracle import naive_scores
from tests.test_faithfulness import assert_scores
from tests.tiny import SENTENCES

every_family = pytest.mark.parametrize("name", list(FAMILIES))
#: One of each way to compose a block.
SHAPES = ["gpt-j", "gpt-neox", "phi", "gemma 3", "olmo-2", "granite", "cohere", "mistral"]
every_shape = pytest.mark.parametrize("name", SHAPES)

PROMPT, TARGET = "Anna Keller works as a", "teacher"
LONG = SENTENCES[7]
FACT = FactEdit("Anna Keller", "{} works as a", "teacher", "king", case_id=0)
OTHER = FactEdit("Tim Duncan", "{} plays the sport of", "basketball", "tennis", case_id=1)
SEARCH = Search(steps=4, lr=0.1, weight_decay=0.5, kl_factor=0.0625, clamp=0.8)
BEFORE = ("", "In Rome. ")
LENGTHS = ((2, 4),)


@pytest.fixture(autouse=True)
def cache_folder(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MECHEDIT_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(params=list(FAMILIES))
def model(request: pytest.FixtureRequest) -> Iterator[HookedModel]:
    """A family's model, whose weights every test leaves bit for bit."""
    loaded = model_of(request.param)
    weights = {name: weight.clone() for name, weight in loaded.hf.named_parameters()}
    yield loaded
    assert all(torch.equal(weight, weights[name]) for name, weight in loaded.hf.named_parameters())


@cache
def oracle(name: str) -> tuple[Family, int]:
    model = model_of(name, "float64")
    ids, target = model.continuation(PROMPT, TARGET)
    return family_run(name, ids.tolist()), int(target[0])


# -- logits and masks ------------------------------------------------------------------------------------------------


@every_family
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@torch.no_grad()
def test_logits_are_those_of_transformers_alone_padded_and_cached(name: str, dtype: str) -> None:
    """On texts longer than the sliding windows, so that a window that is dropped shows."""
    model, plain = model_of(name, dtype), plain_of(name, dtype)
    texts = [model.tokenize(text) for text in (LONG, SENTENCES[2], SENTENCES[0])]
    assert min(map(len, texts)) > WINDOW
    true = [plain(ids[None], use_cache=False).logits[0] for ids in texts]
    for side in ("left", "right"):
        ids, mask = model.pad(texts, side=side)
        found = model.run(ids, mask)[0]
        for row, own, expected in zip(found, mask.bool(), true, strict=True):
            assert share_off(row[own], expected) < 1e-5
    rest = [(ids[:3], ids[3:]) for ids in texts]
    for scored, (_, target), expected in zip(score_pairs(model, rest), rest, true, strict=True):
        logps = expected[2:-1].float().log_softmax(-1).gather(-1, target[:, None])[:, 0]
        torch.testing.assert_close(scored.logps, logps, atol=2e-4, rtol=1e-4)


@every_family
def test_the_ends_of_prompts_alone_give_the_logits_of_whole_passes(name: str) -> None:
    model, prompts = model_of(name), [LONG, "Anna", SENTENCES[2], PROMPT]
    ends = PromptEnds(model, prompts)
    torch.testing.assert_close(ends.logits(), model.logits(prompts), atol=2e-5, rtol=1e-4)
    rows, tokens = [2, 0, 3], [(5, 7), (7, 9), (6, 5)]
    ids = model.encode(prompts)
    longer = [torch.cat([ids[row], torch.tensor(more)]) for row, more in zip(rows, tokens, strict=True)]
    further = ends.continued(rows, tokens)
    torch.testing.assert_close(further.logits(), model.logits(longer), atol=2e-5, rtol=1e-4)
    for batch in ends.picked(rows, tokens):
        for place, found in zip(batch.rows, batch.every(model), strict=True):
            whole = model.run(longer[place][None], torch.ones_like(longer[place])[None])[0][0, -3:]
            torch.testing.assert_close(found, whole, atol=2e-5, rtol=1e-4)


def test_a_window_that_is_dropped_is_seen_at_load(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Windows wider than the texts of the check, and a mask without them, as a careless causal mask is."""
    folder = save("mistral", {**FAMILIES["mistral"][1], "sliding_window": 4096}, tmp_path / "wide")
    model = load_model(folder, device="cpu")
    assert model.hf.config.sliding_window == 4096
    run = HookedModel.run

    def causal(self: HookedModel, ids: torch.Tensor, mask: torch.Tensor, **options: Any) -> Any:
        config = self.hf.config
        width, config.sliding_window = config.sliding_window, 10**6
        try:
            return run(self, ids, mask, **options)
        finally:
            config.sliding_window = width

    monkeypatch.setattr(HookedModel, "run", causal)
    with pytest.raises(IntegrityError, match="does not compute what the plain one does"):
        load_model(folder, device="cpu")


@pytest.mark.parametrize("name", ["mistral", "gemma 3"])
def test_a_window_does_not_fool_the_control_of_the_mask(name: str) -> None:
    found = me.diagnose(model_of(name), ((LONG, "and"), (SENTENCES[0], "He")))
    assert found.ok
    assert found.measured("the mask forgotten") > 0.05


def test_a_mask_of_float64_has_no_number_that_float32_lacks() -> None:
    model = model_of("mistral", "float64")
    seen: list[torch.Tensor] = []
    block = model.bridge.blocks[0]
    ids, mask = model.pad([model.tokenize(PROMPT), model.tokenize(LONG)])
    handle = block.attn.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["attention_mask"]), with_kwargs=True
    )
    try:
        model.run(ids, mask)
    finally:
        handle.remove()
    assert float(seen[0].min()) == masks.LOWEST
    assert not block._forward_pre_hooks


# -- what is read off the modules ------------------------------------------------------------------------------------


def test_the_diagnosis_passes(model: HookedModel) -> None:
    found = me.diagnose(model, ((PROMPT, TARGET), (SENTENCES[0], "He")))
    assert found.checks[~found.checks["ok"]].empty, found.checks[~found.checks["ok"]]
    folds = getattr(model.bridge.adapter, "supports_fold_ln", True)
    assert ("folded TransformerLens" in set(found.checks["check"])) == folds == (found.notes == ())


@every_family
def test_a_norm_is_what_it_computes(name: str) -> None:
    model = model_of(name)
    x = torch.randn(5, model.shape.d_model, generator=torch.Generator().manual_seed(0))
    for module, norm in ((model.bridge.blocks[1], model.norm1(1)), (model.bridge, model.final_norm)):
        part = "ln_final" if module is model.bridge else "ln1"
        if not hasattr(module, part):
            assert norm.kind == "none"
            torch.testing.assert_close(norm(x), x)
            continue
        factor = model.shape.logit_scale if part == "ln_final" else 1
        expected = factor * getattr(module, part).original_component(x[None])[0]
        torch.testing.assert_close(norm(x), expected, atol=1e-5, rtol=1e-5)


def test_what_is_no_norm_is_refused() -> None:
    class Twice(torch.nn.LayerNorm):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(x)

    norm = Twice(8)
    torch.nn.init.uniform_(norm.weight, 0.5, 1.5)
    with pytest.raises(InputError, match="Twice is no norm that this package knows"):
        norm_form(norm)


def test_weights_are_the_checkpoints(model: HookedModel) -> None:
    """Names and bytes; and what is written to a weight is what runs, fused projections too."""
    name = next(one for one in FAMILIES if model_of(one) is model)
    stored = dict(plain_of(name).named_parameters())
    own = dict(checkpoint_weights(model.hf))
    assert set(own) == set(stored)
    assert all(torch.equal(own[key], stored[key]) for key in own)
    before = model.logits([PROMPT])
    for module in query_value_modules(model):
        weight = own[f"{module}.weight"]
        old = weight.detach().clone()
        with torch.no_grad():
            weight.add_(0.3 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)))
            assert not torch.allclose(model.logits([PROMPT]), before, atol=1e-4)
            weight.copy_(old)
    assert torch.equal(model.logits([PROMPT]), before)


@every_family
def test_a_bridge_of_ones_own_is_taken_raw(name: str) -> None:
    loaded = model_of(name)
    bridge = TransformerBridge.boot_transformers(str(folder_of(name)), device="cpu")
    own = HookedModel.from_bridge(bridge, loaded.tokenizer)
    torch.testing.assert_close(own.logits([PROMPT]), loaded.logits([PROMPT]), atol=1e-5, rtol=1e-5)
    assert own.shape == loaded.shape


# -- attribution -----------------------------------------------------------------------------------------------------


@every_family
@pytest.mark.parametrize("biases", ["keep", "drop"])
def test_scores_are_the_naive_ones_and_the_account_closes(name: str, biases: Any) -> None:
    plain, t = oracle(name)
    found = me.attribute(
        model_of(name, "float64"), PROMPT, TARGET, top_k="all", method="exhaustive", biases=biases
    )
    assert abs(found.completeness_gap) < 1e-6
    total = plain.logp(plain.x_final, t, biases=biases, sigma=plain.sigma())
    assert found.logp == pytest.approx(total, abs=1e-5)
    for unit, expected in naive_scores(plain, t, biases=biases).items():
        frame = getattr(found, unit)
        columns = [column for column in frame if column != "score"]
        scores = {
            tuple(row[:-1]): row[-1] for row in frame[[*columns, "score"]].itertuples(index=False, name=None)
        }
        assert_scores(scores, expected, atol=1e-5)
    if biases == "keep":
        logits = plain_of(name, "float64")(torch.tensor([found.ids])).logits[0, -1]
        assert found.logp == pytest.approx(float(logits.log_softmax(-1)[t]), abs=1e-5)


@every_shape
def test_the_oracle_tells_a_forgotten_norm_or_multiplier(name: str) -> None:
    """Scores of raw rows are other ones wherever something stands behind a sub-layer."""
    plain, t = oracle(name)
    behind = name in ("gemma 3", "olmo-2", "granite")
    raw = Family(**{**vars(plain), "W_out": plain.rows})
    same = naive_scores(plain, t, biases="keep")["mlp_neurons"]
    other = naive_scores(raw, t, biases="keep")["mlp_neurons"]
    assert (max(abs(same[key] - other[key]) for key in same) > 1e-2) == behind


@every_family
@pytest.mark.parametrize("sign", ["promote", "suppress"])
def test_a_certified_ranking_is_the_exhaustive_one(name: str, sign: Any) -> None:
    model = model_of(name, "float64")
    pair = [
        me.attribute(model, PROMPT, TARGET, top_k=8, sign=sign, method=method)
        for method in ("certified", "exhaustive")
    ]
    for unit in ("mlp_neurons", "attn_neurons"):
        a, b = (getattr(one, unit)["score"].to_numpy() for one in pair)
        assert abs(a - b).max() < 1e-9
    assert pair[0].certificate["evaluated"] < pair[0].certificate["total"]


@every_family
def test_query_scores_are_the_naive_ones(name: str) -> None:
    plain, _ = oracle(name)
    found = me.attribute(model_of(name, "float64"), PROMPT, TARGET, top_k="all", method="exhaustive")
    kinds = (
        ("attn_neurons", "query_neurons", "query_layers"),
        ("mlp_neurons", "mlp_query_neurons", "mlp_query_layers"),
    )
    for unit, of_neurons, of_layers in kinds:
        best = getattr(found, unit).head(30)
        values = [
            (tuple(map(int, row[:-1])), float(row[-1])) for row in best.itertuples(index=False, name=None)
        ]
        neurons, layers = queries(plain, values, guard=GUARD)
        for frame, expected in ((getattr(found, of_neurons), neurons), (getattr(found, of_layers), layers)):
            scores = {tuple(row[:-1]): row[-1] for row in frame.itertuples(index=False, name=None)}
            assert_scores(scores, expected, atol=1e-5)


@every_family
def test_ablating_all_of_a_head_or_a_neuron_is_setting_it_to_nothing(name: str) -> None:
    """Also where the pattern is told only behind its use (GPT-J)."""
    model = model_of(name)
    ids, target = model.continuation(PROMPT, TARGET)
    heads = [
        (layer, 1, j, pos) for layer in (0, 1) for j in range(model.shape.d_head) for pos in range(len(ids))
    ]
    found = logp_without(model, ids, int(target[0]), sets=[Neurons(), Neurons(attn=heads, mlp=[(1, 3)])])

    def without_head(z: torch.Tensor, hook: object) -> torch.Tensor:
        z = z.clone()
        z[:, -1, 1] = 0
        return z

    def without_neuron(m: torch.Tensor, hook: object) -> torch.Tensor:
        m = m.clone()
        m[:, -1, 3] = 0
        return m

    points = [(f"blocks.{layer}.attn.hook_z", without_head) for layer in (0, 1)]
    with model.hooks([*points, ("blocks.1.mlp.hook_post", without_neuron)]):
        expected = model.logits([ids])[0].double().log_softmax(-1)[target[0]]
    assert float(found[1]) == pytest.approx(float(expected), abs=1e-5)
    assert abs(float(found[1] - found[0])) > 1e-4


# -- weight edits ----------------------------------------------------------------------------------------------------


@cache
def of_text(name: str) -> dict[int, Covariance]:
    model = model_of(name)
    corpus = text_corpus(SENTENCES * 2, source="sentences")
    return covariances(model, corpus, layers=range(model.shape.n_layers), progress=False)


@every_family
def test_the_upper_part_is_the_forward_pass(name: str) -> None:
    model = model_of(name)
    texts, starts = [model.tokenize(sentence) for sentence in SENTENCES[:4]], [3, 0, 9, 1]
    full = torch.cat([model.logits([text]) for text in texts])
    last = torch.tensor([len(text) - 1 - start for text, start in zip(texts, starts, strict=True)])
    for layer in range(model.shape.n_layers):
        upper = upper_part(model, layer, texts, starts)
        unmoved = upper.moved(torch.zeros(4, model.shape.d_model))
        for resid in (upper.resid_post, unmoved, upper.behind(mlp_output(model, layer, upper.key))):
            assert share_off(upper.logits(upper(resid), torch.arange(4), last), full) < 1e-5


@every_family
def test_v_star_is_the_plain_loops(name: str) -> None:
    """δ is added to what W_out writes, before any norm or multiplier; the loop runs whole passes."""
    model = model_of(name)
    cut = [subject_ids(model, fact.prompt, fact.subject) for fact in (FACT, OTHER)]
    (v0,) = last_states(model, cut, ["blocks.0.mlp.hook_out"])
    batch = edit_batch(model, [FACT, OTHER], BEFORE)
    found = find_delta(upper_part(model, 0, batch.texts, batch.starts), batch, v0, SEARCH)
    for i, fact in enumerate((FACT, OTHER)):
        plain = plain_delta(model, 0, fact, BEFORE, v0[i], SEARCH)
        assert plain.norm() > 0.1
        torch.testing.assert_close(found[i], plain, atol=2e-4, rtol=0)


@every_family
def test_rome_satisfies_its_constraint(name: str) -> None:
    model, c = model_of(name), of_text(name)[0]
    rome = ROME(layer=0, steps=4, lr=0.3, contexts=LENGTHS, covariance=c)
    found, bias = rome.associate(model, FACT), model.b_out(0)
    cut = [subject_ids(model, FACT.prompt, FACT.subject, context=b) for b in contexts(model, LENGTHS)]
    with rome.apply(model, FACT) as edited:
        said = found.key @ edited.W_out(0) + (0 if bias is None else bias)
        (written,) = last_states(edited, cut, ["blocks.0.mlp.hook_out"])
    torch.testing.assert_close(said, found.value, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(written.mean(0), found.value, atol=1e-4, rtol=1e-4)  # by what really runs


@every_family
def test_memits_goal_is_reached_and_its_change_is_the_formula(name: str) -> None:
    """With one layer and next to no weight on the old keys, the layer's output is z, whatever stands behind W_out."""
    model, c = model_of(name), of_text(name)
    bare = [subject_ids(model, fact.prompt, fact.subject) for fact in (FACT, OTHER)]
    memit = MEMIT(layers=(0, 0), steps=3, lr=0.2, lam=1e-7, clamp=0.5, contexts=(), covariances=c)
    ready = memit.ready(model)
    goals = ready._goals(model, [FACT, OTHER], [""], bare)
    (before,) = last_states(model, bare, [resid_post(0)])
    with memit.apply(model, [FACT, OTHER]) as edited:
        (after,) = last_states(edited, bare, [resid_post(0)])
    assert (goals - before).norm() > 0.1
    assert (after - goals).norm() < 0.05 * (goals - before).norm()


@every_shape
def test_one_layer_of_memit_writes_what_its_outlet_needs(name: str) -> None:
    model, c = model_of(name), of_text(name)
    memit = MEMIT(layers=(0, 0), steps=2, lam=2.0, contexts=(), covariances=c)
    bare = [subject_ids(model, fact.prompt, fact.subject) for fact in (FACT, OTHER)]
    goals = memit.ready(model)._goals(model, [FACT, OTHER], [""], bare)
    now, keys, raw = last_states(model, bare, [resid_post(0), post(0), "blocks.0.mlp.hook_out"])
    rest = goals - now
    if name == "granite":
        rest = rest / model.hf.config.residual_multiplier
    elif name in ("gemma 3", "olmo-2"):
        norm = model.bridge.blocks[0].ln2_post.original_component
        rest = rest / (norm(raw[None])[0] / raw)
    K = keys.mT.double()
    wanted = torch.linalg.inv(2.0 * c[0].matrix + K @ K.mT) @ K @ rest.double()
    (parts,) = memit.change(model, [FACT, OTHER]).parts.values()
    made = (parts[0].left @ parts[0].right).double()  # type: ignore[union-attr]
    made = made if made.shape == wanted.shape else made.mT
    torch.testing.assert_close(made, wanted, atol=1e-3, rtol=1e-3)


@every_family
def test_ft_follows_autograd_through_the_whole_model(name: str) -> None:
    """One step of Adam from the gradient of a full forward pass."""
    model = model_of(name)
    prompt, target = model.continuation(FACT.rewrite_prompt, FACT.target_new)
    weight = model.bridge.blocks[0].mlp.out.original_component.weight
    weight.requires_grad_(True)
    try:
        ids = torch.cat([prompt, target[:-1]])[None]
        log_p = model.forward(ids, torch.ones_like(ids)).log_softmax(-1)[0, len(prompt) - 1 :]
        (-log_p.gather(-1, target[:, None]).mean()).backward()
        assert weight.grad is not None
        step = -1e-2 * weight.grad / (weight.grad.abs() + 1e-8)
        sure = weight.grad.abs() > 1e-3 * weight.grad.abs().max()
    finally:
        weight.requires_grad_(False)
        weight.grad = None
    old = weight.detach().clone()
    with FT(layer=0, steps=1, lr=1e-2).apply(model, FACT):
        torch.testing.assert_close((weight - old)[sure], step[sure], atol=1e-4, rtol=1e-2)


def test_lora_finds_queries_and_values_and_what_it_writes_runs(model: HookedModel) -> None:
    change = LoRA(steps=3, lr=1e-2, rank=2).change(model, FACT)
    per_layer = len(change.parts) / model.shape.n_layers
    assert per_layer == (1 if hasattr(model.bridge.blocks[0].attn, "qkv") else 2)
    ids, mask = model.pad([model.tokenize(LONG)])
    with change.apply(model) as edited:
        found = edited.run(ids, mask)[0]
        twin = shared_twin(edited)(ids, use_cache=False).logits
    torch.testing.assert_close(found, twin, atol=2e-5, rtol=1e-4)
    assert not torch.allclose(model.run(ids, mask)[0], found, atol=1e-3)


def test_lora_targets_that_are_not_there_are_one_line() -> None:
    with pytest.raises(InputError, match="targets: expected linear modules"):
        LoRA(targets=("no_such",), steps=1, lr=1e-2).change(model_of("llama"), FACT)


def test_an_edited_model_is_saved_as_transformers_loads_it(model: HookedModel, tmp_path: Path) -> None:
    """And every edit is undone bit for bit: the fixture looks."""
    c = of_text(next(one for one in FAMILIES if model_of(one) is model))
    editors: list[Any] = [
        ROME(layer=0, steps=2, contexts=(), covariance=c[0]),
        MEMIT(layers=(0, 0), steps=2, contexts=(), covariances=c),
        LoRA(steps=2, lr=1e-2),
    ]
    plain, digest = model.logits([PROMPT]), model.hash
    for editor in editors:
        with editor.apply(model, [FACT, OTHER]) as edited:
            expected = edited.logits([PROMPT])
            assert edited.hash != digest
            edited.save_pretrained(tmp_path / editor.name)
        again = AutoModelForCausalLM.from_pretrained(
            tmp_path / editor.name, attn_implementation="eager"
        ).eval()
        with torch.no_grad():
            found = again(model.tokenize(PROMPT)[None], use_cache=False).logits[:, -1]
        torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)
        assert torch.equal(model.logits([PROMPT]), plain)


# -- steering --------------------------------------------------------------------------------------------------------


@every_family
@pytest.mark.parametrize("site", ["attn_out", "resid_mid", "resid_post", "z"])
def test_mega_steers_adds_up_and_is_undone(name: str, site: SiteName) -> None:
    model = model_of(name)
    table = {FACT.prompt: ["The job of {} is", "{} is a"]}
    heads = {0: (1, 2), 1: (0,)} if site == "z" else None
    mega = MEGA(
        window=(0, 1),
        site="attn_out" if heads else site,
        heads=heads,
        alpha=1.0,
        gate="always",
        paraphrases=table,
    )
    before = model.logits([FACT.rewrite_prompt])
    with mega.apply(model, FACT) as steered:
        moved = steered.logits([FACT.rewrite_prompt])
        attr = me.attribute(steered, FACT.rewrite_prompt, FACT.target_new, top_k=3)
        said = steered.generate([FACT.rewrite_prompt], max_new_tokens=3)
    assert not torch.allclose(moved, before, atol=1e-3)
    assert abs(attr.completeness_gap) < 1e-4
    assert {"steer", "steer_mlp"} & set(attr.layers["module"])
    assert said
    assert torch.equal(model.logits([FACT.rewrite_prompt]), before)
    assert not any(point.has_hooks() for point in model.bridge.hook_dict.values())


@every_family
def test_an_edit_is_served_by_plain_transformers(name: str) -> None:
    model = model_of(name)
    mega = MEGA(
        window=(0, 1), alpha=1.0, gate="always", paraphrases={FACT.prompt: ["The job of {} is", "{} is a"]}
    )
    book = EditBook.of(model, [mega.fit(model, FACT)])
    ids, mask = model.pad(
        [model.tokenize(FACT.rewrite_prompt), model.tokenize("Some other text that is longer")]
    )
    with book.apply(model) as steered:
        hooked = steered.logits([FACT.rewrite_prompt])[0]
    plain = AutoModelForCausalLM.from_pretrained(
        folder_of(name), attn_implementation="eager", use_safetensors=True, trust_remote_code=False
    ).eval()
    inputs = {"attention_mask": mask, "position_ids": (mask.cumsum(-1) - 1).clamp(min=0)}
    bare = plain(ids, **inputs).logits[0, -1]
    with book.attach(plain, tokenizer=model.tokenizer), torch.no_grad():
        served = plain(ids, **inputs).logits[0, -1]
    torch.testing.assert_close(served, hooked, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(served, bare, atol=1e-3)  # the edit is seen


# -- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(REFUSED))
def test_what_is_not_supported_is_refused_at_load_in_one_line_that_says_why(name: str) -> None:
    with pytest.raises(InputError, match=REFUSED[name][2]) as caught:
        load_model(folder_of(name), device="cpu")
    assert "\n" not in str(caught.value)


def test_a_model_that_reads_images_never_reaches_transformer_lens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For one, TransformerLens installs torchvision by itself, with pip."""
    booted: list[object] = []
    monkeypatch.setattr(TransformerBridge, "boot_transformers", lambda *a, **k: booted.append(a))
    text = AutoConfig.for_model("gemma3_text", **FAMILIES["gemma 3"][1]).to_dict()
    folder = Path(shutil.copytree(folder_of("gemma 3"), tmp_path / "model"))
    config = {
        "model_type": "gemma3",
        "architectures": ["Gemma3ForConditionalGeneration"],
        "text_config": text,
    }
    for stored in (config, {**text, "architectures": ["Gemma3ForConditionalGeneration"]}):
        (folder / "config.json").write_text(json.dumps(stored))
        with pytest.raises(InputError, match="it reads more than text"):
            load_model(folder, device="cpu")
    assert not booted


def edited_config(tmp_path: Path, **changes: Any) -> Path:
    folder = Path(shutil.copytree(folder_of("llama"), tmp_path / "model"))
    config = json.loads((folder / "config.json").read_text())
    config = {key: value for key, value in {**config, **changes}.items() if value is not ...}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        (
            {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}},
            "quantised .bitsandbytes",
        ),
        ({"model_type": "llama-x", "auto_map": {"AutoConfig": "x.X"}}, "code of the checkpoint's own"),
        ({"final_logit_softcapping": 20.0}, "soft cap"),
        (
            {"architectures": ["LlamaForSequenceClassification"]},
            "LlamaForSequenceClassification .* no bridge",
        ),
    ],
)
def test_a_property_of_the_config_is_the_reason(tmp_path: Path, changes: dict[str, Any], why: str) -> None:
    with pytest.raises(InputError, match=why) as caught:
        load_model(edited_config(tmp_path, **changes), device="cpu")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("architectures", [None, ...])
def test_a_config_without_architectures_is_resolved_by_its_type(tmp_path: Path, architectures: Any) -> None:
    model = load_model(edited_config(tmp_path, architectures=architectures), device="cpu")
    assert model.shape.architecture == "LlamaForCausalLM"
    assert torch.equal(model.logits([PROMPT]), model_of("llama").logits([PROMPT]))


def test_rotary_frequencies_that_follow_the_length_bound_the_prompt(tmp_path: Path) -> None:
    rope = {
        "rope_type": "dynamic",
        "rope_theta": 10000.0,
        "factor": 4.0,
        "original_max_position_embeddings": 16,
    }
    model = load_model(edited_config(tmp_path, rope_parameters=rope), device="cpu")
    assert model.n_ctx == 16
    with pytest.raises(InputError, match="at most 16 tokens"):
        model.logits([" ".join(SENTENCES)])


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (lambda m: _after(m.bridge.blocks[1].mlp, 1.5), "neurons|attention and MLP"),
        (lambda m: _after(m.bridge.blocks[0].attn.original_component.o_proj, 1.5), "heads"),
        (lambda m: _after(m.bridge.unembed, 1.5), "logits are not linear"),
    ],
)
def test_an_identity_that_fails_is_named(tmp_path: Path, spoil: Any, why: str) -> None:
    model = load_model(edited_config(tmp_path), device="cpu")
    spoil(model)
    with pytest.raises(InputError, match=why):
        check_loaded(model)


def _after(module: torch.nn.Module, factor: float) -> None:
    """The module's output is multiplied where no hook point of the bridge sees it."""
    module.register_forward_hook(
        lambda module, args, out: factor * out + 0.1 if torch.is_tensor(out) else out
    )
