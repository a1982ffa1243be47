"""`xlprobe gradients`: a task's and an alignment objective's gradients on the embedded languages."""

from __future__ import annotations

import argparse
from typing import Any

from experiments.cli.output import as_table, print_json
from xlprobe.cli.options import command, load


def gradients(options: argparse.Namespace) -> None:
    """Cosine and norms of a task's and an alignment objective's gradients, with their yardsticks."""
    from xlprobe.probes.gradients import gradients as measure
    from xlprobe.transfer.world_lab import WorldLab

    encoder = load(options)
    lab = WorldLab(encoder, seed=options.seed)
    probe = measure(
        encoder,
        task=lab.task_loss(encoder, options.task),
        alignment=lab.alignment_loss(encoder, options.pair, options.objective),
        target=lab.task_loss(encoder, options.task, pair=options.pair),
        shuffled=lab.alignment_loss(encoder, options.pair, options.objective, shuffled=True),
        progress=not options.quiet,
    )
    if options.out is not None:
        probe.save(options.out)
    if options.json:
        cells = probe.cells.astype(object).where(probe.cells.notna(), None).to_dict("records")
        facts = {"n": probe.n, "loss": probe.loss, "first_order": probe.first_order.to_dict("records")}
        print_json({"encoder": probe.encoder, **facts, "cells": cells})
        return
    columns = ["layer", "group", "cosine", "low", "high", "corrected", "task_halves", "align_halves", "ratio"]
    for scope in ("encoder", "whole", "layer", "group"):
        print(f"\n{scope}\n{as_table(probe.scope(scope)[columns])}")


def add(commands: Any) -> None:
    """Add `gradients` to the commands."""
    p = command(
        commands, "gradients", gradients, "xlprobe gradients --task pos --objective token --pair source-words"
    )
    p.add_argument("--task", choices=("pos", "topic"), default="pos")
    p.add_argument("--objective", choices=("mlm", "sentence", "token", "tlm"), default="sentence")
    p.add_argument("--pair", default="source-words", help="of the embedded languages (default source-words)")
    p.add_argument("--out", help="folder to save the result in")
