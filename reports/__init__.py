"""Reports: result objects, figures, circuits and one self-contained page; this floor knows no model.

`results` is the base of every result object (tidy frames, save, load), `intervals` holds the intervals of rates and
means, `files` writes files and folders that are whole or absent. `figures` draws every chart of the project from tidy
frames, `circuit` lays an attribution graph out as SVG, and `page` turns a run folder into one HTML file that needs no
network. Everything here is drawn from saved numbers, so a page can be made again, years later, from the folder alone.
Nothing is imported eagerly: `from reports.errors import InputError` costs no matplotlib.
"""
