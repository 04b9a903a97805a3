"""The report of a real synthesis run: what it tells is what is on disk."""

from __future__ import annotations

import json
from pathlib import Path

from tests.support.scripted_server import ScriptedServer
from tests.unit.report_fixtures import page_of

import easydistill
from easydistill.api import summary_lines

SUBJECTS = ("bees", "salt", "tides", "clocks", "paper", "moss", "copper", "wind")


def say(text: str, number: int) -> str:
    if number % 4 == 0:
        return "I <b>cannot</b>."
    what = SUBJECTS[number % len(SUBJECTS)]
    return f"<instruction>{what} {what}s {what}ing, {number} {number}th ways with {what}</instruction>"


def test_the_report_tells_what_is_on_disk(tmp_path: Path) -> None:
    server = ScriptedServer()
    server.say = say
    (tmp_path / "seeds.json").write_text(json.dumps([{"instruction": "Explain how rainbows form."}]))
    try:
        result = easydistill.run(
            {
                "job_type": "instruction_expansion",
                "output_dir": str(tmp_path / "run"),
                "dataset": {
                    "instruction_path": str(tmp_path / "seeds.json"),
                    "labeled_path": str(tmp_path / "new.json"),
                },
                "inference": {"base_url": server.url, "model": "m", "prices": {"input": 1000, "output": 2000}},
                "synthesis": {"num_output_samples": 5},
            },
            quiet=True,
        )
    finally:
        server.close()
    stage = next((tmp_path / "run/stages").glob("*-synthesise"))
    rows = json.loads((stage / "labeled.json").read_text())
    refused = [json.loads(line) for line in (stage / "rejected.jsonl").read_text().splitlines()]
    asked, kept, lost = len(server.asked), len(rows), len(refused)
    assert kept == 5 and lost > 0 and asked == kept + lost

    # Each answer is 10 tokens in and 5 out.
    cost = f"{asked * 0.02:,.6g}"
    page = page_of(tmp_path / "run")
    assert page.sections() == ["synthesis-1", "time", "settings", "use"]
    for text in (
        f"Instruction expansion: {kept} of {asked} candidates were accepted",
        f"It took {asked} requests, {asked * 10:,} tokens in and {asked * 5:,} out; cost {cost}.",
        f"Candidates {asked}",
        f"Accepted {kept}",
        *(row["instruction"] for row in rows),
        "I <b>cannot</b>.",
    ):
        assert text in page.text, text
    assert "tudent" not in page.text

    lines = summary_lines(result)
    made = next(line for line in lines if line.startswith("instruction_expansion: "))
    assert f"{asked} candidates, {kept} accepted, {lost} rejected (" in made and made.endswith(f"; cost {cost}")
    for line in (f"rows:    {stage}/labeled.json", f"card:    {stage}/README.md", f"copy:    {tmp_path}/new.json"):
        assert line in lines and Path(line.split()[1]).is_file()
    assert not any(line.startswith("rejected rows") for line in lines)
