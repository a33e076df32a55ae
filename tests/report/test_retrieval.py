"""The images shown for a text are the nearest ones, and right only if of its class."""

import numpy as np
import pytest

from pipeline.errors import ProbeError
from pipeline.report.retrieval import answers, chosen_prompts, find_prompt
from pipeline.report.seen import Seen


def test_the_five_nearest_come_first_and_are_judged_by_their_label(seen: list[Seen]) -> None:
    one = seen[0]
    prompt = find_prompt(one.ground, "green square")
    assert (prompt.label, prompt.source, prompt.texts) == (1, "shapes-plain", 2)
    found = answers("student", one.features, one.ground, prompt)
    cosine_N = one.features.embedding_ND @ one.ground.zeroshot.embeddings_AD[1]
    nearest = sorted(range(12), key=lambda row: (-cosine_N[row], row))[:5]
    assert [hit.row for hit in found.hits] == nearest
    assert [hit.right for hit in found.hits] == [bool(one.ground.labels_N[r] == 1) for r in nearest]
    assert found.right == sum(one.ground.labels_N[row] == 1 for row in nearest)


def test_a_text_is_found_in_any_set_however_it_is_written(seen: list[Seen]) -> None:
    ground = seen[0].ground
    text = "a PHOTO of a red  square, categorized as warm shape."
    prompt = find_prompt(ground, text)
    assert (prompt.source, prompt.label, prompt.texts) == ("shapes-context", 0, 1)
    anchors = ground.cache.anchors("shapes-context")
    assert np.array_equal(prompt.anchor_D, anchors.embeddings_AD[0])


def test_a_text_that_no_set_holds_is_refused_with_what_to_do(seen: list[Seen]) -> None:
    with pytest.raises(ProbeError, match=r"did you mean 'red square'.*anchors add"):
        find_prompt(seen[0].ground, "red sqare")
    with pytest.raises(ProbeError, match="such as 'red square'"):
        find_prompt(seen[0].ground, "pink rose")


def test_the_hardest_classes_are_asked_for_first(seen: list[Seen]) -> None:
    prompts = chosen_prompts(seen, most=2)
    assert len(prompts) == 2
    means = {
        label: np.mean([(one.said_N == label)[one.ground.labels_N == label].mean() for one in seen])
        for label in range(3)
    }
    assert [means[prompt.label or 0] for prompt in prompts] == sorted(means.values())[:2]
