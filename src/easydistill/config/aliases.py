"""EasyDistill 1 names: job types and keys that old configs use, and what they are called now."""

from __future__ import annotations

from typing import Any

from easydistill.config.syntax import Document, KeyPath
from easydistill.errors import ConfigIssue

JOB_TYPE_ALIASES: dict[str, str] = {
    "kd_black_box_api": "black_box_kd_api",
    "kd_black_box_local": "black_box_kd_local",
    "kd_black_box_train_only": "black_box_kd_local",
}

KEY_ALIASES: dict[KeyPath, KeyPath] = {
    ("training", "max_seq_length"): ("training", "max_length"),
    ("training", "max_seq_len"): ("training", "max_length"),
    ("dataset", "labelled_path"): ("dataset", "labeled_path"),
    ("inference", "max_tokens"): ("inference", "max_new_tokens"),
    ("inference", "model_name"): ("inference", "model"),
    ("training", "lora", "lora_alpha"): ("training", "lora", "alpha"),
    ("training", "lora", "lora_dropout"): ("training", "lora", "dropout"),
}


def apply_aliases(document: Document) -> list[ConfigIssue]:
    """Rename old names in place. Returns an issue for each key given under both names."""
    issues: list[ConfigIssue] = []
    job_type = document.data.get("job_type")
    if isinstance(job_type, str):
        document.data["job_type"] = JOB_TYPE_ALIASES.get(job_type, job_type)
    for old, new in KEY_ALIASES.items():
        section: Any = document.data
        for part in old[:-1]:
            section = section.get(part) if isinstance(section, dict) else None
        if not isinstance(section, dict) or old[-1] not in section:
            continue
        if new[-1] in section:
            both = f"{'.'.join(map(str, old))} is an old name of {new[-1]}, and both are given"
            issues.append(ConfigIssue(document.where(old), ".".join(map(str, old)), both, f"keep {new[-1]}"))
            del section[str(old[-1])]
            continue
        section[str(new[-1])] = section.pop(str(old[-1]))
        if old in document.lines:
            document.lines[new] = document.lines[old]
    return issues
