"""Sphinx: Markdown pages as they are."""

project = "EasyDistill"
extensions = ["myst_parser"]
# Links to headings, as on GitHub.
myst_heading_anchors = 4
html_theme = "furo"
exclude_patterns = ["_build"]
