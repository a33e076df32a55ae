"""The command that scores frozen encoders: parses, calls the probes, prints."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipeline.cli_options import PATH, device_option, emit, json_option, set_option

if TYPE_CHECKING:
    from pipeline.encoders import PlainOptions
    from pipeline.recipe import Recipe
    from pipeline.shards import Shard
    from pipeline.transfer import Texts


@click.command()
@click.option("--run", "run_path", type=PATH, help="Folder of a finished run.")
@click.option(
    "--encoder",
    "encoders",
    multiple=True,
    metavar="E",
    help="In place of --run, any encoder: open_clip:NAME/TAG, local-dir:FOLDER, timm:NAME, or the "
    "path of a run or of weights (with --model). Once more for each further one.",
)
@click.option(
    "--on",
    "datasets",
    multiple=True,
    metavar="NAME=PATTERN",
    help="With --run: labelled shards of another dataset; once more for each further one.",
)
@click.option("--cache", type=PATH, help="The cache.  [default: the one the run was trained from]")
@click.option("--shards", multiple=True, metavar="PATTERN", help="[default: those of the run]")
@click.option("--probes", metavar="A,B", help="[default: those of the recipe that can be run]")
@click.option("--recipe", help="With --encoder: whose probes and prompts are used.")
@set_option
@click.option(
    "--zeroshot",
    metavar="NAME",
    help="A prompt set of the cache; with --on, of a run that reads texts, one of the dataset's "
    "prompt file.  [default: the run's]",
)
@click.option("--captions", metavar="NAME", help="Captions of the cache.  [default: the only ones]")
@click.option(
    "--prompts", metavar="FILE", help="With --encoder: class texts for its own text encoder."
)
@click.option("--prompt-set", metavar="NAME", help="Which set of --prompts.")
@click.option(
    "--model", metavar="NAME[@PX]", help="Of what an --encoder that is a file is weights."
)
@click.option(
    "--stem",
    type=click.Choice(["imagenet", "small"]),
    help="Of --model, as student.stem in a recipe.  [default: imagenet]",
)
@click.option("--keep", type=PATH, help="With --encoder: a folder to keep features in.")
@click.option("--out", type=PATH, help="With --encoder: write the JSON to this file.")
@click.option("--workers", default=0, show_default=True, type=click.IntRange(0), help="Loaders.")
@device_option
@json_option
def probe(**words: Any) -> None:
    """Score a run's student beside its teacher and chance; writes RUN/probe.json.

    With --on, on other datasets, which takes no teacher; writes RUN/transfer.json. With --encoder,
    any other encoder on labelled shards, by the same code.
    """
    asked = _Asked(**words)
    if (asked.run_path is None) == (not asked.encoders):
        raise click.UsageError("give --run RUN, or --encoder E")
    if asked.run_path is None:
        _probe_encoders(asked)
    elif asked.datasets:
        _probe_on(asked, asked.run_path)
    else:
        _probe_run(asked, asked.run_path)


@dataclass(frozen=True)
class _Asked:
    """The words of the command line."""

    run_path: Path | None
    encoders: tuple[str, ...]
    datasets: tuple[str, ...]
    cache: Path | None
    shards: tuple[str, ...]
    probes: str | None
    recipe: str | None
    overrides: tuple[str, ...]
    zeroshot: str | None
    captions: str | None
    prompts: str | None
    prompt_set: str | None
    model: str | None
    stem: str | None
    keep: Path | None
    out: Path | None
    workers: int
    device: str
    as_json: bool

    @property
    def names(self) -> list[str] | None:
        """The probes that were asked for by name."""
        return self.probes.split(",") if self.probes else None

    def refuse(self, form: str, *names: str) -> None:
        """Raise a usage error for options that say nothing in this form of the command."""
        for name in names:
            if getattr(self, name):
                shown = _SHOWN.get(name, name)
                raise click.UsageError(f"--{shown} has no place beside {form}")

    def tell(self, line: str) -> None:
        """Say what is scored, apart from the result."""
        click.echo(line, err=True)


_SHOWN = {"datasets": "on", "prompt_set": "prompt-set"}
_OF_ENCODERS = ("recipe", "prompts", "prompt_set", "model", "stem", "keep", "out")


def _probe_run(asked: _Asked, run: Path) -> None:
    from pipeline.probing import probe as probe_run
    from pipeline.tables import score_table

    asked.refuse("--run", *_OF_ENCODERS)
    scores = probe_run(
        run,
        asked.cache,
        asked.shards,
        probes=asked.names,
        overrides=asked.overrides,
        zeroshot=asked.zeroshot,
        captions=asked.captions,
        workers=asked.workers,
        device=asked.device,
        tell=asked.tell,
    )
    emit(scores, asked.as_json, score_table)


def _probe_on(asked: _Asked, run: Path) -> None:
    from pipeline.tables import score_table
    from pipeline.transfer import probe_on

    asked.refuse("--on", "shards", "captions", *_OF_ENCODERS)
    datasets: dict[str, list[str]] = {}
    for words in asked.datasets:
        name, equals, pattern = words.partition("=")
        if not (name and equals and pattern):
            raise click.UsageError(f"--on {words!r}: expected NAME=PATTERN, as in cifar10=shards/")
        datasets.setdefault(name, []).append(pattern)
    scores = probe_on(
        run,
        datasets,
        cache_path=asked.cache,
        probes=asked.names,
        overrides=asked.overrides,
        zeroshot=asked.zeroshot,
        workers=asked.workers,
        device=asked.device,
        tell=asked.tell,
    )
    emit(
        scores,
        asked.as_json,
        lambda found: "\n\n".join(f"{name}\n{score_table(found[name])}" for name in found),
    )


def _probe_encoders(asked: _Asked) -> None:
    from pipeline import durable
    from pipeline.probes import ProbeOptions
    from pipeline.probing import chosen_probes
    from pipeline.recipe import load_recipe, probe_options
    from pipeline.shards import find_shards
    from pipeline.tables import score_table
    from pipeline.transfer import probe_encoders

    asked.refuse("--encoder", "datasets")
    if not asked.shards:
        raise click.UsageError("--encoder is scored on labelled shards: give --shards PATTERN")
    recipe = load_recipe(asked.recipe, asked.overrides) if asked.recipe else None
    spec = recipe.probes if recipe else probe_options(ProbeOptions(), asked.overrides)
    shards = find_shards(asked.shards)
    scores, details = probe_encoders(
        asked.encoders,
        shards,
        chosen_probes(spec, asked.names),
        asked=asked.names is not None,
        texts=_texts(asked, recipe, shards),
        plain=_plain(asked),
        keep=asked.keep,
        workers=asked.workers,
        device=asked.device,
        tell=asked.tell,
    )
    if asked.out:
        durable.write_json(asked.out, scores)
        durable.write_json(asked.out.with_name(f"{asked.out.stem}-details.json"), details)
    emit(scores, asked.as_json, score_table)


def _texts(asked: _Asked, recipe: "Recipe | None", shards: "Sequence[Shard]") -> "Texts":
    """Return where class texts come from: --prompts, else the recipe's, and a cache's."""
    from pipeline.transfer import Texts, own_prompts

    if (asked.prompts is None) != (asked.prompt_set is None):
        raise click.UsageError("--prompts and --prompt-set say together which texts are meant")
    file, name = asked.prompts, asked.prompt_set
    if file is None and recipe is not None and recipe.prompts is not None:
        file, name = recipe.prompts.file, recipe.prompts.zeroshot
    prompts = own_prompts(file, name, shards) if file and name else None
    return Texts(
        prompts=prompts, cache=asked.cache, zeroshot=asked.zeroshot, captions=asked.captions
    )


def _plain(asked: _Asked) -> "PlainOptions":
    """Return what is said of weights that do not say it themselves."""
    from pipeline.encoders import PlainOptions

    model, at, pixels = (asked.model or "").partition("@")
    if at and not pixels.isdecimal():
        raise click.UsageError(f"--model {asked.model!r}: expected NAME or NAME@PX, as in rn18@96")
    return PlainOptions(
        model=model or None,
        stem="small" if asked.stem == "small" else "imagenet",
        input_px=int(pixels) if at else None,
    )
