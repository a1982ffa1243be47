"""Templates filled into HTML: what every page of the project shares."""

from __future__ import annotations

import base64
import functools
import hashlib
import re
from collections.abc import Sequence
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import jinja2

from reports.colours import DARK, LIGHT
from reports.text import visible

__all__ = ["render"]

_HERE = Path(__file__).parent
_TEMPLATES = _HERE / "templates"
#: Scripts that installed packages hold: name -> (package, path).
_PACKAGED = {"circuitsvis.js": ("circuitsvis", "circuitsvis/dist/cdn/iife.js")}


def render(template: str, context: dict[str, Any], *, scripts: Sequence[str] = ()) -> str:
    """Fills the template of that name with `context`, everything in it escaped.

    Args:
        template: A file of `templates/`.
        context: What the template shows.
        scripts: Names of scripts among the templates, in `vendor/` or in an installed package (`_PACKAGED`), put into
            the page in this order. The page's content-security policy lets a browser run these texts, each by its
            sha256, and nothing else.
    """
    texts = [_script(name) for name in scripts]
    codes, hashes = [code for code, _ in texts], [digest for _, digest in texts]
    shared = {"light": LIGHT, "dark": DARK, "scripts": codes, "script_hashes": hashes}
    return _environment().get_template(template).render(shared | context)


@functools.cache
def _script(name: str) -> tuple[str, str]:
    """The text of a script as it stands on a page, and its sha256 in base64; read and hashed once a process."""
    if name in _PACKAGED:
        code = _packaged(*_PACKAGED[name])
    else:
        (file,) = (place / name for place in (_TEMPLATES, _HERE / "vendor") if (place / name).is_file())
        code = file.read_text(encoding="utf-8")
    return code, base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()


def _packaged(package: str, path: str) -> str:
    """A script of an installed package under its licence, fit to stand in a page."""
    installed = distribution(package)
    code = Path(str(installed.locate_file(path))).read_text(encoding="utf-8")
    # an end tag in a string would end the script; a source map would be asked for by a browser's tools
    code = re.sub(
        r"^//# sourceMappingURL=.*$", "", code.replace("</script", r"<\/script"), flags=re.MULTILINE
    )
    return f"/* {package} {installed.version}\n\n{installed.read_text('LICENSE.txt')}*/\n{code}"


@functools.cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["visible"] = visible
    return environment
