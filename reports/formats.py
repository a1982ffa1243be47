"""A page as a file: HTML as it is, Markdown with its pictures beside it, or PDF printed by a headless Chromium."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from reports import markdown
from reports.errors import InputError, MechEditError
from reports.files import write

__all__ = ["FORMATS", "check", "chromium", "save"]

FORMATS = ("html", "md", "pdf")
_BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_FLAGS = (
    "--headless",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--host-resolver-rules=MAP * ~NOTFOUND",
    "--no-pdf-header-footer",
)
_SECONDS = 120


def check(kind: str) -> None:
    """Refuses a format that cannot be written.

    Raises:
        InputError: The format is unknown, or it is `pdf` and no Chromium can print it.
    """
    if kind not in FORMATS:
        raise InputError(f"format: expected one of {', '.join(FORMATS)}, found {kind!r}")
    if kind == "pdf" and chromium() is None:
        raise InputError(
            f"format: pdf is printed by a headless Chromium, found none of {', '.join(_BROWSERS)} on the PATH; "
            "install one (Debian: apt-get install chromium) or take html, which any browser prints"
        )


def chromium() -> str | None:
    """The path of a Chromium or Chrome, None where there is none."""
    return next((path for name in _BROWSERS if (path := shutil.which(name))), None)


def save(page: str, target: str | os.PathLike[str]) -> Path:
    """Writes the HTML `page` to `target`, in the format of its suffix (.html, .md, .pdf), whole or not at all.

    The pictures of Markdown go to the folder `<stem>-files` beside it, as SVG. The same page gives the same bytes, for
    PDF with one version of Chromium.

    Raises:
        InputError: As `check`.
        MechEditError: Chromium fails.
    """
    path = Path(target)
    kind = path.suffix.lower().removeprefix(".")
    check(kind)
    if kind == "html":
        return write(path, page)
    if kind == "pdf":
        return write(path, _pdf(page))
    folder = path.with_name(f"{path.stem}-files")
    text, pictures = markdown.convert(page, folder=folder.name)
    for name, svg in pictures.items():
        write(folder / name, svg)
    return write(path, text)


def _pdf(page: str) -> bytes:
    with tempfile.TemporaryDirectory() as scratch:
        source, made = Path(scratch) / "page.html", Path(scratch) / "page.pdf"
        source.write_text(page, encoding="utf-8")
        # Chromium's own sandbox does not start as root
        root = ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
        command = [str(chromium()), *_FLAGS, *root, f"--user-data-dir={scratch}/profile"]
        command += [f"--print-to-pdf={made}", source.as_uri()]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False)
        except subprocess.TimeoutExpired as error:
            raise MechEditError(f"format: Chromium did not print the PDF within {_SECONDS} s") from error
        if done.returncode or not made.is_file():
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise MechEditError(f"format: Chromium printed no PDF (exit status {done.returncode}: {last})")
        return _renumbered(_undated(made.read_bytes()))


def _undated(pdf: bytes) -> bytes:
    """The PDF with its dates set to one, of the same length, so that no offset in it moves."""
    return re.sub(rb"(/(?:CreationDate|ModDate) \(D:)\d{14}", rb"\g<1>20000101000000", pdf)


def _renumbered(pdf: bytes) -> bytes:
    """The PDF with its tags' ids counted in the order of its objects, of the same length.

    Chromium numbers them by what it happened to build first, so the same page had other ids from print to print. The
    tree that finds a tag by its id is sorted by id and stays so. A tree of several leaves is left as it is.
    """
    leaves = re.findall(rb"/Limits \[([^\]]*)\]\n/Names \[([^\]]*)\]", pdf)
    if len(leaves) != 1:
        return pdf
    limits, names = leaves[0]
    tags = sorted(re.findall(rb"\((node\d{8})\) (\d+) 0 R", names), key=lambda entry: int(entry[1]))
    ids = {old: b"node%08d" % i for i, (old, _) in enumerate(tags, 1)}
    if not ids or len(ids) != len(tags):
        return pdf
    in_order = b" ".join(b"(%s) %s 0 R" % entry for entry in tags)
    ends = b"(%s) (%s)" % (tags[0][0], tags[-1][0])
    sorted_tree = pdf.replace(names, in_order).replace(limits, ends)
    return re.sub(rb"(?<=\()node\d{8}(?=\))", lambda match: ids.get(match[0], match[0]), sorted_tree)
