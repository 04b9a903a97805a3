"""Whether student and teacher can be compared on rows with images, and what each is shown of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from easydistill.engine.stage import StageContext
from easydistill.errors import MissingExtra, ModelError

if TYPE_CHECKING:
    from easydistill.data.chat import Rendered
    from easydistill.models.multimodal import Vision


def teachers_sight(
    reference: str, model: Any, student: Vision | None, rows: Sequence[Rendered], context: StageContext
) -> tuple[Vision | None, str]:
    """(what a teacher sees of images, ""), or (None, why it cannot be shown the rows that the student is shown).

    Args:
        rows: tokenised for the student. The teacher reads the same ids, so an image must take as many of them.
    """
    from easydistill.models.multimodal import Vision, is_multimodal, load_processor

    images = {image for row in rows for image in row.images}
    if not is_multimodal(model.config):
        return None, "the teacher reads text alone, and rows have images" if images else ""
    try:
        seen = Vision(load_processor(reference), context.images.path)
    except (ModelError, MissingExtra) as error:
        return None, f"images cannot be shown to the teacher: {str(error).splitlines()[0]}" if images else ""
    if not images:
        return seen, ""
    assert student is not None, "rows with images are refused for a student that sees none"
    ours, theirs = student.processor.image_token_ids, seen.processor.image_token_ids
    if ours != theirs or any(student.image_tokens(image) != seen.image_tokens(image) for image in images):
        return None, "teacher and student read an image as other tokens"
    return seen, ""
