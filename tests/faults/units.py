"""Work on units that fails on the way, which worker processes must be able to import."""

from pipeline.conveyor import embed_unit
from pipeline.runtime import Send
from pipeline.unit import UnitJob, UnitReport


def embed_at_the_third_attempt(job: UnitJob, send: Send) -> UnitReport:
    """Make a unit, but fail twice at first; attempts are counted in this process's folder."""
    with open(f"attempts-{job.unit.name}", "ab") as file:
        file.write(b".")
        if file.tell() < 3:
            raise OSError("the file server is away")
    return embed_unit(job, send)
