"""Whether a student sees images, found in its config before anything is loaded, and what becomes of rows with some."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from easydistill.config.models import FreshStudent, ModelsConfig, TeachersConfig
from easydistill.config.training import TrainerConfig
from easydistill.data.images import ImageStore
from easydistill.data.images.normalise import inspect, pillow
from easydistill.data.images.store import digest_of
from easydistill.engine.stage import StageContext
from easydistill.errors import ConfigIssue, MissingExtra, ModelError
from easydistill.models.reference import is_of_text
from easydistill.models.reference import sees_images as model_sees_images
from easydistill.models.student import Student, student_references

if TYPE_CHECKING:
    from easydistill.models.multimodal import Vision

TRAINS_ON_TEXT = "this job trains on text alone and would not see it: remove the row, or take another job"
"""Of rows with images, in jobs that show them to no student."""
MUCH_DISK = 1e8
"""Bytes from which `plan` tells what features of images take."""
_PROBES = ((64, 48), (640, 480), (300, 900))
"""Sizes of images that teacher and student must read alike."""


def sees_images(models: ModelsConfig) -> bool:
    """Whether a student is a vision-language model, according to its files. One that is not on this machine yet does
    not count as one."""
    if isinstance(models.student, FreshStudent):
        return False
    (reference,) = student_references(models)
    return model_sees_images(reference)


def blindness(models: ModelsConfig | None) -> str | None:
    """Why rows with images are refused, in words for users; None if the student sees them.

    Args:
        models: the student; None in jobs that show images to none.
    """
    if models is None:
        return TRAINS_ON_TEXT
    if isinstance(models, TeachersConfig) and models.teachers is not None:
        return "models.teachers are for rows of text: remove such rows, or take one teacher for all"
    if sees_images(models):
        return None
    (reference,) = student_references(models) or ["it"]
    return (
        f"the student ({reference}) reads text alone and would not see it: take a vision-language model as "
        "the student, label such rows in the job `label`, or remove them"
    )


def vision_of(student: Student, context: StageContext) -> Vision | None:
    """What a student sees of a run's images; None for a model of text."""
    from easydistill.models.multimodal import Vision

    return None if student.processor is None else Vision(student.processor, context.images.path)


def packing_images_issues(models: ModelsConfig, training: Any) -> list[ConfigIssue]:
    """An issue if rows are to be packed for a student that sees images, which counts positions in ways of its own."""
    if not getattr(training, "packing", False) or not sees_images(models):
        return []
    return [images_are_not_packed()]


def parts_issues(models: ModelsConfig, training: TrainerConfig) -> list[ConfigIssue]:
    """An issue if a student of text is to be trained in parts that it lacks: before anything is paid for its rows."""
    lacking = [part for part in training.train_parts or () if part != "language"]
    of_text = isinstance(models.student, FreshStudent) or all(map(is_of_text, student_references(models)))
    return [lacks_parts(lacking)] if lacking and of_text else []


def lacks_parts(lacking: Sequence[str]) -> ConfigIssue:
    """Why a student of text is not trained in parts of one that sees."""
    problem = f"the student is a model of text and has no {' or '.join(lacking)}"
    return ConfigIssue("config", "training.train_parts", problem, "remove it")


def images_are_not_packed() -> ConfigIssue:
    """Why rows are not packed for a student that sees images."""
    problem = "rows are not packed for a student that sees images"
    hint = "set training.packing=false; group_by_length, which is on by default, saves most of the padding"
    return ConfigIssue("config", "training.packing", problem, hint)


def vllm_images_issues(models: ModelsConfig, key: str) -> list[ConfigIssue]:
    """An issue if vLLM is to write the answers of a student that sees images while it is trained.

    Args:
        key: of the setting that names the engine.
    """
    if not sees_images(models):
        return []
    problem = "vLLM does not take over the weights of a student that sees images while it is trained"
    return [ConfigIssue("config", key, problem, f"set {key}=transformers")]


def hash_of_images(rows: Iterable[tuple[str, Sequence[str]]]) -> str:
    """A hash of which rows, given as (id, digests), have which images; empty if none has any."""
    shown, any_image = hashlib.sha256(), False
    for name, images in rows:
        if images:
            any_image = True
            shown.update(f"{name} {' '.join(images)}\n".encode())
    return shown.hexdigest() if any_image else ""


class ImageSizes(ImageStore):
    """The images of rows before a run: nothing is decoded, and of each there is a blank one of the same size. How many
    tokens a model reads of an image depends on its size alone."""

    def __init__(self) -> None:
        super().__init__()
        self._sizes: dict[str, tuple[int, int]] = {}
        self._blank: Path | None = None

    def add(self, data: bytes) -> str:
        digest = digest_of(data)
        if digest not in self._sizes:
            self._sizes[digest] = inspect(data)
        return digest

    def take(self, path: Path, *, copied: bool = False) -> str | None:
        digest = super().take(path, copied=copied)
        if digest is not None and digest not in self._sizes:
            self._sizes[digest] = inspect(path.read_bytes())
        return digest

    def blank(self, width: int, height: int) -> str:
        """The digest of an image of some size that no row has."""
        digest = digest_of(f"{width}x{height}".encode())
        self._sizes[digest] = width, height
        return digest

    def path(self, digest: str) -> Path:
        """A blank image of the size of one that was added."""
        if self._blank is None:
            self._blank = Path(tempfile.mkdtemp(prefix="easydistill-"))
            weakref.finalize(self, shutil.rmtree, self._blank, ignore_errors=True)
        width, height = self._sizes[digest]
        path = self._blank / f"{width}x{height}.png"
        if not path.is_file():
            pillow().new("RGB", (width, height)).save(path)
        return path


def sight_of(models: ModelsConfig, files: Callable[[str], Path]) -> Vision | None:
    """What a student that is not loaded sees of images; None for a model that would not see them.

    Args:
        files: gives the file of an image by its digest, or that of another one of its size.
    """
    if not sees_images(models):
        return None
    from easydistill.models.multimodal import Vision, load_processor

    (reference,) = student_references(models)
    try:
        return Vision(load_processor(reference, trust_remote_code=models.trust_remote_code), files)
    except (ModelError, MissingExtra):
        # It can still be trained on text; its rows with images are refused.
        return None


def features_lines(models: ModelsConfig, found: tuple[Vision, Sequence[str]] | None, *, whole: bool) -> list[str]:
    """What features of images take on disk, if that is much.

    Args:
        found: what the student sees, and images of its rows.
        whole: whether features are taken behind the connector.
    """
    if found is None:
        return []
    vision, digests = found
    size = sum(_features_bytes(models, vision, digests, whole=whole))
    if size < MUCH_DISK:
        return []
    return [
        f"the vision tower's features of {len(digests)} images of the first rows take about {size / 1e9:.1f} GB, in "
        "features/ of the run directory\n    → it may be deleted after the training; "
        "training.cache_image_features=false does without"
    ]


def _features_bytes(models: ModelsConfig, vision: Vision, digests: Sequence[str], *, whole: bool) -> Iterator[float]:
    """Bytes of the features of each image in float32, as far as the student's config tells: the tower's are one vector
    a patch, the connector's one a token."""
    from easydistill.models.loading import full_config

    (reference,) = student_references(models)
    config: Any = full_config(reference, trust_remote_code=models.trust_remote_code)
    tower = config.vision_config
    depths = 1 + len(getattr(tower, "deepstack_visual_indexes", None) or ())
    width: int = config.get_text_config().hidden_size if whole else tower.hidden_size
    channels: int = getattr(tower, "num_channels", 0) or getattr(tower, "in_channels", 3)
    numbers: int = channels * getattr(tower, "temporal_patch_size", 1) * tower.patch_size**2
    patches: dict[int, float] = {}
    for digest in digests:
        tokens = vision.image_tokens(digest)
        if not whole and tokens not in patches:
            patches[tokens] = vision.shown([digest])["pixel_values"].numel() / numbers
        yield 4 * width * depths * (tokens if whole else patches[tokens])


def teachers_vision(models: ModelsConfig, teacher: str, files: Callable[[str], Path]) -> Vision | None:
    """What a teacher that is not loaded sees of images; None for a model of text.

    Raises:
        ModelError: images cannot be given to it.
    """
    from easydistill.models.loading import full_config, is_multimodal
    from easydistill.models.multimodal import Vision, load_processor

    trust = models.trust_remote_code
    if not is_multimodal(full_config(teacher, trust_remote_code=trust)):
        return None
    return Vision(load_processor(teacher, trust_remote_code=trust), files)


def other_sight(models: ModelsConfig, teacher: str, *, own_form: bool = False) -> list[tuple[str, str]]:
    """Why a teacher cannot score rows with images, as (problem, hint).

    Args:
        own_form: whether it reads chats in its own form. If not, it must read an image as the very tokens that the
            student does, and images of several sizes and shapes are tried.
    """
    sizes = ImageSizes()
    try:
        theirs = teachers_vision(models, teacher, sizes.path)
    except (ModelError, MissingExtra) as error:
        problem, _, hint = str(error).partition("\n    → ")
        return [(problem, hint)]
    if theirs is None:
        return [("this teacher reads text alone, and rows have images", "take one that sees images")]
    ours = sight_of(models, sizes.path)
    if ours is None or own_form:
        return []
    return _unlike(ours, theirs, sizes)


def _unlike(ours: Vision, theirs: Vision, sizes: ImageSizes) -> list[tuple[str, str]]:
    """The first size of images that two models read as different tokens."""
    for width, height in _PROBES:
        digest = sizes.blank(width, height)
        texts = [vision.expand(vision.processor.mark, [digest]) for vision in (ours, theirs)]
        read = [
            vision.processor.tokenizer(text, add_special_tokens=False)["input_ids"]
            for vision, text in zip((ours, theirs), texts, strict=True)
        ]
        if read[0] != read[1] or ours.processor.image_token_ids != theirs.processor.image_token_ids:
            counts = [vision.image_tokens(digest) for vision in (ours, theirs)]
            problem = (
                f"the student reads an image of {width}×{height} pixels as {counts[0]} image tokens of "
                f"{len(read[0])}, this teacher as {counts[1]} of {len(read[1])}, or as other ones"
            )
            hint = (
                'set distillation.align to "answers", or take a teacher and a student with the same processor of images'
            )
            return [(problem, hint)]
    return []
