"""`mechedit covariance`: the covariance of a layer's keys over a text, which ROME and MEMIT need."""

from __future__ import annotations

import argparse
from typing import Any

from experiments.cli.options import count
from experiments.cli.output import print_json
from mechedit.cli.options import command, layers
from mechedit.models.embedded import EMBEDDED
from reports.errors import InputError


def covariance(options: argparse.Namespace) -> None:
    """Computes C = E[k kᵀ] of layers over a text, and keeps it for the editors."""
    from mechedit.editors.weights.corpus import embedded_corpus, open_corpus
    from mechedit.editors.weights.covariance import covariances
    from mechedit.models.cache import cache_folder
    from mechedit.recipes.configured_model import load

    model = load(options)
    if options.text is None and options.model not in EMBEDDED:
        raise InputError(
            "text: expected a file, a folder or a datasets name; only the embedded models bring one"
        )
    corpus = embedded_corpus() if options.text is None else open_corpus(options.text)
    first, last = (0, model.shape.n_layers - 1) if options.layers == "auto" else options.layers
    matrices = covariances(
        model, corpus, layers=range(first, last + 1), tokens=options.tokens, progress=not options.quiet
    )
    rows = [
        {
            "layer": matrix.layer,
            "n_tokens": matrix.n_tokens,
            "neurons": len(matrix.moment),
            "condition": matrix.condition,
        }
        for matrix in matrices.values()
    ]
    if options.json:
        print_json({"model": model.name, "text": corpus.source, "cache": str(cache_folder()), "layers": rows})
        return
    print(f"{corpus.source}: {rows[0]['n_tokens']} tokens, kept in {cache_folder()}")
    for row in rows:
        print(f"layer {row['layer']}: {row['neurons']} neurons, condition {row['condition']:.2e}")
    if rows[0]["n_tokens"] < 10 * model.shape.d_mlp:
        print(f"few tokens for {model.shape.d_mlp} neurons: take ten times as many, or a longer text")


def add(commands: Any) -> None:
    """`covariance`."""
    p = command(
        commands,
        "covariance",
        covariance,
        "mechedit covariance --model gpt2-xl --text wikipedia.txt --layers 13-17",
    )
    p.add_argument("--text", help="a UTF-8 file, a folder of them, or a datasets name, as owner/name:split")
    p.add_argument(
        "--layers", type=layers, default="auto", help="a layer, or FIRST-LAST, as 13-17 (default: all)"
    )
    p.add_argument("--tokens", type=count, help="take the text's first tokens only (default: all)")
