"""Whether a teacher's distribution is meaningful for a student, checked before anything heavy starts.

White-box distillation compares probabilities token id by token id. This requires the same token behind every id, a
softmax over real tokens only, and a teacher that reads and ends a chat as the student does.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from easydistill.config.models import FreshStudent, ModelsConfig
from easydistill.data.chat import ChatRenderer, Expander
from easydistill.data.messages import Message
from easydistill.models.loading import eos_ids, load_tokenizer, model_config

PROBE: tuple[Message, ...] = (
    {"role": "user", "content": "Name a colour."},
    {"role": "assistant", "content": "Blue."},
)


@dataclass(frozen=True)
class Difference:
    """A difference between teacher and student."""

    problem: str
    hint: str
    fatal: bool = False


@dataclass(frozen=True)
class Side:
    """What the comparison needs to know about a model; no weights."""

    name: str
    tokenizer: Any
    eos_ids: frozenset[int]
    rows: int | None
    """Rows of its output layer, padding included; None if its config does not say."""
    template: str | None = None
    """Text of a template that replaces the tokenizer's own."""
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    """Variables of the template."""
    thoughts: str | None = None
    """What becomes of an assistant's thoughts, as `dataset.thoughts` says."""

    def renderer(self, date: datetime.date | None = None, images: Expander | None = None) -> ChatRenderer:
        """Renders chats for this model.

        Args:
            date: what a template that writes the date is given; by default the present.
            images: of a model that sees images: writes what it reads of them.

        Raises:
            DataError: it has no template, or none that is valid.
        """
        return ChatRenderer(
            self.tokenizer,
            self.eos_ids,
            self.template,
            template_kwargs=self.template_kwargs,
            date=date,
            thoughts=self.thoughts,
            images=images,
        )


def side_of(reference: str, name: str, *, trust_remote_code: bool = False) -> Side:
    """Load what the comparison needs to know about a model."""
    tokenizer = load_tokenizer(reference, trust_remote_code=trust_remote_code)
    config, generation = model_config(reference, trust_remote_code=trust_remote_code)
    return Side(name, tokenizer, eos_ids(tokenizer, generation), getattr(config, "vocab_size", None))


def student_side(models: ModelsConfig) -> Side:
    """The same for the student that a config describes; its weights are not created."""
    student = models.student
    if not isinstance(student, FreshStudent):
        reference = student if isinstance(student, str) else student.from_model
        return side_of(reference, "student", trust_remote_code=models.trust_remote_code)
    source = student.tokenizer or models.teacher
    assert source is not None, "check_student refuses this"
    tokenizer = load_tokenizer(source)
    named = student.config.get("eos_token_id", tokenizer.eos_token_id)
    ends = {tokenizer.eos_token_id, *(named if isinstance(named, list) else [named])} - {None}
    rows = student.vocab_size or student.config.get("vocab_size") or len(tokenizer)
    return Side("student", tokenizer, frozenset(ends), rows)


def shared_ids(first: Any, second: Any) -> int | None:
    """How many ids, from 0 up, stand for the same token in both tokenizers; None if some id or token disagrees.

    Further ids may exist in only one of them.
    """
    ours, theirs = first.get_vocab(), second.get_vocab()
    if any(theirs.get(token, at) != at for token, at in ours.items()):
        return None
    by_id = {at: token for token, at in theirs.items()}
    if any(by_id.get(at, token) != token for token, at in ours.items()):
        return None
    common = {at for token, at in ours.items() if token in theirs}
    count = len(common)
    return count if max(common, default=-1) == count - 1 else None


def answer_ids(first: Any, second: Any) -> int | None:
    """How many ids, from 0 up, stand for the same token in both tokenizers, if no other token of text is in both.

    Control tokens beyond them, such as those that stand for images, may differ: answers do not hold them. None if a
    token of text that both know has another id in one of them, or lies behind an id that disagrees.
    """
    ours, theirs = first.get_vocab(), second.get_vocab()
    named, others = ({at: token for token, at in vocabulary.items()} for vocabulary in (ours, theirs))
    count = 0
    while count in named and named[count] == others.get(count):
        count += 1
    text = (ours.keys() & theirs.keys()) - (_control_tokens(first) & _control_tokens(second))
    return count if text and all(ours[token] == theirs[token] < count for token in text) else None


def _control_tokens(tokenizer: Any) -> set[str]:
    added: Mapping[int, Any] = getattr(tokenizer, "added_tokens_decoder", {})
    return {*tokenizer.all_special_tokens, *(str(token) for token in added.values() if token.special)}


def real_vocabulary(tokenizer: Any) -> int:
    """Token ids below this are real; a model's output layer may have more rows, as padding."""
    return max(tokenizer.get_vocab().values()) + 1


def compare(student: Side, teacher: Side) -> list[Difference]:
    """Every difference between teacher and student that affects the comparison of their distributions."""
    return [
        *_vocabularies(student, teacher),
        *output_rows(student),
        *output_rows(teacher),
        *_ends(student, teacher),
        *_templates(student, teacher),
    ]


def _vocabularies(student: Side, teacher: Side) -> list[Difference]:
    ours, theirs = student.tokenizer.get_vocab(), teacher.tokenizer.get_vocab()
    shared = shared_ids(student.tokenizer, teacher.tokenizer)
    if shared is None:
        moved = sorted((at, token) for token, at in ours.items() if theirs.get(token) != at)
        shown = ", ".join(
            f"{token!r} is {at} for the student and {theirs.get(token, 'unknown')} for the teacher"
            for at, token in moved[:3]
        )
        alike = answer_ids(student.tokenizer, teacher.tokenizer) is not None
        return [
            Difference(
                f"teacher and student number their tokens differently: {len(moved)} of {len(ours)} differ ({shown})",
                'set distillation.align to "answers": these are no tokens of answers'
                if alike
                else 'set distillation.align to "bytes", or take a teacher and a student of one family',
                fatal=True,
            )
        ]
    extra = max(len(ours), len(theirs)) - shared
    if extra:
        who = "student" if len(ours) > len(theirs) else "teacher"
        problem = f"{extra} tokens are known to the {who} alone; the other {shared} have the same ids"
        return [Difference(problem, "they are left out of both softmaxes")]
    return []


def output_rows(side: Side) -> list[Difference]:
    """Whether a model's output layer has exactly one row for each token of its tokenizer."""
    real = real_vocabulary(side.tokenizer)
    if side.rows is None or side.rows == real:
        return []
    if side.rows < real:
        problem = f"the {side.name}'s output layer has {side.rows} rows, its tokenizer knows {real} tokens"
        return [Difference(problem, "take the tokenizer that belongs to the model", fatal=True)]
    problem = f"the {side.name}'s output layer has {side.rows} rows for {real} tokens"
    return [Difference(problem, "the padding is left out before the softmax")]


def _ends(student: Side, teacher: Side) -> list[Difference]:
    try:
        rendered = student.renderer().render(PROBE)
    except ValueError:
        return []
    last = max((t for t, on in enumerate(rendered.mask) if on), default=None)
    if last is None or rendered.ids[last] in teacher.eos_ids:
        return []
    written = student.tokenizer.convert_ids_to_tokens(rendered.ids[last])
    ends = ", ".join(map(repr, teacher.tokenizer.convert_ids_to_tokens(sorted(teacher.eos_ids))))
    return [
        Difference(
            f"the student ends its turn with {written!r}, the teacher with {ends}",
            "the teacher will find the student's end unlikely; set dataset.template to the teacher's template",
        )
    ]


def _templates(student: Side, teacher: Side) -> list[Difference]:
    found: list[Difference] = []
    try:
        ours = student.renderer()
        ids = ours.render(PROBE).ids
        text = ours.text(PROBE, add_generation_prompt=False)
    except ValueError as error:
        return [Difference(f"the student's template cannot be used: {error}", "set dataset.template", fatal=True)]
    bos = student.tokenizer.bos_token_id
    if bos is not None and ids[:2] == [bos, bos]:
        found.append(
            Difference("the template writes the begin token twice", "remove one from the template", fatal=True)
        )
    if not getattr(teacher.tokenizer, "chat_template", None):
        return found
    try:
        theirs = ChatRenderer(teacher.tokenizer, teacher.eos_ids).text(PROBE, add_generation_prompt=False)
    except ValueError:
        return found
    if theirs != text:
        found.append(
            Difference(
                "teacher and student write a chat differently (their templates differ)",
                "the teacher reads the student's form; set dataset.template to train in the teacher's",
            )
        )
    return found


def begins_twice(side: Side, renderer: ChatRenderer) -> list[Difference]:
    """Whether a side's own template writes the begin token that its tokenizer writes too."""
    begin = side.tokenizer.bos_token_id
    if begin is None or renderer.render(PROBE).ids[:2] != [begin, begin]:
        return []
    problem = f"the {side.name}'s template writes the begin token twice"
    return [Difference(problem, "remove one from the template", fatal=True)]


def fatal(differences: Sequence[Difference]) -> list[Difference]:
    """The differences that make the comparison meaningless."""
    return [difference for difference in differences if difference.fatal]
