"""The model of images and texts as a whole."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

from pipeline.contracts import TokenBatch
from pipeline.errors import StudentError
from pipeline.shared.contract import SharedOptions
from pipeline.shared.reader import text_reader
from pipeline.shared.student import SharedStudent, build_shared
from tests.shared.encoders import TEXTS, add_tokenizer, make_text_encoder, options_of

PX, WIDTH = 32, 64


def build(folder: Path, *, seed: int = 0, **changed: Any) -> SharedStudent:
    return build_shared(options_of(folder, **changed), input_px=PX, seed=seed)


def views(count: int = len(TEXTS)) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 3, PX, PX), dtype=torch.uint8, generator=generator)


@pytest.fixture(scope="module")
def tokens(text_encoder: Path) -> TokenBatch:
    reader = text_reader(options_of(text_encoder))
    return reader.batch(reader.tokenise(TEXTS))


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text encoder of another width than the image encoder's."""
    return make_text_encoder(tmp_path_factory.mktemp("wide") / "bert", width=32)


@pytest.fixture(params=["equal", "other"])
def either(request: pytest.FixtureRequest, text_encoder: Path, wide: Path) -> Path:
    return text_encoder if request.param == "equal" else wide


def test_it_speaks_of_images_and_of_texts(either: Path, tokens: TokenBatch) -> None:
    student = build(either, mlp_ratio=3, depth=2)
    found = student(views(), tokens)
    assert (student.num_features, student.width) == (WIDTH, WIDTH)
    assert found.features_BF.shape == found.embedding_BD.shape == (4, WIDTH)
    for branch in (found.image, found.text):
        assert branch.output_BE.shape == (4, WIDTH)
        assert branch.inner_BI.shape == (4, 3 * WIDTH)
        assert branch.output_BE.dtype == branch.inner_BI.dtype == torch.float32
    torch.testing.assert_close(found.embedding_BD.norm(dim=-1), torch.ones(4))
    direction = nn.functional.normalize(found.image.output_BE, dim=-1)
    torch.testing.assert_close(found.embedding_BD, direction)
    assert isinstance(student.adapter, nn.Linear) == (student.text.width != WIDTH)


def test_features_are_the_mean_of_the_image_encoders_patches(text_encoder: Path) -> None:
    student = build(text_encoder).eval()
    pixels = (views() - student.mean) / student.std
    features_BF = student.features(views())
    torch.testing.assert_close(features_BF, student.backbone(pixels))
    torch.testing.assert_close(features_BF, student(views()).features_BF, rtol=0, atol=0)
    assert features_BF.dtype == torch.float32


@pytest.mark.parametrize("mode", [True, False])
def test_an_image_is_embedded_without_a_look_at_texts(
    text_encoder: Path, tokens: TokenBatch, mode: bool
) -> None:
    student = build(text_encoder).train(mode)
    alone, both = student(views()), student(views(), tokens)
    assert alone.text is None
    assert alone.embedding_BD.equal(both.embedding_BD)
    assert alone.image.inner_BI.equal(both.image.inner_BI)


def test_embedded_texts_are_the_text_branch_normalised(either: Path, tokens: TokenBatch) -> None:
    student = build(either).eval()
    embedding_BE = student.embed_texts(tokens)
    wanted_BE = nn.functional.normalize(student(views(), tokens).text.output_BE, dim=-1)
    torch.testing.assert_close(embedding_BE, wanted_BE, rtol=0, atol=0)
    torch.testing.assert_close(embedding_BE.norm(dim=-1), torch.ones(4))


def test_a_text_is_the_same_alone_and_among_longer_ones(either: Path, tokens: TokenBatch) -> None:
    student = build(either).eval()
    together = student.embed_texts(tokens)
    for row in range(4):
        length = int(tokens.mask_BL[row].sum())
        alone = TokenBatch(
            tokens.tokens_BL[row : row + 1, :length], tokens.mask_BL[row : row + 1, :length]
        )
        torch.testing.assert_close(student.embed_texts(alone)[0], together[row], atol=2e-6, rtol=0)
    filled = replace(tokens, tokens_BL=tokens.tokens_BL.masked_fill(~tokens.mask_BL, 7))
    assert student.embed_texts(filled).equal(together)


def test_dropout_is_the_text_models_and_off_in_evaluation(
    text_encoder: Path, tokens: TokenBatch
) -> None:
    student = build(text_encoder)
    assert all(module.training for module in student.modules())
    assert not student.embed_texts(tokens).equal(student.embed_texts(tokens))
    student.eval()
    assert student.embed_texts(tokens).equal(student.embed_texts(tokens))


def reached(student: SharedStudent) -> set[str]:
    """Return the parameters with a gradient that is not zero."""
    return {
        name
        for name, parameter in student.named_parameters()
        if parameter.grad is not None and bool(parameter.grad.any())
    }


def test_gradients_reach_every_parameter(either: Path, tokens: TokenBatch) -> None:
    student = build(either)
    found = student(views(), tokens)
    (found.image.output_BE.square().sum() + found.text.output_BE.square().sum()).backward()
    assert reached(student) == {name for name, _ in student.named_parameters()}


def test_images_alone_reach_all_but_the_text_encoder(either: Path) -> None:
    student = build(either)
    student(views()).image.output_BE.square().sum().backward()
    names = {name for name, _ in student.named_parameters()}
    assert names - reached(student) == {
        name for name in names if name.startswith(("text.", "adapter."))
    }


def test_all_but_the_pretrained_weights_are_the_seeds(either: Path, wide: Path) -> None:
    one, same, other = (build(either, seed=seed).state_dict() for seed in (0, 0, 1))
    scratch = build(either, text_init="scratch").state_dict()
    for name, value in one.items():
        assert value.equal(same[name])
        if name.startswith("text."):
            assert value.equal(other[name])
        else:
            assert value.equal(scratch[name])
    for name in ("backbone.patch_embed.proj.weight", "shared.blocks.0.fc1.weight"):
        assert not one[name].equal(other[name])
    name = "text.model.embeddings.word_embeddings.weight"
    assert not one[name].equal(scratch[name])
    assert not scratch[name].equal(build(either, text_init="scratch", seed=1).state_dict()[name])


def test_building_leaves_the_callers_random_numbers_alone(text_encoder: Path) -> None:
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    build(text_encoder)
    build(text_encoder, text_init="scratch")
    assert torch.rand(3).equal(wanted)


def test_a_run_folder_gives_the_model_back_without_the_encoders_name(
    either: Path, tokens: TokenBatch, tmp_path: Path
) -> None:
    student = build(either).eval()
    text_reader(options_of(either)).save(tmp_path)
    again = build_shared(
        options_of(Path("/nowhere")), input_px=PX, seed=9, text_folder=tmp_path
    ).eval()
    assert again.text.started_from is None
    again.load_state_dict(student.state_dict())
    assert again.embed_texts(tokens).equal(student.embed_texts(tokens))
    assert again(views()).embedding_BD.equal(student(views()).embedding_BD)


def test_it_works_in_half_precision_and_channels_last(
    text_encoder: Path, tokens: TokenBatch
) -> None:
    student = build(text_encoder).eval()
    exact = student(views(), tokens)
    student.memory_format = torch.channels_last
    student.to(memory_format=torch.channels_last)
    torch.testing.assert_close(student(views(), tokens).embedding_BD, exact.embedding_BD)
    with torch.autocast("cpu", torch.bfloat16):
        half = student(views(), tokens)
    for value in (half.features_BF, half.text.output_BE, half.image.inner_BI):
        assert value.dtype == torch.float32
    similar = nn.functional.cosine_similarity(half.embedding_BD, exact.embedding_BD)
    assert similar.min() > 0.999


def test_it_compiles_as_one_graph_for_any_texts(text_encoder: Path, tokens: TokenBatch) -> None:
    student = build(text_encoder).eval()
    compiled = torch.compile(student.embed_texts, backend="eager", fullgraph=True)
    every = replace(tokens, mask_BL=torch.ones_like(tokens.mask_BL))
    for batch in (tokens, every):
        torch.testing.assert_close(compiled(batch), student.embed_texts(batch))


def test_heads_must_divide_the_width(text_encoder: Path) -> None:
    assert build(text_encoder).shared.blocks[0].heads == 2  # the ViT's own
    assert build(text_encoder, heads=8).shared.blocks[0].heads == 8
    with pytest.raises(StudentError, match="heads are 7, which do not divide test_vit's width, 64"):
        build(text_encoder, heads=7)


def test_the_documents_model_has_117_million_parameters(tmp_path: Path) -> None:
    transformers.BertConfig().save_pretrained(tmp_path)  # bert-base-uncased's
    add_tokenizer(tmp_path)
    with torch.device("meta"):
        student = build_shared(SharedOptions(), input_px=224, seed=0, text_folder=tmp_path)

    def count(module: nn.Module) -> int:
        return sum(parameter.numel() for parameter in module.parameters())

    assert count(student.text) == 66_364_416  # the document: 66.4M
    assert (
        count(student.backbone) == 43_269_888
    )  # the document: 42.3M, which is less than six blocks
    assert count(student.shared) == 7_090_944
    assert count(student) == 116_725_248  # 117M
