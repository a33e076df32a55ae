"""Rendering into a slab: the same bytes as anywhere else, wherever the ring has its end."""

import numpy as np
import torch

from pipeline.decode import DecodePolicy
from pipeline.rendering import Rendered, RenderPlan, Request, Slab, render_into
from pipeline.schedule import Schedule
from pipeline.shards import content_digest
from pipeline.views import SourceImage, render_geometry
from tests.images import picture
from tests.inputs import encode

RULE = Schedule()


def plan(ring: int, first: int = 0, last: int = 4) -> RenderPlan:
    return RenderPlan(RULE, first, last, DecodePolicy(), 24, ring)


def test_views_wrap_around_the_ring() -> None:
    encoded, slab = encode(picture()), Slab(9, 24)
    expected = [RULE.params("key", view, 57, 43) for view in range(2, 7)]
    image = SourceImage(encoded, DecodePolicy())
    for slot in (0, 5, 7, 7 + 8 * 1000):
        slab.views_R3SS[:] = 7
        rendered = render_into(slab, plan(8, 2, 6), Request(slot, "key", encoded))
        assert rendered == Rendered(57, 43, content_digest(encoded))
        places = [(slot + view) % 8 for view in range(5)]
        assert torch.equal(slab.views_R3SS[places], render_geometry(image, expected, 24))
        assert (slab.params_RP[places] == np.array(expected, np.float32)).all()
        others = [place for place in range(9) if place not in places]
        assert (slab.views_R3SS[others] == 7).all()


def test_what_cannot_be_decoded_says_why() -> None:
    slab = Slab(5, 24)
    rendered = render_into(slab, plan(5), Request(0, "key", b"<html>"))
    assert (rendered.reason, rendered.width, rendered.height) == ("undecodable", 0, 0)
    assert rendered.digest == content_digest(b"<html>")


def test_a_slab_is_shared_by_its_descriptor() -> None:
    import os

    slab = Slab(3, 8)
    other = Slab(3, 8, os.dup(slab.descriptor))
    slab.views_R3SS[1] = 42
    slab.params_RP[2] = 0.5
    assert (other.views_R3SS[1] == 42).all()
    assert (other.views_R3SS[[0, 2]] == 0).all()
    assert (other.params_RP[2] == 0.5).all()
