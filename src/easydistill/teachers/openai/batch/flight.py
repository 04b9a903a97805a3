"""A batch in progress, and what batches share with single requests to the same server."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from easydistill.config.inference import ApiInferenceConfig
from easydistill.contracts.teacher import GenerationRequest
from easydistill.data.images import ImageStore
from easydistill.engine.secrets import Redactor
from easydistill.teachers.ledger import Ledger
from easydistill.teachers.openai.batch.book import BatchRecord
from easydistill.teachers.openai.chat_completion import request_body
from easydistill.teachers.openai.faults import FaultReader
from easydistill.teachers.openai.features import Features
from easydistill.teachers.sizes import Size, TokenEstimator


@dataclass(frozen=True)
class BatchTools:
    """What batches share with single requests to the same server."""

    config: ApiInferenceConfig
    identity: dict[str, Any]
    faults: FaultReader
    redactor: Redactor
    ledger: Ledger
    estimator: TokenEstimator
    features: Features
    images: ImageStore

    def sent(self, line: bytes) -> bytes:
        """A line as it is uploaded: with images in the place of their digests."""
        return self.images.filled_line(line, self.config.images_sent.max_pixels)

    def body(self, request: GenerationRequest) -> dict[str, Any]:
        """A request's body, before it is reduced to what the server supports."""
        return request_body(self.config, self.identity["model"], request)


@dataclass
class Flight:
    """A batch in progress."""

    record: BatchRecord
    id: str
    open: dict[str, Size]
    """Rows without a recorded outcome, with the tokens reserved for them."""

    def close(self, key: str, ledger: Ledger) -> Size:
        """Remove a row and release the tokens reserved for it."""
        size = self.open.pop(key)
        ledger.release(size)
        return size
