"""A page of this project as Markdown (GitHub's), its pictures as SVG files.

Only for pages made from our own templates: their HTML is closed in order, and they use few elements. Each element
becomes its Markdown, every string in it escaped, so that a token that looks like Markdown or HTML stays a token.
A picture leaves the page's CSS variables for the printed colours, and gets the namespace that a file needs.
"""

from __future__ import annotations

import html
import re
from html.parser import HTMLParser
from xml.etree.ElementTree import Element, TreeBuilder

from reports.colours import LIGHT

__all__ = ["convert", "escape"]

_VOID = {"meta", "br", "hr", "img", "input", "link"}
_SKIPPED = {"head", "nav", "footer", "script", "style", "form"}
_BLOCKS = {"html", "body", "main", "header", "section", "div", "figure", "details"}
_FONT = "DejaVu Sans, Verdana, sans-serif"


def convert(page: str, *, folder: str) -> tuple[str, dict[str, str]]:
    r"""Returns the HTML `page` as Markdown, and its pictures: file name -> SVG.

    Args:
        page: A page of this project.
        folder: Where the Markdown looks for the pictures.

    >>> svg = "<svg aria-labelledby='f-title'><title>T</title></svg>"
    >>> text, pictures = convert(f"<h1>A &lt;b&gt;</h1>{svg}", folder="x")
    >>> text, list(pictures)
    ('# A &lt;b&gt;\n\n![T](x/f.svg)\n', ['f.svg'])
    """
    pictures: dict[str, str] = {}

    def take(match: re.Match[str]) -> str:
        svg = match.group()
        label = re.search(r"aria-labelledby=['\"]([\w-]+?)-title", svg)
        title = re.search(r"<title[^>]*>(.*?)</title>", svg, re.DOTALL)
        name = f"{label.group(1) if label else f'picture{len(pictures)}'}.svg"
        pictures[name] = _file(svg)
        return f'<img src="{folder}/{name}" alt="{html.escape(html.unescape(title.group(1) if title else name))}">'

    bare = re.sub(r"<script\b.*?</script>", "", page, flags=re.DOTALL)  # a library's text may hold an <svg>
    tree = _Tree(re.sub(r"<svg\b.*?</svg>", take, bare, flags=re.DOTALL))
    return "\n\n".join(_blocks(tree.root)) + "\n", pictures


def escape(text: str) -> str:
    r"""Returns `text` as Markdown that reads as the same text.

    >>> escape("a_b <i> | $x$")
    'a\\_b &lt;i&gt; \\| \\$x\\$'
    """
    plain = " ".join(text.split(" ")).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]|~$])", r"\\\1", plain)


class _Tree(HTMLParser):
    """The page as elements, under one root."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self._builder = TreeBuilder()
        self._builder.start("html", {})
        self.feed(text)
        self.close()
        self._builder.end("html")
        self.root: Element = self._builder.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "html":
            return
        self._builder.start(tag, {name: value or "" for name, value in attrs})
        if tag in _VOID:
            self._builder.end(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag != "html" and tag not in _VOID:
            self._builder.end(tag)

    def handle_data(self, data: str) -> None:
        self._builder.data(data)


def _blocks(element: Element) -> list[str]:
    blocks = []
    for child in element:
        if child.tag in _SKIPPED or "hidden" in child.attrib:  # what a script would show
            continue
        if child.tag in _BLOCKS:
            blocks += _blocks(child)
        else:
            blocks.append(_block(child))
    return [block for block in blocks if block]


def _block(element: Element) -> str:
    if element.tag == "table":
        return _table(element)
    if element.tag == "ul":
        return "\n".join(f"- {_inline(item)}" for item in element)
    if element.tag == "dl":
        return "\n".join(f"- {_inline(pair[0])}: **{_inline(pair[1])}**" for pair in element)
    if element.tag == "pre":
        text = "".join(element.itertext())
        fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
        return f"{fence}\n{text.rstrip()}\n{fence}"
    if element.tag == "img":
        return _inline_one(element)
    text = _inline(element)
    if re.fullmatch("h[1-6]", element.tag):
        return f"{'#' * int(element.tag[1])} {text}"
    if element.tag == "summary":
        return f"**{text}**"
    return re.sub(r"^([-+#=]|\d+[.)])", r"\\\1", text)  # a paragraph is no list and no heading


def _inline(element: Element) -> str:
    parts = [escape(element.text or "")]
    for child in element:
        parts += [_inline_one(child), escape(child.tail or "")]
    return " ".join("".join(parts).split())


def _inline_one(element: Element) -> str:
    if element.get("aria-hidden") == "true" or element.tag in _SKIPPED:
        return ""
    if element.tag == "img":
        return f"![{escape(element.get('alt', ''))}]({element.get('src', '')})"
    text = _inline(element)
    if not text:
        return ""
    if element.tag == "strong":
        return f"**{text}**"
    if element.tag == "a":
        return f"[{text}]({element.get('href', '')})"
    if element.get("class") == "interval":
        return f" \\[{text}\\]"
    return f" {text}" if element.get("class") in ("n", "note") else text


def _table(table: Element) -> str:
    caption, heads, body = table.find("caption"), table.findall("thead/tr"), table.findall("tbody/tr")
    width = max((len(row) for row in [*heads, *body]), default=0)
    head = [_inline(cell) for cell in heads[-1]] if heads else [""] * width
    if len(heads) > 1:  # a row of families over the row of names
        over = [_inline(cell) for cell in heads[0] for _ in range(int(cell.get("colspan", "1")))]
        head = [f"{family}: {name}" if family else name for family, name in zip(over, head, strict=True)]
    right = [cell.get("class") == "num" for cell in heads[-1]] if heads else [False] * width
    lines = [head, ["--:" if numeric else "---" for numeric in right]]
    lines += [[_inline(cell) for cell in row] for row in body]
    text = "\n".join("| " + " | ".join(cells) + " |" for cells in lines)
    return f"{_inline(caption)}\n\n{text}" if caption is not None else text


def _file(svg: str) -> str:
    for name, value in LIGHT.items():
        svg = svg.replace(f"var(--{name}, {value})", value)
    start = '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    own = 'font-family="' in svg.partition(">")[0]
    return svg.replace("<svg", start if own else f'{start} font-family="{_FONT}"', 1) + "\n"
