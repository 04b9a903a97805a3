"""An export, read back and compared with the model that it was made of.

Both models read the same rows, teacher-forced, with float32 weights: mean KL(student ‖ export) over the tokens of
answers, in nats, and how often the most probable token is the same. The tokenizer that was written must give the same
ids, the template must be the same text, and the same tokens must end a turn.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from easydistill.errors import ModelError
from easydistill.exporting.tokenizers_read import of_transformers

if TYPE_CHECKING:
    from easydistill.contracts.export_format import Source, Written
    from easydistill.data.chat import Rendered
    from easydistill.engine.stage import StageContext
    from easydistill.exporting.config import CheckConfig
    from easydistill.exporting.tokenizers_read import ReadTokenizer

LOSSLESS_KL = 1e-3
"""Largest KL of types of number that round at most as float16 does, whose KL is below 1e-4 in all that was measured."""
PROBES = (
    "Hello, world! It's 12345 and 3.14.",
    "  two  spaces\n\n\tand a tab \r\n",
    "Grüße, naïve café — «çà et là»",
    "漢字かな交じり文 한국어 العربية हिन्दी",
    "🙂👩‍👩‍👧 x²+y² ≠ ∞",
    "def f(x):\n    return x[1:] + ['a', \"b\"]  # comment",
    "I'll say we've DON'T 's",
)
"""Texts whose ids must agree, besides those of the rows."""


def compare(
    source: Source,
    module: Any,
    target: Path,
    written: Written,
    rows: Sequence[Rendered],
    check: CheckConfig,
    context: StageContext,
) -> dict[str, Any]:
    """The figures of an export, as JSON."""
    texts = [*(written.before + text for text in PROBES), *(source.tokenizer.decode(row.ids) for row in rows)]
    found = _texts(source, module.load_tokenizer(target, written.file), texts)
    files = [target / written.file] if written.file else list(target.glob("*.safetensors"))
    student, export = _models(source, module, target, written)
    with context.reporter.task("Comparing with the student", len(rows)) as task:
        from easydistill.evaluation.measure import Measured, token_metrics
        from easydistill.models.head import body_of

        figures = token_metrics(
            Measured(export, body_of(export)),
            Measured(student, body_of(student)),
            int(student.get_output_embeddings().weight.shape[0]),
            [(row.ids_T, row.mask_T) for row in rows],
            min(source.ends),
            check.batch_size,
            task,
            context.stop,
            chosen=_chosen(),
        )
    return {
        **found,
        "kl": figures["kl"],
        "agreement": figures["agreement"],
        "rows": len(rows),
        "tokens": sum(int(row.mask_T[1:].sum()) for row in rows),
        "bytes": sum(path.stat().st_size for path in files),
        "parameters": sum(weight.numel() for weight in student.parameters()),
        "source": source.reference,
        "source_bytes": sum(weight.numel() for weight in student.parameters()) * _stored_bytes(source),
    }


def _models(source: Source, module: Any, target: Path, written: Written) -> tuple[Any, Any]:
    """(student, export), on this machine's accelerator."""
    import torch

    from easydistill.models.loading import device, load_model

    student = load_model(source.directory, torch.float32).to(device())
    return student, module.load(source, target, written.file).to(device())


def _chosen() -> dict[str, Any]:
    from easydistill.evaluation.metrics import METRICS

    return {name: METRICS.module(name).Config() for name in ("kl", "agreement")}


def _stored_bytes(source: Source) -> int:
    from easydistill.models.loading import stored_dtype
    from easydistill.models.reference import resolve

    return 4 if stored_dtype(resolve(source.directory)) == "float32" else 2


def _texts(source: Source, read: ReadTokenizer, texts: Sequence[str]) -> dict[str, Any]:
    """Whether the tokenizer that was written is the student's."""
    own = of_transformers(source.tokenizer, source.ends)
    other = next((text for text in texts if own.encode(text) != read.encode(text)), None)
    template = own.template.get("default") if isinstance(own.template, dict) else own.template
    theirs = read.template.get("default") if isinstance(read.template, dict) else read.template
    return {
        "texts": len(texts),
        "other_ids": other,
        "same_template": template == theirs,
        "end_tokens": sorted(source.tokenizer.convert_ids_to_tokens(end) for end in source.ends),
        "lacks_ends": sorted(source.tokenizer.convert_ids_to_tokens(end) for end in source.ends - read.ends),
    }


def refuse_other(record: dict[str, Any], *, lossless: bool) -> None:
    """
    Raises:
        ModelError: what was read back is not what was to be written.
    """
    what = f"{record['folder']}: what was read back"
    if record["other_ids"] is not None:
        raise ModelError(f"{what} has other tokens for the text {record['other_ids'][:200]!r}")
    if not record["same_template"]:
        raise ModelError(f"{what} has another chat template than the student")
    if lossless and not record["kl"] <= LOSSLESS_KL:
        raise ModelError(f"{what} is not the student: KL {record['kl']:.4g} where {LOSSLESS_KL} is the most")
