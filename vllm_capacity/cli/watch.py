"""`watch`: live engines on a screen that refreshes, or once, as text or JSON."""

from __future__ import annotations

import os
import select
import signal
import sys
import termios
import threading
import time
import tty
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vllm_capacity.cli.options import (
    FILE,
    columns,
    listen_address,
    local_path,
    target_options,
)
from vllm_capacity.cli.options.analysis import as_text, assumptions_of, price_options
from vllm_capacity.errors import InputError, SourceError
from vllm_capacity.timerange import parse_duration_seconds

if TYPE_CHECKING:
    from vllm_capacity.assumptions import Assumptions
    from vllm_capacity.live.targets import Target
    from vllm_capacity.live.watch import FromPrometheus, Recent

_ONCE_SECONDS = 12.0
_MAX_COLUMNS = 160  # a table of eleven columns, no prose
ORDERS = (
    *("worst", "name", "tokens", "running", "waiting", "kv"),
    *("ttft", "itl", "cost", "headroom"),
)


@click.command(short_help="Watch live engines: load, latency and cost.")
@click.argument("urls", nargs=-1, metavar="[URL... | PROMETHEUS | WINDOW]")
@click.option("--every", default="2s", show_default=True, help="Scrape interval.")
@click.option("--refresh", default="5s", show_default=True, help="Refresh interval of the screen.")
@click.option("--over", default="5m", show_default=True, help="Time range for latency and cost.")
@click.option(
    "--sort",
    "order",
    type=click.Choice(ORDERS),
    default="worst",
    show_default=True,
    help="Sort order.",
)
@click.option("--once", is_flag=True, help="Observe for 12 s, print once and exit; for scripts.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per refresh.")
@click.option(
    "--listen",
    metavar="HOST:PORT",
    help="Instead of a screen, serve the figures to Prometheus at http://HOST:PORT/metrics.",
)
@click.option(
    "--match", help="Only these series of a Prometheus, such as '{namespace=\"team-a\"}'."
)
@click.option("--profile", type=FILE, help="File with user and password, or token; mode 0600.")
@target_options
@click.option(
    "--to",
    type=click.Path(path_type=Path),
    callback=local_path,
    help="Save the scrapes to this file; `scrape --from FILE --to WINDOW` makes it a window.",
)
@price_options
def watch(
    urls: tuple[str, ...],
    every: str,
    refresh: str,
    over: str,
    order: str,
    once: bool,
    as_json: bool,
    listen: str | None,
    match: str | None,
    profile: Path | None,
    labels: tuple[str, ...],
    listed: Path | None,
    to: Path | None,
    **given: Any,  # noqa: ANN401  as click hands them over
) -> None:
    """Scrape vLLM's /metrics at each URL and show every engine, the worst first, and a total.

    On a terminal the screen refreshes: s changes the sort order, q or Ctrl-C ends it. In a pipe,
    refreshes are printed one after another. Nothing is stored without --to.

    Instead of URLs, give the PROMETHEUS that scrapes them: the last --over are read from it, with
    --match only some series. Credentials as for `pull`; a Prometheus that requires them needs
    --match. Or give a WINDOW that `scrape` is writing: its journal is read, and nothing is scraped
    twice.

    Labels of targets (--label, --targets) work as in `scrape`: rules of a mapping file match them,
    and --to saves them.

    With --listen, a Prometheus or KEDA can scrape the figures: cost per million tokens,
    utilization, headroom and capacity, with their bounds.

    A target that does not answer is reported at once, with the cause; if none answers, --once ends
    with exit code 3. Credentials as for `scrape`.
    """
    from vllm_capacity.live.access import METRICS, checked_url, is_prometheus
    from vllm_capacity.live.running import running_journal
    from vllm_capacity.live.scrape import Journal
    from vllm_capacity.live.targets import label, named_targets
    from vllm_capacity.live.watch import Recent

    source: AbstractContextManager[tuple[Recent | FromPrometheus, threading.Event]]
    seconds, own = parse_duration_seconds(over), dict(label(text) for text in labels)
    one = urls[0] if len(urls) == 1 and listed is None else None
    is_url = one is not None and "://" in one
    journal = None if one is None or is_url else running_journal(one)
    if (
        one is not None
        and is_url
        and (match is not None or is_prometheus(checked_url(one, variables=METRICS)))
    ):
        if to is not None:
            raise InputError(
                "--to saves scrapes; to save a Prometheus' samples, use vllm-capacity pull."
            )
        _refuse_labels(own, "a Prometheus")
        source = _from_prometheus(one, match, seconds)
    elif match is not None:
        raise InputError(f"--match is for a Prometheus, which {', '.join(urls) or listed} is not.")
    elif journal is not None:
        _refuse_labels(own, "a scrape that is running")
        source = _following(journal, seconds, to, parse_duration_seconds(every))
    elif urls or listed is not None:
        found = named_targets(urls, listed, own)
        recent = Recent(seconds, len(found), None if to is None else Journal(to))
        source = _scraping(found, recent, parse_duration_seconds(every), profile)
    else:
        raise InputError(
            "Give something to watch: URLs of vLLM's /metrics or --targets FILE, a Prometheus, or "
            "the window that a scrape is writing."
        )
    address = None if listen is None else listen_address(listen)
    pause = parse_duration_seconds(refresh)
    with source as (looked_at, stop):
        screen = _Screen(looked_at, order, as_json, given)
        if address is not None:
            with _served(looked_at, address, assumptions_of(given), pause):
                while not stop.wait(pause):
                    screen.report_silent()
            return
        if once:
            _wait_until_answered(looked_at, stop)
            screen.show_once()
            return
        screen.show_until(stop, pause)


@contextmanager
def _served(
    looked_at: Recent | FromPrometheus,
    address: tuple[str, int],
    assumptions: Assumptions,
    seconds: float,
) -> Iterator[None]:
    """A context that serves current figures on /metrics, recomputed at most every `seconds`."""
    from prometheus_client import CollectorRegistry, start_http_server

    from vllm_capacity.render.exports.currency import USD
    from vllm_capacity.render.exports.prometheus import LiveFigures

    registry = CollectorRegistry()
    registry.register(LiveFigures(lambda: looked_at.analysis(assumptions), USD, seconds))
    host, port = address
    try:
        server, thread = start_http_server(port, host, registry)
    except OSError as error:
        raise InputError(f"Cannot listen on {host}:{port}: {error.strerror or error}.") from None
    click.echo(f"http://{host}:{server.server_port}/metrics serves the figures", err=True)
    try:
        yield
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def _from_prometheus(
    url: str, match: str | None, seconds: float
) -> Iterator[tuple[FromPrometheus, threading.Event]]:
    """A Prometheus, queried each time the screen is refreshed."""
    from vllm_capacity.live.pull import prometheus_client
    from vllm_capacity.live.watch import FromPrometheus
    from vllm_capacity.selector import selector
    from vllm_capacity.sources.prometheus import Prometheus

    only = None if match is None else selector(match)
    with prometheus_client(url, os.environ) as client, _stop_on_signals() as stop:
        yield FromPrometheus(Prometheus(client, only=only), seconds), stop


def _refuse_labels(labels: dict[str, str], what: str) -> None:
    if labels:
        raise InputError(f"--label is for targets that are scraped; {what} has its own labels.")


@contextmanager
def _following(
    journal: Path, seconds: float, to: Path | None, every_seconds: float
) -> Iterator[tuple[Recent, threading.Event]]:
    """Read what a running scrape has written and still writes, until it ends."""
    from vllm_capacity.live.running import Follower
    from vllm_capacity.live.scrape import Journal
    from vllm_capacity.live.watch import Recent

    follower = Follower(journal)
    recent = Recent(seconds, 1, None if to is None else Journal(to))
    with _stop_on_signals() as stop:

        def follow() -> None:
            while not stop.is_set() and not follower.has_ended:
                for scrape in follower.new():
                    recent.append((scrape, scrape.error))
                stop.wait(every_seconds)
            stop.set()

        with _at_work(follow, stop):
            yield recent, stop


@contextmanager
def _stop_on_signals() -> Iterator[threading.Event]:
    """An event that is set by Ctrl-C or SIGTERM."""
    stop = threading.Event()
    before = {
        number: signal.signal(number, lambda *_: stop.set())
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _at_work(work: Callable[[], object], stop: threading.Event) -> Iterator[None]:
    """A context with the work in a background thread; at its end `stop` is set."""
    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


@contextmanager
def _scraping(
    found: list[Target],
    recent: Recent,
    every_seconds: float,
    profile: Path | None,
) -> Iterator[tuple[Recent, threading.Event]]:
    """Scrape in the background; Ctrl-C sets the event, which ends the scrapes."""
    from vllm_capacity.live.access import METRICS, METRICS_SETTINGS, client, read_settings
    from vllm_capacity.live.scrape import run
    from vllm_capacity.sources.http import NO_KEEPALIVE

    settings = read_settings(os.environ, profile, prefix=METRICS, names=METRICS_SETTINGS)
    with (
        _stop_on_signals() as stop,
        client(settings, follow_redirects=True, limits=NO_KEEPALIVE, stop=stop) as session,
    ):
        work = partial(
            run,
            found,
            client=session,
            journal=recent,
            every_seconds=every_seconds,
            for_seconds=None,
            stop=stop,
            on_progress=lambda progress: None,
        )
        with _at_work(work, stop):
            yield recent, stop


def _wait_until_answered(recent: Recent | FromPrometheus, stop: threading.Event) -> None:
    """Wait until there is enough telemetry for rates, or every server has failed."""
    until = time.monotonic() + 2 * _ONCE_SECONDS
    while time.monotonic() < until and not stop.wait(0.2):
        if recent.is_hopeless or recent.held_seconds >= _ONCE_SECONDS:
            return


class _Screen:
    """The display of recent scrapes: text that replaces itself, plain text, or JSON."""

    def __init__(
        self, recent: Recent | FromPrometheus, order: str, as_json: bool, given: dict[str, Any]
    ) -> None:
        self._recent, self._order, self._as_json = recent, order, as_json
        self._assumptions = assumptions_of(given)
        self._printed: set[str] = set()

    def show_once(self) -> None:
        """Print the engines once on stdout; SourceError if no server responded."""
        text = self._text()
        if text is None:
            from vllm_capacity.live.watch import silence

            why = silence(self._recent.silent) or "no two scrapes were answered in time."
            raise SourceError(f"No vLLM telemetry: {why}")
        click.echo(text, nl=not text.endswith("\n"))

    def show_until(self, stop: threading.Event, seconds: float) -> None:
        """Show the engines repeatedly: in place on a terminal, one after another in a pipe."""
        if self._as_json or not sys.stdout.isatty():
            while not stop.wait(seconds):
                self.report_silent()
                text = self._text()
                if text is not None:
                    click.echo(text)
            return
        from rich.live import Live
        from rich.text import Text

        with _keyboard() as pressed, Live(Text(""), auto_refresh=False, screen=True) as live:
            live.update(Text("Scraping."), refresh=True)
            while not stop.is_set():
                began = time.monotonic()
                shown = self._text()
                keys = f"s: sort (now by {self._order}) · q: quit"
                live.update(Text(f"{shown or self._waiting()}\n\n{keys}"), refresh=True)
                # A large fleet takes seconds to evaluate; spend at most half of the time on that.
                pause = max(1.0 if shown is None else seconds, time.monotonic() - began)
                key = _next_key(pressed, stop, pause)
                if key == "q":
                    return
                if key == "s":
                    self._order = ORDERS[(ORDERS.index(self._order) + 1) % len(ORDERS)]

    def _text(self) -> str | None:
        from vllm_capacity.engines_now import engines_now

        with self._recent.analysis(self._assumptions) as analysis:
            if analysis is None:
                return None
            found = engines_now(analysis, silent=self._recent.silent, order=self._order)
            if self._as_json:
                return as_text(found)
            from vllm_capacity.render.watch import watch_text

            return watch_text(found, width=columns(_MAX_COLUMNS))

    def _waiting(self) -> str:
        from vllm_capacity.live.watch import silence

        return silence(self._recent.silent) or "Waiting for the second scrape."

    def report_silent(self) -> None:
        """Print servers that do not respond on stderr, each cause once."""
        for instance, why in self._recent.silent.items():
            line = f"vllm-capacity: {instance}: {why}"
            if line not in self._printed:
                self._printed.add(line)
                click.echo(line, err=True)


def _no_key(seconds: float) -> str:
    time.sleep(seconds)
    return ""


@contextmanager
def _keyboard() -> Iterator[Callable[[float], str]]:
    """A function that waits some seconds for a key and returns it; empty if none was pressed.

    Keys arrive at once, without echo or Enter. If standard input is not a terminal, there are none.
    """
    if not sys.stdin.isatty():
        yield _no_key
        return
    handle = sys.stdin.fileno()
    before = termios.tcgetattr(handle)

    def pressed(seconds: float) -> str:
        is_there, _, _ = select.select([handle], [], [], seconds)
        return os.read(handle, 1).decode(errors="replace") if is_there else ""

    tty.setcbreak(handle)
    try:
        yield pressed
    finally:
        termios.tcsetattr(handle, termios.TCSADRAIN, before)


def _next_key(pressed: Callable[[float], str], stop: threading.Event, seconds: float) -> str:
    """The key pressed within that time, and before Ctrl-C; empty if none."""
    until = time.monotonic() + seconds
    while time.monotonic() < until and not stop.is_set():
        if key := pressed(0.1):
            return key
    return ""
