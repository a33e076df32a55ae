"""The command that fine-tunes a text encoder on GLUE: glue."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from pipeline.cli_options import PATH, device_option, emit, json_option

if TYPE_CHECKING:
    from pipeline.glue.encoder import LoadedText


@click.command()
@click.option("--text", metavar="FOLDER|NAME", help="A text encoder that transformers loads.")
@click.option(
    "--run",
    "run_path",
    type=PATH,
    help="In place of --text, a finished run of a model of images and texts.",
)
@click.option(
    "--data", "folder", type=PATH, required=True, help="GLUE's folder, with CoLA/, SST-2/, ..."
)
@click.option("--tasks", metavar="A,B", help="[default: all nine]")
@click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="A=B",
    help="Override an option, as epochs=5 or tasks.rte.epochs=10.",
)
@click.option("--out", type=PATH, help="Write the results to this file, anew after each task.")
@device_option
@json_option
def glue(
    text: str | None,
    run_path: Path | None,
    folder: Path,
    tasks: str | None,
    overrides: tuple[str, ...],
    out: Path | None,
    device: str,
    as_json: bool,
) -> None:
    """Fine-tune a text encoder on the tasks of GLUE; score it on their dev sets.

    Nothing is downloaded: --data holds GLUE's files as its own download lays them out.
    """
    if (text is None) == (run_path is None):
        raise click.UsageError("give --text FOLDER|NAME, or --run RUN")
    from pipeline.glue.choices import glue_options
    from pipeline.glue.reading import check_files
    from pipeline.glue.tasks import chosen_tasks

    chosen = chosen_tasks(tasks.split(",") if tasks else None)
    spec = glue_options(overrides)
    check_files(folder, chosen)  # before anything heavy is loaded
    from pipeline.glue.benchmark import glue_table, run_glue

    results = run_glue(
        _loaded(text, run_path),
        folder,
        chosen,
        spec,
        device=device,
        out=out,
        tell=lambda line: click.echo(line, err=True),
    )
    emit(results, as_json, glue_table)


def _loaded(text: str | None, run_path: Path | None) -> "LoadedText":
    """Load the text encoder that one of the two names."""
    if run_path is not None:
        from pipeline.glue.run import load_run

        return load_run(run_path)
    from pipeline.glue.encoder import load_text

    return load_text(str(text))
