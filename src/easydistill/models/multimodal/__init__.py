"""Models that see: their processors, and what is made of images for them. Nothing else in this package knows
processors.

- `processors.py`: which models see, their processors loaded and saved, their placeholders, the types of tokens.
- `vision.py`: a processor with the images of a run: placeholders in a text → the tokens' text, rows → tensors.
"""

from easydistill.models.multimodal.processors import Processor, is_multimodal, load_processor
from easydistill.models.multimodal.vision import Vision, VisionProblem

__all__ = ["Processor", "Vision", "VisionProblem", "is_multimodal", "load_processor"]
