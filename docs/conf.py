"""Sphinx: Markdown pages as they are."""

project = "EasyDistill"
extensions = ["myst_parser"]
html_theme = "furo"
exclude_patterns = ["_build"]
