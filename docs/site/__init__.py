"""The site's own half: pages that are made of the code when the site is built.

`stage` lays out the sources that Sphinx reads: the pages of `docs/`, the notebooks, and what is generated: the API
(`api`), the commands (`commands`), the recipes (`recipes`), what is saved (`schemas`) and the errors (`errors`).
`docstrings` turns the project's docstrings into the markup that Sphinx understands. Nothing here needs a network.
"""
