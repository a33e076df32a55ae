"""Gives students that read texts their captions and tokenizer, in training and after."""

from collections.abc import Sequence
from pathlib import Path

from pipeline.cache import layout
from pipeline.cache.reader import TargetCache
from pipeline.errors import CacheError, RecipeError
from pipeline.losses import LOSSES
from pipeline.recipe import Recipe
from pipeline.shared.reader import TextReader, text_reader
from pipeline.students import SHARED, reads_texts
from pipeline.tokens import TokenisedTexts, tokenised

_LABELS = "supervised"  # the loss that its image encoder can learn from without texts
TEXT_FOLDER = "text"  # of a run: what rebuilds its text encoder and tokenizer


def reader_of(recipes: Sequence[Recipe]) -> TextReader | None:
    """Return the tokenizer of the students of one stream, None if they see images alone.

    Raises RecipeError if some read texts and others do not, or by another tokenizer, if a student's
    losses are not of its kind, or if one that learns from labels alone asks for held-out rows.
    """
    reading = [recipe for recipe in recipes if reads_texts(recipe.student)]
    for recipe in reading:
        _check_losses(recipe)
        _check_held_out(recipe)
    if not reading:
        return None
    readers = {reader.digest: reader for reader in (text_reader(r.student.shared) for r in reading)}
    if len(reading) < len(recipes) or len(readers) > 1:
        raise RecipeError(
            "students of images alone, and students that read texts by different tokenizers, see "
            "different batches: train them apart"
        )
    return next(iter(readers.values()))


def learns_pairs(recipe: Recipe) -> bool:
    """Tell whether a recipe's losses are of images with their texts, not of labels alone."""
    return any(LOSSES[term.name].pairs for term in recipe.terms())


def texts_of(cache: TargetCache, reader: TextReader) -> TokenisedTexts:
    """Return the captions of a split, tokenised; raises CacheError if the cache has none of it."""
    if cache.split not in layout.caption_names(cache.path):
        raise CacheError(
            f"{cache.path} has no captions of split {cache.split}, and the student learns from "
            f"pairs: `beamclip captions add {cache.path} --split {cache.split} --shards ...`, or "
            "captions: true in the recipe that makes the cache"
        )
    return tokenised(cache.captions(cache.split), reader)


def kept_text(run: Path) -> Path | None:
    """Return the folder from which a run's text encoder is rebuilt, None if it has none."""
    folder = run / TEXT_FOLDER
    return folder if folder.is_dir() else None


def _check_losses(recipe: Recipe) -> None:
    """Raise RecipeError unless a student of images and texts has losses that its outputs suit."""
    names = [term.name for term in recipe.terms()]
    others = [name for name in names if not LOSSES[name].pairs and name != _LABELS]
    if others:
        known = ", ".join(name for name, entry in LOSSES.items() if entry.pairs)
        raise RecipeError(
            f"student {SHARED} learns from images with their texts, by {known}, and from labels, "
            f"by {_LABELS}: {', '.join(others)} compare with targets in the teacher's space"
        )


def _check_held_out(recipe: Recipe) -> None:
    """Raise RecipeError if rows are held out where there are no captions to score them by."""
    if recipe.training.held_out_rows and not learns_pairs(recipe):
        raise RecipeError(
            f"student {SHARED} that learns from labels alone ({_LABELS}) is scored by probes "
            "after training, and its held-out rows by captions: say training.held_out_rows=0"
        )
