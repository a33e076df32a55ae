"""The tree of errors a user can meet."""


class BeamclipError(Exception):
    """Something the user can put right; the command line prints it without a traceback.

    A message says what was expected, what was found and what to do.
    """

    exit_code = 1


class RecipeError(BeamclipError):
    """A recipe, an override or an option has a wrong key or value."""


class ShardError(BeamclipError):
    """A shard is missing, damaged, or not the shard that the cache was made from."""


class DataError(BeamclipError):
    """A source of data (a folder, a prompt file) is missing or not as expected."""


class LibraryError(DataError):
    """Prompts, data or a loss are to come from a library that is not installed."""


class TeacherError(BeamclipError):
    """A teacher cannot be loaded exactly as named."""


class StudentError(BeamclipError):
    """A student cannot be built, loaded or trained as asked."""


class CacheError(BeamclipError):
    """A cache is missing, damaged, unsealed or of another format."""


class CacheMismatchError(CacheError):
    """A cache was made from something else; carries the fields that differ."""

    def __init__(self, what: str, differences: list[tuple[str, object, object]]) -> None:
        self.differences = differences
        rows = [
            f"  {field}: cache has {old!r}, asked for {new!r}" for field, old, new in differences
        ]
        super().__init__("\n".join([what, *rows]))


class StorageError(CacheError):
    """What holds a cache cannot be written to, whichever unit comes next: full, read-only, broken.

    Work that meets it stops: every other unit would meet it too.
    """


class ClusterError(BeamclipError):
    """A dask cluster cannot be reached, may not be used, or was lost."""


class WorkerError(BeamclipError):
    """A worker process would not do the work as this one does; another one may."""


class QuarantineError(BeamclipError):
    """A job ended every process that took it up, and is tried no more."""


class ProbeError(BeamclipError):
    """A probe cannot score what it was given."""


class RunError(BeamclipError):
    """A run folder cannot be used as asked."""


class LossesError(BeamclipError):
    """The work finished, but something is missing from it that should be there."""

    exit_code = 3


class SampleError(Exception):
    """One sample cannot be used; becomes a skip record, never reaches the user as an error.

    `reason` is a short fixed word that can be counted, `detail` says what was found.
    """

    def __init__(self, reason: str, detail: str) -> None:
        self.reason = reason
        self.detail = detail
        super().__init__(f"{reason}: {detail}")
