"""The page sums a sweep up over its seeds, as the sweep itself does."""

import json
from pathlib import Path
from statistics import mean, stdev

from pipeline.report.collect import collect
from pipeline.report.page import write_report
from pipeline.report.seeds import sweep_views
from pipeline.report.views import ReportOptions
from pipeline.sweep_table import text_table
from tests.sweeps import read, run_file, write_sweep


def test_a_sweeps_table_stands_on_the_page_and_its_runs_are_called_in_words(
    sealed_cache: Path, shards_dir: Path, recipe_file: Path, tmp_path: Path
) -> None:
    file = write_sweep(tmp_path / "sweep.yaml", recipe_file)
    run_file(file, sealed_cache, shards_dir, tmp_path / "out")
    paths = sorted(path.parent for path in (tmp_path / "out").glob("*/*/recipe.yaml"))
    runs = collect(paths)
    assert sorted(run.name for run in runs) == [
        f"{row}, seed {seed}" for row in ("CSM", "ISM") for seed in (0, 1)
    ]
    (view,) = sweep_views(runs)
    assert [row[0] for row in view.rows] == ["ISM", "CSM", "teacher", "chance"]
    scores = [run.score("student", "zeroshot", "top1") or 0 for run in runs if "ISM" in run.name]
    assert view.rows[0][1:] == (f"{mean(scores):.4f} ± {stdev(scores):.4f}", "2")
    said = text_table(read(tmp_path / "out"))
    assert all(cell in said for row in view.rows for cell in row)
    write_report(paths, tmp_path / "report.html", spec=ReportOptions(images=False))
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert view.caption in page
    assert "ISM, seed 1" in page

    (tmp_path / "out" / "sweep.json").write_text("{}", encoding="utf-8")
    assert sweep_views(runs) == []
    (tmp_path / "out" / "sweep.json").write_text(json.dumps([]), encoding="utf-8")
    assert sweep_views(runs) == []
