"""`xlprobe finetune`: a task learned in one language, scored in others, over several seeds."""

from __future__ import annotations

import argparse
from typing import Any

from experiments.cli.options import count
from experiments.cli.output import as_table, print_json
from reports.errors import InputError
from xlprobe.cli.align import layers
from xlprobe.cli.options import command, load, refuse_beside


def finetune(options: argparse.Namespace) -> None:
    """Fine-tunes on a task and scores it zero-shot in every test language."""
    from xlprobe.training.finetune import finetune_seeds
    from xlprobe.training.loop import Training

    training = Training(
        steps=options.steps, batch=options.batch, lr=options.lr, warmup=min(10, options.steps)
    )
    seeds = range(options.seed, options.seed + options.seeds)
    scores = finetune_seeds(
        load(options),
        read_task(options),
        seeds=tuple(seeds),
        training=training,
        freeze=options.freeze,
        progress=not options.quiet,
    )
    if options.out is not None:
        scores.save(options.out)
    if options.json:
        print_json(
            {"task": scores.task, "encoder": scores.encoder, "languages": scores.summary().to_dict("records")}
        )
        return
    print(as_table(scores.summary()))


def read_task(options: argparse.Namespace) -> Any:
    """The task of --train and --test files, or of the embedded languages.

    Raises:
        InputError: --train without --test, or --test without --train.
    """
    from xlprobe.data.corpora import load_conllu, load_sib200
    from xlprobe.data.tasks import Task
    from xlprobe.langworld.world import task

    refuse_beside(options, "train", needed_by=("test",), instead_of=())
    if options.train is None:
        return task(options.task, seed=options.seed)
    if not options.test:
        raise InputError("test: expected at least one LANGUAGE=FILE beside --train")
    read = load_conllu if options.task == "pos" else load_sib200
    tests = {name: read(file) for name, file in options.test}
    return Task("tagging" if options.task == "pos" else "classification", read(options.train), tests)


def language_file(text: str) -> tuple[str, str]:
    """A language and its file, from LANGUAGE=FILE."""
    name, equals, file = text.partition("=")
    if not (name and equals and file):
        raise argparse.ArgumentTypeError(f"expected LANGUAGE=FILE, found {text!r}")
    return name, file


def add(commands: Any) -> None:
    """Add `finetune` to the commands."""
    p = command(commands, "finetune", finetune, "xlprobe finetune --task pos --seeds 5 --json")
    p.add_argument("--task", choices=("pos", "topic"), default="pos")
    p.add_argument("--train", help="CoNLL-U (pos) or SIB-200 TSV (topic); default: the embedded languages")
    p.add_argument("--test", type=language_file, action="append", help="LANGUAGE=FILE, once a language")
    p.add_argument("--seeds", type=count, default=5, help="fine-tunings (default 5)")
    p.add_argument(
        "--freeze", type=layers, default=(), help="layers not to train, as 0,1,2 (0: the embeddings)"
    )
    p.add_argument("--steps", type=count, default=150)
    p.add_argument("--batch", type=count, default=32)
    p.add_argument("--lr", type=float, default=2e-3)
    p.add_argument("--out", help="folder to save the scores in")
