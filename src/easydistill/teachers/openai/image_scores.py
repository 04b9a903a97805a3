"""Tokens with images for vLLM's `POST /inference/v1/generate`, which its option `--enable-scale-out` switches on.

The endpoint takes token ids with one placeholder for each image, and the images. It expands the placeholders by itself,
and says what they became: these have to be the very tokens that the student reads, or the log-probabilities would be of
other ones. (Ids whose placeholders were expanded already it expands again, without an error.)
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

from easydistill.data.images import ImageStore
from easydistill.teachers.openai.prompt_logprobs import parsed
from easydistill.teachers.openai.retry import Fault, Verdict

NO_ENDPOINT, NOT_SEEN, OTHER_TOKENS = "no_image_endpoint", "images_not_seen", "other_image_tokens"
HINTS = {
    NO_ENDPOINT: "start the server with --enable-scale-out (vLLM 0.32): its /completions takes no images",
    NOT_SEEN: "take a server whose model sees images, started with --enable-scale-out (vLLM 0.32)",
    OTHER_TOKENS: "take a teacher and a student with the same processor of images, and no inference.image.max_pixels",
}
"""Faults of servers that are asked about images, and what to do."""
_SIGHT = ("image", "multimodal", "multi-modal", "multi_modal")
_PATH = "/inference/v1/generate"
_VERSION = "/v1"


@dataclass(frozen=True)
class ImagePrompt:
    """A prompt with images."""

    ids: tuple[int, ...]
    """Its tokens, with one placeholder for each image."""
    images: tuple[str, ...]
    """The digests of the images, in order."""

    def body(self, model: str, store: ImageStore, most_pixels: int | None, top: int = 0) -> dict[str, Any]:
        """What is sent to have it scored, with the `top` most probable tokens in each place."""
        urls = [store.data_url(digest, most_pixels) for digest in self.images]
        return {
            "model": model,
            "token_ids": list(self.ids),
            "content_parts": [{"type": "image_url", "url": url, "uuid": _name_of(url)} for url in urls],
            # As for `/completions`: one token has to be generated; 0 asks about the prompt's own tokens alone.
            "sampling_params": {"max_tokens": 1, "prompt_logprobs": top},
            "return_token_ids": True,
        }


def _name_of(url: str) -> str:
    """A name of an image as it is sent, which the server's caches trust. Without one, they read an identifier in the
    image's own EXIF data first."""
    return hashlib.sha256(url.encode()).hexdigest()


def address_of(base_url: str) -> str:
    """The address of the endpoint, which is not below `/v1` as those of OpenAI are."""
    return base_url.rstrip("/").removesuffix(_VERSION) + _PATH


def told(fault: Fault) -> Fault:
    """A fault of a request with images, with what it means for these."""
    said = fault.detail.lower()
    if fault.reason == "http_404":
        return Fault(NO_ENDPOINT, f"there is no {_PATH}: {fault.detail}", Verdict.REJECT)
    if fault.reason in {"http_400", "http_422"} and any(word in said for word in _SIGHT):
        return Fault(NOT_SEEN, fault.detail, Verdict.REJECT)
    return fault


def check_prompt(content: bytes, ids: list[int], images: int) -> None:
    """Check that the server has read the images, and as the student's tokens.

    Args:
        content: the server's answer.
        ids: the student's tokens, every image as many as it reads of it.
        images: their number.

    Raises:
        Fault: it has not (not to be retried); or the answer is broken (to be retried).
    """
    body = parsed(content)
    found, places = body.get("prompt_token_ids"), body.get("mm_placeholders")
    seen = places.get("image") if isinstance(places, dict) else None
    if not isinstance(found, list) or not isinstance(seen, list) or len(seen) != images:
        said = f"{len(seen)} of {images} images" if isinstance(seen, list) else "no image"
        raise Fault(NOT_SEEN, f"the server's answer tells of {said}", Verdict.REJECT)
    if found != ids:
        problem = f"the server reads the prompt as {len(found)} tokens, the student as {len(ids)}, or as other ones"
        raise Fault(OTHER_TOKENS, problem, Verdict.REJECT)
