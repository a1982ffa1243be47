"""What runs on another device as on the CPU: each piece takes a model, or an encoder, and gives values to compare."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

import mechedit as me
import xlprobe
from mechedit.anatomy.checkpoint_contrast import contrast_checkpoints
from mechedit.anatomy.explain import explain
from mechedit.attribution.statement import statement_contrast
from mechedit.diagnose import PROBES
from mechedit.editors import FT, MEGA, SAKE, EditBook, LoRA, WeightChange, by_name
from mechedit.editors.weights.corpus import text_corpus
from mechedit.editors.weights.covariance import covariances
from mechedit.evaluation.ripple import ripple
from mechedit.factworld.export import ripple_tests
from mechedit.faithfulness.study import faithfulness
from mechedit.models.hooked import HookedModel
from xlprobe.encoders.encoder import Encoder
from xlprobe.langworld.world import bitext, task
from xlprobe.probes.gradient_stream import Loss
from xlprobe.training.alignment import AlignmentLoss
from xlprobe.training.loop import Training
from xlprobe.training.task_model import TaskModel
from xlprobe.transfer.laboratory import Sizes
from xlprobe.transfer.study import StudyConfig, transfer_study
from xlprobe.transfer.world_lab import WorldLab

__all__ = ["DECODER", "ENCODER", "SPREAD", "values"]

FACTS = me.factworld.edits(2, seed=3)
FACT = FACTS[0]
FEW = Training(steps=2, batch=4, lr=1e-3)
WINDOW = MEGA(window=(5, 6), rank=0, alpha=1.0, gate="always")
BRIEF_FT = FT(layer=5, steps=2)


def values(result: Any) -> dict[str, Any]:
    """A result's frames, tensors and numbers by name."""
    assert is_dataclass(result)
    named = {field.name: getattr(result, field.name) for field in fields(result)}
    return {name: value for name, value in named.items() if isinstance(value, pd.DataFrame | Tensor | float)}


def says(model: HookedModel) -> Tensor:
    return model.logits([FACT.rewrite_prompt, *FACT.neighborhood_prompts[:2]]).cpu()


# -- mechedit ----------------------------------------------------------------------------------------------------


def attribute(**options: Any) -> Callable[[HookedModel, Path], Any]:
    def work(model: HookedModel, folder: Path) -> Any:
        attr = me.attribute(model, FACT.rewrite_prompt, FACT.target_true, top_k=8, **options)
        return values(attr)

    return work


def attribute_many(model: HookedModel, folder: Path) -> Any:
    prompts, targets = [fact.rewrite_prompt for fact in FACTS], [fact.target_true for fact in FACTS]
    many = me.attribute_many(model, prompts, targets, top_k=4, progress=False)
    return {str(i): values(attr) for i, attr in enumerate(many)}


def circuit(model: HookedModel, folder: Path) -> Any:
    attr = me.attribute(model, FACT.rewrite_prompt, FACT.target_true, top_k=8)
    return values(me.head_attention(model, attr, k=4)) | {
        "reads": attr.reads,
        "ablated": values(me.ablate(model, attr, 3, draws=2)),
    }


def contrast(model: HookedModel, folder: Path) -> Any:
    return values(me.contrast(model, FACT.rewrite_prompt, FACT.target_new, FACT.target_true, top_k=8))


def outcome_contrast(model: HookedModel, folder: Path) -> Any:
    pairs = [(fact.rewrite_prompt, word) for fact in FACTS for word in (fact.target_true, fact.target_new)]
    results = [me.attribute(model, *pair, top_k=4) for pair in pairs]
    return values(me.outcome_contrast(results, [True, False, True, False]))


def statements(model: HookedModel, folder: Path) -> Any:
    return values(statement_contrast(model, me.factworld.edits(3, seed=1)))


def checkpoints(model: HookedModel, folder: Path) -> Any:
    with BRIEF_FT.apply(model, FACT) as edited:
        edited.save_pretrained(folder / "edited")
    contrasted = contrast_checkpoints(model, folder / "edited", FACT, top_k=4, neighbours=1)
    return {name: value for name, value in values(contrasted).items() if isinstance(value, pd.DataFrame)}


def edit(make: Callable[[HookedModel], Any]) -> Callable[[HookedModel, Path], Any]:
    def work(model: HookedModel, folder: Path) -> Any:
        editor = make(model)
        with editor.apply(model, FACT) as edited:
            alone = says(edited)
        with editor.apply(model, FACTS) as edited:
            return {"alone": alone, "together": says(edited)}

    return work


def of_text(name: str, **settings: Any) -> Callable[[HookedModel], Any]:
    """ROME and its kind, with the second moments of a little text."""

    def make(model: HookedModel) -> Any:
        texts = [fact.rewrite_prompt for fact in me.factworld.edits(8, seed=4)]
        layers = (1,) if name == "rome" else (3, 4)  # of a model on two devices: below, or one on each
        moments = covariances(model, text_corpus(texts, source="prompts"), layers=layers, progress=False)
        if name == "rome":
            settings.update(layer=1, covariance=moments[1])
        else:
            settings.update(layers=layers, covariances=moments)
        return by_name(name, steps=2, contexts=((2, 2),), **settings)

    return make


def chosen(editor: MEGA | SAKE) -> Callable[[HookedModel], Any]:
    return lambda model: editor.select(model, me.factworld.edits(3, seed=5))


def saved_change(model: HookedModel, folder: Path) -> Any:
    with BRIEF_FT.apply(model, FACT) as edited:
        edited.change.save(folder / "change")
    with WeightChange.load(folder / "change", model).apply(model) as edited:
        return {"logits": says(edited)}


def book(model: HookedModel, folder: Path) -> Any:
    """An edit under a gate that reads states, and one that steers two tokens of its object: saved, read, attached."""
    several = replace(FACTS[1], target_new="Delta Press")
    hidden = replace(WINDOW, gate="hidden", gate_layer=1, threshold=1.0)
    edits = [hidden.fit(model, FACT), WINDOW.fit(model, several)]
    assert edits[1].following
    kept = EditBook.load(EditBook.of(model, edits).save(folder / "book"))
    prompts = [FACT.rewrite_prompt, several.rewrite_prompt]
    with kept.apply(model) as steered:
        texts, logits = steered.generate(prompts, max_new_tokens=3), says(steered)
    ids = torch.stack([model.encode([FACT.rewrite_prompt])[0]])
    with kept.attach(model.hf, tokenizer=model.tokenizer), torch.no_grad():
        attached = model.hf(ids).logits[:, -1].cpu()
    return {"logits": logits, "attached": attached, "texts": texts}


def evaluate(model: HookedModel, folder: Path) -> Any:
    families = ("probability", "argmax", "token", "doubt", "subject")
    return {"summary": me.evaluate(model, BRIEF_FT, [FACT], families=families, progress=False).summary()}


def rippled(model: HookedModel, folder: Path) -> Any:
    return values(ripple(model, BRIEF_FT, [replace(FACT, ripple=ripple_tests(FACT)[:4])], progress=False))


def anatomy(model: HookedModel, folder: Path) -> Any:
    return values(me.anatomy(model, FACTS, editors=[BRIEF_FT], top_k=4, progress=False))


def explained(model: HookedModel, folder: Path) -> Any:
    return values(explain(model, BRIEF_FT, FACT, neighbours=1, max_new_tokens=2))


def faithful(model: HookedModel, folder: Path) -> Any:
    known = me.factworld.edits(2, seed=3)
    study = faithfulness([model], known, ks=(2,), draws=1, mean_over=["Anna lives in"], progress=False)
    return values(study)


def diagnose(model: HookedModel, folder: Path) -> Any:
    return {"checks": me.diagnose(model, PROBES[::2]).checks[["check", "must", "ok"]]}


DECODER: dict[str, Callable[[HookedModel, Path], Any]] = {
    "attribute, certified": attribute(),
    "attribute, exhaustive, all tokens": attribute(method="exhaustive", tokens="sum"),
    "attribute, suppress, no biases": attribute(sign="suppress", biases="drop"),
    "attribute_many": attribute_many,
    "head_attention, reads, ablate": circuit,
    "contrast": contrast,
    "outcome_contrast": outcome_contrast,
    "statement_contrast": statements,
    "contrast_checkpoints": checkpoints,
    "ft": edit(lambda model: BRIEF_FT),
    "ft_l": edit(lambda model: by_name("ft_l", layer=5, steps=2)),
    "lora": edit(lambda model: LoRA(steps=2)),
    "ike": edit(lambda model: by_name("ike")),
    "rome": edit(of_text("rome")),
    "memit": edit(of_text("memit")),
    "alphaedit": edit(of_text("alphaedit")),
    "mega": edit(chosen(MEGA(window=(5, 6), rank=0))),
    "mega, hidden gate": edit(chosen(MEGA(window=(5, 6), rank=0, alpha=1.0, gate="mahalanobis"))),
    "sake": edit(chosen(SAKE())),
    "WeightChange": saved_change,
    "EditBook, attach, an object of several tokens": book,
    "evaluate": evaluate,
    "ripple": rippled,
    "anatomy": anatomy,
    "explain": explained,
    "faithfulness": faithful,
    "diagnose": diagnose,
}


#: What always runs on a model whose layers lie on two devices, by model: one with grouped heads, a gated MLP and rotary
#: positions beside GPT-2. The rest of `DECODER` does among the slow tests.
SPREAD = {
    "factworld": [
        "attribute, certified",
        "EditBook, attach, an object of several tokens",
        "ft",
        "lora",
        "rome",
        "faithfulness",
    ],
    "factworld-llama": [
        "attribute, certified",
        "attribute, suppress, no biases",
        "attribute_many",
        "head_attention, reads, ablate",
        "contrast",
        "EditBook, attach, an object of several tokens",
        "ike",
        "memit",
        "mega",
    ],
}


# -- xlprobe -----------------------------------------------------------------------------------------------------


def weights(encoder: Encoder) -> Tensor:
    return torch.cat([weight.detach().cpu().flatten() for weight in encoder.model.parameters()])


def align(objective: str) -> Callable[[Encoder, Path], Any]:
    """Trained, stopped and taken up again from its folder."""

    def work(encoder: Encoder, folder: Path) -> Any:
        options: dict[str, Any] = {"objective": objective, "training": FEW, "progress": False}
        trained = xlprobe.align(encoder, bitext("words", 8), folder=folder / "run", **options)
        again = xlprobe.align(encoder, bitext("words", 8), folder=folder / "run", **options)
        return {"weights": weights(trained), "again": weights(again)}

    return work


def distances(encoder: Encoder, folder: Path) -> Any:
    return values(xlprobe.distances(encoder, bitext("words", 12), progress=False))


def gradients(encoder: Encoder, folder: Path) -> Any:
    rows = list(torch.arange(16).split(4))
    of_task = TaskModel(encoder, task("pos", n_train=16, n_test=4), seed=0)
    losses: dict[str, Any] = {
        "task": Loss("task", rows, of_task, (of_task.head,)),
        "alignment": Loss("alignment", rows, AlignmentLoss(encoder, bitext("words", 16), "sentence")),
    }
    return values(xlprobe.gradients(encoder, **losses, steps=(1e-3,), progress=False))


def finetune(kind: Any, **options: Any) -> Callable[[Encoder, Path], Any]:
    def work(encoder: Encoder, folder: Path) -> Any:
        plan = task(kind, n_train=12, n_test=6)
        model = xlprobe.finetune(encoder, plan, training=FEW, progress=False, **options)
        model.save(folder / "model")
        again = TaskModel.load(folder / "model", device=str(encoder.device))
        scores = {language: again.score(corpus) for language, corpus in plan.test.items()}
        return {"weights": weights(model.encoder), "head": model.head.weight.detach().cpu(), "scores": scores}

    return work


def studied(encoder: Encoder, folder: Path) -> Any:
    sizes = Sizes(16, 16, 8, 8, align_steps=1, finetune_steps=1, head_steps=1, probe_batches=2, batch=8)
    plan = StudyConfig(("source-half",), ("sentence",), ("topic",), seeds=1, shuffled=False)
    return values(transfer_study(WorldLab(encoder, sizes), plan, folder / "study", progress=False))


def retrieval(encoder: Encoder, folder: Path) -> Any:
    return {"retrieval": xlprobe.retrieval(encoder, bitext("words", 12))}


ENCODER: dict[str, Callable[[Encoder, Path], Any]] = {
    **{
        f"align, {name}": align(name)
        for name in ("sentence", "token", "mlm", "tlm", "l2", "hictl", "hictl_word")
    },
    "distances": distances,
    "retrieval": retrieval,
    "gradients": gradients,
    "transfer_study": studied,
    "finetune, pos": finetune("pos"),
    "finetune, topic, head alone": finetune("topic", train="head"),
    "finetune, joint": finetune("pos", alignment=xlprobe.Joint(bitext("words", 8), "sentence")),
}
