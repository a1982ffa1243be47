"""`mechedit attribute`: NLKA of one target after one prompt."""

from __future__ import annotations

import argparse
from typing import Any

from mechedit.cli.options import command, load, top_k
from mechedit.cli.output import as_table, print_json


def attribute(options: argparse.Namespace) -> None:
    """NLKA of one target after one prompt."""
    import mechedit as me
    from mechedit.attribution import attribution_json

    attr = me.attribute(
        load(options),
        options.prompt,
        options.target,
        top_k=options.top_k,
        sign=options.sign,
        biases=options.biases,
        method=options.method,
    )
    if options.out is not None:
        attr.save(options.out)
    if options.json:
        print_json(attribution_json(attr))
        return
    print(
        f"log p({attr.target_token!r}) = {attr.logp:.4f} nats; the account misses it by {attr.completeness_gap:.1e}"
    )
    for unit in ("layers", "heads", "mlp_neurons", "attn_neurons"):
        print(f"\n{unit}\n{as_table(attr.top(10, unit))}")


def add(commands: Any) -> None:
    """`attribute`."""
    p = command(
        commands,
        "attribute",
        attribute,
        'mechedit attribute --prompt "The capital of France is" --target Paris',
    )
    p.add_argument("--prompt", required=True)
    p.add_argument("--target", required=True, help="scored for its first token behind the prompt")
    p.add_argument("--top-k", type=top_k, default=300, help="neurons of each kind, or all (default 300)")
    p.add_argument("--sign", choices=("promote", "suppress"), default="promote")
    p.add_argument(
        "--method",
        choices=("certified", "exhaustive"),
        default="certified",
        help="the same ranking by bounds, or by scoring every neuron",
    )
    p.add_argument("--biases", choices=("keep", "drop"), default="keep", help="drop reproduces the reference")
    p.add_argument("--out", help="folder to save the result in")
