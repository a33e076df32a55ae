"""The command that fine-tunes a text encoder on GLUE: glue."""

from pathlib import Path

import click

from pipeline.cli_options import PATH, device_option, emit, json_option


@click.command()
@click.option(
    "--text", required=True, metavar="FOLDER|NAME", help="A text encoder that transformers loads."
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
    text: str,
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
    from pipeline.glue.choices import glue_options
    from pipeline.glue.reading import check_files
    from pipeline.glue.tasks import chosen_tasks

    chosen = chosen_tasks(tasks.split(",") if tasks else None)
    spec = glue_options(overrides)
    check_files(folder, chosen)  # before anything heavy is loaded
    from pipeline.glue.benchmark import glue_table, run_glue
    from pipeline.glue.encoder import load_text

    results = run_glue(
        load_text(text),
        folder,
        chosen,
        spec,
        device=device,
        out=out,
        tell=lambda line: click.echo(line, err=True),
    )
    emit(results, as_json, glue_table)
