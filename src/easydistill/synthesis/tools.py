"""The tools of operators that ask models: prompts, reply forms and random streams.

Prompts are Jinja templates `<name>.<language>.txt` in the operator's folder `prompts/`. A user's file replaces the
prompt of the same name in all languages; the variable `language` says which one is used. Templates run in a sandbox.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from easydistill.contracts.operator import Ask, OperatorConfig, PromptText, Role
from easydistill.data.messages import Message
from easydistill.data.records import content_hash
from easydistill.errors import ConfigIssue
from easydistill.synthesis.replies import Scores, form_words, schema_of
from easydistill.synthesis.text import language_of
from easydistill.verification.fields import Language

if TYPE_CHECKING:
    import jinja2

PROMPTS = "prompts"


@dataclass(frozen=True)
class Prompt:
    """A prompt's template in one language."""

    name: str
    text: str
    where: str

    @cached_property
    def _template(self) -> jinja2.Template:
        # Imported here: configs that replace no prompt are checked without jinja2.
        import jinja2
        from jinja2.sandbox import SandboxedEnvironment

        environment = SandboxedEnvironment(undefined=jinja2.StrictUndefined)
        return environment.from_string(self.text)

    def issue(self) -> ConfigIssue | None:
        """A syntax error in the template, if there is one."""
        import jinja2

        try:
            _ = self._template
        except jinja2.TemplateSyntaxError as error:
            return ConfigIssue(self.where, f"synthesis.prompts.{self.name}", f"line {error.lineno}: {error.message}")
        return None

    def fill(self, **values: Any) -> str:
        """The prompt's text."""
        return self._template.render(**values).strip()


class Tools:
    """An operator's prompts and settings."""

    def __init__(self, config: OperatorConfig, operator: ModuleType | None = None) -> None:
        """
        Args:
            operator: the operator's module, beside which its prompts are; built-in prompts are found without it.
        """
        self._config = config
        self._operator = operator
        self._prompts: dict[tuple[str, Language], Prompt] = {}

    def ask(
        self,
        name: str,
        text: str,
        wants: Sequence[str] | Scores = (),
        *,
        role: Role = "teacher",
        index: int = 0,
        before: Sequence[Message] = (),
        choices: Sequence[str] = (),
        **values: Any,
    ) -> Ask:
        """A request made from a prompt; see `contracts.operator.Tools.ask`."""
        language = self.language(text)
        if wants:
            values["form"] = form_words(wants, self._config.reply, language)
        # Prompts may say more about rows with images.
        filled = self.prompt(name, language).fill(language=language, **({"images": 0} | values))
        form = self._config.reply
        as_json = form == "json" or (form == "plain" and isinstance(wants, Mapping))
        schema = schema_of(wants, choices) if wants and as_json else None
        return Ask((*before, {"role": "user", "content": filled}), role, index, schema)

    def language(self, text: str) -> Language:
        return language_of(text) if self._config.language == "auto" else self._config.language

    def prompt(self, name: str, language: Language) -> Prompt:
        if (name, language) not in self._prompts:
            self._prompts[name, language] = load_prompt(name, language, self._config.prompts.get(name), self._operator)
        return self._prompts[name, language]

    def random(self, *of: Any) -> random.Random:
        """A random stream of its own for the arguments, such as a row's id."""
        return random.Random(f"{self._config.seed}:{content_hash(list(of))}")


def load_prompt(
    name: str, language: Language, override: str | PromptText | None = None, operator: ModuleType | None = None
) -> Prompt:
    """An operator's prompt, or the user's file or text that replaces it."""
    if isinstance(override, PromptText):
        return Prompt(name, override.text, "config")
    if override is not None:
        return Prompt(name, Path(override).read_text(encoding="utf-8"), override)
    file = prompt_file(name, language, operator)
    if file is None:
        raise FileNotFoundError(f"there is no prompt {name} for language {language}")
    return Prompt(name, file.read_text(encoding="utf-8"), file.name)


def prompt_file(name: str, language: Language, operator: ModuleType | None = None) -> Traversable | None:
    """The file of a prompt: in that language, else without a language, else in English."""
    folders = [*([_beside(operator)] if operator is not None else []), *_built_in_folders()]
    for folder in folders:
        for file in (f"{name}.{language}.txt", f"{name}.txt", f"{name}.en.txt"):
            if (path := folder / file).is_file():
                return path
    return None


def _beside(operator: ModuleType) -> Traversable:
    """The folder of prompts beside an operator's module."""
    assert operator.__file__ is not None, "a module of a namespace package holds no code"
    return Path(operator.__file__).parent / PROMPTS


def _built_in_folders() -> Iterator[Traversable]:
    """The folders of prompts that operators share, and those of the built-in operators."""
    here = resources.files(__package__)
    yield here / PROMPTS
    for operator in (here / "operators").iterdir():
        if operator.is_dir():
            yield operator / PROMPTS


def prompt_issues(config: OperatorConfig, names: Sequence[str]) -> list[ConfigIssue]:
    """Problems with the prompts that a config replaces.

    Args:
        names: all prompts that the operator uses.
    """
    issues: list[ConfigIssue] = []
    for name, path in config.prompts.items():
        key = f"synthesis.prompts.{name}"
        if name not in names:
            known = ", ".join(names) or "none"
            issues.append(ConfigIssue("config", key, "the operator has no such prompt", f"it has: {known}"))
            continue
        try:
            problem = load_prompt(name, "en", path).issue()
        except (OSError, UnicodeDecodeError) as error:
            problem = ConfigIssue("config", key, f"{path} cannot be read: {error}", "give a UTF-8 text file")
        if problem is not None:
            issues.append(problem)
    return issues


def prompt_hashes(config: OperatorConfig) -> dict[str, str]:
    """Hashes of the user's own prompts, for fingerprints."""
    return {
        name: content_hash(load_prompt(name, "en", given).text)[:16] for name, given in sorted(config.prompts.items())
    }
