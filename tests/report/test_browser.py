"""The page in a real browser: all of it is there, and nothing is fetched."""

from pathlib import Path

import pytest

from pipeline.report.page import write_report
from tests.report.browser import CHROMIUM, browser, visit

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed"),
]


def test_a_browser_shows_all_of_the_page_and_fetches_nothing(
    tmp_path: Path, two_runs: tuple[Path, Path]
) -> None:
    page = tmp_path / "report.html"
    write_report(two_runs, page)
    text = page.read_text(encoding="utf-8")
    backgrounds = set()
    with browser(tmp_path / "profile") as address:
        for width, dark in ((1280, False), (390, True)):
            picture = tmp_path / f"{width}.png"
            found = visit(address, page, width=width, dark=dark, picture=picture)
            facts = found.facts
            assert {url for url in found.urls if not url.startswith("data:")} == {page.as_uri()}
            assert facts["images"]
            assert all(done and pixels > 0 for done, pixels in facts["images"])
            assert len(facts["images"]) == text.count("<img ")
            assert facts["tables"] == text.count("<table")
            assert facts["drawings"] == text.count('role="img"')
            assert facts["scripts"] == 0
            assert facts["width"] <= width, "the page scrolls sideways"
            assert two_runs[1].name in facts["text"]
            assert picture.stat().st_size > 20_000
            backgrounds.add(facts["background"])
    assert len(backgrounds) == 2, "dark looks like light"
