"""`xlprobe distances`: how close two languages lie in an encoder."""

from __future__ import annotations

import argparse
from typing import Any

from experiments.cli.options import count
from experiments.cli.output import as_table, print_json
from xlprobe.cli.options import (
    command,
    layers,
    load,
    names,
    pooling_argument,
    print_pages,
    read_parallel,
    write_page,
)

TEXT = ("source", "target", "links", "data", "pair")


def distances(options: argparse.Namespace) -> None:
    """Distances of two languages by layer, on held-out parallel text."""
    from xlprobe.probes.distances import distances as measure
    from xlprobe.probes.similarity import METRICS

    parallel, encoder = read_parallel(options), load(options)
    data = {name: str(getattr(options, name)) for name in TEXT if getattr(options, name) is not None}
    measured = measure(
        encoder,
        parallel,
        metrics=options.metrics or METRICS,
        layers=options.layers,
        pooling=options.pooling,
        max_pairs=options.max_pairs,
        seed=options.seed,
        progress=not options.quiet,
        provenance=encoder.provenance(data=data, seeds={"sample": options.seed}),
    )
    if options.out is not None:
        measured.save(options.out)
    page = write_page(options.out)
    if options.json:
        print_json(
            {
                "encoder": measured.encoder,
                "n_cut": measured.n_cut,
                "n_left_out": measured.n_left_out,
                "pooling": measured.pooling,
                "layers": measured.layers.to_dict("records"),
                **page,
            }
        )
        return
    print(as_table(measured.layers.drop(columns="missing")))
    print_pages(page)


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
    p.add_argument(
        "--layers", type=layers, help="that are measured, as 0,8 (0: the embeddings; default: all)"
    )
    pooling_argument(p, "of tokens, to the vector of a sentence")
    p.add_argument("--max-pairs", type=count, default=2000, help="a sample of as many pairs (default 2000)")
    p.add_argument("--out", help="folder to save the result in")
