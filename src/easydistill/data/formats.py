"""Files of rows ↔ `Sample`: `reading/` reads them, `writing.py` writes them. Here are the names that callers use."""

from easydistill.data.reading import ROW, Reading, read_rows, read_samples
from easydistill.data.reading.keys import CHAT_KEYS

__all__ = ["CHAT_KEYS", "ROW", "Reading", "read_rows", "read_samples"]
