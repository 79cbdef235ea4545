"""Sphinx: README, docs/ and the docstrings of the public API as a small site that loads nothing from elsewhere."""

from importlib.metadata import version as installed

project = "AdaDim Edge"
version = release = installed("adadim-edge")
extensions = ["myst_parser", "sphinx.ext.autodoc"]
include_patterns = ["*.md", "docs/*.md", "docs/*/*.md"]
root_doc = "docs/site/index"
myst_heading_anchors = 3
autodoc_typehints = "description"
html_theme = "furo"
html_title = f"{project} {version}"
html_copy_source = html_show_sourcelink = html_show_copyright = False
suppress_warnings = ["misc.highlighting_failure"]  # of Mermaid, whose text stands for its picture: drawing it would load a script
