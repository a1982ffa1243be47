"""Sphinx's settings for the site (`make site`): no network, no notebook run, every warning an error."""

from __future__ import annotations

import inspect
import re
import sys
from importlib.metadata import version as installed
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from docs.site.api import short_names
from docs.site.docstrings import to_rst

project = "mechedit and xlprobe"
author = "the maintainers"
version = release = installed("mechedit")
language = "en"
smartquotes = False  # commands are copied out of tables

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "myst_nb",
    "sphinx_copybutton",
]
exclude_patterns: list[str] = []

# --- Markdown and notebooks
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 4
myst_links_external_new_tab = False
nb_execution_mode = "off"
nb_ipywidgets_js: dict[str, Any] = {}  # else a script from the network
nb_merge_streams = True

# --- the API
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
autodoc_class_signature = "mixed"
python_maximum_signature_line_length = 88
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False
add_module_names = False
python_display_short_literal_types = True
toc_object_entries_show_parents = "hide"

# --- the pages
html_theme = "furo"
html_title = "mechedit and xlprobe"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sourcelink = False
html_show_sphinx = False
html_show_copyright = False
html_show_search_summary = False  # a page read from a folder may not fetch others
html_theme_options = {
    "navigation_with_keys": True,
    "light_css_variables": {"color-brand-primary": "#1f5fa8", "color-brand-content": "#1f5fa8"},
    "dark_css_variables": {"color-brand-primary": "#7fb6f0", "color-brand-content": "#7fb6f0"},
}
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True


#: The parameters of a long signature, which Sphinx writes as definitions without a term.
PARAMETERS = re.compile(r"<dl>\s*((?:<dd>.*?</dd>\s*)+)</dl>", re.S)


def _docstring(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """A docstring's text as markup, before napoleon reads its sections. A constant's own: not its type's."""
    of_types = {inspect.cleandoc(kind.__doc__ or "").strip() for kind in (type(obj), obj) if what == "data"}
    if "\n".join(lines).strip() in of_types:
        lines.clear()
    lines[:] = to_rst(lines, short_names().get)


def _signature(
    app: Any, what: str, name: str, obj: Any, options: Any, args: str | None, back: str | None
) -> Any:
    """A signature without the marks that autodoc leaves in types of dataclass fields."""
    return None if args is None else (args.replace("~typing.", "").replace("~", ""), back)


def _accessible(app: Any, page: str, template: str, context: dict[str, Any], doctree: Any) -> None:
    """What axe asks for: a level for captions in the sidebar; what scrolls, code and tables, is reached by keyboard."""
    if "furo_navigation_tree" in context:
        tree = context["furo_navigation_tree"]
        context["furo_navigation_tree"] = tree.replace('role="heading"', 'role="heading" aria-level="2"')
    if "body" in context:
        body = context["body"].replace("<pre>", '<pre tabindex="0">')
        body = body.replace('<div class="table-wrapper', '<div tabindex="0" class="table-wrapper')
        context["body"] = PARAMETERS.sub(_as_lines, body)


def _as_lines(found: re.Match[str]) -> str:
    return f'<div class="params">{found[1].replace("<dd>", "<div>").replace("</dd>", "</div>")}</div>'


def setup(app: Any) -> dict[str, bool]:
    """Hooks in ahead of napoleon, whose priority is 500."""
    app.connect("autodoc-process-docstring", _docstring, priority=400)
    app.connect("autodoc-process-signature", _signature)
    app.connect("html-page-context", _accessible, priority=900)
    return {"parallel_read_safe": True}
