"""What is run on another device and on the CPU alike: each piece takes a model and gives plain values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

import mechedit as me
from mechedit.data.facts import FactEdit
from mechedit.editors import MEGA, SAKE, EditBook, WeightChange
from mechedit.models.hooked import HookedModel

LENGTHS = ((2, 4),)


def facts() -> list[FactEdit]:
    return me.factworld.edits(2, seed=3)


def frames(result: Any) -> dict[str, Any]:
    return {name: getattr(result, name) for name in ("layers", "heads", "mlp_neurons", "attn_neurons", "attn_query_neurons", "mlp_query_neurons") if hasattr(result, name)}


def attribution(model: HookedModel, folder: Path) -> Any:
    fact = facts()[0]
    a = me.attribute(model, fact.rewrite_prompt, fact.target_true, top_k=10)
    return frames(a) | {"logp": a.logp}


def tolerance(model, folder):
    fact = facts()[0]
    a = me.attribute(model, fact.rewrite_prompt, fact.target_true, top_k=10, method="exhaustive", tokens="sum")
    b = me.attribute(model, fact.rewrite_prompt, fact.target_true, top_k=10, biases="drop")
    return frames(a)


def suppress(model, folder):
    fact = facts()[0]
    a = me.attribute(model, fact.rewrite_prompt, fact.target_true, top_k=10, sign="suppress", tokens="sum")
    b = me.attribute(model, fact.rewrite_prompt, fact.target_new, top_k=10, also=a, sign="suppress")
    return frames(a) | {"b": b.mlp_neurons}


def many(model, folder):
    r = me.attribute_many(model, [f.rewrite_prompt for f in facts()], [f.target_true for f in facts()], top_k=5, progress=False)
    s = me.attribute_many(model, [f.rewrite_prompt for f in facts()], [f.target_true for f in facts()], top_k=5, sign="suppress", progress=False)
    return {"a": r.summary(), "b": s.summary()}


def circuit(model, folder):
    fact = facts()[0]
    a = me.attribute(model, fact.rewrite_prompt, fact.target_true, top_k=10)
    c = a.circuit() if hasattr(a, "circuit") else None
    h = me.head_attention(model, a, k=4)
    from mechedit.attribution.vocabulary import vocabulary
    v = vocabulary(model, a.mlp_neurons)
    d = me.contrast(model, fact.rewrite_prompt, fact.target_new, fact.target_true) if 0 else None
    return {"h": h, "v": v}


def contrast(model, folder):
    import inspect
    fact = facts()[0]
    print(inspect.signature(me.contrast))
    a = me.contrast(model, fact.rewrite_prompt, fact.target_new, fact.target_true)
    return frames(a)


def _logits(edited, fact):
    return edited.logits([fact.rewrite_prompt, *fact.neighborhood_prompts[:2]]).cpu()


def _edit(name, **settings):
    def work(model, folder):
        editor = me.editors.by_name(name, **settings)
        with editor.apply(model, facts()[0]) as edited:
            x = _logits(edited, facts()[0])
        with editor.apply(model, facts()) as edited:
            y = _logits(edited, facts()[0])
        return {"x": x, "y": y, "after": _logits(model, facts()[0])}
    return work


def _cov(name, **settings):
    def work(model, folder):
        from mechedit.editors.weights.corpus import text_corpus
        from mechedit.editors.weights.covariance import covariances
        corpus = text_corpus([p for f in me.factworld.edits(30, seed=4) for p in (f.rewrite_prompt, *f.neighborhood_prompts)], source="s")
        c = covariances(model, corpus, layers=range(model.shape.n_layers), progress=False)
        s = {"covariance": c[3]} if name == "rome" else {"covariances": {k: c[k] for k in (3, 4)}}
        s |= {"layer": 3} if name == "rome" else {"layers": (3, 4)}
        return _edit(name, steps=3, contexts=LENGTHS, **s, **settings)(model, folder)
    return work


def mega(model, folder):
    m = MEGA(window=(5, 6)).select(model, me.factworld.edits(6, seed=5))
    edits = list(m.fit_all(model, facts()))
    book = EditBook.of(model, edits)
    book = EditBook.load(book.save(folder / "book"))
    with book.apply(model) as steered:
        x = _logits(steered, facts()[0])
        g = steered.generate([facts()[0].rewrite_prompt], max_new_tokens=5)
    model.hf.generation_config.pad_token_id = 0
    with book.attach(model.hf, tokenizer=model.tokenizer):
        ids = torch.stack([model.encode([facts()[0].rewrite_prompt])[0]])
        y = model.hf(ids).logits[:, -1].cpu()
        z = model.hf.generate(ids, max_new_tokens=5, do_sample=False).tolist()
    return {"x": x, "g": g, "y": y, "z": z}


def _mega(**settings):
    def work(model, folder):
        m = MEGA(window=(5, 6), **settings).select(model, me.factworld.edits(6, seed=5))
        with m.apply(model, facts()[0]) as steered:
            return {"x": _logits(steered, facts()[0])}
    return work


def sake(model, folder):
    m = me.editors.by_name("sake")
    m = me.editors.select(m, model, me.factworld.edits(6, seed=5)) if hasattr(me.editors, "select") else m.select(model, me.factworld.edits(6, seed=5))
    with m.apply(model, facts()) as steered:
        return {"x": _logits(steered, facts()[0])}


def several(model, folder):
    fact = facts()[0]
    f = FactEdit(fact.subject, fact.prompt, fact.target_new + " and " + facts()[1].target_new, fact.target_true, case_id="x", neighborhood_prompts=fact.neighborhood_prompts)
    e = MEGA(window=(5, 6), alpha=1.0, gate="always").fit(model, f)
    print("following", len(e.following))
    with MEGA(window=(5, 6), alpha=1.0, gate="always").apply(model, f) as s:
        return {"x": _logits(s, f), "g": s.generate([f.rewrite_prompt], max_new_tokens=6)}


def evaluation(model, folder):
    r = me.evaluate(model, me.editors.by_name("ft", layer=5, steps=3), facts(), families=("probability", "argmax", "token", "doubt", "subject", "generation"), progress=False)
    return {"s": r.summary()}


def saved(model, folder):
    import inspect
    e = me.editors.by_name("ft", layer=5, steps=3)
    with e.apply(model, facts()[0]) as edited:
        x = _logits(edited, facts()[0])
        change = WeightChange.between(model, edited) if hasattr(WeightChange, "between") else None
    return {"x": x, "c": [n for n in dir(WeightChange) if n[0] != "_"]}


def anatomy(model, folder):
    r = me.anatomy(model, facts(), editors=[me.editors.by_name("ft", layer=5, steps=3), MEGA(window=(5, 6), alpha=1.0, gate="always")], progress=False)
    from mechedit.anatomy.explain import explain
    return {"s": str(r)}


def explained(model, folder):
    import inspect
    from mechedit.anatomy.explain import explain
    print(inspect.signature(explain), inspect.signature(me.edit_contrast), inspect.signature(me.statement_contrast), inspect.signature(me.ripple))
    r = explain(model, me.editors.by_name("ft", layer=5, steps=3), facts()[0])
    me.edit_contrast(model, me.editors.by_name("ft", layer=5, steps=3), facts()[0])
    return {}


def faithful(model, folder):
    from mechedit.faithfulness.study import faithfulness
    r = faithfulness([model], me.factworld.edits(6, seed=3), ks=(1, 3), draws=1, mean_over=["Anna lives in", "The city of"], progress=False)
    return {"s": str(r)}


def ablation(model, folder):
    fact = facts()[0]
    a = me.attribute(model, fact.rewrite_prompt, fact.target_true, top_k=10)
    r = me.ablate(model, a, 3, draws=2)
    return {"r": str(r)}


def diagnosis(model, folder):
    return {"d": str(me.diagnose(model))}


WORK = {"attribution": attribution, "tolerance": tolerance, "suppress": suppress, "many": many, "circuit": circuit, "contrast": contrast,
  "ft": _edit("ft", layer=5, steps=3), "ft_l": _edit("ft_l", layer=5, steps=3), "lora": _edit("lora", steps=2), "ike": _edit("ike"),
  "rome": _cov("rome"), "memit": _cov("memit"), "alphaedit": _cov("alphaedit"), "mega": mega, "mahalanobis": _mega(gate="mahalanobis"), "hidden": _mega(gate="hidden"),
  "sake": sake, "several": several, "evaluation": evaluation, "saved": saved, "anatomy": anatomy, "explained": explained, "faithful": faithful, "ablation": ablation, "diagnosis": diagnosis}
