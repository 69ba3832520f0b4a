"""The bill by tenant: what adds up, what is reported, what is refused.

How right it is: verdicts/test_tenant_truth.py.

Most of it on the recorded sweep, with rows made up to what its server counted.
"""

import json
import math
from datetime import UTC, datetime, timedelta

import polars as pl
import pytest

import vllm_capacity as vc
from tests import made_fleet
from tests.cli import command_line
from tests.long_window import MONDAY, long_window
from vllm_capacity.errors import InputError, NoTelemetryError
from vllm_capacity.estimate import Kind
from vllm_capacity.sources.usage import USAGE_SCHEMA, UsageLog
from vllm_capacity.telemetry.rows import RowBuffer, SeriesKey, microseconds
from vllm_capacity.telemetry.store import write_window

START, END = (datetime(2026, 11, 24, *at, tzinfo=UTC) for at in ((4, 0), (4, 25)))
MODEL = "tiny-random-llama"
PROMPT, OUTPUT, CACHED = 676_142, 281_805, 164_064  # what the sweep's server counted


def log_of(*rows):
    """Rows of (key, prompt, cached, output), spread over the sweep; more fields by name."""
    made = [
        {
            "key": key,
            "model": MODEL,
            "start": START,
            "end": END,
            "prompt_tokens": float(prompt),
            "cached_tokens": None if cached is None else float(cached),
            "output_tokens": float(output),
            "requests": 100.0,
            **(more[0] if more else {}),
        }
        for key, prompt, cached, output, *more in rows
    ]
    return UsageLog(pl.DataFrame(made, schema=USAGE_SCHEMA), ())


HALVES = (
    ("reads", 0.8 * PROMPT, 0.8 * CACHED, 0.2 * OUTPUT),
    ("writes", 0.2 * PROMPT, 0.2 * CACHED, 0.8 * OUTPUT),
)


@pytest.fixture(scope="module")
def sweep():
    return vc.open("vllm-sweep").analyze(price=1.64)


def parts(found):
    return [*found.tenants.values(), found.unmatched]


def test_the_parts_add_up_to_the_bill(sweep):
    found = sweep.tenants(log_of(*HALVES))
    assert math.fsum(one.cost_usd.mid for one in parts(found)) == pytest.approx(
        sweep.cost.total.mid, abs=1e-9
    )
    assert math.fsum(one.share_ratio.mid for one in parts(found)) == pytest.approx(1.0)
    assert found.unmatched.share_ratio.mid == pytest.approx(0.0, abs=1e-9)
    for one in found.tenants.values():
        assert one.share_ratio.low < one.share_ratio.mid < one.share_ratio.high
        assert one.share_ratio.kind is Kind.ESTIMATED


def test_idle_cost_listed_separately_is_part_of_the_sum(sweep):
    found = sweep.tenants(log_of(*HALVES), idle="apart")
    used = math.fsum(one.cost_usd.mid for one in parts(found))
    assert found.idle_usd == sweep.cost.idle_usd
    assert used + found.idle_usd.mid == pytest.approx(found.whole_usd.mid)


def test_use_that_no_row_explains_is_shown(sweep):
    found = sweep.tenants(log_of(HALVES[0]))
    rest = found.unmatched
    assert rest.output_tokens == pytest.approx(0.8 * OUTPUT)
    assert rest.prompt_tokens == pytest.approx(0.2 * PROMPT)
    whole = sweep.tenants(log_of(*HALVES)).tenants["writes"]
    # The context of unlogged requests is unknown, and assumed to be like the logged ones'.
    assert rest.share_ratio.mid == pytest.approx(whole.share_ratio.mid, rel=0.1)


def test_rows_of_another_time_or_model_are_reported_and_cost_nothing(sweep):
    hour = timedelta(hours=1)
    found = sweep.tenants(
        log_of(
            *HALVES,
            ("early", 5, 0, 5, {"start": START - hour, "end": END - hour}),
            ("late", 5, 0, 5, {"start": START + hour, "end": END + hour}),
            ("other", 5, 0, 5, {"model": "gpt-5"}),
        )
    )
    left = found.left_out
    assert (left.before, left.after, left.other_models) == (1, 1, {"gpt-5": 1})
    assert set(found.tenants) == {"reads", "writes"}


def test_of_a_row_that_reaches_over_the_end_its_part_counts(sweep):
    length = END - START
    twice = {"start": START - length, "end": END}
    found = sweep.tenants(log_of(("a", 200, 0, 100, twice)))
    assert found.tenants["a"].output_tokens == pytest.approx(
        100 * (END - sweep.time_range.start) / (2 * length)
    )


@pytest.mark.parametrize(
    ("model", "models"),
    [
        pytest.param(f"hosted_vllm/{MODEL}", None, id="a provider before its name"),
        pytest.param("fast", {"fast": MODEL}, id="a name that is given"),
        pytest.param(None, None, id="none, where one model is served"),
    ],
)
def test_a_model_under_another_name(sweep, model, models):
    rows = [(*each, {"model": model}) for each in HALVES]
    assert len(sweep.tenants(log_of(*rows), models=models).tenants) == 2


def test_a_share_without_logged_cached_tokens_is_less_certain(sweep):
    given, not_given = (
        sweep.tenants(log_of(*rows)).tenants["reads"].share_ratio
        for rows in (HALVES, [(k, p, None, o) for k, p, _, o in HALVES])
    )
    assert not_given.low < given.mid < not_given.high
    assert not_given.high - not_given.low > given.high - given.low


def test_rows_with_more_than_was_counted_are_reported(sweep):
    found = sweep.tenants(log_of(("a", PROMPT, 0, 2 * OUTPUT)))
    assert any("its servers counted 281,805" in note for note in found.notes)
    assert found.tenants["a"].share_ratio.mid == pytest.approx(1.0)


def test_without_a_price_there_are_shares_and_no_dollars():
    found = vc.open("vllm-sweep").analyze().tenants(log_of(*HALVES))
    assert found.tenants["reads"].share_ratio.is_known
    assert found.tenants["reads"].cost_usd.is_unknown


def test_too_little_to_fit_is_a_stated_rule_between_all_weights():
    window = vc.open("vllm-sweep")["2026-11-24T04:05":"2026-11-24T04:07"]
    span = {"start": datetime(2026, 11, 24, 4, 5, tzinfo=UTC), "end": START + timedelta(minutes=7)}
    found = window.analyze(price=1.64).tenants(
        log_of(("reads", 8e4, 0, 1e3, span), ("writes", 2e4, 0, 4e4, span))
    )
    share = found.tenants["writes"].share_ratio
    assert share.kind is Kind.ASSUMED
    assert 0.25 < share.low < 0.5  # a third of the tokens was output, which took some of the time
    assert share.high > 0.7
    assert "too few" in share.sources


@pytest.mark.parametrize("price", [1.64, None])
def test_time_without_output_is_a_sentence_on_the_page_too(tmp_path, price):
    long_window(tmp_path / "night", days=0.2)
    a = vc.open(tmp_path / "night").analyze(price=price)
    for log in (log_of(*HALVES), log_of(), log_of(("a", 9, 0, 9, {"start": MONDAY, "model": "m"}))):
        with pytest.raises(NoTelemetryError, match="is idle cost, with no use") as said:
            a.tenants(log)
        assert ("($7.87)" in str(said.value)) is (price is not None)
        assert str(said.value) in repr(vc.tables.tenants_by_log(a, log))


@pytest.mark.parametrize(
    ("log", "options", "says"),
    [
        pytest.param(
            log_of(
                ("a", 1, 0, 1, {"start": END + timedelta(days=1), "end": END + timedelta(days=1)})
            ),
            {},
            "No row of the usage lies in the time from 2026-11-24T03:59",
            id="another day",
        ),
        pytest.param(
            log_of(("a", 1, 0, 1, {"model": "x"})),
            {},
            f"({MODEL}); rows name x. Say which served model a name is",
            id="another model",
        ),
        pytest.param(log_of(), {}, "no row whose tokens", id="nothing"),
        pytest.param(
            log_of(*HALVES), {"models": {"a": "b"}}, "No model b is served", id="no model"
        ),
        pytest.param(log_of(*HALVES), {"idle": "away"}, "not 'away'", id="no rule"),
    ],
)
def test_what_cannot_be_shared_is_one_clear_error(sweep, log, options, says):
    with pytest.raises(InputError) as error:
        sweep.tenants(log, **options)
    assert says in str(error.value)


def test_a_tenant_alone_at_night_pays_for_whole_steps(tmp_path):
    """The same tokens cost more per token where fewer shared their steps."""
    from tests.truth_server.servers import MIXES, SERVERS
    from tests.truth_server.tenants import Spell, TenantCase, write

    mix = MIXES["chat"]
    spells = (Spell(900.0, 64, (1.0, 0.0)), Spell(900.0, 2, (0.0, 1.0)))
    case = TenantCase(1, SERVERS["a100-8b"], {"day": mix, "night": mix}, spells, 10.0)
    truth = write(case, tmp_path / "window")
    found = vc.open(tmp_path / "window").analyze().tenants(UsageLog(truth.usage, ())).tenants
    assert found["night"].output_tokens < 0.1 * found["day"].output_tokens
    assert found["night"].share_ratio.mid == pytest.approx(truth.shares["night"], rel=0.05)


def test_replicas_of_several_models_are_pools_of_their_own(tmp_path):
    made_fleet.written(1, tmp_path / "window")
    a = vc.open(tmp_path / "window").analyze(price=1.0)
    span = {"start": a.time_range.start, "end": a.time_range.end - timedelta(seconds=1)}
    rows = [
        (f"{model}-team", use.counted_prompt_tokens, 0, use.counted_output_tokens)
        for model, use in a.tenants(
            log_of(("x", 1, 0, 1, {"model": "chat", **span}))
        ).models.items()
    ]
    log = log_of(*((*row, {"model": row[0].removesuffix("-team"), **span}) for row in rows))
    found = a.tenants(log)
    by_model = a.bill_by("model").parts
    for model, costs in by_model.items():
        assert found.tenants[f"{model}-team"].cost_usd.mid == pytest.approx(
            costs.allocation_usd.mid, rel=0.01
        )


def test_idle_apart_is_kept_model_by_model(tmp_path):
    """A busy model's tenant does not pay less for another model's idle replicas."""
    made_fleet.written(1, tmp_path / "window")
    a = vc.open(tmp_path / "window").analyze(price=1.0)
    span = {"start": a.time_range.start, "end": a.time_range.end - timedelta(seconds=1)}
    counted = a.tenants(log_of(("x", 1, 0, 1, {"model": "chat", **span}))).models
    rows = [
        (name, use.counted_prompt_tokens, 0, use.counted_output_tokens, {"model": name, **span})
        for name, use in counted.items()
    ]
    found = a.tenants(log_of(*rows), idle="apart").tenants
    for model in counted:
        engines = [name for name, served in a.models_by_engine.items() if model in served]
        used = [
            a.bill.parts[name].allocation_usd.times(a.bill.parts[name].utilization)
            for name in engines
        ]
        ends = [one.high for one in used]
        assert None not in ends
        assert found[model].cost_usd.high == pytest.approx(sum(ends), rel=0.08)


# --- adapters ---


@pytest.fixture
def with_adapters(tmp_path):
    """A window whose server ran the adapters a and b, exported as by vLLM: one series per state."""
    buffer = RowBuffer()
    start = datetime(2026, 11, 24, tzinfo=UTC)
    names = (("a", ""), ("a,b", "c"), ("b", ""))
    states = [
        buffer.series(
            SeriesKey(
                "vllm:lora_requests_info",
                "gauge",
                "gpu-0:8000",
                None,
                None,
                tuple(
                    sorted(
                        {
                            "max_lora": "4",
                            "running_lora_adapters": running,
                            **({"waiting_lora_adapters": waiting} if waiting else {}),
                        }.items()
                    )
                ),
            ),
            exposed="vllm:lora_requests_info",
        )
        for running, waiting in names
    ]
    tokens = buffer.series(
        SeriesKey("vllm:generation_tokens_total", "counter", "gpu-0:8000", "0", "base"),
        exposed="vllm:generation_tokens_total",
    )
    for scrape in range(6):
        at = microseconds(start) + scrape * 10_000_000
        buffer.scrape("gpu-0:8000", at, is_up=True, seconds=0.01)
        buffer.sample(tokens, at, 100.0 * scrape)
        for place in range(min(scrape // 2, 2) + 1):  # past states stay exposed
            buffer.sample(states[place], at, start.timestamp() + 20 * place)
    write_window(tmp_path / "window", buffer.rows(), {"simulated": True})
    return vc.open(tmp_path / "window").analyze()


def test_adapters_are_listed_by_the_scrapes_they_ran_in(with_adapters):
    found = {row["adapter"]: row for row in with_adapters.adapters.iter_rows(named=True)}
    assert {name: round(row["running_ratio"], 3) for name, row in found.items()} == {
        "a": 0.667,
        "b": 0.667,
        "c": 0.0,
    }
    assert found["c"]["waiting_ratio"] == pytest.approx(1 / 3)


def test_rows_that_name_an_adapter_are_of_its_base(with_adapters):
    span = with_adapters.time_range
    log = log_of(("t", 10, 0, 500, {"model": "b", "start": span.start, "end": span.end}))
    assert set(with_adapters.tenants(log).models) == {"base"}


def test_a_window_without_adapters_has_none(sweep):
    assert sweep.adapters.is_empty()


# --- the command line ---


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    head = "api_key,startTime,endTime,model,prompt_tokens,completion_tokens\n"
    rows = "".join(
        f"sk-{name},2026-11-24 04:{at:02}:00,2026-11-24 04:{at:02}:30,{MODEL},{prompt},{output}\n"
        for at in range(1, 24)
        for name, prompt, output in (("ann", 10_000, 2_000), ("bob", 2_000, 8_000))
    )
    (tmp_path / "logs.csv").write_text(head + rows + "oops\n")
    return lambda *words: command_line.run(monkeypatch, capsys, "tenants", "vllm-sweep", *words)


def test_the_table_adds_up_and_hides_keys(run):
    code, out, err = run("--usage", "logs.csv", "--usd-per-hour", "1.64")
    assert (code, err) == (0, "")
    assert "sk-ann" not in out
    assert "(in no log)" in out
    assert "total" in out
    assert "1 row could not be read (line 48: 1 cells under 6 columns)" in " ".join(out.split())


def test_json_and_csv_say_the_same(run):
    words = ("--usage", "logs.csv", "--usd-per-hour", "1.64", "--show-keys")
    found = json.loads(run(*words, "--json")[1])
    frame = pl.read_csv(run(*words, "--csv")[1].encode())
    by_name = dict(zip(frame["tenant"], frame["cost_usd"], strict=True))
    assert found["tenants"]["sk-bob"]["cost_usd"]["mid"] == by_name["sk-bob"]
    assert by_name["total"] == pytest.approx(
        sum(v for k, v in by_name.items() if k != "total"), abs=1e-9
    )


@pytest.mark.parametrize(
    ("words", "says"),
    [
        pytest.param([], "Give a gateway's log: --usage FILE", id="no log"),
        pytest.param(["--usage", "none.csv"], "There is no log of use none.csv", id="no file"),
        pytest.param(["--usage", "logs.csv", "--csv", "--json"], "not both", id="two forms"),
        pytest.param(
            ["--usage", "logs.csv", "--usage-columns", "x=y"], "Unknown column x", id="a column"
        ),
    ],
)
def test_bad_input_is_one_line(run, words, says):
    code, out, err = run(*words)
    assert (code, out) == (2, "")
    assert says in err
    assert len(err.splitlines()) == 1


def test_settings_say_it_once(run, tmp_path):
    (tmp_path / "vllm-capacity.toml").write_text('[usage]\nfiles = ["logs.csv"]\nidle = "apart"\n')
    code, out, _ = run("--usd-per-hour", "1.64")
    assert code == 0
    assert "(idle)" in out


def test_a_page_states_the_figure_or_the_reason(sweep):
    shown = vc.tables.tenants_by_log(sweep, log_of(*HALVES))
    assert shown.caption.startswith("Cost by tenant. Shares: each step's time shared")
    away = log_of(("a", 1, 0, 1, {"model": "x"}))
    assert "No row of the usage" in repr(vc.tables.tenants_by_log(sweep, away))
    with pytest.raises(NoTelemetryError):
        sweep.tenants(away)


def test_the_report_takes_a_log(run, monkeypatch, capsys, tmp_path):
    words = ("report", "vllm-sweep", "--usage", "logs.csv", "--out", "pages")
    code, out, err = command_line.run(monkeypatch, capsys, *words)
    assert (code, err) == (0, "")
    page = (tmp_path / out.strip()).read_text()
    assert "Cost by tenant. Shares: each step" in page
    assert "(in no log)" in page
    assert "sk-ann" not in page
