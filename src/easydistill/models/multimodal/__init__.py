"""Models that see: their processors, and what is made of images for them. Nothing else in this package knows
processors.

- `processors.py`: processors loaded and saved, their placeholders, the types of tokens.
- `vision.py`: a processor with the images of a run: placeholders in a text → the tokens' text, rows → tensors.
- `parts.py`: which of a model's modules are its language model, its connector and its vision tower.
"""

from easydistill.models.loading import is_multimodal
from easydistill.models.multimodal.processors import Processor, load_processor
from easydistill.models.multimodal.vision import Vision, VisionProblem

__all__ = ["Processor", "Vision", "VisionProblem", "is_multimodal", "load_processor"]
