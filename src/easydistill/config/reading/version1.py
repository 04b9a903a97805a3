"""Keys of EasyDistill 1 that have one meaning here but stand in another section, and prompts that were single texts.

EasyDistill 1 put a prompt before what it asked about, with a line break between them, and looked for tags of its own in
the replies. Here a prompt is a Jinja template that shows the row itself and says which form the reply must have.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field, replace

from easydistill.config.reading.nodes import OVERRIDE, Issues, Node
from easydistill.config.values import KeyPath, dotted

TRAIN_ONLY = frozenset({"kd_black_box_train_only", "kd_white_box_train_only"})
"""Jobs that trained on `dataset.labeled_path` and asked no teacher for answers, whatever else their configs held."""

BATCH_JOBS = (
    *("instruction_expansion", "instruction_refinement", "instruction_response_extraction"),
    *("cot_generation", "cot_long2short", "cot_short2long"),
)
"""Jobs that there were as `…_api`, with a server, and as `…_batch`, with a model in the process."""

GREEDY = frozenset(
    {
        *("kd_black_box_local", "kd_white_box", "mmkd_black_box_local", "mmkd_white_box"),
        *(f"{job}_batch" for job in BATCH_JOBS),
    }
)
"""Jobs whose teacher always took the most probable token (top_k 1), whatever the temperature."""

WITH_IMAGES = frozenset({"mmkd_black_box_api", "mmkd_black_box_local", "mmkd_white_box"})
"""Jobs that trained on rows with images."""

OLD_SYSTEM_PROMPT = "You are a helpful assistant."
"""What `mmkd_black_box_api` sent where the config's system prompt was empty."""

MOVED: dict[str, dict[KeyPath, KeyPath]] = {
    "instruction_expansion": {
        ("dataset", name): ("synthesis", name) for name in ("num_in_context_samples", "num_output_samples")
    },
}
"""Job type → old path → path now."""

TEMPLATE_COUNTS = "counts here; the jobs with images of EasyDistill 1 used the models' own templates alone"
QUESTIONS_LEARNED = "learns the answers alone; the jobs with images of EasyDistill 1 learned the questions' text too"

_PROMPT: KeyPath = ("inference", "prompt")
_JINJA = re.compile(r"\{[{%#]")


@dataclass(frozen=True)
class OldPrompt:
    """What an old prompt becomes."""

    name: str
    """Of the prompt that it replaces."""
    shows: str
    """How the template shows the row."""
    tags: dict[str, str] = field(default_factory=dict)
    """Tag that the old prompt asked for → tag that is read now."""
    plain: bool = False
    """Whether the whole reply was taken, without tags."""

    def template(self, text: str) -> str:
        """The template: the old text, the row, and the form of the reply."""
        return f"{literal(self.with_tags(text))}\n{self.shows}\n"

    def with_tags(self, text: str) -> str:
        """The text with the names of tags as they are now."""
        names = "|".join(self.tags)
        return re.sub(rf"<(/?)({names})>", lambda tag: f"<{tag[1]}{self.tags[tag[2]]}>", text) if names else text


_CHAIN = "[Problem]\n{{ instruction }}\n\n[Solution]\n{{ thought }}\n\n{{ form }}"
OLD_PROMPTS: dict[str, OldPrompt] = {
    "instruction_expansion": OldPrompt(
        "instruction_expansion",
        "{% for example in examples %}\n{{ example }}\n{% endfor %}\n\n{{ form }}",
        {"answer": "instruction"},
    ),
    "instruction_refinement": OldPrompt(
        "instruction_refinement", "{{ instruction }}\n\n{{ form }}", {"answer": "instruction"}
    ),
    "instruction_response_extraction": OldPrompt(
        "pair_extraction", "{{ passage }}\n\n{{ form }}", {"instruction": "question", "response": "answer"}
    ),
    "cot_generation": OldPrompt("cot_generation", "{{ instruction }}"),
    "cot_long2short": OldPrompt("cot_long2short", _CHAIN, plain=True),
    "cot_short2long": OldPrompt("cot_short2long", _CHAIN, plain=True),
}
"""Job type → what its `inference.prompt` is."""


def literal(text: str) -> str:
    """Text that a Jinja template shows as it is."""
    return f"{{% raw %}}{text}{{% endraw %}}" if _JINJA.search(text) else text


def drop_prompts(job: Node, issues: Issues) -> None:
    """Have a job that only trains ask for no answers."""
    dataset = job.section(("dataset",))
    if {"labeled_path", "instruction_path"} <= dataset.keys():
        issues.note(dataset.pop("instruction_path"), "is not read: the job trains on dataset.labeled_path alone")


def note_sampling(job: Node, issues: Issues) -> None:
    """Say that a temperature counts which did not."""
    if job.at(("inference", "temperature")) and job.at(("inference", "top_k")) is None:
        text = "counts here; EasyDistill 1 took the most probable token all the same, as inference.top_k 1 does"
        issues.note(job.nearest(("inference", "temperature"))[0], text)


def note_labels(job: Node, issues: Issues) -> None:
    """Say that a white-box job of old learned from a file that is written now."""
    if job.at(("dataset", "labeled_path")) is not None and job.at(("dataset", "instruction_path")) is not None:
        text = "is where the teacher's answers go; EasyDistill 1 read it. To learn from it, remove instruction_path"
        issues.note(job.nearest(("dataset", "labeled_path"))[0], text)


def note_images(job: Node, issues: Issues) -> None:
    """Say what the jobs with images learned and read otherwise, and write out a system prompt that they sent."""
    prompt = job.find(("inference", "system_prompt"))
    if prompt is not None and prompt.value == "":
        prompt.value = OLD_SYSTEM_PROMPT
        issues.note(prompt, f"is read as {json.dumps(OLD_SYSTEM_PROMPT)}, which was sent where it was empty")
    if (template := job.find(("dataset", "template"))) is not None and template.value is not None:
        issues.note(template, TEMPLATE_COUNTS)
    if (job_type := job.find(("job_type",))) is not None:
        issues.note(job_type, QUESTIONS_LEARNED)


def move_old_keys(job: Node, job_type: str, issues: Issues) -> None:
    """Bring keys to the sections where they belong now. A key that is given in both places is an issue."""
    for old, new in MOVED.get(job_type, {}).items():
        if job.at(old) is not None:
            _move(job, old, new, issues)
    prompt = job.find(_PROMPT)
    if prompt is not None and job_type in OLD_PROMPTS and isinstance(prompt.value, str):
        _move_prompt(job, prompt, OLD_PROMPTS[job_type], issues)


def _move_prompt(job: Node, given: Node, prompt: OldPrompt, issues: Issues) -> None:
    shown = [f"<{old}> as <{new}>" for old, new in prompt.tags.items() if f"<{old}>" in given.value]
    given.value = {"text": replace(given, value=prompt.template(given.value))}
    _move(job, _PROMPT, ("synthesis", "prompts", prompt.name), issues, f", its {' and '.join(shown)}" if shown else "")
    if prompt.plain:
        job.section(("synthesis",)).setdefault("reply", replace(given, value="plain"))


def _move(job: Node, old: KeyPath, new: KeyPath, issues: Issues, detail: str = "") -> None:
    given, _ = job.nearest(old)
    section = job
    for part in new[:-1]:
        section = section.value.setdefault(part, Node({}, (*section.path, part), given.source, given.line))
        if not isinstance(section.value, dict):
            return
    del job.nearest(old[:-1])[0].value[old[-1]]
    current = section.value.get(new[-1])
    if current is not None and (current.source == OVERRIDE) == (given.source == OVERRIDE):
        problem = f"{dotted(old)} is EasyDistill 1's name of {dotted(new)}, and both are given"
        issues.add(given, problem, f"keep {dotted(new)}")
    elif current is None or given.source == OVERRIDE:
        section.value[new[-1]] = given
        issues.note(given, f"is read as {dotted(new)}{detail}")
