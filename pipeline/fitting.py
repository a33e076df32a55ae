"""Finds a backbone's weights among a checkpoint's tensors, by their names and shapes.

Every form of checkpoint puts something before the backbone's own names, and other networks beside
it. No form is asked for: of all that may stand before, what fits most of the backbone is taken.

MoCo-v2            state_dict.module.encoder_q.          facebookresearch/moco, main_lincls.py
SwAV               module.                               facebookresearch/swav, hubconf.py
DINO               teacher.backbone., student.module.backbone.   facebookresearch/dino, utils.py
SimCLR             encoder., backbone., convnet., model.encoder.module., f. (numbered)
VISSL              classy_state_dict.base_model.model.trunk._feature_blocks.
BYOL               online_encoder.net., online_network_state_dict.encoder. (numbered)
lightly, solo      backbone. (lightly: numbered), backbone_momentum., momentum_backbone.

Numbered: an nn.Sequential of a ResNet's children, with or without those that hold no weights.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.errors import StudentError

if TYPE_CHECKING:
    from torch import Tensor

_COUNTER = "num_batches_tracked"  # files older than torch 0.4.1 lack it
# Of networks that fit equally well, methods themselves evaluate DINO's teacher, MoCo's query,
# BYOL's online network, the EMA that timm keeps.
_FIRST, _LAST = {"teacher", "ema"}, {"k", "momentum", "target", "student"}
_NAMED = 3  # of the names that a message lists


@dataclass(frozen=True)
class Fit:
    """Which tensors of a checkpoint are a backbone's.

    prefix: what stands before the backbone's names. names: the checkpoint's name by the backbone's.
    missing: counters of batch statistics that the checkpoint lacks. left_over: what the checkpoint
    holds beside the backbone.
    """

    prefix: str
    names: Mapping[str, str]
    missing: tuple[str, ...]
    left_over: tuple[str, ...]


def fit_backbone(
    tensors: "Mapping[str, Tensor]",
    own: "Mapping[str, Tensor]",
    *,
    where: object,
    heads: Sequence[str] = (),
) -> Fit:
    """Find the tensors of a backbone whose state is `own`; raises StudentError if any is not there.

    heads: modules of the backbone's classifier, whose weights may be left over. What only looks
    alike is refused: missing names, other shapes, more layers than the backbone has, two networks
    that fit equally well, values that are not finite.
    """
    prefix, renamed = _best(tensors, own, where)
    names = {name: renamed[name] for name in own if name in renamed}
    _check_shapes({name: (tensors[names[name]], own[name]) for name in names}, where)
    missing = tuple(name for name in own if name not in names)
    if lacking := [name for name in missing if not name.endswith(_COUNTER)]:
        raise StudentError(
            f"{where} lacks {len(lacking)} of the backbone's {len(own)} tensors "
            f"({_some(lacking)}): it is of another architecture; choose its student.model"
        )
    if beyond := _beyond(renamed, own, heads):
        raise StudentError(
            f"{where} holds {len(beyond)} tensors more than the backbone ({_some(beyond)}): it is "
            "of a larger architecture; choose its student.model"
        )
    if bad := [held for held in names.values() if not bool(tensors[held].isfinite().all())]:
        raise StudentError(f"{where} has values that are not finite ({_some(bad)}): train it anew")
    used = set(names.values())
    return Fit(prefix, names, missing, tuple(name for name in tensors if name not in used))


def _best(
    tensors: "Mapping[str, Tensor]", own: "Mapping[str, Tensor]", where: object
) -> tuple[str, dict[str, str]]:
    """Return the prefix that fits most of the backbone, and all names behind it, renamed."""
    readings = _readings(tensors, own)
    if not readings:
        raise StudentError(
            f"{where} holds no weights of this backbone: expected names such as {_some(own)}; "
            f"found {_some(tensors)}"
        )

    def score(reading: tuple[str, bool]) -> tuple[int, int, int]:
        fitting = {n: held for n, held in readings[reading].items() if n in own}
        shaped = [n for n, held in fitting.items() if tensors[held].shape == own[n].shape]
        return len(shaped), len(fitting), _rank(reading[0])

    scores = {reading: score(reading) for reading in readings}
    first, *others = [r for r, found in scores.items() if found == max(scores.values())]
    for other in others:
        if not _same(readings[first], readings[other], tensors):
            raise StudentError(
                f"{where} holds two networks that fit ({first[0]!r}, {other[0]!r}): save the one "
                "that is meant in a file of its own"
            )
    return first[0], readings[first]


def _readings(
    names: Iterable[str], own: Mapping[str, object]
) -> dict[tuple[str, bool], dict[str, str]]:
    """Return, for each (prefix, numbered or not), the names behind it as the backbone says them.

    Prefixes behind which no name is the backbone's are left out.
    """
    found: dict[tuple[str, bool], dict[str, str]] = defaultdict(dict)
    child_of = _numbered_children(names, own)
    for name in names:
        for prefix, rest in _splits(name):
            found[prefix, False][_spelled(rest, own)] = name
            number, _, tail = rest.partition(".")
            if child := child_of.get((prefix, number)):
                found[prefix, True][_spelled(f"{child}.{tail}", own)] = name
    return {reading: renamed for reading, renamed in found.items() if own.keys() & renamed.keys()}


def _numbered_children(
    names: Iterable[str], own: Mapping[str, object]
) -> dict[tuple[str, str], str]:
    """Read the numbers behind a prefix as the backbone's children that hold weights, in order."""
    children = list(dict.fromkeys(name.partition(".")[0] for name in own))
    numbers: dict[str, set[int]] = defaultdict(set)
    for name in names:
        for prefix, rest in _splits(name):
            if (number := rest.partition(".")[0]).isdecimal():
                numbers[prefix].add(int(number))
    return {
        (prefix, str(number)): child
        for prefix, found in numbers.items()
        for number, child in zip(sorted(found), children, strict=False)
    }


def _splits(name: str) -> Iterator[tuple[str, str]]:
    """Yield every (prefix, rest) of a dotted name."""
    yield "", name
    for dot in re.finditer(r"\.", name):
        yield name[: dot.end()], name[dot.end() :]


def _spelled(name: str, own: Mapping[str, object]) -> str:
    """Return a name as torchvision and timm spell it; CIFAR's ResNets say shortcut (kuangliu's)."""
    other = name.replace(".shortcut.", ".downsample.")
    return other if other in own else name


def _rank(prefix: str) -> int:
    words = set(re.split(r"[._]", prefix))
    return bool(words & _FIRST) - bool(words & _LAST)


def _same(
    one: Mapping[str, str], other: Mapping[str, str], tensors: "Mapping[str, Tensor]"
) -> bool:
    return all(name in other and tensors[one[name]].equal(tensors[other[name]]) for name in one)


def _beyond(renamed: Iterable[str], own: Mapping[str, object], heads: Sequence[str]) -> list[str]:
    """List the names that lie within a part of the backbone, and yet are none of its tensors."""
    parts = {name.partition(".")[0] for name in own}
    ours = (*(f"{head}." for head in heads),)
    return [
        name
        for name in renamed
        if name not in own
        and name.partition(".")[0] in parts
        and not name.startswith(ours)
        and not name.endswith(_COUNTER)
    ]


def _check_shapes(pairs: "Mapping[str, tuple[Tensor, Tensor]]", where: object) -> None:
    """Compare what is held with what is wanted; a stem's difference has an option of its own."""
    wrong = {
        name: (tuple(held.shape), tuple(wanted.shape))
        for name, (held, wanted) in pairs.items()
        if held.shape != wanted.shape
    }
    for name, (held, wanted) in wrong.items():
        if len(wrong) == 1 and len(held) == 4 and held[:2] == wanted[:2]:
            stem = "small" if held[2] < wanted[2] else "imagenet"
            raise StudentError(
                f"{where} was trained with the {stem} stem: its {name} is {held[2]}x{held[3]}, the "
                f"student's {wanted[2]}x{wanted[3]}; set student.stem={stem}, or take other weights"
            )
    if wrong:
        told = [f"{name} is {held}, expected {wanted}" for name, (held, wanted) in wrong.items()]
        raise StudentError(
            f"{where} has other shapes than the backbone in {len(wrong)} tensors "
            f"({_some(told)}): it is of another architecture or input size; choose its "
            "student.model and student.input_px"
        )


def _some(names: Iterable[str]) -> str:
    """List the first few."""
    listed = list(names)
    return ", ".join(listed[:_NAMED]) + (", ..." if len(listed) > _NAMED else "")
