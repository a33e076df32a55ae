"""The walls of the house: who may import whom, and what loads with what."""

import ast
import subprocess
import sys
import time
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "pipeline"

# Each module may import only from lower levels, lazily or not.
LEVELS = (
    {"errors"},
    {"options", "contracts", "durable", "storage", "yamlfile", "audit.findings", "ranks", "price"}
    | {"shared.library", "text_vocabulary"},
    {"tar", "patterns", "bank", "cluster", "dispatch", "cli_options", "cli_price"}
    | {"hub", "checkpoints", "fitting", "stems", "jpegs", "teacher.contract", "teacher.folder"}
    | {"shared.contract", "shared.block"},
    {"backbones", "teacher.clip"},
    {"teacher.vision", "shared.images"},
    {"templates", "cutting", "ambiguity", "optimizing", "shared.files"},
    {"shared.reader", "shared.texts"},
    {"shared.student"},
    {"losses.contract", "losses.similarity", "losses.gathering"},
    {"losses.contrast"},
    {"losses.anchors", "losses.targets", "losses.relations", "losses.labels"}
    | {"losses.pairs", "losses.heads"},
    {"losses.terms"},
    {"losses.total"},
    {"schedule", "shards", "runtime", "rundir", "teacher", "students", "losses", "ema"}
    | {"transfers"},
    {"engine", "photometry", "decode", "order", "joint", "cache.layout", "cache.scratch"}
    | {"captions"},
    {"cache.arrays", "trainee"},
    {"cache.captions"},
    {"tokens"},
    {"datasets.sets", "datasets.pixels", "datasets.facts"},
    {"datasets.archives", "datasets.publish", "datasets.tars", "imagenet"},
    {"library_prompts"},
    {"prompt_file"},
    {"prompts"},
    {
        "datasets.digits",
        "datasets.folder",
        "datasets.vision",
        "datasets.imagenet",
        "datasets.captions",
        "datasets.benchmark",
        "datasets.paired",
    },
    {"datasets.known"},
    {"views", "cache.reader", "cache.writer", "audit.arrays"},
    {"labels"},
    {
        "anchors",
        "audit.units",
        "own_texts",
        "cache.seal",
        "manifest",
        "rendering",
        "tiny",
        "shardfiles",
        "targets",
        "probes.contract",
    },
    {"probes.choices", "probes.draw", "probes.recall", "probes.softmax", "probes.spectrum"}
    | {"probes.checks", "probes.nearness"},
    {"probes.labelled", "probes.logistic"},
    {"probes.search"},
    {"probes.scoring"},
    {"probes.linear", "probes.fewshot"}
    | {"probes.zeroshot", "probes.knn", "probes.retrieval", "probes.agreement"},
    {"rows", "audit.captions", "text_tiny"},
    {"batches", "unit", "renderer", "renderpool", "audit.verify", "audit.diff", "anchor_report"},
    {"held_out", "logbook", "resident", "feeder"},
    {"conveyor"},
    {"text_tower", "caption_shards", "frozen.texts", "frozen.options", "frozen.model"}
    | {"frozen.features"},
    {"frozen.training", "frozen.scores"},
    {"frozen.ablation"},
    {"texts", "caption_sets", "labelled", "probes", "feature_store"},
    {"features"},
    {"making", "train", "evaluate", "pairs"},
    {"simclr"},
    {"pretrain"},
    {"embed"},
    {"recipe", "audit.info", "audit.live"},
    {"recipe_cache", "grid"},
    {"reading"},
    {"stage_two", "tables", "plan", "audit.reembed", "audit.repair"},
    {"online", "probing", "encoders"},
    {"transfer", "trials", "sweep_table"},
    {"sweep"},
    {"glue.tasks", "glue.encoder"},
    {"glue.reading", "glue.choices", "glue.run"},
    {"glue.scores", "glue.tokens"},
    {"glue.finetune"},
    {"glue.benchmark"},
    {"report.svg", "report.collect", "report.markdown"},
    {"report.charts", "report.maps", "report.seen", "report.cost"}
    | {"report.scores", "report.seeds", "report.tables"},
    {"report.pictures", "report.classes", "report.curves", "report.caveats"}
    | {"report.neighbours"},
    {"report.retrieval"},
    {"report.views"},
    {"report.page"},
    {"cli_anchors", "cli_cache", "cli_captions", "cli_data", "cli_train", "cli_pretrain"}
    | {"cli_probe", "cli_report", "cli_sweep", "cli_text", "cli_glue"}
    | {"cli_frozen"},
    {"cli"},
)
UNLEVELLED = {
    "",
    "cache",
    "audit",
    "datasets",
    "frozen",
    "glue",
    "report",
    "shared",
}  # empty packages: a docstring and nothing else


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


@cache
def modules() -> dict[str, Path]:
    return {
        module_name(path): path
        for path in PACKAGE.rglob("*.py")
        if "recipes" not in path.parts and "bundled" not in path.parts
    }


@cache
def imports(name: str) -> frozenset[str]:
    """Every module of ours that `name` imports, at the top or inside a function."""
    found = set()
    for node in ast.walk(ast.parse(modules()[name].read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "pipeline":
            base = (node.module or "").removeprefix("pipeline").removeprefix(".")
            for alias in node.names:
                inner = f"{base}.{alias.name}".removeprefix(".")
                found.add(inner if inner in modules() else base)
        elif isinstance(node, ast.Import):
            found |= {a.name.removeprefix("pipeline.") for a in node.names if "pipeline." in a.name}
    return frozenset(found - UNLEVELLED)


def reach(name: str) -> set[str]:
    """Every module of ours that importing `name` may load in the end."""
    seen: set[str] = set()
    todo = [name]
    while todo:
        for found in imports(todo.pop()) - seen:
            seen.add(found)
            todo.append(found)
    return seen


def test_every_module_has_a_level() -> None:
    assert set(modules()) - UNLEVELLED == set().union(*LEVELS)


@pytest.mark.parametrize("level", range(len(LEVELS)))
def test_modules_import_from_lower_levels_only(level: int) -> None:
    lower = set().union(*LEVELS[:level])
    for name in LEVELS[level]:
        assert imports(name) <= lower, f"{name} imports {sorted(imports(name) - lower)}"


@pytest.mark.parametrize(
    "name", ["train", "trainee", "held_out", "evaluate", "batches", "features"]
)
def test_stage_two_never_reaches_the_teacher_or_the_writer(name: str) -> None:
    assert reach(name).isdisjoint(
        {"teacher", "embed", "texts", "text_tower", "unit", "manifest", "cache.writer", "tiny"}
    )


def test_stage_one_never_reaches_stage_two() -> None:
    assert reach("embed").isdisjoint({"train", "students", "losses", "batches", "evaluate", "ema"})


def loaded_by(statement: str) -> set[str]:
    """Top-level names of all modules that a statement loads in a fresh process."""
    code = f"import sys\n{statement}\nprint(*sorted({{m.split('.')[0] for m in sys.modules}}))"
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    return set(result.stdout.split())


def test_the_reader_loads_no_torch_dask_click_or_pillow() -> None:
    loaded = loaded_by("import pipeline.cache.reader")
    assert "zarr" in loaded
    assert loaded.isdisjoint({"torch", "dask", "distributed", "click", "PIL", "open_clip"})


def test_the_command_line_loads_nothing_heavy_before_a_command_runs() -> None:
    loaded = loaded_by("import pipeline.cli")
    assert loaded.isdisjoint({"torch", "dask", "numpy", "zarr", "open_clip", "sklearn", "timm"})


@pytest.mark.parametrize("room", ["verify", "info", "diff"])
def test_looking_at_a_cache_loads_no_torch(room: str) -> None:
    loaded = loaded_by(f"import pipeline.audit.{room}")
    assert "zarr" in loaded
    assert loaded.isdisjoint({"torch", "dask", "distributed", "click", "PIL", "open_clip"})


def test_help_answers_within_a_second() -> None:
    def seconds() -> float:
        began = time.monotonic()
        command = [str(Path(sys.executable).with_name("beamclip")), "--help"]
        subprocess.run(command, capture_output=True, check=True)
        return time.monotonic() - began

    assert min(seconds() for _ in range(3)) < 1


def test_stage_two_runs_with_open_clip_blocked_and_the_teacher_gone(
    tmp_path: Path, sealed_cache: Path, shards_dir: Path, recipe_file: Path
) -> None:
    code = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "open_clip":
            raise ImportError(f"{name} is blocked")

sys.meta_path.insert(0, Blocked())
from pipeline.cli import main
main(sys.argv[1:])
"""
    recipe = tmp_path / "recipe.yaml"
    text = recipe_file.read_text(encoding="utf-8")
    teacher = text.partition("local-dir:")[2].partition('"')[0]
    recipe.write_text(text.replace(teacher, "/nowhere"), encoding="utf-8")

    def run(*arguments: object) -> str:
        command = [sys.executable, "-c", code, *map(str, arguments)]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stderr
        return result.stdout

    shared = ["--shards", shards_dir, "--recipe", recipe, "--set", "training.epochs=1"]
    run("train-student", "--cache", sealed_cache, *shared, "--run", tmp_path / "run")
    assert "teacher" in run("probe", "--run", tmp_path / "run")
    assert "linear" in run("probe", "--encoder", tmp_path / "run", "--shards", shards_dir)
