"""`xlprobe gradients`: a task's and an alignment objective's gradients, on the embedded languages or the user's."""

from __future__ import annotations

import argparse
from typing import Any

from experiments.cli.options import count
from experiments.cli.output import as_table, print_json
from reports.errors import InputError
from xlprobe.cli.options import command, load, pooling_argument, print_pages, read_data, write_page


def gradients(options: argparse.Namespace) -> None:
    """Cosine and norms of a task's and an alignment objective's gradients, with their yardsticks."""
    from xlprobe.probes.gradients import gradients as measure

    if options.objective in ("mlm", "tlm") and (options.layer is not None or options.pooling != "mean"):
        name = "pooling" if options.layer is None else "layer"
        raise InputError(f"{name}: {options.objective} looks at the LM head's words; expected none beside it")
    encoder = load(options)
    lab, pair = laboratory(options, encoder)
    if reason := lab.lacks(pair, options.task):
        raise InputError(f"task: {options.task} cannot be studied on {pair}: {reason}")
    source = lab.source(pair)
    probe = measure(
        encoder,
        task=lab.task_loss(encoder, options.task, source=source, progress=not options.quiet),
        alignment=lab.alignment_loss(encoder, pair, options.objective),
        target=lab.task_loss(encoder, options.task, pair=pair, source=source),
        shuffled=lab.alignment_loss(encoder, pair, options.objective, shuffled=True),
        progress=not options.quiet,
        provenance=encoder.provenance(data=lab.data, seeds={"laboratory": options.seed}),
    )
    if options.out is not None:
        probe.save(options.out)
    page = write_page(options.out)
    if options.json:
        cells = probe.cells.astype(object).where(probe.cells.notna(), None).to_dict("records")
        facts = {"n": probe.n, "loss": probe.loss, "first_order": probe.first_order.to_dict("records")}
        whole = next(cell for cell in cells if cell["scope"] == "encoder")
        print_json({"encoder": whole, **facts, "cells": cells, **page})
        return
    print(f"{probe.task}; {probe.alignment}")
    columns = ["layer", "group", "cosine", "low", "high", "corrected", "task_halves", "align_halves", "ratio"]
    for scope in ("encoder", "whole", "layer", "group"):
        print(f"\n{scope}\n{as_table(probe.scope(scope)[columns])}")
    print_pages(page)


def laboratory(options: argparse.Namespace, encoder: Any) -> tuple[Any, str]:
    """The laboratory of --data, or of the embedded languages, and the pair.

    Raises:
        InputError: A pair that it lacks, or the embedded languages and an encoder that was not trained on them.
    """
    from dataclasses import replace

    from experiments.checkpoints import tokenizer_digest
    from xlprobe.encoders.encoder import load_encoder
    from xlprobe.transfer.file_lab import FileLab, FileSizes
    from xlprobe.transfer.laboratory import Sizes
    from xlprobe.transfer.world_lab import WorldLab

    lab: Any
    given = {"probe_batches": options.batches, "batch": options.batch, "head_steps": options.head_steps}
    given |= {"layer": options.layer, "pooling": options.pooling}
    given = {name: value for name, value in given.items() if value is not None}
    if options.data:
        text = read_data(options.data)
        sizes = FileSizes(held_out=text.n_held_out)
        lab = FileLab(encoder, text, replace(sizes, **given), seed=options.seed)
    else:
        world = encoder if encoder.name == "langworld" else load_encoder("langworld", device="cpu")
        if tokenizer_digest(encoder.tokenizer) != tokenizer_digest(world.tokenizer):
            raise InputError(
                f"data: {encoder.name} was not trained on the embedded languages, whose words are invented; give text "
                "of its own languages: --data FOLDER or --data RECIPE.toml, and --pair"
            )
        lab = WorldLab(encoder, replace(Sizes(), **given), seed=options.seed)
    pair = options.pair or lab.pairs[0]
    if not lab.accepts(pair):
        raise InputError(f"pair: expected one of {', '.join(lab.pairs)}, found {pair!r}")
    return lab, pair


def add(commands: Any) -> None:
    """Add `gradients` to the commands."""
    p = command(
        commands, "gradients", gradients, "xlprobe gradients --task pos --objective token --pair source-words"
    )
    p.add_argument("--task", choices=("pos", "topic"), default="pos")
    names = ("mlm", "sentence", "token", "tlm", "hictl", "hictl_sentence", "hictl_word")
    p.add_argument("--objective", choices=names, default="sentence")
    p.add_argument("--layer", type=int, help="that is aligned, 0: the embeddings (default: two thirds up)")
    pooling_argument(p, "of tokens, to the vectors that are aligned")
    p.add_argument("--data", help="folder with ud, sib200 and tatoeba, or a recipe with [languages]")
    p.add_argument("--pair", help="of --data, as ja-kk, or of the embedded languages (default: the first)")
    p.add_argument("--batches", type=count, help="of each loss (default 24)")
    p.add_argument("--batch", type=count, help="sentences of a batch (default 32, of --data 16)")
    p.add_argument(
        "--head-steps", type=count, help="training of the task's head (default 150, of --data 100)"
    )
    p.add_argument("--out", help="folder to save the result in")
