"""Whether a text means the same as one in a pool: cosine similarity of embeddings from a local model.

An embedding is the mean of the last hidden states over a text's tokens, scaled to length 1, as sentence-embedding
models are trained for. (Plain language models place all texts close together: use an embedding model.)
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from easydistill.synthesis.similarity import Near

if TYPE_CHECKING:
    import numpy as np

LONGEST = 512
"""Tokens after which a text is truncated."""
BATCH = 32


def embeddings(reference: str, texts: Iterable[str]) -> dict[str, np.ndarray[Any, Any]]:
    """Each text's embedding, float32 [D], of length 1 (0 for a text without tokens, which is similar to nothing).

    The same set of texts gives the same vectors, independent of their order.

    Raises:
        ModelError: the model cannot be loaded.
        MissingExtra: `train` is not installed.
    """
    from easydistill.models.loading import device, import_torch, load_encoder, load_tokenizer, with_padding

    torch = import_torch()
    tokenizer = with_padding(load_tokenizer(reference))
    model = load_encoder(reference, torch.float32).to(device())
    ordered = sorted(set(texts), key=lambda text: (len(text), text))
    empty = [text for text in ordered if not text.strip() and not tokenizer(text)["input_ids"]]
    found = {text: torch.zeros(model.config.hidden_size).numpy() for text in empty}
    ordered = [text for text in ordered if text not in found]
    for start in range(0, len(ordered), BATCH):
        batch = ordered[start : start + BATCH]
        read = tokenizer(batch, padding=True, truncation=True, max_length=LONGEST, return_tensors="pt").to(device())
        with torch.inference_mode():
            states_BTD = model(input_ids=read["input_ids"], attention_mask=read["attention_mask"]).last_hidden_state
        counts_BT1 = read["attention_mask"].unsqueeze(-1).to(states_BTD.dtype)
        means_BD = (states_BTD * counts_BT1).sum(1) / counts_BT1.sum(1).clamp(min=1)
        units_BD = torch.nn.functional.normalize(means_BD, dim=-1).cpu().numpy()
        found.update(zip(batch, units_BD, strict=True))
    return found


class Meanings:
    """A growing pool of texts, searched for the nearest in meaning.

    Args:
        vectors: each text's embedding, of length 1.
        threshold: minimum cosine similarity of two texts that mean the same.
    """

    def __init__(self, vectors: dict[str, np.ndarray[Any, Any]], threshold: float) -> None:
        import numpy as np

        self._vectors = vectors
        self._threshold = threshold
        self._ids: list[str] = []
        width = len(next(iter(vectors.values()))) if vectors else 0
        self._pool_ND = np.empty((64, width), dtype=np.float32)

    def check(self, text: str) -> Near | None:
        """The nearest text of the pool if it reaches the threshold; among equally near ones, that with the least id."""
        if not self._ids:
            return None
        cosines_N = self._pool_ND[: len(self._ids)] @ self._vectors[text]
        best = float(cosines_N.max())
        if best < self._threshold:
            return None
        nearest = min(self._ids[row] for row in (cosines_N == cosines_N.max()).nonzero()[0])
        return Near("same_meaning", f"cosine similarity {best:.3f} to {nearest}", nearest)

    def add(self, identity: str, text: str) -> None:
        import numpy as np

        if len(self._ids) == len(self._pool_ND):
            self._pool_ND = np.concatenate([self._pool_ND, np.empty_like(self._pool_ND)])
        self._pool_ND[len(self._ids)] = self._vectors[text]
        self._ids.append(identity)
