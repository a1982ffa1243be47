"""`xlprobe align`: an encoder aligned on translation pairs, saved as a checkpoint."""

from __future__ import annotations

import argparse
from typing import Any

from experiments.cli.options import count
from experiments.cli.output import print_json
from reports.errors import InputError
from xlprobe.cli.options import (
    command,
    layers,
    load,
    names,
    pooling_argument,
    print_pages,
    refuse_beside,
    training_arguments,
    write_page,
)

LANGUAGE, PAIRS = "words", 1600  # without --source


def align(options: argparse.Namespace) -> None:
    """Aligns an encoder on translation pairs and saves it."""
    import json
    from pathlib import Path

    from reports.files import write
    from xlprobe.training.alignment import align as run
    from xlprobe.training.alignment import retrieval
    from xlprobe.training.defaults import align_training

    out = Path(options.out)
    refuse_beside(
        options,
        "source",
        needed_by=("target", "links", "columns", "languages"),
        instead_of=("language", "pairs"),
    )
    if (out / "model").exists():
        raise InputError(f"out: {out / 'model'} holds a finished encoder; name another folder or remove it")
    encoder = load(options)
    pairs = read_pairs(options)
    held_out, kept = pairs[: options.held_out], pairs[options.held_out :]
    training = align_training(
        encoder,
        len(kept),
        steps=options.steps,
        epochs=options.epochs,
        batch=options.batch,
        lr=options.lr,
        seed=options.seed,
        precision=options.precision,
        micro=options.micro,
    )
    aligned = run(
        encoder,
        kept,
        objective=options.objective,
        training=training,
        layer=options.layer,
        pooling=options.pooling,
        freeze=options.freeze,
        held_out=held_out if options.early_stop else None,
        folder=out,
        progress=not options.quiet,
    )
    where = {"layer": options.layer, "pooling": options.pooling, "progress": not options.quiet}
    before, after = retrieval(encoder, held_out, **where), retrieval(aligned, held_out, **where)
    aligned.save(out / "model")
    scores: dict[str, Any] = {"before": before, "after": after, "n": len(held_out)}
    write(out / "retrieval.json", json.dumps(scores) + "\n")  # for the page
    page = write_page(options.out)
    if options.json:
        found = scores | {"model": str(out / "model")}
        print_json({"objective": options.objective, "retrieval": found, **page})
        return
    print(f"weak retrieval on {len(held_out)} held-out pairs: {before:.3f} before, {after:.3f} after")
    print_pages({"encoder": str(out / "model"), **page})


def read_pairs(options: argparse.Namespace) -> Any:
    """The bitext of --source and --target, or of the embedded --language.

    Raises:
        InputError: There are no more pairs than --held-out takes.
    """
    from xlprobe.data.corpora import load_bitext
    from xlprobe.langworld.world import bitext

    if options.source is None:
        n = (options.pairs or PAIRS) + options.held_out
        pairs = bitext(options.language or LANGUAGE, n, seed=options.seed)
    else:
        pairs = load_bitext(
            options.source,
            options.target,
            columns=options.columns,
            languages=options.languages,
            links=options.links,
            base=options.base,
            possible=not options.sure,
            unique=options.unique,
        )
    if len(pairs) <= options.held_out:
        raise InputError(f"held-out: expected fewer than the {len(pairs)} pairs, found {options.held_out}")
    return pairs


def objective(text: str) -> dict[str, float]:
    """Weights of objectives, from NAME or NAME=WEIGHT,NAME=WEIGHT."""
    weights: dict[str, float] = {}
    for part in text.split(","):
        name, _, weight = part.partition("=")
        weights[name.strip()] = float(weight or 1.0)
    return weights


def add(commands: Any) -> None:
    """Add `align` to the commands."""
    p = command(
        commands,
        "align",
        align,
        "xlprobe align --language words --objective sentence=1,mlm=0.5 --out runs/aligned",
    )
    p.add_argument(
        "--objective",
        type=objective,
        default={"sentence": 1.0},
        help="mlm, sentence, token, tlm, hictl, hictl_sentence, hictl_word, l2; or a=1,b=0.5",
    )
    p.add_argument("--source", help="text file, TSV, `a ||| b`, TMX or Moses prefix; .gz too")
    p.add_argument("--target", help="the same sentences in the other language")
    p.add_argument("--columns", type=names, help="of a TSV: names, or numbers from 1, as 1,3")
    p.add_argument("--languages", type=names, help="of a TMX or Moses pair, as en,de")
    p.add_argument("--links", help="word alignments in Pharaoh format (default: the encoder's own)")
    p.add_argument("--base", type=int, choices=(0, 1), default=0, help="first word of --links (default 0)")
    p.add_argument("--sure", action="store_true", help="leave possible links (1?2, 1p2) out")
    p.add_argument("--unique", action="store_true", help="leave pairs out that occur again")
    p.add_argument("--language", help="of the embedded ones, without --source (default words)")
    p.add_argument("--pairs", type=count, help="of the embedded language (default 1600)")
    p.add_argument(
        "--held-out", type=count, default=200, help="first pairs, kept for retrieval (default 200)"
    )
    p.add_argument("--early-stop", action="store_true", help="stop when held-out retrieval rises no more")
    p.add_argument(
        "--freeze", type=layers, default=(), help="layers not to train, as 0,1,2 (0: the embeddings)"
    )
    training_arguments(
        p, "80 steps of 24 pairs at 2e-3 for a small encoder, one epoch of 64 at 2e-5 for a large one"
    )
    p.add_argument("--layer", type=int, help="that is aligned, 0: the embeddings (default: two thirds up)")
    pooling_argument(p, "of tokens, to the vectors that are aligned")
    p.add_argument("--precision", choices=("no", "bf16", "fp16"), default="no")
    p.add_argument(
        "--out", required=True, help="folder for checkpoint and encoder; the same command again goes on"
    )
