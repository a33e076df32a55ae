"""Derives the coarse labels of prompts/imagenet-1k.yaml from WordNet 3.0.

    apt-get install wordnet-base
    python tools/imagenet_coarse.py            # prints the rows
    python tools/imagenet_coarse.py --check    # exits 1 if the file's rows are others

The rule. A coarse label is the first lemma of a hypernym, underscores as spaces. Of several
hypernyms the first is taken, in WordNet's order, that says something which the class's name does
not: one all of whose words stand in the name ("ball" for "golf ball") is passed over. If that
leaves none, the search goes on among the hypernyms of the first ("retriever" for "golden retriever"
gives way to "sporting dog").
"""

import sys
from pathlib import Path

import yaml

from pipeline.imagenet import class_names, synsets

DATA = Path("/usr/share/wordnet/data.noun")
FILE = Path(__file__).parents[1] / "prompts" / "imagenet-1k.yaml"


def nouns(path: Path = DATA) -> dict[str, tuple[str, list[str]]]:
    """Return WordNet's nouns: id -> (first lemma, hypernyms in order); the format is wndb(5)'s."""
    found = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("  "):  # the licence
            continue
        fields = line.split(" ")
        pointers = 4 + 2 * int(fields[3], 16)
        lemma = fields[4].replace("_", " ")
        quads = range(pointers + 1, pointers + 1 + 4 * int(fields[pointers]), 4)
        above = [fields[i + 1] for i in quads if fields[i] in ("@", "@i") and fields[i + 2] == "n"]
        found[f"n{fields[0]}"] = lemma, [f"n{offset}" for offset in above]
    return found


def coarse_label(wnid: str, name: str, known: dict[str, tuple[str, list[str]]]) -> str:
    """Return the coarse label of a class by the rule above."""
    above = known[wnid][1]
    told = set(words(name))
    for parent in above:
        if not set(words(known[parent][0])) <= told:
            return known[parent][0]
    return coarse_label(above[0], name, known)


def words(text: str) -> list[str]:
    """Return the words of a name, lower case, a plural s taken off."""
    return [word.rstrip("s") for word in text.casefold().replace("-", " ").split()]


def rows() -> list[dict[str, str]]:
    """Return {wnid, coarse} of the 1,000 classes in the order of their labels."""
    known = nouns()
    pairs = zip(synsets(), class_names(), strict=True)
    return [{"wnid": wnid, "coarse": coarse_label(wnid, name, known)} for wnid, name in pairs]


def main() -> int:
    """Print the rows, or compare them with the file's."""
    found = rows()
    if "--check" not in sys.argv[1:]:
        print("\n".join(f"  - {{wnid: {row['wnid']}, coarse: {row['coarse']}}}" for row in found))
        return 0
    listed = yaml.safe_load(FILE.read_text(encoding="utf-8"))["classes"]
    theirs = [{"wnid": row["wnid"], "coarse": row["coarse"]} for row in listed]
    apart = [(a, b) for a, b in zip(found, theirs, strict=True) if a != b]
    for ours, other in apart:
        print(f"{ours['wnid']}: {ours['coarse']!r} by the rule, {other['coarse']!r} in the file")
    return 1 if apart else 0


if __name__ == "__main__":
    sys.exit(main())
