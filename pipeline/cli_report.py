"""The command that lays runs out as one page: report."""

from pathlib import Path

import click

from pipeline.cli_options import PATH, device_option, emit, json_option
from pipeline.cli_price import asked_price, price_options


@click.command()
@click.argument("runs", nargs=-1, required=True, type=PATH, metavar="RUN..")
@click.option("--out", type=PATH, required=True, help="The HTML file.")
@click.option("--markdown", type=PATH, help="Write scores and cost as Markdown, too.")
@click.option("--csv", type=PATH, help="Write every score as CSV, too.")
@click.option(
    "--prompt",
    "prompts",
    multiple=True,
    metavar="TEXT",
    help="Show the images nearest to a text or class of the cache's prompt sets.  [default: the "
    "classes that the students find hardest]",
)
@click.option(
    "--tables",
    default="ours",
    show_default=True,
    type=click.Choice(["ours", "all"]),
    help="The source document's tables: those with a row of ours, or all.",
)
@click.option("--no-images", is_flag=True, help="Run no student: scores and curves alone.")
@price_options(
    "Of an hour of all machines that trained a run together.  [default: what each run records]"
)
@click.option("--workers", default=0, show_default=True, type=click.IntRange(0), help="Loaders.")
@device_option
@json_option
def report(
    runs: tuple[Path, ...],
    out: Path,
    markdown: Path | None,
    csv: Path | None,
    prompts: tuple[str, ...],
    tables: str,
    no_images: bool,
    price_per_hour: float | None,
    currency: str | None,
    workers: int,
    device: str,
    as_json: bool,
) -> None:
    """Lay runs out as one HTML file: scores, tables, curves, images, cost, lineage.

    The file carries all it shows and fetches nothing. Runs may be unfinished or without scores, and
    their caches may be gone: the page says what is missing and why.
    """
    from pipeline.report.page import write_report
    from pipeline.report.views import ReportOptions

    if no_images and prompts:
        raise click.UsageError("--prompt shows images: leave out --no-images")
    price = asked_price(price_per_hour, currency)
    spec = ReportOptions(
        images=not no_images,
        prompts=prompts,
        every_table=tables == "all",
        device=device,
        workers=workers,
    )
    found = write_report(runs, out, markdown=markdown, csv=csv, spec=spec, price=price)
    emit(
        found,
        as_json,
        lambda f: f"{f['html']}: {len(f['runs'])} runs, {f['bytes'] / 1e6:.1f} MB",
    )
