"""A cache under any order of growing, running, killing, damaging and repairing, against a model.

The model is in memory: which shards were asked for and planned, and the bytes of every unit and
prompt set, taken from one cache of all shards that nothing ever happened to.
"""

import shutil
import signal
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test

from pipeline.audit.repair import repair_cache
from pipeline.audit.verify import verify_cache
from pipeline.cache import layout
from pipeline.cache.reader import read_manifest
from pipeline.errors import BeamclipError, CacheError
from pipeline.shards import find_shards, write_shards
from tests.audit.damage import DAMAGES
from tests.faults import commands
from tests.faults.law import check_law
from tests.inputs import build, labelled_samples
from tests.trees import tree_digests

SHARDS = 4
ONE_VIEW = "views=1"
POINTS = ("after-manifest", "before-parent", "before-attributes", "before-rename", "after-rename")


@dataclass(frozen=True)
class Inputs:
    """What all machines share."""

    folder: Path
    shards: Path  # all that may be added
    recipe: Path
    expected: dict[str, str]  # of a clean cache of all shards: digest of every published file


class Cache(RuleBasedStateMachine):
    """One cache, what was done to it, and what it must therefore hold."""

    inputs: ClassVar[Inputs]
    done: ClassVar[Counter[str]] = Counter()

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(dir=self.inputs.folder))
        self.cache, self.shards = self.folder / "cache", self.folder / "shards"
        self.shards.mkdir()
        self.planned: list[str] = []  # shards of the newest generation
        self.seals: dict[str, dict[str, str]] = {}  # by generation: digests of its files
        self.damaged: set[str] = set()  # files
        self.add_shard()
        with pytest.raises(CacheError):
            verify_cache(self.cache, full=True)
        with pytest.raises(CacheError):
            repair_cache(self.cache, find_shards([str(self.shards)]), device="cpu")

    def teardown(self) -> None:
        """Whatever became of it: once repaired, it is as if nothing had happened."""
        if self.planned:
            self.mend()
        shutil.rmtree(self.folder)

    def mend(self) -> None:
        """Repair it by the shards that it plans."""
        shards = find_shards([str(self.shards / f"{name}.tar") for name in self.planned])
        asked, was_whole = self.planned, self.whole
        report = repair_cache(self.cache, shards, device="cpu")
        assert (report.problems == []) == was_whole
        assert report.changed == []
        self.damaged = set()
        self.look()
        assert self.planned == asked
        assert self.whole

    # --- the model --------------------------------------------------------------------------------

    @property
    def added(self) -> list[str]:
        return sorted(path.stem for path in self.shards.iterdir())

    @property
    def whole(self) -> bool:
        """Whether all that is planned is there, as it must be."""
        return bool(self.planned) and not self.faults()

    @property
    def lacks(self) -> bool:
        """Whether something that was asked for is still to be made."""
        return self.planned != self.added or not self.whole

    def faults(self) -> set[str]:
        """Name every file of the newest generation that is not as it must be, by its bytes."""
        planned = {
            f"{name}.{views}" for name in self.planned for views in ("eval.v0-0", "mild.v0-0")
        }
        wanted = {
            name: digest
            for name, digest in self.inputs.expected.items()
            if not name.startswith("units/train-") or name.split("/")[1] in planned
        }
        newest = f"index/{layout.generations(self.cache)[-1]:06d}"
        wanted |= self.seals.get(newest, {newest: "a seal"})
        for older in self.seals.keys() - {newest}:
            if (self.cache / older).exists():
                wanted |= self.seals[older]
        found = tree_digests(self.cache, "units", "anchors", "index")
        assert found.keys() <= wanted.keys() | set().union(*self.seals.values()), "strangers"
        return {name for name, digest in wanted.items() if found.get(name) != digest}

    def look(self) -> None:
        """Take up what a command left; verify it, and hold it against the law if it should hold."""
        generations = layout.generations(self.cache)
        manifest = read_manifest(self.cache) if generations else {"splits": {}}
        self.planned = [
            f"{split}-{shard['name']}"
            for split, content in manifest["splits"].items()
            for shard in content["shards"]
        ]
        for number in generations:
            place = f"index/{number:06d}"
            if (self.cache / place).exists():
                self.seals.setdefault(place, tree_digests(self.cache, place))
        if not self.damaged:
            tars = [self.shards / f"{name}.tar" for name in self.planned]
            law = check_law(self.cache, tars=tars)
            assert law.whole == self.whole
        self.verify()

    def verify(self) -> None:
        """Let the project verify what the model knows."""
        faults, found = self.faults(), verify_cache(self.cache, full=True).problems
        assert bool(found) == bool(faults), (faults, found)
        self.done["verified faulty" if faults else "verified whole"] += 1

    # --- what may happen --------------------------------------------------------------------------

    @precondition(lambda self: len(self.added) < SHARDS)
    @rule()
    def add_shard(self) -> None:
        left = sorted(self.inputs.shards.glob("*.tar"))[len(self.added)]
        shutil.copy2(left, self.shards)

    @precondition(lambda self: not self.damaged and self.lacks)
    @rule()
    def run(self) -> None:
        build(self.cache, self.shards, self.inputs.recipe, ONE_VIEW, extend=True)
        self.look()
        assert self.planned == self.added
        assert self.whole
        self.done["run"] += 1

    @precondition(lambda self: self.damaged)
    @rule()
    def run_over_damage(self) -> None:
        """It may refuse, or mend what it comes upon; what is sound stays as it is."""
        before = self.faults()
        units = tree_digests(self.cache, "units")
        sound = {name for name in units if self.inputs.expected[name] == units[name]}
        groups = {name.rsplit("/", name.count("/") - 1)[0] for name in before}
        try:
            build(self.cache, self.shards, self.inputs.recipe, ONE_VIEW, extend=True)
        except BeamclipError:
            self.done["refused"] += 1
        self.look()
        after = tree_digests(self.cache, "units")
        for name in sound:
            if "/".join(name.split("/")[:2]) not in groups:
                assert after.get(name) == units[name], name
        self.damaged = self.faults()
        self.done["run over damage"] += 1

    @precondition(lambda self: not self.damaged and self.lacks)
    @rule(point=st.sampled_from(POINTS), count=st.integers(1, 4))
    def kill(self, point: str, count: int) -> None:
        done = commands.teacher_cache(
            *(self.cache, self.shards, self.inputs.recipe, "--extend", "--set", ONE_VIEW),
            environment={"BEAMCLIP_FAULT_POINT": f"{point}:{count}"},
        )
        assert done.returncode in (0, -signal.SIGKILL), done.stderr
        self.look()
        assert self.planned == self.added
        self.done["killed" if done.returncode else "survived"] += 1

    @precondition(lambda self: self.planned)
    @rule(damage=st.sampled_from(sorted(DAMAGES)), data=st.data())
    def damage(self, damage: str, data: st.DataObject) -> None:
        files = sorted(tree_digests(self.cache, "units", "anchors", "index"))
        if damage == "flipped":  # of JSON, a bit may mean nothing
            files = [name for name in files if not name.endswith("zarr.json")]
        file = self.cache / data.draw(st.sampled_from(files), label="file")
        if file.stat().st_size:
            DAMAGES[damage](file)
            self.damaged.add(str(file.relative_to(self.cache)))
            self.done["damaged"] += 1
            self.verify()

    @precondition(lambda self: self.planned and not self.whole)
    @rule()
    def repair(self) -> None:
        self.mend()
        self.done["repaired"] += 1


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_no_order_of_events_leaves_a_cache_that_lies(tmp_path: Path, recipe_file: Path) -> None:
    write_shards(labelled_samples(2 * SHARDS, seed=7), tmp_path / "all", "train", per_shard=2)
    clean = build(tmp_path / "clean", tmp_path / "all", recipe_file, ONE_VIEW)
    expected = tree_digests(clean, "units", "anchors")
    Cache.inputs, Cache.done = Inputs(tmp_path, tmp_path / "all", recipe_file, expected), Counter()
    run_state_machine_as_test(
        Cache,
        settings=settings(
            max_examples=6,
            stateful_step_count=12,
            derandomize=True,
            database=None,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
    print(dict(Cache.done))
    for event in ("run", "run over damage", "killed", "damaged", "repaired"):
        assert Cache.done[event] >= 3, Cache.done
