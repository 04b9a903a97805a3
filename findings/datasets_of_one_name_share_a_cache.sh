#!/usr/bin/env bash
# datasets 5.2.0: two local folders of the same name, each with a card that lists its data files (what every published
# dataset has, and what `push_to_hub` writes), are one dataset to load_dataset: the second gives the rows of the first.
# The cache is keyed by the folder's name and a hash of the card's entry, which holds patterns (`train/*.parquet`), not
# the files that they match, their sizes or the folder they lie in. New files in the same folder are not seen either.
# Without a card the files are part of the key, and both load as they are. A user would expect the rows of the folder that
# was named, as then. Source: LocalDatasetModuleFactory.get_module hashes builder configs made from the card's metadata.
# Way out: an entry that differs, such as `description: <hash of the files>`.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet datasets==5.2.0
cd "$folder"
export HF_HOME="$folder/home" HF_HUB_OFFLINE=1
venv/bin/python -W ignore - <<'PYTHON' 2>/dev/null
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as parquet

CARD = "---\nconfigs:\n- config_name: default\n{more}  data_files:\n  - split: train\n    path: train/*.parquet\n---\n"


def made(where: str, row: str, card: str | None) -> str:
    folder = Path(where) / "dataset"
    (folder / "train").mkdir(parents=True, exist_ok=True)
    parquet.write_table(pa.table({"row": [row]}), folder / "train/0.parquet")
    if card is not None:
        (folder / "README.md").write_text(card)
    return str(folder)


def rows(folder: str) -> list[str]:
    return datasets.load_dataset(folder)["train"]["row"][:]


card = CARD.format(more="")
found = [rows(made("a", "first", card)), rows(made("b", "second", card)), rows(made("a", "third", card))]
print("with a card:            ", found)
plain = [rows(made("c", "first", None)), rows(made("d", "second", None))]
print("without one:            ", plain)
told = [rows(made(name, name, CARD.format(more=f"  description: {name}\n"))) for name in ("e", "f")]
print("with another description:", told)
assert found == [["first"]] * 3 and plain == [["first"], ["second"]] and told == [["e"], ["f"]]
PYTHON
