"""Writes the page: one HTML file that carries all it shows, and asks for nothing else."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from pipeline import __version__, durable
from pipeline.options import flatten
from pipeline.price import Price
from pipeline.report.charts import swatch
from pipeline.report.collect import RunFacts, collect, grouped
from pipeline.report.cost import COUNTED, Cost, cost_markdown, cost_of, fingerprint_of, size, span
from pipeline.report.scores import as_csv, as_markdown
from pipeline.report.seeds import sweep_views
from pipeline.report.svg import MINUS, percent, short
from pipeline.report.tables import document_tables
from pipeline.report.views import DEFAULT, Card, GroupView, ReportOptions, group_view

_TEMPLATES = Path(__file__).with_name("templates")


@dataclass(frozen=True)
class Lineage:
    """Where one run comes from: facts by name, and its resolved recipe as YAML."""

    name: str
    facts: tuple[tuple[str, str], ...]
    recipe: str


def write_report(
    paths: Sequence[Path],
    out: Path,
    *,
    markdown: Path | None = None,
    csv: Path | None = None,
    spec: ReportOptions = DEFAULT,
    price: Price | None = None,
) -> dict[str, Any]:
    """Write the page of some runs, and their scores as Markdown and CSV where asked for.

    price: of an hour, of every run; by default what each run records. Returns {html,
    markdown, csv, runs, bytes}. Raises RunError for a folder that holds no run, ProbeError for a
    prompt that is not in the cache.
    """
    runs = collect(paths)
    places = {run.name: place for place, run in enumerate(runs)}
    groups = [group_view(group, places, spec) for group in grouped(runs)]
    costs = [(run, cost_of(run, price)) for run in runs]
    text = render(runs, groups, costs, spec)
    durable.write_text(out, text)
    tables = f"{as_markdown(runs)}\n{cost_markdown(costs)}"
    for path, content in ((markdown, tables), (csv, as_csv(runs))):
        if path is not None:
            durable.write_text(path, content)
    return {
        "html": str(out),
        "markdown": str(markdown) if markdown else None,
        "csv": str(csv) if csv else None,
        "runs": [run.name for run in runs],
        "bytes": len(text.encode()),
    }


def render(
    runs: Sequence[RunFacts],
    groups: Sequence[GroupView],
    costs: Sequence[tuple[RunFacts, Cost]],
    spec: ReportOptions,
) -> str:
    """Return the page as HTML text."""
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": percent, "short": short, "size": size, "span": span}
    environment.filters |= {"margin": _margin, "code": _code}
    environment.globals |= {"swatch": swatch, "enumerate": enumerate}
    return environment.get_template("page.html.j2").render(
        title=_title(runs),
        lead=_lead(groups),
        runs=runs,
        groups=groups,
        sweeps=sweep_views(runs),
        tables=document_tables(runs, every=spec.every_table),
        costs=costs,
        counted=COUNTED,
        lineage=[_lineage(run) for run in runs],
        version=__version__,
    )


def _title(runs: Sequence[RunFacts]) -> str:
    """Say what was distilled into what."""
    teachers = list(dict.fromkeys(run.teacher for run in runs))
    students = list(dict.fromkeys(run.model for run in runs))
    what = students[0] if len(students) == 1 else f"{len(runs)} students"
    first = " and ".join(teachers)
    return f"{first[0].upper()}{first[1:]}, distilled into {what}"


def _lead(groups: Sequence[GroupView]) -> list[str]:
    """Say in a sentence for each group what its best student scores."""
    sentences = []
    for group in groups:
        if not group.cards:
            names = ", ".join(run.name for run in group.runs)
            sentences.append(f"{names}: no scores yet.")
            continue
        card = group.cards[0]
        best = next(run for run in group.runs if run.name == card.name)
        which = f", the best of {len(group.runs)} students," if len(group.runs) > 1 else ""
        test = f"{group.images.images:,} " if group.images.images else ""
        what = card.title[0].lower() + card.title[1:]
        sentences.append(
            f"{card.name} ({best.model}){which} reaches {percent(card.share)} % {what} on {test}"
            f"test images of {best.dataset}{_beside(card)}."
        )
    return sentences


def _beside(card: Card) -> str:
    """Say what a score is to be held against."""
    known = [("its teacher", card.teacher), ("chance", card.chance)]
    said = [f"{who} {percent(share)} %" for who, share in known if share is not None]
    return f"; {' and '.join(said)}" if said else ""


def _lineage(run: RunFacts) -> Lineage:
    made, cache = run.origin.get("made_with", {}), run.origin["cache"]
    facts = {
        "run folder": str(run.path),
        "recipe": str(run.recipe["name"]),
        "teacher": str(run.recipe["teacher"]["model"]),
        "teacher weights sha256": str(run.origin["teacher"]["weights_sha256"]),
        "cache": f"{run.cache_path}, generation {cache['generation']}",
        "cache fingerprint": fingerprint_of(run) or "the cache cannot be read",
        "cache digest": str(cache["digest"]),
        "training anchors": f"{run.anchors}, digest {cache['anchors']}" if run.anchors else "none",
        "zero-shot set": run.zeroshot or "none of the cache",
        "first weights": _words(run.origin.get("init") or "random, by the recipe's seed"),
        "shards": f"{len(run.origin['shards'])}, from {_folders(run)}",
        "commit": str(made.get("commit") or "not recorded"),
        "versions": _words({"beamclip": made.get("beamclip", "?"), **made.get("versions", {})}),
        "machine": str(made.get("machine", "not recorded")),
    }
    recipe = yaml.safe_dump(dict(run.recipe), sort_keys=False, allow_unicode=True)
    return Lineage(run.name, tuple(facts.items()), recipe)


def _code(text: str) -> Markup:
    """Return a sentence with what stands between backticks as code."""
    parts = [
        Markup("<code>{}</code>").format(part) if place % 2 else escape(part)
        for place, part in enumerate(text.split("`"))
    ]
    return Markup("").join(parts)


def _margin(value: float) -> str:
    return f"{value:+.2f}".replace("-", MINUS)


def _folders(run: RunFacts) -> str:
    return ", ".join(
        dict.fromkeys(str(place).rpartition("/")[0] for _, place in run.origin["shards"])
    )


def _words(value: Any) -> str:
    if not isinstance(value, dict):
        return str(value)
    return ", ".join(f"{name} {item}" for name, item in flatten(value).items())
