"""Answers that follow a JSON schema: tokens that would break it are masked during sampling.

A small model asked for JSON rarely returns it; constrained to a schema it returns nothing else, unless the answer is
cut off. The grammars are llguidance's, as in vLLM.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from easydistill.errors import MissingExtra, TeacherError

if TYPE_CHECKING:
    import torch

PURPOSE = "Holding a local model to a JSON schema"


class SchemaGrammars:
    """Grammars of JSON schemas over one model's tokens.

    Args:
        tokenizer: a fast tokenizer whose tokens decode to the original text.
        ends: tokens that end an answer.
        vocabulary: width of the model's logits.

    Raises:
        MissingExtra: llguidance is not installed.
        TeacherError: grammars cannot be made for this kind of tokenizer.
    """

    def __init__(self, tokenizer: Any, ends: Iterable[int], vocabulary: int) -> None:
        try:
            from llguidance import LLMatcher
            from llguidance.hf import from_tokenizer
        except ImportError:
            raise MissingExtra("synth", PURPOSE) from None
        try:
            tokens = from_tokenizer(tokenizer, n_vocab=vocabulary, eos_token=sorted(ends))
        except ValueError as error:
            problem = f"the tokenizer does not support synthesis.reply=json: {error}; take tags or plain"
            raise TeacherError(problem) from error

        # Made once per schema; every row gets a copy, which keeps the row's state.
        @lru_cache(maxsize=64)
        def matcher(schema: str) -> LLMatcher:
            grammar = LLMatcher.grammar_from_json_schema(schema, overrides={"whitespace_flexible": False})
            made = LLMatcher(tokens, grammar)
            if made.is_error():
                raise TeacherError(f"no grammar can be made of the schema {schema}: {made.get_error()}")
            return made

        self._matcher = matcher

    def masks(self, schemas: Sequence[dict[str, Any] | None]) -> SchemaMasks | None:
        """The masks of a batch, from one schema (or None) per row; None if no row has a schema.

        Raises:
            TeacherError: no grammar can be made of a schema.
        """
        if all(schema is None for schema in schemas):
            return None
        return SchemaMasks(
            [None if schema is None else self._matcher(json.dumps(schema)).deep_copy() for schema in schemas]
        )


class SchemaMasks:
    """A transformers logits processor: masks every token with which a row would leave its grammar."""

    def __init__(self, matchers: Sequence[Any]) -> None:
        """`matchers` has one per row, None for unconstrained rows."""
        self._matchers = matchers
        self._started = False

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """From token ids (B, T) and logits (B, V): the logits, −inf for masked tokens."""
        return self.applied(scores, input_ids[:, -1].tolist() if self._started else [None] * len(self._matchers))

    def applied(self, logits_BV: torch.Tensor, drawn: Sequence[int | None]) -> torch.Tensor:
        """The logits, −inf for masked tokens.

        Args:
            drawn: each row's last token; None before its first.
        """
        import numpy as np
        import torch

        self._started = True
        allowed_BV = np.ones(logits_BV.shape, dtype=bool)
        for row, (matcher, token) in enumerate(zip(self._matchers, drawn, strict=True)):
            if matcher is None:
                continue
            # After its end a row may be padded with end tokens.
            if token is not None and not matcher.is_stopped():
                matcher.consume_token(token)
            # Beyond llguidance's limits a row continues unconstrained; its form is checked later, like any other's.
            if not matcher.is_error():
                bits = np.frombuffer(matcher.compute_bitmask(), dtype=np.uint8)
                allowed_BV[row] = np.unpackbits(bits, bitorder="little", count=logits_BV.shape[1])
        return logits_BV.masked_fill(torch.from_numpy(~allowed_BV).to(logits_BV.device), -torch.inf)

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with these rows only."""
        self._matchers = [self._matchers[row] for row in rows]
