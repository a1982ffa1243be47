"""`xlprobe distances`: how close two languages lie in an encoder."""

from __future__ import annotations

import argparse
from typing import Any

from experiments.cli.options import count
from experiments.cli.output import as_table, print_json
from xlprobe.cli.options import command, load, names, read_parallel


def distances(options: argparse.Namespace) -> None:
    """Distances of two languages by layer, on held-out parallel text."""
    from xlprobe.probes.distances import distances as measure
    from xlprobe.probes.similarity import METRICS

    parallel = read_parallel(options)
    measured = measure(
        load(options),
        parallel,
        metrics=options.metrics or METRICS,
        max_pairs=options.max_pairs,
        seed=options.seed,
        progress=not options.quiet,
    )
    if options.out is not None:
        measured.save(options.out)
    if options.json:
        print_json(
            {
                "encoder": measured.encoder,
                "n_cut": measured.n_cut,
                "n_left_out": measured.n_left_out,
                "layers": measured.layers.to_dict("records"),
            }
        )
        return
    print(as_table(measured.layers))


def add(commands: Any) -> None:
    """Add `distances` to the commands."""
    example = "xlprobe distances --encoder xlm-roberta-base --source pud.en --target pud.de --json"
    p = command(commands, "distances", distances, example)
    p.add_argument("--source", help="text file, one sentence a line; or CoNLL-U, matched by sent_id")
    p.add_argument("--target", help="the same sentences in the other language")
    p.add_argument("--data", help="instead: folder with ud, sib200 and tatoeba, or a recipe with [languages]")
    p.add_argument("--pair", help="of --data, as ja-kk (default: its first)")
    p.add_argument("--links", help="word alignments in Pharaoh format, for the token level")
    p.add_argument(
        "--metrics",
        type=names,
        help="as cosine,cka,csls_retrieval,margin_retrieval (default: all but CSLS, margin)",
    )
    p.add_argument("--max-pairs", type=count, default=2000, help="a sample of as many pairs (default 2000)")
    p.add_argument("--out", help="folder to save the result in")
