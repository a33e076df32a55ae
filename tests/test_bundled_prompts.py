"""The prompt files that come with beamclip: complete, in their datasets' order, and right."""

import json
import re
from pathlib import Path

import pytest
import torchvision.datasets
import yaml
from jsonschema import Draft202012Validator

from pipeline.prompt_file import PromptFile, load_prompts
from pipeline.prompts import load_sets
from tests.datasets import official

FOLDER = Path(__file__).parents[1] / "prompts"
FILES = sorted(path.stem for path in FOLDER.glob("*.yaml"))
COUNTS = {
    "cifar10": 10,
    "cifar100": 100,
    "digits": 10,
    "fashion-mnist": 10,
    "flowers102": 102,
    "imagenet-1k": 1000,
    "pets37": 37,
    "stl10": 10,
}
# What each flower is, in the order of the labels: the genus (or what else the plants share) that
# botanists give for the name, looked up apart from the descriptions.
FLOWERS = re.findall(
    r"\S+",
    """
    Oenothera Paphiopedilum Campanula Lathyrus Calendula Lilium Phalaenopsis Strelitzia Aconitum
    Echinops Antirrhinum Tussilago Protea Cirsium Iris Trollius Echinacea Alstroemeria
    Platycodon Zantedeschia Gloriosa Scabiosa Fritillaria Alpinia Muscari Papaver Amaranthus
    Gentiana Cynara Dianthus Dianthus Phlox Nigella Cosmos Eryngium Cattleya Nerine Astrantia
    Curcuma Helleborus Gerbera Narcissus Gladiolus Euphorbia Eustoma Erysimum Tagetes Ranunculus
    Leucanthemum Taraxacum Petunia Viola Primula Helianthus Pelargonium Dahlia Oenothera
    Geranium Dahlia Dahlia Cautleya Anemone Rudbeckia Convolvulus Eschscholzia Osteospermum
    Crocus Iris Anemone Romneya Gazania Rhododendron Nymphaea Rosa Datura Ipomoea Passiflora
    Nelumbo Tricyrtis Anthurium Plumeria Clematis Hibiscus Aquilegia Adenium Lavatera Magnolia
    Cyclamen Tropaeolum Canna Hippeastrum Monarda Tillandsia Digitalis Bougainvillea Camellia
    Malva Ruellia bromeliads Gaillardia Campsis Iris
    """,
)
# What only this breed is known for, of those that are easily taken for each other.
PETS = {
    "Abyssinian": "ticked",
    "Basset Hound": "short legs",
    "Bengal": "leopard cat",
    "Birman": "white paws",
    "Bombay": "black",
    "Boxer": "undershot",
    "British Shorthair": "plush",
    "Chihuahua": "Mexico",
    "Great Pyrenees": "mountain",
    "Havanese": "Cuba",
    "Keeshond": "spectacles",
    "Leonberger": "mane",
    "Newfoundland": "water-resistant",
    "Ragdoll": "limp",
    "Russian Blue": "green eyes",
    "Saint Bernard": "Alps",
    "Samoyed": "Siberia",
    "Scottish Terrier": "beard",
    "Shiba Inu": "Japanese",
    "Siamese": "cream body",
    "Sphynx": "hairless",
    "Wheaten Terrier": "wheat",
    "Yorkshire Terrier": "steel blue",
}


@pytest.fixture(scope="module")
def tokenizer():  # type: ignore[no-untyped-def]
    from open_clip.tokenizer import SimpleTokenizer

    return SimpleTokenizer()


def names(file: str) -> list[str]:
    return [item.name for item in load_prompts(file).classes]


def test_every_file_is_known_here() -> None:
    assert set(FILES) == set(COUNTS)


@pytest.mark.parametrize("file", FILES)
def test_the_schema_takes_it_and_says_where_its_facts_come_from(file: str) -> None:
    schema = json.loads((FOLDER / "schema.json").read_text(encoding="utf-8"))
    Draft202012Validator.check_schema(schema)
    content = yaml.safe_load((FOLDER / f"{file}.yaml").read_text(encoding="utf-8"))
    errors = [error.message for error in Draft202012Validator(schema).iter_errors(content)]
    assert errors == []
    assert len(load_prompts(file).source) > 20


@pytest.mark.parametrize(
    "wrong",
    [
        {"source": ""},
        {"classes": [{"name": "cat"}, {"name": " "}]},
        {"classes": [{"name": "cat"}, {"nmae": "dog"}]},
        {"prompt_sets": {"plain": []}},
        {"prompt_sets": {"a b": ["{label}"]}},
        {"prompt_sets": {"plain": ["A photo."]}},
        {"prompt_sets": {"plain": {"templates": ["{label}"], "anchors": "apart"}}},
        {"more": 1},
    ],
)
def test_the_schema_refuses_what_loading_would_refuse(wrong: dict[str, object]) -> None:
    schema = json.loads((FOLDER / "schema.json").read_text(encoding="utf-8"))
    content = {**yaml.safe_load((FOLDER / "stl10.yaml").read_text(encoding="utf-8")), **wrong}
    assert list(Draft202012Validator(schema).iter_errors(content))


@pytest.mark.parametrize("file", FILES)
def test_it_has_the_classes_of_its_dataset_and_a_text_of_its_own_for_each(file: str) -> None:
    prompts = load_prompts(file)
    assert prompts.dataset == file
    assert len(prompts.classes) == COUNTS[file]
    assert {"cpa", "plain", "cpa.article", "plain.article", "clip"} <= prompts.prompt_sets.keys()
    for chosen in load_sets(file):
        texts = [text for texts_T in chosen.texts for text in texts_T]
        assert len(set(texts)) == len(texts)
        assert not any(sign in text for text in texts for sign in ("{", "}", "  ", "..", " ."))


@pytest.mark.parametrize("file", FILES)
def test_no_text_is_longer_than_clip_reads(file: str, tokenizer) -> None:  # type: ignore[no-untyped-def]
    for chosen in load_sets(file):
        longest = {max(texts_T, key=len) for texts_T in chosen.texts}
        assert max(len(tokenizer.encode(text)) + 2 for text in longest) <= 77


# --- order ---------------------------------------------------------------------------------------


def test_flowers_stand_in_torchvisions_order() -> None:
    listed = [name.removesuffix("?") for name in torchvision.datasets.Flowers102.classes]
    assert names("flowers102") == listed  # it doubts the name of its pink-yellow dahlia


def test_fashion_mnist_stands_in_torchvisions_order() -> None:
    assert names("fashion-mnist") == list(torchvision.datasets.FashionMNIST.classes)


@pytest.mark.parametrize(
    ("file", "listed"),
    [("cifar10", official.CIFAR10), ("cifar100", official.CIFAR100), ("stl10", official.STL10)],
)
def test_cifar_and_stl_stand_in_the_order_of_their_meta_files(file: str, listed: list[str]) -> None:
    assert names(file) == [name.replace("_", " ") for name in listed]


def test_pets_stand_in_the_order_of_the_annotations() -> None:
    listed = [name.replace("_", " ") for name in official.PETS37]
    assert [name.casefold() for name in names("pets37")] == [name.casefold() for name in listed]
    cats = [name for name in listed if name[0].isupper()]
    assert [item.name for item in load_prompts("pets37").classes if item.coarse == "cat"] == cats


# --- context -------------------------------------------------------------------------------------


def test_cifar100_has_the_20_superclasses_of_5_each() -> None:
    coarse = [item.coarse for item in load_prompts("cifar100").classes]
    listed = [name.replace("_", " ") for name in official.CIFAR100_COARSE]
    assert coarse == [listed[number] for number in official.CIFAR100_COARSE_OF_FINE]
    assert [coarse.count(name) for name in listed] == [5] * 20


def test_fashion_mnist_has_10_coarse_labels() -> None:
    assert len({item.coarse for item in load_prompts("fashion-mnist").classes}) == 10


@pytest.mark.parametrize("file", ["flowers102", "pets37"])
def test_descriptions_are_short_and_do_not_repeat_each_other(  # type: ignore[no-untyped-def]
    file: str, tokenizer
) -> None:
    descriptions = [item.description or "" for item in load_prompts(file).classes]
    assert all(5 < len(tokenizer.encode(text)) <= 60 for text in descriptions)
    assert len(set(descriptions)) == len(descriptions)
    assert all(text.count(". ") <= 1 for text in descriptions)


PLURAL = {  # and what is not counted
    "cifar100": "cattle",
    "flowers102": "canterbury bells, prince of wales feathers, garden phlox, love in the mist, "
    "watercress, bee balm, ball moss",
    "imagenet-1k": "binoculars, chain mail, clogs, face powder, jeans, lotion, tights, pajamas, "
    "parallel bars, sunglasses, sunscreen, swim trunks / shorts, velvet fabric, guacamole, "
    "ice cream, mashed potatoes, broccoli, hay, carbonara, chocolate syrup, dough, red wine, "
    "eggnog, rapeseed, corn, toilet paper",
}
# Names that end in s, and are one thing.
SINGULAR = re.findall(
    r"\S+",
    """
    abacus albatross bus clematis colobus compass crocus cuirass fungus glass hibiscus hippopotamus
    hourglass iris lotus malinois mantis minibus moss nautilus platypus press pyrenees sunglass
    triceratops trolleybus watercress dress mattress harness
    """,
)


@pytest.mark.parametrize("file", FILES)
def test_every_name_gets_the_article_that_it_asks_for_and_plurals_none(file: str) -> None:
    prompts = load_prompts(file)
    without = [item.name for item in prompts.classes if item.article == ""]
    assert without == [name for name in PLURAL.get(file, "").split(", ") if name]
    plurals = [item.name for item in prompts.classes if item.name.rstrip().endswith("s")]
    assert {n.split()[-1].lower() for n in plurals if n not in without} <= set(SINGULAR)
    for name in ("plain", "cpa"):
        literal, [articled] = (load_sets(file, [n]) for n in (name, f"{name}.article"))
        for item, (ours,), (theirs,) in zip(
            prompts.classes, articled.texts, literal[0].texts, strict=True
        ):
            assert theirs.startswith(f"A photo of a {item.name}")  # as the document has it
            rest = theirs.removeprefix("A photo of a ")
            articles = ("",) if item.article == "" else ("a ", "an ")
            assert ours in [f"A photo of {article}{rest}" for article in articles]


def test_names_that_begin_with_a_vowel_get_an() -> None:
    [stl] = load_sets("stl10", ["plain.article"])
    assert stl.texts[0] == ("A photo of an airplane.",)
    [digits] = load_sets("digits", ["plain.article"])
    assert digits.texts[8] == ("A photo of an eight.",)
    assert digits.texts[1] == ("A photo of a one.",)


def described(prompts: PromptFile) -> dict[str, str]:
    return {item.name: item.description or "" for item in prompts.classes}


def test_each_flower_is_described_as_the_plant_that_it_is() -> None:
    flowers = described(load_prompts("flowers102"))
    assert len(FLOWERS) == len(flowers)
    wrong = [
        (name, genus)
        for (name, text), genus in zip(flowers.items(), FLOWERS, strict=True)
        if genus not in text
    ]
    assert wrong == []
    assert [n for n, text in flowers.items() if not re.search(r"\b(flower|plant)", text)] == []


def test_each_pet_is_described_as_the_breed_that_it_is() -> None:
    prompts = load_prompts("pets37")
    assert {item.coarse for item in prompts.classes} == {"cat", "dog"}
    pets = described(prompts)
    for item in prompts.classes:
        assert f" {item.coarse} breed" in pets[item.name], item.name
        assert not re.search(
            r"\bdogs?\b" if item.coarse == "cat" else r"\bcats?\b", pets[item.name]
        )
    assert [name for name, mark in PETS.items() if mark not in pets[name]] == []
    for name, mark in PETS.items():
        if mark not in ("black", "green eyes", "mountain", "Japanese"):
            assert [other for other, text in pets.items() if mark in text] == [name]
