"""The stand-in filled with everything that was recorded, read once a process."""

from functools import cache

from tests.standin.server import RECORDED, Standin
from tests.standin.tables import Stream


@cache
def _filled() -> Standin:
    standin = Standin()
    standin.replay(RECORDED / "collector_exports.jsonl.gz")
    standin.replay(RECORDED / "traces_exports.jsonl.gz")
    return standin


def recorded_server(**settings: object) -> Standin:
    """A server of its own that holds the recorded streams; adding to it changes no other."""
    filled = _filled().streams.items()
    streams = {name: Stream(kept.log_source, list(kept.batches)) for name, kept in filled}
    return Standin(streams=streams, **settings)
