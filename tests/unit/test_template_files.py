"""What a model's files tell of its template, without loading anything."""

from __future__ import annotations

from pathlib import Path

import pytest

from easydistill.models.template_files import model_may_think


@pytest.mark.parametrize(
    ("template", "thinks"),
    [
        ("{{ messages[0].content }}", False),
        ("{% if message.reasoning_content %}<think>{{ message.reasoning_content }}</think>{% endif %}", True),
        ("{{ '<|channel|>analysis' }}", True),
        ("{# I think that this is all #}{{ messages[0].content }}", False),
    ],
)
def test_whether_a_model_may_think(template: str, thinks: bool, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "chat_template.jinja").write_text(template)
    assert model_may_think(str(tmp_path)) is thinks


def test_a_model_that_is_elsewhere_may(tmp_path: Path) -> None:
    assert model_may_think("someone/a-model-on-a-hub")
