"""A model of images and texts is a student like any other: pairs, training, resume, scores."""

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline import stage_two
from pipeline.bank import Bank
from pipeline.batches import TrainingBatches, ViewBatch
from pipeline.cache.reader import TargetCache
from pipeline.contracts import Keys
from pipeline.errors import CacheError, RecipeError, RunError, StudentError
from pipeline.probing import probe
from pipeline.ranks import ALONE, Ranks
from pipeline.reading import texts_of
from pipeline.recipe import Recipe, load_recipe
from pipeline.rundir import RunDir
from pipeline.runtime import torch_threads
from pipeline.shards import find_shards
from pipeline.shared.reader import TextReader, text_reader
from tests.conftest import Invoke
from tests.runs import train
from tests.test_ranks import run as run_on_ranks

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def recipe(shared_recipe: Path) -> Recipe:
    return load_recipe(str(shared_recipe))


@pytest.fixture(scope="module")
def reader(recipe: Recipe) -> TextReader:
    return text_reader(recipe.student.shared)


@pytest.fixture(scope="module")
def trained(
    vision_cache: Path,
    captioned_shards: Path,
    recipe: Recipe,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    run = tmp_path_factory.mktemp("runs") / "straight"
    with torch_threads(1):
        train(recipe, vision_cache, captioned_shards, run)
    return run


def weights_of(run: Path) -> dict[str, torch.Tensor]:
    return {
        f"{which}.{name}": value
        for which in ("student", "student_raw")
        for name, value in RunDir(run).load_weights(which).items()
    }


def assert_same(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    assert all(torch.equal(value, other[name]) for name, value in one.items())


# --- pairs ---------------------------------------------------------------------------------------


def source_of(
    cache: Path, shards: Path, reader: TextReader, ranks: Ranks = ALONE
) -> TrainingBatches:
    opened = TargetCache.open(cache)
    return TrainingBatches(
        opened,
        find_shards([str(shards)]),
        sizes=(32,),
        batch_size=8,
        num_views=2,
        seed=0,
        texts=texts_of(opened, reader),
        ranks=ranks,
    )


def test_an_epoch_has_every_caption_once_with_its_own_image_and_its_target(
    vision_cache: Path, captioned_shards: Path, reader: TextReader
) -> None:
    batches = source_of(vision_cache, captioned_shards, reader)
    cache = TargetCache.open(vision_cache)
    captions = cache.captions("train")
    own = {
        (row, tuple(tokens))
        for row, tokens in zip(
            captions.rows_K.tolist(), reader.tokenise(captions.texts).tolist(), strict=True
        )
    }
    assert len(own) == len(captions.texts) > len(cache)  # each caption differs from all others
    seen = []
    for epoch in range(2):
        steps = batches.starting_at(
            epoch * batches.steps_per_epoch, (epoch + 1) * batches.steps_per_epoch
        )
        for batch in steps:
            assert batch.tokens is not None
            rows = batch.rows_B.numpy()
            np.testing.assert_array_equal(batch.target_BD, cache.targets(rows, epoch))
            np.testing.assert_array_equal(batch.norms_B, cache.norms(rows, epoch))
            tokens = map(tuple, batch.tokens.tokens_BL.tolist())
            seen += list(zip(rows.tolist(), tokens, strict=True))
    assert set(seen) <= own
    per_epoch = len(own) // 8 * 8
    for epoch in range(2):
        assert len(set(seen[epoch * per_epoch : (epoch + 1) * per_epoch])) == per_epoch


def test_captions_of_rows_without_targets_are_left_out(
    vision_cache: Path, reader: TextReader
) -> None:
    test = TargetCache.open(vision_cache, "test")
    captions = test.captions("test")
    texts = texts_of(test, reader)
    assert not captions.valid_K.all()
    assert texts.rows_K.tolist() == captions.rows_K[captions.valid_K].tolist()


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("size", [3, 20])
def test_the_gathered_bank_is_a_queue_on_any_number_of_ranks(
    vision_cache: Path, captioned_shards: Path, reader: TextReader, size: int, ranks: int
) -> None:
    """A queue that each rank would push all ranks' rows into, step by step, from the first on."""
    sources = [
        source_of(vision_cache, captioned_shards, reader, Ranks(rank, ranks))
        for rank in range(ranks)
    ]
    banks = [Bank(source, size, CPU) for source in sources]
    first = sources[0].keys_before(0, size)
    queue = list(zip(first.targets_ND, first.rows_N.tolist(), strict=True))
    steps = 2 * sources[0].steps_per_epoch
    for step, parts in enumerate(
        zip(*(source.starting_at(0, steps) for source in sources), strict=True)
    ):
        for bank, part in zip(banks, parts, strict=True):
            found = bank.before(step, Keys(part.keys_GD, part.key_rows_G))
            assert torch.equal(found.targets_ND, torch.stack([target for target, _ in queue]))
            assert found.rows_N.tolist() == [row for _, row in queue]
        for part in parts:
            queue += list(zip(part.target_BD, part.rows_B.tolist(), strict=True))
        queue = queue[-size:]


def test_ranks_share_a_step_out(
    vision_cache: Path, captioned_shards: Path, reader: TextReader
) -> None:
    (whole,) = source_of(vision_cache, captioned_shards, reader).starting_at(0, 1)
    parts: list[ViewBatch] = [
        next(source_of(vision_cache, captioned_shards, reader, Ranks(rank, 2)).starting_at(0, 1))
        for rank in range(2)
    ]
    assert whole.tokens is not None
    tokens = [part.tokens.tokens_BL for part in parts if part.tokens is not None]
    assert torch.equal(torch.cat(tokens), whole.tokens.tokens_BL)
    assert torch.equal(torch.cat([part.rows_B for part in parts]), whole.rows_B)
    for part in parts:
        assert torch.equal(part.key_rows_G, whole.key_rows_G)


# --- training ------------------------------------------------------------------------------------


def test_a_run_keeps_what_rebuilds_it_and_nothing_of_the_heads(
    trained: Path, recipe: Recipe
) -> None:
    names = set(RunDir(trained).load_weights("student"))
    assert {name.partition(".")[0] for name in names} == {"backbone", "text", "shared"}
    (line, last) = map(json.loads, (trained / "metrics.jsonl").read_text().splitlines())
    assert last["loss"] < line["loss"]
    assert {"itc", "kd_bank"} <= last.keys()
    student = stage_two.rebuild_student(RunDir(trained), recipe)
    assert names == set(student.state_dict())


def test_stopped_and_gone_on_with_in_an_epoch_is_the_same_bit_for_bit(
    vision_cache: Path, captioned_shards: Path, recipe: Recipe, trained: Path, tmp_path: Path
) -> None:
    class StoppedError(Exception):
        pass

    def stop(*_: object) -> None:
        raise StoppedError

    saving = replace(recipe, training=replace(recipe.training, checkpoint_steps=3))

    def go(*, resume: bool, **listening: Any) -> None:
        stage_two.train(
            saving,
            [vision_cache],
            find_shards([str(captioned_shards)]),
            tmp_path / "run",
            resume=resume,
            device="cpu",
            **listening,
        )

    with pytest.raises(StoppedError):
        go(resume=False, on_epoch=stop)
    assert list((tmp_path / "run").glob("checkpoint-*.pt"))
    go(resume=True)
    assert_same(weights_of(tmp_path / "run"), weights_of(trained))


def test_another_tokenizer_does_not_go_on_with_a_run(
    vision_cache: Path, captioned_shards: Path, shared_recipe: Path, tmp_path: Path
) -> None:
    """The name of the text encoder is the same, and what lies there is not."""
    folder = Path(load_recipe(str(shared_recipe)).student.shared.text)
    moved = Path(shutil.copytree(folder, tmp_path / "bert"))
    own = load_recipe(str(shared_recipe), [f"student.shared.text={moved}", "training.epochs=1"])
    train(own, vision_cache, captioned_shards, tmp_path / "run")
    told = json.loads((moved / "tokenizer.json").read_text())
    told["normalizer"]["lowercase"] = not told["normalizer"]["lowercase"]
    (moved / "tokenizer.json").write_text(json.dumps(told))
    with pytest.raises(RunError, match="tokens: run has"):
        train(own, vision_cache, captioned_shards, tmp_path / "run", resume=True)


@pytest.mark.slow
def test_two_processes_train_as_one(
    vision_cache: Path,
    captioned_shards: Path,
    shared_recipe: Path,
    tmp_path: Path,
) -> None:
    """Without dropout, whose noise is each process's own."""
    recipe = load_recipe(str(shared_recipe))
    calm = Path(shutil.copytree(recipe.student.shared.text, tmp_path / "bert"))
    config = json.loads((calm / "config.json").read_text())
    config |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    (calm / "config.json").write_text(json.dumps(config))
    chosen = f"student.shared.text={calm}"
    train(load_recipe(str(shared_recipe), [chosen]), vision_cache, captioned_shards, tmp_path / "a")
    done = run_on_ranks(
        *("--cache", vision_cache, "--shards", captioned_shards, "--set", chosen),
        *("--recipe", shared_recipe, "--run", tmp_path / "two"),
    )
    assert done.returncode == 0, done.stderr
    two = weights_of(tmp_path / "two")
    for name, value in weights_of(tmp_path / "a").items():
        torch.testing.assert_close(two[name], value, rtol=2e-3, atol=2e-4)


def test_a_run_is_a_start_for_further_tuning(
    vision_cache: Path, captioned_shards: Path, shared_recipe: Path, trained: Path, tmp_path: Path
) -> None:
    tuned = load_recipe(
        str(shared_recipe),
        [f"student.init={trained}", "losses={itc: {}}", "training.epochs=1"],
    )
    train(tuned, vision_cache, captioned_shards, tmp_path / "tuned")
    origin = RunDir(tmp_path / "tuned").read_origin()
    assert origin["init"]["source"] == str(trained / "student.safetensors")
    first, before = weights_of(tmp_path / "tuned"), weights_of(trained)
    near = [torch.cosine_similarity(first[n].flatten(), before[n].flatten(), 0) for n in before]
    assert np.median(near) > 0.95


def test_it_learns_from_a_clip_teachers_cache_too_and_is_held_out_in_its_own_space(
    captioned_copy: Path,
    captioned_shards: Path,
    shared_recipe: Path,
    recipe_file: Path,
    tmp_path: Path,
) -> None:
    """The teacher has anchors, of another dimension than the student's space."""
    from pipeline.caption_sets import add_captions

    shards = find_shards([str(captioned_shards)])
    add_captions(captioned_copy, shards, split="train", device="cpu")
    clip, own = load_recipe(str(recipe_file)), load_recipe(str(shared_recipe))
    both = replace(own, teacher=clip.teacher, schedule=clip.schedule, prompts=clip.prompts)
    train(both, captioned_copy, captioned_shards, tmp_path / "run")
    last = RunDir(tmp_path / "run").last_metrics()
    assert {"held_out_image_to_text", "held_out_text_to_image"} <= last.keys()
    assert not {"held_out_cosine", "held_out_zeroshot"} & last.keys()
    scores = probe(tmp_path / "run", None, (), workers=0, device="cpu")
    assert scores["teacher"].keys() == {"zeroshot", "retrieval", "linear"}
    assert scores["student"].keys() == {"zeroshot", "retrieval", "linear"}


# --- scores --------------------------------------------------------------------------------------


def test_it_is_scored_in_its_own_space_and_the_teacher_by_what_it_serves(trained: Path) -> None:
    scores = probe(trained, None, (), workers=0, device="cpu")
    assert scores["student"].keys() == {"zeroshot", "retrieval", "linear"}
    assert scores["teacher"].keys() == {"linear"}
    assert {"image_to_text_r1", "text_to_image_r10", "class_p5"} <= scores["student"][
        "retrieval"
    ].keys()


def test_r_at_k_is_what_clip_benchmark_says_of_the_same_embeddings(
    trained: Path, recipe: Recipe, reader: TextReader, vision_cache: Path, captioned_shards: Path
) -> None:
    judge = pytest.importorskip("clip_benchmark.metrics.zeroshot_retrieval")
    from pipeline.batches import eval_batches

    cache = TargetCache.open(vision_cache, "test", "eval")
    student = stage_two.rebuild_student(RunDir(trained), recipe).eval()
    captions = cache.captions("test")
    texts = [t for t, valid in zip(captions.texts, captions.valid_K, strict=True) if valid]
    rows_K = torch.from_numpy(captions.rows_K[captions.valid_K])
    with torch.inference_mode():
        (batch,) = eval_batches(cache, find_shards([str(captioned_shards)]), input_px=32)
        image_ND = student(batch.views(CPU)).embedding_BD
        text_KD = student.embed_texts(reader.batch(reader.tokenise(texts)))
    own_KN = rows_K[:, None] == batch.rows_B[None, :]
    captioned = own_KN.any(dim=0)
    scores = probe(trained, None, (), workers=0, device="cpu")["student"]["retrieval"]
    for k in (1, 5, 10):
        hits = judge.recall_at_k(text_KD @ image_ND.T, own_KN, k) > 0
        assert scores[f"text_to_image_r{k}"] == pytest.approx(hits.float().mean().item())
        hits = judge.recall_at_k((image_ND @ text_KD.T)[captioned], own_KN.T[captioned], k) > 0
        assert scores[f"image_to_text_r{k}"] == pytest.approx(hits.float().mean().item())


def test_the_text_encoder_may_be_gone_when_it_is_scored(
    vision_cache: Path, captioned_shards: Path, shared_recipe: Path, tmp_path: Path
) -> None:
    folder = Path(load_recipe(str(shared_recipe)).student.shared.text)
    moved = shutil.copytree(folder, tmp_path / "bert")
    own = load_recipe(str(shared_recipe), [f"student.shared.text={moved}", "training.epochs=1"])
    train(own, vision_cache, captioned_shards, tmp_path / "run")
    before = probe(tmp_path / "run", None, (), workers=0, device="cpu")
    shutil.rmtree(moved)
    assert probe(tmp_path / "run", None, (), workers=0, device="cpu") == before


# --- what is refused -----------------------------------------------------------------------------


def test_losses_of_the_other_kind_are_refused(
    vision_cache: Path, captioned_shards: Path, shared_recipe: Path, tmp_path: Path
) -> None:
    alone = load_recipe(str(shared_recipe), ["losses={ism: {}}"])
    with pytest.raises(RecipeError, match="ism compare with targets in the teacher's space"):
        train(alone, vision_cache, captioned_shards, tmp_path / "a")
    image = load_recipe(str(shared_recipe), ["student.model=test_resnet"])
    with pytest.raises(StudentError, match="itc"):
        train(image, vision_cache, captioned_shards, tmp_path / "b")


def test_a_tag_without_its_weights_is_refused(
    vision_cache: Path, captioned_shards: Path, shared_recipe: Path, tmp_path: Path
) -> None:
    tagged = load_recipe(str(shared_recipe), ["student.shared.image=vit_small_patch16_224.dino"])
    with pytest.raises(StudentError, match="names pretrained weights"):
        train(tagged, vision_cache, captioned_shards, tmp_path / "run")


def test_a_cache_without_captions_is_refused_with_the_command(
    vision_cache: Path, captioned_shards: Path, recipe: Recipe, tmp_path: Path
) -> None:
    cache = Path(shutil.copytree(vision_cache, tmp_path / "cache"))
    shutil.rmtree(cache / "captions")
    with pytest.raises(CacheError, match="beamclip captions add"):
        train(recipe, cache, captioned_shards, tmp_path / "run")


def test_students_of_both_kinds_do_not_share_a_stream(
    vision_cache: Path,
    captioned_shards: Path,
    shared_recipe: Path,
    beamclip: Invoke,
    tmp_path: Path,
) -> None:
    found = beamclip(
        *("train-student", "--cache", vision_cache, "--shards", captioned_shards),
        *("--recipe", shared_recipe, "--model", "shared,test_resnet", "--run", tmp_path / "r"),
    )
    assert found.code == 1
    assert "train them apart" in found.err
    assert not os.listdir(tmp_path) or not (tmp_path / "r" / "shared").exists()


# --- on a GPU ------------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.parametrize(
    "settings",
    [
        ["training.precision=fp32"],
        ["training.precision=bf16", "training.channels_last=true"],
        ["training.precision=fp16", "training.epochs=4"],
        ["training.precision=bf16", "training.compile=true"],
    ],
    ids=str,
)
def test_a_gpu_ends_near_where_a_cpu_does(
    vision_cache: Path,
    captioned_shards: Path,
    shared_recipe: Path,
    tmp_path: Path,
    settings: list[str],
) -> None:
    shards = find_shards([str(captioned_shards)])
    losses: dict[str, float] = {}
    epochs = [field for field in settings if "epochs" in field]
    for device, chosen in (("cpu", epochs), ("cuda", settings)):
        recipe, run = load_recipe(str(shared_recipe), chosen), tmp_path / device
        found = stage_two.train(recipe, [vision_cache], shards, run, resume=False, device=device)
        losses[device] = found[run]["loss"]
    assert losses["cuda"] == pytest.approx(losses["cpu"], rel=0.1)
    scores = probe(tmp_path / "cuda", None, (), workers=0, device="cuda")
    assert "retrieval" in scores["student"]
