"""Takes the text encoder out of a finished run of the model of images and texts.

Shape letters: B batch, L places of a text, E width.
"""

from pathlib import Path
from typing import Any

from torch import Tensor, nn

from pipeline.checkpoints import tensors_sha256
from pipeline.errors import StudentError
from pipeline.glue.encoder import LoadedText, check_pairs
from pipeline.reading import kept_text
from pipeline.recipe import recipe_from
from pipeline.rundir import WEIGHTS, RunDir
from pipeline.shared.files import TextFiles
from pipeline.shared.library import load_library
from pipeline.shared.reader import text_reader
from pipeline.shared.student import SharedStudent
from pipeline.shared.texts import TextEncoder
from pipeline.stage_two import rebuild_student


def load_run(path: Path) -> LoadedText:
    """Load the text encoder of a run, its EMA weights, without what comes after it in the model.

    The run stays as it is. Raises StudentError if the run's student reads no texts, RunError if
    there is no run or it is not finished, ProbeError if its tokenizer knows no pairs, LibraryError.
    """
    run = RunDir(path)
    recipe = recipe_from(run.read_recipe(), where=f"{path}/recipe.yaml")
    student = rebuild_student(run, recipe)
    if not isinstance(student, SharedStudent):
        raise StudentError(
            f"the student of {path}, {recipe.student.model}, sees images and reads no texts: name "
            "a run of student.model: shared, or a text encoder with --text"
        )
    files = text_reader(recipe.student.shared, kept_text(path)).files
    tokenizer = _tokenizer(files)
    check_pairs(path, tokenizer)
    lineage = {
        "run": str(path),
        "weights": WEIGHTS["student"],
        "sha256": tensors_sha256(student.text.state_dict()),
        "trained_on_tokens": recipe.student.shared.max_tokens,  # longer texts, it has not seen
        "types": "ignored: both texts of a pair are of type 0",
    }
    return LoadedText(_RunEncoder(student.text, files.num_places), tokenizer, lineage)


class _RunEncoder(nn.Module):
    """A text encoder of ours, as `glue.encoder.TextEncoder` says.

    Types are ignored: it was trained on texts that stand alone, all of type 0, and of a pair both
    are read as that.
    """

    def __init__(self, text: TextEncoder, max_positions: int) -> None:
        super().__init__()
        self.text, self.width, self.max_positions = text, text.width, max_positions

    def forward(self, tokens_BL: Tensor, mask_BL: Tensor, types_BL: Tensor | None) -> Tensor:
        states_BLE: Tensor = self.text(tokens_BL, mask_BL)
        return states_BLE


def _tokenizer(files: TextFiles) -> Any:
    """Return the tokenizer that a run keeps, in transformers' shape.

    As in training, what looks like a mark within a text is read as text.
    """
    from tokenizers import Tokenizer  # which transformers brings

    plain = Tokenizer.from_str(files.tokenizer)
    plain.no_padding()
    plain.no_truncation()
    first, last = (plain.id_to_token(mark) for mark in plain.encode("").ids)
    return load_library().PreTrainedTokenizerFast(
        tokenizer_object=plain,
        model_max_length=files.num_places,
        pad_token=plain.id_to_token(files.pad_id),
        cls_token=first,
        sep_token=last,
        split_special_tokens=True,
    )
