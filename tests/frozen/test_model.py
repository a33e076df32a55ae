"""The shared part: its outputs, and what of it images and texts share."""

import torch

from pipeline.frozen.model import FrozenPair


def pair() -> FrozenPair:
    torch.manual_seed(0)
    return FrozenPair(image_dim=12, text_dim=8, width=6, inner=24)


def test_outputs_are_those_of_both_sides_through_one_block() -> None:
    model = pair()
    image_BD, text_BT = torch.randn(5, 12), torch.randn(5, 8)
    image, text = model(image_BD, text_BT)
    assert image.output_BE.shape == text.output_BE.shape == (5, 6)
    assert image.inner_BI.shape == text.inner_BI.shape == (5, 24)
    mapped_BE = model.image.linear(torch.layer_norm(image_BD, (12,)))
    inner_BI = model.shared.fc1(torch.layer_norm(mapped_BE, (6,)))
    torch.testing.assert_close(image.inner_BI, inner_BI)
    wanted_BE = mapped_BE + model.shared.fc2(torch.nn.functional.gelu(inner_BI))
    torch.testing.assert_close(image.output_BE, wanted_BE)


def test_embeddings_are_the_outputs_normalised_whatever_the_length_of_features() -> None:
    model = pair()
    image_BD, text_BT = torch.randn(5, 12), torch.randn(5, 8)
    image, text = model(image_BD, text_BT)
    embedded_BE = model.embed_images(100 * image_BD)
    torch.testing.assert_close(embedded_BE.norm(dim=1), torch.ones(5))
    wanted_BE = torch.nn.functional.normalize(image.output_BE, dim=1)
    torch.testing.assert_close(embedded_BE, wanted_BE, atol=1e-4, rtol=1e-4)
    found_BE = model.embed_texts(text_BT)
    torch.testing.assert_close(found_BE, torch.nn.functional.normalize(text.output_BE, dim=1))


def test_the_middle_learns_from_both_and_each_side_from_its_own() -> None:
    model = pair()
    image, text = model(torch.randn(5, 12), torch.randn(5, 8))
    image.output_BE.square().sum().backward(retain_graph=True)
    assert model.text.linear.weight.grad is None
    by_image = model.shared.fc1.weight.grad.clone()  # type: ignore[union-attr]
    text.output_BE.square().sum().backward()
    assert model.text.linear.weight.grad is not None
    assert not torch.equal(by_image, model.shared.fc1.weight.grad)  # type: ignore[arg-type]
