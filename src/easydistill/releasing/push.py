"""Uploads a released dataset to a repository of the Hugging Face hub: a stage of its own, only if asked for."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from easydistill.data.files import write_json
from easydistill.engine.checks import needs_extra
from easydistill.engine.stage import Estimate, StageContext, StageResult
from easydistill.errors import ConfigIssue, EasyDistillError
from easydistill.releasing.stage import FOLDER, ReleaseStage

TOKEN = "HF_TOKEN"
"""Environment variable that holds the hub's token."""
RECEIPT = "pushed.json"
_OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")


class PushFailed(EasyDistillError, RuntimeError):
    """The hub did not take the dataset. The folder is complete; the same command uploads it again."""


class PushStage:
    """Upload of the folder that `release` wrote."""

    name = "push"
    inputs = (ReleaseStage.name,)
    offers: tuple[str, ...] = ()
    classifies = False

    def __init__(self, repository: str, *, private: bool) -> None:
        self._repository, self._private = repository, private

    def preflight(self) -> list[ConfigIssue]:
        issues = needs_extra("hub", "huggingface_hub")
        if not os.environ.get(TOKEN, "").strip():
            hint = f"export {TOKEN}=…, with a token that may write to {self._repository}; or remove release.push"
            issues.append(ConfigIssue("this machine", "release.push", f"{TOKEN} is not set", hint))
        if offline := next(
            (name for name in _OFFLINE if os.environ.get(name, "0").lower() in {"1", "true", "yes"}), ""
        ):
            problem = f"{offline} is set, and nothing can be uploaded"
            issues.append(
                ConfigIssue("this machine", "release.push", problem, f"unset {offline}, or remove release.push")
            )
        return issues

    def fingerprint(self) -> dict[str, Any]:
        return {"repository": self._repository}

    def estimate(self, directory: Path) -> Estimate:
        return Estimate(calls=0)

    def foretell(self) -> list[str]:
        kind = "private, if it is new" if self._private else "public, if it is new"
        return [f"the dataset will be uploaded to {self._repository} ({kind})"]

    def run(self, context: StageContext) -> StageResult:
        token = os.environ[TOKEN].strip()
        context.redactor.register(token)
        folder = context.input_path(ReleaseStage.name, FOLDER)
        context.reporter.say(f"  uploading {folder.name}/ to {self._repository}")
        commit = self._upload(folder, token)
        write_json(context.directory / RECEIPT, {"repository": self._repository, "commit": commit})
        return StageResult((RECEIPT,), metrics={"repository": self._repository, "commit": commit})

    def _upload(self, folder: Path, token: str) -> str:
        """Upload a folder; returns the commit's address.

        Raises:
            PushFailed: the hub refuses it, or cannot be reached.
        """
        from huggingface_hub import HfApi
        from huggingface_hub.errors import HfHubHTTPError

        api = HfApi(token=token)
        try:
            api.create_repo(self._repository, repo_type="dataset", private=self._private, exist_ok=True)
            made = api.upload_folder(
                repo_id=self._repository,
                folder_path=folder,
                repo_type="dataset",
                commit_message="Release of EasyDistill",
                # Shards of an earlier release would be loaded with these.
                delete_patterns=["*/*.parquet"],
            )
        except (HfHubHTTPError, OSError) as error:
            told = str(error).strip().replace(token, "***").partition("\n")[0]
            hint = "the folder is whole: check the token and the name, and give the same command again"
            raise PushFailed(f"{self._repository}: {told or type(error).__name__}\n    → {hint}") from None
        return str(made.commit_url)
