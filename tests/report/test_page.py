"""The page is whole, sound HTML whatever runs are given, and carries all it shows."""

import itertools
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest

from pipeline.report.page import write_report
from pipeline.report.views import ReportOptions
from tests.conftest import Invoke
from tests.runs import small_recipe, train

VOID = {"meta", "link", "img", "br"}
NO_IMAGES = ReportOptions(images=False)


class Page(HTMLParser):
    """Every element with its attributes, in order; fails where tags do not match."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.text = path.read_text(encoding="utf-8")
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.words: list[str] = []
        self._open: list[str] = []
        self.feed(self.text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    def all(self, *tags: str) -> list[dict[str, str]]:
        """Return the attributes of every element of these tags."""
        return [attributes for tag, attributes in self.elements if tag in tags]

    @property
    def said(self) -> str:
        """All text, with single spaces."""
        return " ".join("".join(self.words).split())


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory, two_runs: tuple[Path, Path]) -> Page:
    """The page of the two runs, images and all."""
    out = tmp_path_factory.mktemp("page") / "report.html"
    write_report(two_runs, out)
    return Page(out)


def test_nothing_on_the_page_comes_from_elsewhere(page: Page) -> None:
    addresses = [
        element[name]
        for _, element in page.elements
        for name in ("src", "href", "srcset", "data", "action", "poster", "xlink:href")
        if name in element
    ]
    assert addresses
    assert all(address.startswith(("data:", "#")) for address in addresses)
    assert not re.search(r"url\(|@import|@font-face", page.text)
    assert page.all("script", "iframe", "object", "embed") == []
    (policy,) = (e["content"] for e in page.all("meta") if "http-equiv" in e)
    assert policy.startswith("default-src 'none'")


def test_an_odd_name_is_shown_and_does_nothing(page: Page, two_runs: tuple[Path, Path]) -> None:
    name = two_runs[1].name
    assert "<script>" in name
    assert " ".join(name.split()) in page.said
    assert "<script" not in page.text
    assert "{{ 7*7 }}" in page.text


def test_headings_are_in_order_and_links_lead_somewhere(page: Page) -> None:
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(later <= earlier + 1 for earlier, later in itertools.pairwise(levels))
    ids = [element["id"] for _, element in page.elements if "id" in element]
    assert len(set(ids)) == len(ids)
    links = [element["href"].removeprefix("#") for element in page.all("a")]
    assert len(links) >= 8
    assert set(links) <= set(ids)
    assert page.all("html") == [{"lang": "en"}]


def test_what_is_drawn_is_said_in_words_and_in_a_table(page: Page) -> None:
    drawings = [element for element in page.all("svg") if element.get("role") == "img"]
    assert all(len(element["aria-label"]) > 20 for element in drawings)
    assert len(page.all("desc")) == len(drawings)
    figures = len(page.all("figure"))
    assert figures > 8
    assert len(page.all("details")) >= figures
    assert all(element["scope"] in ("row", "col") for element in page.all("th"))
    assert len(page.all("caption")) == len(page.all("table"))
    images = page.all("img")
    assert len(images) >= 2 * 10 + 5  # each run's worst, a grid
    assert all(element["alt"] and element["src"].startswith("data:image/") for element in images)


def test_wrong_images_carry_a_sign_and_a_word_beside_the_red(page: Page) -> None:
    wrong = re.findall(r'<li class="shot wrong">.*?</li>', page.text, flags=re.DOTALL)
    assert wrong
    assert all("✕" in item for item in wrong)


def test_every_section_is_there_with_everything_at_hand(page: Page) -> None:
    sections = [e["id"] for tag, e in page.elements if tag == "h2"]
    assert sections == [
        *("scores", "tables", "curves", "retrieval", "classes", "maps", "cost", "lineage")
    ]


def test_without_images_no_student_runs_and_nothing_else_is_lost(
    tmp_path: Path, two_runs: tuple[Path, Path]
) -> None:
    copies = [shutil.copytree(path, tmp_path / path.name) for path in two_runs]
    for copy in copies:
        (copy / "student.safetensors").write_bytes(b"would fail if it were read")
    write_report(copies, tmp_path / "report.html", spec=NO_IMAGES)
    found = Page(tmp_path / "report.html")
    sections = [element["id"] for tag, element in found.elements if tag == "h2"]
    assert sections == ["scores", "tables", "curves", "classes", "cost", "lineage"]
    assert found.all("img") == []


def test_a_cache_that_is_gone_is_said_once_and_the_scores_stay(
    tmp_path: Path, two_runs: tuple[Path, Path]
) -> None:
    run = shutil.copytree(two_runs[0], tmp_path / "run")
    origin = json.loads((run / "run.json").read_text(encoding="utf-8"))
    origin["cache_path"] = str(tmp_path / "gone")
    (run / "run.json").write_text(json.dumps(origin), encoding="utf-8")
    write_report([run], tmp_path / "report.html")
    found = Page(tmp_path / "report.html")
    assert found.said.count("no cache in") == 1
    assert found.all("img") == []
    assert "Learning curves" in found.said
    top1 = json.loads((run / "probe.json").read_text(encoding="utf-8"))["student"]["zeroshot"]
    assert f"{top1['top1'] * 100:.1f}" in found.said


def test_a_run_without_scores_says_how_to_get_them(
    tmp_path: Path, two_runs: tuple[Path, Path]
) -> None:
    run = shutil.copytree(two_runs[0], tmp_path / "run")
    (run / "probe.json").unlink()
    write_report([run], tmp_path / "report.html", spec=NO_IMAGES)
    found = Page(tmp_path / "report.html")
    assert f"run beamclip probe --run {run}" in found.said
    assert "run: no scores yet." in found.said


def test_runs_of_another_zeroshot_set_stand_apart(
    tmp_path: Path,
    two_runs: tuple[Path, Path],
    sealed_cache: Path,
    shards_dir: Path,
    recipe_file: Path,
) -> None:
    other = small_recipe(recipe_file, "prompts.zeroshot=context", "training.epochs=1")
    train(other, sealed_cache, shards_dir, tmp_path / "other")
    write_report([two_runs[0], tmp_path / "other"], tmp_path / "report.html", spec=NO_IMAGES)
    found = Page(tmp_path / "report.html")
    assert "their scores do not compare" in found.said
    levels = [int(tag[1]) for tag, _ in found.elements if re.fullmatch(r"h[1-6]", tag)]
    assert all(later <= earlier + 1 for earlier, later in itertools.pairwise(levels))


def test_the_same_runs_give_the_same_page(tmp_path: Path, two_runs: tuple[Path, Path]) -> None:
    for name in ("one", "other"):
        write_report(two_runs, tmp_path / name)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "other").read_bytes()


def test_the_command_writes_page_markdown_and_csv(
    tmp_path: Path, two_runs: tuple[Path, Path], beamclip: Invoke
) -> None:
    out = tmp_path / "new" / "report.html"
    paper = ("--markdown", tmp_path / "t.md", "--csv", tmp_path / "t.csv")
    done = beamclip("report", *two_runs, "--out", out, *paper, "--prompt", "blue square", "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["bytes"] == out.stat().st_size
    assert "A photo of a blue square." in Page(out).said
    assert "| Teacher |" in (tmp_path / "t.md").read_text(encoding="utf-8")
    assert (tmp_path / "t.csv").read_text(encoding="utf-8").startswith("run,dataset,")


def test_the_command_puts_money_beside_hours(
    tmp_path: Path, two_runs: tuple[Path, Path], beamclip: Invoke
) -> None:
    out, paper = tmp_path / "report.html", tmp_path / "t.md"
    asked = ("report", *two_runs, "--out", out, "--markdown", paper, "--no-images")
    for price, told in (
        ((), None),
        (("--price-per-hour", 7200, "--currency", "EUR"), r"\d+\.\d\d EUR at 7200 EUR an hour"),
    ):
        done = beamclip(*asked, *price)
        assert done.code == 0, done.err
        for text in (Page(out).said, paper.read_text(encoding="utf-8")):
            assert "an hour" in text if told else "an hour" not in text
            assert len(re.findall(told or "an hour", text)) == (2 if told else 0)
    for wrong in (("--currency", "EUR"), ("--price-per-hour", -1), ("--price-per-hour", "nan")):
        assert beamclip(*asked, *wrong).code == 2


def test_the_command_says_what_is_wrong(
    tmp_path: Path, two_runs: tuple[Path, Path], beamclip: Invoke
) -> None:
    out = ("--out", tmp_path / "report.html")
    assert beamclip("report", *out).code == 2
    assert beamclip("report", two_runs[0], *out, "--no-images", "--prompt", "x").code == 2
    missing = beamclip("report", two_runs[0], *out, "--prompt", "pink rose")
    assert missing.code == 1
    assert "anchors add" in missing.err
    assert not (tmp_path / "report.html").exists()


def luminance(colour: str) -> float:
    """Relative luminance of #rrggbb (WCAG 2.2)."""
    shares = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [s / 12.92 if s <= 0.04045 else ((s + 0.055) / 1.055) ** 2.4 for s in shares]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("place", [0, 1], ids=["light", "dark"])
def test_colours_contrast_as_wcag_aa_asks(page: Page, place: int) -> None:
    block = re.findall(r":root \{(.*?)\}", page.text, flags=re.DOTALL)[place]
    colours = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", block))

    def contrast(one: str, other: str) -> float:
        low, high = sorted(luminance(colours[name]) for name in (one, other))
        return (high + 0.05) / (low + 0.05)

    words = ("ink", "soft", "accent", "bad", "good", *(f"c{i}" for i in range(10)))
    for ground in ("paper", "sheet"):
        assert all(contrast(word, ground) >= 4.5 for word in words)
    assert contrast("note", "note-wash") >= 4.5
    assert contrast("ink", "note-wash") >= 4.5
    assert contrast("accent-ink", "accent") >= 4.5
    assert all(contrast(f"s{i}", "sheet") >= 3 for i in range(6))
