"""Texts in the space of a student that reads them: class prompts and captions, for the probes.

Shape letters: A anchors, K texts, L places of a text, E width of the student's space.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from pipeline.cache.captions import Captions
from pipeline.cache.reader import Anchors
from pipeline.contracts import TokenBatch
from pipeline.prompts import PromptSet
from pipeline.shared.reader import TextReader

_AT_ONCE = 256  # texts
_log = logging.getLogger(__name__)


class ReadsTexts(Protocol):
    """A student with a text encoder."""

    def embed_texts(self, tokens: TokenBatch) -> Tensor:
        """Return float32 [K,E], normalised."""


@dataclass(frozen=True)
class OwnTexts:
    """How a student reads texts, and the class prompts to read, if there are any."""

    reader: TextReader
    prompts: PromptSet | None
    device: torch.device

    def anchors(self, student: ReadsTexts) -> Anchors | None:
        """Return per class the mean of its normalised texts, normalised; None without prompts."""
        return None if self.prompts is None else self.anchors_of(student, self.prompts)

    def anchors_of(self, student: ReadsTexts, prompts: PromptSet) -> Anchors:
        """Return the anchors of any prompt set; texts that are cut are told of."""
        flat = [text for texts in prompts.texts for text in texts]
        if cut := self.reader.count_cut(flat):
            _log.warning(
                "prompt set %s: %d of %d texts are longer than the %d tokens that the student "
                "reads, and are cut",
                *(prompts.name, cut, len(flat), self.reader.max_tokens),
            )
        embeddings_KE = self._embed(student, flat)
        mean_AE = embeddings_KE.reshape(len(prompts.texts), -1, embeddings_KE.shape[1]).mean(1)
        mean_AE /= np.linalg.norm(mean_AE, axis=1, keepdims=True)
        return Anchors(
            name=prompts.name,
            embeddings_AD=mean_AE,
            class_names=prompts.class_names,
            texts=prompts.texts,
            templates=prompts.templates,
            token_counts_AT=np.empty((0, 0), np.int32),
            teacher_digest="",
            labelled=prompts.labelled,
        )

    def captions(self, student: ReadsTexts, given: Captions) -> Captions:
        """Return the same captions with the student's own embeddings."""
        return replace(given, embeddings_KD=self._embed(student, given.texts))

    def _embed(self, student: ReadsTexts, texts: Sequence[str]) -> np.ndarray:
        tokens_KL = self.reader.tokenise(texts)
        found = []
        with torch.inference_mode():
            for begin in range(0, len(texts), _AT_ONCE):
                tokens = self.reader.batch(tokens_KL[begin : begin + _AT_ONCE])
                found.append(student.embed_texts(tokens.to(self.device)).float().cpu().numpy())
        return np.concatenate(found)
