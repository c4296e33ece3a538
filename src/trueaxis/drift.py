"""Drift: every matrix aims at what the original puts out, given what the compressed blocks before it hand on.

    text, longer if it is short ─┐
    files of the search ─────────┴▶ rounds of turns.py, each aimed at the size ─▶ the closer files on text kept back

Spaces go in turn, since the errors that a matrix takes up are those of matrices that are rounded already: targets
found for all spaces at once would take up errors that the next rounding no longer makes. Where there is less text than
is to be read, the model goes on from the beginnings of it: its own words are what it is asked about there.
Memory: two models in float32, in scratch, and what the matrices of one block read of the text.

References: Qronos (arXiv:2505.11695), GPTAQ (arXiv:2504.02692).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from trueaxis.assemble import Assembled, running
from trueaxis.likelihood import kl_nats
from trueaxis.metric.calibrate import split_sequences
from trueaxis.metric.running import forward
from trueaxis.metric.sample import continue_text
from trueaxis.metric.sensitivity import Output
from trueaxis.model.graph import route
from trueaxis.quantize.budget import AIM, ENOUGH
from trueaxis.runtime.resident import InScratch
from trueaxis.stages import InTurn, NoDrift
from trueaxis.turns import Course, Turns
from trueaxis.types import Array, CalibrationError

BATCH_TOKENS = 1024
KEPT_TOKENS = 4096
ROUNDS = 4
NO_TEXT = (
    "errors that matrices hand on are not made up for: the calibration text behind the statistics is not at hand; "
    "give it (--calibration) for a file that is closer to the original"
)


def as_found(stage: NoDrift, course: Course, files: Assembled) -> Assembled:
    """The files as they are."""
    return files


def in_turn(stage: InTurn, course: Course, files: Assembled) -> Assembled:
    """Files of the same size whose matrices make up for the errors of those before them.

    Args:
        stage: Tokens to read, and the share of the inputs' mean energy that is added to H̃.
        course: What the search left.
        files: From the search; they are the result where the new ones are no closer to the original, and where the
            blocks of the model are not known or factors are coded.
    """
    places = route(course.checkpoint)
    if not places.blocks or places.head is None or any(job.weight.name != job.coded.name for job in course.jobs):
        return files
    try:
        tokens, kept = _split(course.tokens(), stage.tokens)
    except CalibrationError:
        return replace(files, notes=(*files.notes, NO_TEXT))
    missing = max(0, stage.tokens - tokens.size) // tokens.shape[1]
    tokens = np.concatenate([tokens, continue_text(course.checkpoint, tokens, missing, course.threads)])
    model = running(files, course.checkpoint, InScratch(course.checkpoint.scratch))
    turns = Turns(stage, course, places, files, model, list(split_sequences(tokens, BATCH_TOKENS)))
    before = _divergence(turns, kept)
    if before is None:
        return files
    for _ in range(ROUNDS):
        found = turns(course.target * AIM)
        if found.file_bytes <= course.target and found.file_bytes >= min(files.file_bytes, course.target * ENOUGH):
            after = _divergence(turns, kept)
            files = found if after is not None and after < before else files
            break
    steps = len(places.blocks) + 1
    course.progress("drift", steps, steps)
    return files


def _split(tokens: Array, read: int) -> tuple[Array, Array]:
    """Sequences to learn from, and some that are kept back; of a single one, a half each."""
    tokens = tokens if len(tokens) > 1 else tokens[:, : tokens.shape[1] // 2 * 2].reshape(2, -1)
    aside = max(1, min(len(tokens) // 8, KEPT_TOKENS // tokens.shape[1]))
    return tokens[:-aside][: max(1, read // tokens.shape[1])], tokens[-aside:]


def _divergence(turns: Turns, tokens: Array) -> float | None:
    """KL in nats over all tokens; None where there are no logits over the vocabulary."""
    total = 0.0
    for ids in split_sequences(tokens, BATCH_TOKENS):
        with torch.inference_mode():
            expected, found = (
                Output.of(model, forward(model, ids)).logits for model in (turns.original, turns.drifted)
            )
            if expected is None or found is None:
                return None
            total += float(kl_nats(expected, found).sum())
    return total


DRIFTS: dict[type, Callable[[Any, Course, Assembled], Assembled]] = {NoDrift: as_found, InTurn: in_turn}
