"""The options that commands share, and how a command prints what it found."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from pipeline.storage import STORES

PATH = click.Path(path_type=Path)
shards_option = click.option(
    "--shards",
    multiple=True,
    required=True,
    metavar="PATTERN",
    help="Tars, a folder of tars, a glob, a {000..100} range, @list-file or SPLIT=PATTERN.",
)
allow_option = click.option(
    "--allow",
    multiple=True,
    type=click.Choice(list(STORES)),
    help="Read shards from this kind of store too.  [default: from paths alone]",
)
recipe_option = click.option("--recipe", required=True, help="A recipe's name, or a .yaml file.")
set_option = click.option(
    "--set", "overrides", multiple=True, metavar="A.B=C", help="Override a field of the recipe."
)
device_option = click.option(
    "--device", default="auto", show_default=True, help="auto, cpu or cuda[:N]."
)
teacher_option = click.option(
    "--teacher",
    metavar="MODEL",
    help="Where the teacher lies today.  [default: as the cache's manifest names it]",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")


def emit(result: dict[str, Any], as_json: bool, text: Callable[[dict[str, Any]], str]) -> None:
    """Print a result as JSON, or as the text that `text` makes of it."""
    click.echo(json.dumps(result, indent=1) if as_json else text(result))
