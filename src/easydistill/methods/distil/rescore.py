"""Score a signal store again with the teacher that made it, to verify the store."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from easydistill.data.images import ImageStore
from easydistill.data.images.store import FOLDER
from easydistill.errors import DataError
from easydistill.models.reference import resolve
from easydistill.signals.config import SignalsConfig

if TYPE_CHECKING:
    from easydistill.signals.score import RowToScore, Scorer
    from easydistill.signals.store import SignalStore


def scorer_of_store(store: SignalStore, teacher: str | None = None) -> tuple[Scorer[RowToScore], float]:
    """A scorer with the teacher that made a store, and the usual tolerance in nats.

    `teacher` names the teacher if it has moved. Signals by vLLM are compared with a forward pass of transformers.

    Raises:
        DataError: the weights are not those that made the store, the store does not say, or the teacher was aligned by
            bytes.
        ModelError: the teacher does not exist.
    """
    from pydantic import TypeAdapter

    from easydistill.models.loading import choose_dtype, device
    from easydistill.signals.score import ModelScorer
    from easydistill.signals.verify import BF16_TOLERANCE, ENGINES_TOLERANCE

    about = store.manifest.about
    if about.get("align") == "bytes":
        raise DataError(
            f"{store.directory}: these signals cannot be verified: the teacher has another tokenizer and read whole "
            "chats, of which the store only has the student's tokens\n"
            "    → run the job with another output_dir, and compare the two with `signals inspect`"
        )
    try:
        signals: SignalsConfig = TypeAdapter(SignalsConfig).validate_python(about["signals"])
        teachers = [(item["model"], item["weight"], item["identity"]) for item in about["teachers"]]
        vocabulary, temperature = about["vocabulary"], about["temperature"]
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{store.directory}: the store does not say how it was made: {error}") from None
    if teacher is not None:
        if len(teachers) != 1:
            raise DataError(
                f"{store.directory}: {len(teachers)} teachers made it, so --teacher cannot name one of them"
            )
        teachers = [(teacher, 1.0, teachers[0][2])]
    images = _images_of(store)
    for reference, _, identity in teachers:
        if resolve(reference).identity() != identity:
            raise DataError(
                f"{reference}: these are not the weights that made {store.directory}\n"
                "    → name the right teacher with --teacher, or score again"
            )
    scorer = ModelScorer(
        [reference for reference, _, _ in teachers],
        [weight for _, weight, _ in teachers],
        signals,
        vocabulary,
        temperature,
        trust_remote_code=bool(about.get("trust_remote_code", False)),
        images=images,
    )
    exact = str(choose_dtype(signals.dtype, device())) in {"torch.float32", "torch.float64"}
    rounded = ENGINES_TOLERANCE if signals.backend == "vllm" else BF16_TOLERANCE
    return scorer, 5e-3 if exact else rounded


def _images_of(store: SignalStore) -> Callable[[str], Path] | None:
    """Gives the files of the images that the teacher was shown; None if it was shown none.

    Raises:
        DataError: they are not beside the store.
    """
    if not store.has_images:
        return None
    # <run>/stages/<stage>/signals
    directory = store.directory.resolve()
    folder = directory.parents[2] / FOLDER if len(directory.parents) > 2 else directory
    if not folder.is_dir():
        raise DataError(
            f"{store.directory}: these signals cannot be verified here: the teacher was shown images, and they are "
            "only in the directory of the run\n    → name the store in the run's directory, <run>/stages/…/signals"
        )
    return ImageStore(folder).path
