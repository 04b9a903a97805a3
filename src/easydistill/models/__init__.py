"""Models: where a reference points, how weights are loaded, how a student is made."""

import logging


def _told_to_torchao(record: logging.LogRecord) -> bool:
    return "register_constant() on Enum subclasses" not in record.msg


# peft and transformers import torchao wherever it is; with torch 2.13 that prints a warning for its developers.
logging.getLogger("torch.utils._pytree").addFilter(_told_to_torchao)
