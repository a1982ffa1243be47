"""What a node or an edge of a circuit says: its two lines in the picture, and everything where it is asked for."""

from __future__ import annotations

import math
import re

from reports.graph import Edge, Node
from reports.text import clip, visible

__all__ = ["edge_width", "label", "lines", "number", "read_share", "sign", "size", "story"]


def label(node: Node) -> str:
    """A node's label as it is shown; spaces are marked in what is a token."""
    return visible(node.label, spaces=node.kind in ("token", "target"))


def lines(node: Node, *, short: bool = False) -> tuple[str, str]:
    """The two lines in a node's box; the second may be empty.

    Args:
        node: The node.
        short: For a narrow picture: without the kind, which the row's name and the box tell, and two decimals.
    """
    if node.kind == "token":
        return clip(label(node), 16), ""
    if node.kind == "target":
        return clip(label(node), 40), f"log p {number(node.score)}"
    if short:
        name = re.sub(r"^(neuron|query|value|head) (?=\d)", "", label(node))
        first = f" {clip(visible(node.promotes[0], spaces=True), 9)}" if node.promotes else ""
        return clip(name, 24), number(node.score, 2) + first
    first = f" → {clip(visible(node.promotes[0], spaces=True), 12)}" if node.promotes else ""
    return clip(label(node), 40), number(node.score) + first


def story(node: Node) -> str:
    """All that is known of a node, in one line."""
    parts = [label(node)]
    if node.kind != "token":
        parts.append(f"score {number(node.score)} nats")
    if node.pos is not None:
        parts.append(f"position {node.pos}")
    if node.promotes:
        parts.append("promotes " + ", ".join(visible(token, spaces=True) for token in node.promotes[:10]))
    return "; ".join(parts)


def number(score: float, digits: int = 3) -> str:
    """A score with its sign and so many decimals; "undefined" where it is not finite."""
    return f"{score:+.{digits}f}".replace("-", "−") if math.isfinite(score) else "undefined"


def sign(score: float) -> str:
    """The name of the colour of a score's sign."""
    return "muted" if not math.isfinite(score) else "neg" if score < 0 else "pos"


def size(score: float) -> float:
    """|score|, 0 where it is not finite."""
    return abs(score) if math.isfinite(score) else 0.0


def edge_width(edge: Edge, largest: float) -> float:
    """How wide an edge is drawn, beside the largest |score| of all."""
    return 0.8 + 5.2 * size(edge.score) / largest


def read_share(edge: Edge) -> str:
    """What share of the receiver's read an edge is, where that is known."""
    return "" if edge.read is None else f", {edge.read:.1%} of what it reads"
