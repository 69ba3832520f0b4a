"""A simulated window of days, busy by day and idle by night, for what minutes cannot show."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

from vllm_capacity.telemetry.rows import RowBuffer, SeriesKey, microseconds
from vllm_capacity.telemetry.store import write_window
from vllm_capacity.telemetry.window import Window, open_window

MONDAY = datetime(2026, 11, 23, tzinfo=UTC)
TOKENS_PER_REQUEST = 100
FULL_TOKENS_PER_SECOND, FULL_RUNNING = 300.0, 30.0
_WORKING_HOURS = range(7, 21)


def requests_a_minute(at: datetime) -> int:
    """None by night; by day more towards noon, and above capacity for an hour."""
    if at.hour not in _WORKING_HOURS:
        return 0
    return 20 * (8 - abs(at.hour - 13)) + at.minute % 7


def long_window(
    path: Path,
    *,
    days: float,
    gap: tuple[datetime, datetime] | None = None,
    start: datetime = MONDAY,
    scale: float = 1.0,
    weekly: float = 1.0,
    every_minutes: int = 1,
) -> Window:
    """A window of one server, scraped every minute or less often; no scrape within `gap`.

    The load begins at `scale` times that of a minute, and is `weekly` times as high a week later.
    """
    buffer = RowBuffer()

    def series(metric: str, kind: str, *labels: tuple[str, str]) -> int:
        return buffer.series(
            SeriesKey(metric, kind, "gpu-0:8000", "0", "m", labels), exposed=metric
        )

    done = series("vllm:request_success_total", "counter", ("finished_reason", "stop"))
    tokens = series("vllm:generation_tokens_total", "counter")
    running = series("vllm:num_requests_running", "gauge")
    waiting = series("vllm:num_requests_waiting", "gauge")
    cache = series("vllm:kv_cache_usage_perc", "gauge")
    requests = 0
    for minute in range(round(days * 24 * 60) + 1):
        at = start + timedelta(minutes=minute)
        came = requests_a_minute(at - timedelta(minutes=1)) if minute else 0
        came = round(came * scale * weekly ** (minute / (7 * 24 * 60)))
        requests += came
        if minute % every_minutes:
            continue
        if gap and gap[0] < at < gap[1]:
            continue
        now = microseconds(at)
        load = came * TOKENS_PER_REQUEST / 60 / FULL_TOKENS_PER_SECOND
        buffer.scrape("gpu-0:8000", now, is_up=True, seconds=0.01)
        buffer.sample(done, now, requests)
        buffer.sample(tokens, now, requests * TOKENS_PER_REQUEST)
        buffer.sample(running, now, min(load, 1.0) * FULL_RUNNING)
        buffer.sample(waiting, now, 5.0 if load >= 0.9 else 0.0)
        buffer.sample(cache, now, min(load, 1.0))
    return open_window(write_window(path, buffer.rows(), {"source": "made up for a test"}))
