"""`xlprobe finetune`: a task learned in one language, scored in others, over several seeds."""

from __future__ import annotations

import argparse
from typing import Any

from experiments.cli.options import count
from experiments.cli.output import as_table, print_json
from reports.errors import InputError
from xlprobe.cli.align import objective
from xlprobe.cli.options import (
    command,
    layers,
    load,
    pooling_argument,
    print_pages,
    refuse_beside,
    training_arguments,
    write_page,
)

FILES = ("train", "dev", "align_source", "align_target")
TASKS = {
    "pos": "tagging",
    "topic": "classification",
    "tags": "tagging",
    "ner": "tagging",
    "texts": "classification",
}


def finetune(options: argparse.Namespace) -> None:
    """Fine-tunes on a task and scores it zero-shot in every test language."""
    from dataclasses import replace

    from xlprobe.training.defaults import task_training
    from xlprobe.training.finetune import finetune_seeds

    if options.pooling != "mean" and TASKS[options.task] == "tagging" and options.align_source is None:
        raise InputError(f"pooling: --task {options.task} asks words, not texts; expected none beside it")
    encoder, task = load(options), read_task(options)
    training = task_training(
        encoder,
        len(task.train),
        head_only=options.tune == "head",
        steps=options.steps,
        epochs=options.epochs,
        batch=options.batch,
        lr=options.lr,
        micro=options.micro,
    )
    scores = finetune_seeds(
        encoder,
        task,
        seeds=tuple(range(options.seed, options.seed + options.seeds)),
        training=training,
        alignment=read_joint(options),
        train=options.tune,
        freeze=options.freeze,
        pooling=options.pooling,
        dev=None if options.dev is None else reader(options)(options.dev),
        metric=options.metric,
        check_every=options.check_every,
        patience=options.patience,
        models=options.save_model,
        progress=not options.quiet,
    )
    if options.out is not None:
        data = {name: value for name in FILES if (value := getattr(options, name)) is not None}
        seeds = {"first": options.seed, "n": options.seeds}
        replace(scores, provenance=encoder.provenance(data=data, seeds=seeds)).save(options.out)
    page = write_page(options.out)
    if options.json:
        kept = {} if options.save_model is None else {"models": options.save_model}
        rows = scores.summary().to_dict("records")
        print_json({"task": scores.task, "encoder": scores.encoder, "languages": rows, **kept, **page})
        return
    print(as_table(scores.summary().drop(columns="missing")))
    print_pages(page if options.save_model is None else {"models": options.save_model, **page})


def reader(options: argparse.Namespace) -> Any:
    """What reads a file of the task.

    Raises:
        InputError: An option that the task does not take.
    """
    from functools import partial

    from xlprobe.data.corpora import load_conllu, load_sib200
    from xlprobe.data.formats import load_iob2, load_tags, load_texts

    takes = {"tags": ("column",), "texts": ("text", "label", "second")}.get(options.task, ())
    for name in ("column", "text", "label", "second"):
        if getattr(options, name) is not None and name not in takes:
            raise InputError(f"{name}: --task {options.task} takes none; expected --task tags or texts")
    named = {name: value for name in takes if (value := getattr(options, name)) is not None}
    of: dict[str, Any] = {
        "pos": load_conllu,
        "topic": load_sib200,
        "ner": load_iob2,
        "tags": load_tags,
        "texts": load_texts,
    }
    return partial(of[options.task], **named)


def read_task(options: argparse.Namespace) -> Any:
    """The task of --train and --test files, or of the embedded languages.

    Raises:
        InputError: --train without --test, --test without --train, or a task that the embedded languages lack.
    """
    from xlprobe.data.tasks import Task
    from xlprobe.langworld.world import task

    refuse_beside(options, "train", needed_by=("test", "dev"), instead_of=())
    read = reader(options)
    if options.train is None:
        if options.task not in ("pos", "topic"):
            raise InputError(
                f"train: expected a file of the task {options.task}; the embedded languages have none"
            )
        return task(options.task, seed=options.seed)
    if not options.test:
        raise InputError("test: expected at least one LANGUAGE=FILE beside --train")
    tests = {name: read(file) for name, file in options.test}
    kind: Any = TASKS[options.task]
    return Task(kind, read(options.train), tests)


def read_joint(options: argparse.Namespace) -> Any:
    """The alignment of --align-source, trained beside the task; None without it.

    Raises:
        InputError: An option of it without --align-source.
    """
    from xlprobe.data.corpora import load_bitext
    from xlprobe.training.finetune import Joint

    rest = ("align_target", "align_objective", "weight", "schedule", "aggregator", "align_layer")
    if options.align_source is None:
        for name in rest:
            if getattr(options, name) is not None:
                shown = name.replace("_", "-")
                raise InputError(
                    f"{shown}: --{shown} says nothing without --align-source; name the pairs too"
                )
        return None
    return Joint(
        load_bitext(options.align_source, options.align_target),
        options.align_objective or "sentence",
        weight=options.weight,
        schedule=options.schedule or "during",
        aggregator=options.aggregator or "sum",
        layer=options.align_layer,
        pooling=options.pooling,
    )


def language_file(text: str) -> tuple[str, str]:
    """A language and its file, from LANGUAGE=FILE."""
    name, equals, file = text.partition("=")
    if not (name and equals and file):
        raise argparse.ArgumentTypeError(f"expected LANGUAGE=FILE, found {text!r}")
    return name, file


def add(commands: Any) -> None:
    """Add `finetune` to the commands."""
    p = command(commands, "finetune", finetune, "xlprobe finetune --task pos --seeds 5 --json")
    p.add_argument(
        "--task",
        choices=tuple(TASKS),
        default="pos",
        help="pos, tags (CoNLL-U), topic (SIB-200), ner (IOB2), texts (TSV or data set); default pos",
    )
    p.add_argument("--train", help="file of the task; default: the embedded languages")
    p.add_argument("--test", type=language_file, action="append", help="LANGUAGE=FILE, once a language")
    p.add_argument("--dev", help="file by which the best state is kept")
    p.add_argument(
        "--metric", default="accuracy", help="of --dev: accuracy, macro_f1, span_f1 (default accuracy)"
    )
    p.add_argument(
        "--check-every", type=count, default=50, help="steps between two checks of --dev (default 50)"
    )
    p.add_argument("--patience", type=count, default=3, help="checks without a rise that end it (default 3)")
    p.add_argument("--column", help="of --task tags: xpos, deprel, feats:Case, ... (default upos)")
    p.add_argument("--text", help="of --task texts: the text's column (default text)")
    p.add_argument("--label", help="of --task texts: the label's column (default label)")
    p.add_argument("--second", help="of --task texts: the column of a pair's second text")
    p.add_argument("--tune", choices=("all", "head"), default="all", help="what is trained (default all)")
    pooling_argument(p, "of a text, and of what is aligned")
    p.add_argument("--seeds", type=count, default=5, help="fine-tunings (default 5)")
    p.add_argument(
        "--freeze", type=layers, default=(), help="layers not to train, as 0,1,2 (0: the embeddings)"
    )
    training_arguments(
        p, "150 steps of 32 at 2e-3 for a small encoder, 3 epochs at 5e-5 or 2e-5 for a large one"
    )
    p.add_argument(
        "--align-source", help="pairs that are aligned beside the task, as `xlprobe align --source`"
    )
    p.add_argument("--align-target", help="the same sentences in the other language")
    p.add_argument(
        "--align-objective", type=objective, help="as `xlprobe align --objective` (default sentence)"
    )
    p.add_argument("--align-layer", type=int, help="that is aligned (default: two thirds up)")
    p.add_argument("--weight", type=float, help="of the alignment's loss (default 0.1)")
    p.add_argument("--schedule", choices=("during", "alternate"), help="both losses a step, or in turns")
    p.add_argument(
        "--aggregator", choices=("sum", "upgrad", "pcgrad", "cagrad"), help="of both losses (default sum)"
    )
    p.add_argument("--save-model", help="folder to keep the models in, one a seed (`TaskModel.load`)")
    p.add_argument("--out", help="folder to save the scores in")
