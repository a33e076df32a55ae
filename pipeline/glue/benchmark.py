"""Runs tasks of GLUE one after the other: reads, fine-tunes, scores."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pipeline import durable, runtime
from pipeline.glue.choices import GlueOptions
from pipeline.glue.encoder import LoadedText
from pipeline.glue.finetune import finetune, num_steps
from pipeline.glue.reading import Examples, TaskData, check_files, read_task
from pipeline.glue.scores import Scores, mean_score, score_task, without_reading
from pipeline.glue.tokens import Tokens, tokenize
from pipeline.options import to_mapping


def run_glue(
    text: LoadedText,
    folder: Path,
    tasks: Sequence[str],
    spec: GlueOptions,
    *,
    device: str = "auto",
    out: Path | None = None,
    tell: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Fine-tune a copy of a text encoder on each task, and score it on dev; return the results.

    They are {"scores": {task: {score: value}}, "mean": of the first score of each, "same_answer":
    the scores of saying the same of every text, "counts", "options", "text", "versions"}. folder:
    GLUE's files. out: a JSON file of them, written anew after each task. Raises DataError for files
    that lack, all of them named before anything is read, and ProbeError.
    """
    check_files(folder, tasks)
    place = runtime.pick_device(device)
    results: dict[str, Any] = {
        "scores": {},
        "mean": None,
        "same_answer": {},
        "counts": {},
        "options": to_mapping(spec),
        "text": dict(text.lineage),
        "device": str(place),
        "versions": runtime.versions(),
        "commit": runtime.git_commit(),
    }
    for name in tasks:
        data = read_task(folder, name)
        own = spec.for_task(name)
        train, dev = _tokens(text, data, own.max_tokens)
        steps = num_steps(len(train), own)
        tell(f"{name}: {len(train):,} examples, {steps:,} steps")
        with runtime.progress(f"fine-tuning on {name}", steps, "steps") as advance:
            said = finetune(
                *(text.encoder, name, (train, data.train.labels_N), dev, own),
                device=place,
                advance=advance,
            )
        results["scores"][name] = score_task(name, data, said)
        results["same_answer"][name] = without_reading(name, data)
        results["counts"][name] = _counts(data, train, dev)
        results["mean"] = mean_score(results["scores"])
        if out:
            durable.write_json(out, results)
    return results


def _tokens(text: LoadedText, data: TaskData, most: int) -> tuple[Tokens, dict[str, Tokens]]:
    dev = {part: tokenize(text, found, most) for part, found in data.dev.items()}
    return tokenize(text, data.train, most), dev


def _counts(data: TaskData, train: Tokens, dev: dict[str, Tokens]) -> dict[str, Any]:
    """Return what was read of each file of a task."""

    def count(examples: Examples, tokens: Tokens) -> dict[str, Any]:
        return {
            "examples": len(examples),
            "broken": examples.broken,
            "truncated": tokens.truncated,
            "sha256": examples.sha256,
        }

    parts = {f"dev_{part}" if part else "dev": count(data.dev[part], dev[part]) for part in dev}
    return {"train": count(data.train, train), **parts}


def glue_table(results: dict[str, Any]) -> str:
    """Return one line per task: its scores, those of one answer for all, and what was left out."""
    scores: dict[str, Scores] = results["scores"]
    lines = [f"{'task':<8}{'score':<22}{'dev':>9}{'same answer':>14}{'examples':>11}{'broken':>9}"]
    for name, found in scores.items():
        counts = results["counts"][name]
        broken = sum(one["broken"] for one in counts.values())
        for place, (score, value) in enumerate(found.items()):
            same = results["same_answer"][name][score]
            line = f"{'' if place else name:<8}{score:<22}{value:>9.4f}{same:>14.4f}"
            if not place:
                line += f"{counts['train']['examples']:>11,}{broken:>9,}"
            lines.append(line)
    tasks = "1 task" if len(scores) == 1 else f"{len(scores)} tasks"
    return "\n".join([*lines, f"{'mean':<8}{f'of {tasks}':<22}{results['mean']:>9.4f}"])
