"""The label stage against an API with batches, as the runner runs it, in this process or in one to be killed.

python -m tests.support.label_in_batches FOLDER BASE_URL PROMPTS_AS_JSON
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from easydistill.asking.label import LabelStage
from easydistill.config.dataset import DatasetConfig
from easydistill.config.inference import ApiInferenceConfig
from easydistill.engine.interrupt import StopSignal
from easydistill.engine.progress import Reporter
from easydistill.engine.secrets import Redactor
from easydistill.engine.stage import StageContext, StageResult
from easydistill.jobs._api_teacher import api_teacher
from tests.support.jobs import write_prompts

FAST = {"poll_interval": 0.02}


def label(
    folder: Path, base_url: str, prompts: list[str], *, stop: StopSignal | None = None, **inference: Any
) -> StageResult:
    """Run the stage in `folder`/stage."""
    values = {
        "batch": FAST,
        "timeout": 5,
        "max_retry_wait": 0.05,
        "max_new_tokens": 50,
        "model": "teacher-1",
    } | inference
    config = ApiInferenceConfig(base_url=base_url, **values)
    dataset = DatasetConfig(instruction_path=str(write_prompts(folder, prompts)))
    stage = LabelStage(dataset, config, api_teacher(config))
    directory = folder / "stage"
    directory.mkdir(exist_ok=True)
    reporter = Reporter(None, quiet=True)
    return stage.run(StageContext(directory, folder, {}, "f", stop or StopSignal(), reporter, Redactor()))


if __name__ == "__main__":
    label(Path(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3]))
