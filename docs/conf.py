"""Sphinx: Markdown pages as they are. The theme brings its own fonts, scripts and search: nothing is fetched."""

from typing import Any

project = "EasyDistill"
html_title = "EasyDistill"
language = "en"
extensions = ["myst_parser"]
# Links to headings, as on GitHub.
myst_heading_anchors = 4
html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sphinx = False
exclude_patterns = ["_build"]


def setup(app: Any) -> None:
    def add_styles(app: Any, pagename: str, *rest: Any) -> None:
        if pagename == "configuration":
            app.add_css_file("keys.css")

    app.connect("html-page-context", add_styles)
