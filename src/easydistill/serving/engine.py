"""The thread in which the model answers: requests that come together, or while others are being answered, share passes.

A model whose cache is keys and values of whole sequences takes a new prompt in at any token (`models/decoding/flow`).
Others, and prompts with images, go through transformers' `generate` in batches of those that wait, one after the other.
Requests begin in the order in which they came.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from easydistill.engine.run_directory import LOGGER
from easydistill.kernels.logprobs import completion_logprobs
from easydistill.models.allocation import reused_memory
from easydistill.models.decoding.attention import grouped_attention
from easydistill.models.decoding.check import decodes
from easydistill.models.decoding.flow import Flow
from easydistill.models.padding import reads_padding
from easydistill.models.sampling import by_generate
from easydistill.models.spread import input_device
from easydistill.serving.drawing import draw_tokens
from easydistill.serving.problems import ApiProblem
from easydistill.serving.rows import Row

if TYPE_CHECKING:
    from easydistill.models.multimodal import Vision

MOST_WAITING = 4096
"""Requests that may wait; further ones are refused."""
PROMPT_TOKENS = 8192
"""Most tokens of prompts, padding included, that are read at once while others wait for their next token."""
SCORED_TOKENS, SCORED_ROWS = 8192, 64
"""Most tokens and rows that are scored in one pass."""


@dataclass(frozen=True, eq=False)
class _Scoring:
    """Tokens whose log-probabilities are wanted."""

    ids: list[int]
    found: Future[list[float]] = field(default_factory=Future)


class Engine:
    """Answers rows with a model.

    Args:
        model: a causal language model, on its device.
        most_rows: answers written at once.
        vision: of a model that sees images.
    """

    def __init__(self, model: Any, most_rows: int, vision: Vision | None = None) -> None:
        self._model, self._most_rows, self._vision = model, most_rows, vision
        self._reserved: tuple[int, ...] = () if vision is None else vision.processor.reserved_ids
        self._waiting: deque[Row | _Scoring] = deque()
        self._changed = threading.Condition()
        self._closing = False
        self._rows: list[Row] = []
        self._equal: bool | None = None
        self._thread = threading.Thread(target=self._work, name="engine", daemon=True)

    def prepare(self, prompt: list[int]) -> None:
        """Find out how the model is decoded, so that the first request does not wait for it.

        Args:
            prompt: any prompt's tokens.
        """
        with torch.inference_mode():
            decodes(self._model, prompt)

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    def submit(self, rows: Sequence[Row]) -> None:
        """Answer rows; their listeners are called from the engine's thread.

        Raises:
            ApiProblem: too many wait already, or the engine is closing.
        """
        self._queue(rows)

    def score(self, ids: list[int]) -> Future[list[float]]:
        """log p(token | tokens before) of the second token and all later ones, in nats, at temperature 1."""
        scoring = _Scoring(ids)
        if len(ids) < 2:
            scoring.found.set_result([])
        else:
            self._queue([scoring])
        return scoring.found

    def close(self) -> None:
        """Give up what is unanswered, and end the thread. May be called again."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        if self._thread.is_alive():
            self._thread.join()

    def _queue(self, items: Sequence[Row | _Scoring]) -> None:
        with self._changed:
            if self._closing:
                raise ApiProblem(503, "the server is ending")
            if len(self._waiting) + len(items) > MOST_WAITING:
                raise ApiProblem(429, f"{len(self._waiting)} requests wait already: try again later", code="busy")
            self._waiting.extend(items)
            self._changed.notify()

    # --- the thread ---------------------------------------------------------------------------------------------

    def _work(self) -> None:
        with reused_memory(input_device(self._model)):
            while (first := self._next()) is not None:
                try:
                    with torch.inference_mode():
                        self._begin(first)
                except Exception as error:
                    # One batch's failure, such as a device without memory, is not the server's end.
                    LOGGER.exception("%d answers failed", len(self._rows))
                    self._give_up(self._rows, error)
                self._rows = []
        with self._changed:
            left = [*self._waiting]
            self._waiting.clear()
        for item in left:
            if isinstance(item, Row):
                item.fail(ApiProblem(503, "the server has ended"))
            elif item.found.set_running_or_notify_cancel():
                item.found.set_exception(ApiProblem(503, "the server has ended"))

    def _next(self) -> Row | _Scoring | None:
        """What is to be done first; None if the engine is to end."""
        with self._changed:
            while not self._closing:
                while self._waiting and isinstance(first := self._waiting[0], Row) and first.over:
                    self._waiting.popleft()
                if self._waiting:
                    return self._waiting[0]
                self._changed.wait()
        return None

    def _taken(self, most: int, fits: Callable[[Row | _Scoring, list[Any]], bool]) -> list[Any]:
        """Those that wait, from the first on, as long as they fit to those before."""
        taken: list[Any] = []
        with self._changed:
            while self._waiting and len(taken) < most:
                first = self._waiting[0]
                if isinstance(first, Row) and first.over:
                    self._waiting.popleft()
                    continue
                if self._closing or not fits(first, taken):
                    break
                taken.append(self._waiting.popleft())
        return taken

    def _begin(self, first: Row | _Scoring) -> None:
        if isinstance(first, _Scoring):
            self._score()
        elif self._flows(first):
            self._answer_in_flow()
        else:
            self._answer_by_generate()

    def _flows(self, row: Row) -> bool:
        return not row.images and decodes(self._model, row.prompt)

    def _give_up(self, rows: Sequence[Row], error: Exception) -> None:
        told = error if isinstance(error, ApiProblem) else ApiProblem(500, f"{type(error).__name__}: {error}")
        for row in rows:
            row.fail(told)

    # --- answers ------------------------------------------------------------------------------------------------

    def _answer_in_flow(self) -> None:
        flow = Flow(self._model)
        with grouped_attention(self._model):
            while not self._closing:
                # Not behind the longest answer. Attention is another one here, which takes no rows without padding.
                self._score(flat=False)
                self._admit(flow)
                if not self._rows:
                    return
                tokens_B = draw_tokens(flow.logits, self._rows, self._reserved)
                left = [place for place, row in enumerate(self._rows) if not row.over]
                if len(left) < len(self._rows):
                    flow.keep(left)
                    self._rows = [self._rows[place] for place in left]
                    tokens_B = tokens_B[torch.tensor(left, dtype=torch.long, device=tokens_B.device)]
                if self._rows:
                    flow.step(tokens_B)
        self._give_up(self._rows, ApiProblem(503, "the server has ended"))

    def _admit(self, flow: Flow) -> None:
        """Let rows that wait join, as many as there is room for."""

        def fits(row: Row | _Scoring, taken: list[Row]) -> bool:
            if not isinstance(row, Row) or not self._flows(row):
                return False
            width = max(len(other.prompt) for other in (*taken, row))
            return not taken or (len(taken) + 1) * width <= PROMPT_TOKENS

        new = self._taken(self._most_rows - len(self._rows), fits)
        if new:
            # Those before, so that an error in the prompts is told to all of them.
            self._rows = [*self._rows, *new]
            flow.add([row.prompt for row in new])

    def _answer_by_generate(self) -> None:
        def fits(row: Row | _Scoring, taken: list[Row]) -> bool:
            if not isinstance(row, Row) or self._flows(row):
                return False
            return not taken or len(row.prompt) == len(taken[0].prompt) or not self._needs_equal(row)

        rows = self._rows = self._taken(self._most_rows, fits)
        if not rows:
            return

        def choose(ids_BT: torch.Tensor, logits_BV: torch.Tensor) -> torch.Tensor:
            chosen_B1 = draw_tokens(logits_BV, rows, self._reserved)[:, None]
            return torch.full_like(logits_BV, -torch.inf).scatter_(-1, chosen_B1, 0.0)

        def ended(ids_BT: torch.Tensor, logits: Any) -> torch.Tensor:
            return torch.tensor([row.over or self._closing for row in rows], device=ids_BT.device)

        seen = None
        if self._vision is not None and any(row.images for row in rows):
            shown = [(row.prompt, row.images) for row in rows]
            seen = partial(self._vision.inputs, rows=shown, dtype=self._model.dtype)
        room = max(row.most for row in rows)
        try:
            by_generate(self._model, [row.prompt for row in rows], frozenset(), room, [choose], seen, ended)
        except Exception:
            left = [row for row in rows if not row.over]
            if len(left) == len(rows) or any(row.last is not None for row in rows):
                raise
            # A client that goes takes its images along; if they were still to be read, the others begin again.
            with self._changed:
                self._waiting.extendleft(reversed(left))
            return
        self._give_up(rows, ApiProblem(503, "the server has ended"))

    def _needs_equal(self, row: Row) -> bool:
        """Whether prompts of different lengths must not share a batch."""
        if self._equal is None:
            try:
                self._equal = reads_padding(self._model, row.prompt)
            except Exception:
                # Those taken before are answered all the same; what is wrong with the model shows there.
                LOGGER.exception("whether the model reads padding could not be found out")
                return True
        return self._equal

    # --- scores -------------------------------------------------------------------------------------------------

    def _scorings(self) -> list[_Scoring]:
        """Scores that are wanted, as many as fit into one pass; answers that wait between them are left where they
        are, since whoever wants scores asks for a token of an answer too."""
        taken: list[_Scoring] = []
        with self._changed:
            for item in [*self._waiting]:
                if not isinstance(item, _Scoring):
                    continue
                width = max(len(other.ids) for other in (*taken, item))
                if len(taken) == SCORED_ROWS or (taken and (len(taken) + 1) * width > SCORED_TOKENS):
                    break
                taken.append(item)
                self._waiting.remove(item)
        return taken

    def _score(self, *, flat: bool = True) -> None:
        batch = [item for item in self._scorings() if item.found.set_running_or_notify_cancel()]
        if not batch:
            return
        try:
            sequences = [(item.ids, 1) for item in batch]
            logprobs_N, _ = completion_logprobs(
                self._model, sequences, 0, None, with_entropy=False, flat=flat, vision=self._vision
            )
        except Exception as error:
            for item in batch:
                item.found.set_exception(ApiProblem(500, f"{type(error).__name__}: {error}"))
            LOGGER.exception("%d scores failed", len(batch))
            return
        found, at = logprobs_N.tolist(), 0
        for item in batch:
            item.found.set_result(found[at : at + len(item.ids) - 1])
            at += len(item.ids) - 1
