"""The formats that figures are exported in: the same figures, and what others check of them."""

import csv
import io
import json
import os
import shutil
import subprocess
from datetime import date, datetime
from pathlib import Path

import polars as pl
import pytest
from click.testing import CliRunner

from tests.figures.small_windows import counter, small_window, up
from vllm_capacity.analysis import Analysis
from vllm_capacity.assumptions import Assumptions, pricing
from vllm_capacity.cli import cli
from vllm_capacity.cli.export import FORMATS as CLIENTS_OFFERED
from vllm_capacity.errors import InputError
from vllm_capacity.estimate import Estimate
from vllm_capacity.facts.metrics import GENERATION_TOKENS, PROMPT_TOKENS, REQUESTS
from vllm_capacity.render.exports import FORMATS, export
from vllm_capacity.render.exports.currency import USD, Currency, parse_currency
from vllm_capacity.render.exports.prometheus import _ends
from vllm_capacity.render.exports.summary import MAX_CHARACTERS
from vllm_capacity.telemetry.window import open_window

DATA = Path(__file__).parents[1] / "data" / "focus"
EUROS = Currency("EUR", 0.92, date(2026, 11, 28))


def analysis(window, price=1.64):
    return Analysis.of(open_window(window), assumptions=Assumptions(pricing(price)))


@pytest.fixture(scope="module")
def replicas():
    return analysis("vllm-two-replicas")


@pytest.fixture(scope="module")
def unpriced():
    return analysis("vllm-restart", None)


def rows(text):
    return list(csv.DictReader(io.StringIO(text)))


def test_the_command_offers_what_there_is():
    assert list(CLIENTS_OFFERED) == list(FORMATS)


# --- every figure -------------------------------------------------------------------------------


def test_csv_has_the_answers_figures(replicas):
    found = {(each["group"], each["figure"]): each for each in rows(export(replicas, "csv"))}
    cost, by_engine = replicas.answer.cost, replicas.bill.parts["r0/0"]
    assert float(found["all", "cost.usd_per_request"]["value"]) == cost.per_request.mid
    assert float(found["all", "cost.idle_usd"]["value_high"]) == cost.idle_usd.high
    assert float(found["r0/0", "cost.allocation_usd"]["value"]) == by_engine.allocation_usd.mid
    assert found["all", "latency.ttft_seconds.p95"]["value_unit"] == "s"


def test_parquet_and_json_are_the_same_rows(replicas):
    frame = pl.read_parquet(io.BytesIO(export(replicas, "parquet")))
    listed = json.loads(export(replicas, "json"))["figures"]
    assert frame.drop("window", "start", "end").to_dicts() == listed


def test_what_is_not_known_is_empty_with_its_reason(unpriced):
    found = {each["figure"]: each for each in rows(export(unpriced, "csv"))}
    row = found["cost.usd_per_request"]
    assert (row["value"], row["value_low"], row["value_high"]) == ("", "", "")
    assert "no price given" in row["reason"]


@pytest.fixture
def half_priced(tmp_path):
    """Only one of the two replicas has a price: the bill is at least its own."""
    (tmp_path / "fleet.csv").write_text("instance,usd_per_hour\nr0,1.64\n")
    priced = Assumptions(pricing(price_rules=tmp_path / "fleet.csv"))
    return Analysis.of(open_window("vllm-two-replicas"), assumptions=priced)


def test_a_bound_is_named(half_priced):
    found = {(each["group"], each["figure"]): each for each in rows(export(half_priced, "csv"))}
    bill = found["all", "cost.allocation_usd"]
    assert (bill["value"], bill["bound"]) == ("", "at least")
    assert float(bill["value_low"]) > 0
    assert "- Bill: at least 0.146 USD" in export(half_priced, "markdown")
    assert 'vllm_capacity_cost{currency="USD",end="at_least"' in export(half_priced, "prometheus")


@pytest.mark.parametrize("to", ["focus", "litellm"])
def test_a_bound_is_no_price(half_priced, to):
    with pytest.raises(InputError, match="the mapping file has no rule for r1"):
        export(half_priced, to)


# --- currency -----------------------------------------------------------------------------------


def test_money_is_in_the_currency_and_named_by_it(replicas):
    found = {
        each["figure"]: each
        for each in rows(export(replicas, "csv", EUROS))
        if each["group_by"] == "fleet"
    }
    cost = replicas.answer.cost
    euros = found["cost.eur_per_request"]
    assert float(euros["value"]) == pytest.approx(cost.per_request.mid * 0.92)
    assert (euros["value_unit"], "2026-11-28" in euros["basis"]) == ("EUR per request", True)
    per_euro = float(found["cost.tokens_per_eur"]["value"])
    assert per_euro == pytest.approx(cost.tokens_per_usd.mid / 0.92)


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("EUR=0.92", id="a rate without a day"),
        pytest.param("EUR=0@2026-11-28", id="a rate of nothing"),
        pytest.param("EUR=0.9.2@2026-11-28", id="no number"),
        pytest.param("EUR=0.92@2026-02-30", id="a day that there is not"),
        pytest.param("EURO=0.92@2026-11-28", id="no code"),
    ],
)
def test_what_is_no_dated_rate_is_refused(text):
    with pytest.raises(InputError):
        parse_currency(text)


# --- FOCUS --------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["focus", "focus-1.2"])
def test_focus_rows_add_up_to_the_bill(replicas, version):
    charged = sum(float(each["BilledCost"]) for each in rows(export(replicas, version)))
    assert charged == pytest.approx(replicas.answer.cost.total.mid, abs=1e-9)


def test_focus_rows_are_as_its_columns_say(replicas):
    columns = {each["column"]: each for each in rows((DATA / "columns_1_4.csv").read_text())}
    found = rows(export(replicas, "focus"))
    own = [name for name in found[0] if not name.startswith("x_")]
    assert set(own) <= set(columns)
    assert {name for name, c in columns.items() if c["level"] == "Mandatory"} <= set(own)
    for row in found:
        for name in own:
            allowed, value = columns[name]["values"], row[name]
            assert value or columns[name]["may_be_null"] == "true", name
            assert not value or not allowed or value in allowed.split("|"), name
            if value and columns[name]["type"] == "Decimal":
                float(value)
            if value and columns[name]["type"] == "Date/Time":
                assert value == f"{datetime.fromisoformat(value):%Y-%m-%dT%H:%M:%SZ}"


def test_focus_costs_are_prices_times_quantities(replicas):
    for row in rows(export(replicas, "focus")):
        price, quantity = float(row["ListUnitPrice"]), float(row["PricingQuantity"])
        assert price * quantity == pytest.approx(float(row["ListCost"]))


@pytest.mark.parametrize(
    ("price", "host"),
    [
        pytest.param("lambda A100-40GB x8", "Lambda", id="a row names its provider"),
        pytest.param("SemiAnalysis H100 neocloud", "", id="a model of costs rents out nothing"),
        pytest.param(1.64, "", id="a number does not say whose it is"),
    ],
)
def test_focus_names_the_host_of_a_price_row(price, host):
    found = rows(export(analysis("vllm-two-replicas", price), "focus"))
    assert {each["HostProviderName"] for each in found} == {host}
    assert {each["ServiceProviderName"] for each in found} == {"Self-hosted vLLM"}


def test_focus_names_the_host_of_each_engine(tmp_path):
    mapping = tmp_path / "prices.yaml"
    mapping.write_text(
        "- {instance: r0, price: lambda A100-40GB x8}\n- {instance: r1, usd_per_hour: 1.64}\n"
    )
    mapped = Assumptions(pricing(price_rules=mapping))
    found = rows(export(Analysis.of(open_window("vllm-two-replicas"), assumptions=mapped), "focus"))
    hosts = {each["ResourceId"]: each["HostProviderName"] for each in found}
    assert hosts == {"r0/0": "Lambda", "r1/0": ""}


def test_focus_without_a_price_is_refused(unpriced):
    with pytest.raises(InputError, match="no price given"):
        export(unpriced, "focus")


def test_a_charge_lies_in_one_month(tmp_path):
    """An engine over the end of November: T0 is the 24th, 8 o'clock."""
    before_december = 6.5 * 86400 + 3 * 3600 + 1800
    times = [before_december + 30 * i for i in range(240)]
    lines = [
        up(dict.fromkeys(times, 1)),
        counter(REQUESTS, {t: i for i, t in enumerate(times)}, finished_reason="stop"),
        counter(PROMPT_TOKENS, {t: 100 * i for i, t in enumerate(times)}),
        counter(GENERATION_TOKENS, {t: 50 * i for i, t in enumerate(times)}),
    ]
    window = small_window(tmp_path, *lines)
    whole = Analysis.of(window, assumptions=Assumptions(pricing(2.0)))
    found = rows(export(whole, "focus"))
    starts = {each["BillingPeriodStart"] for each in found}
    assert starts == {"2026-11-01T00:00:00Z", "2026-12-01T00:00:00Z"}
    assert all(each["ChargePeriodEnd"] <= each["BillingPeriodEnd"] for each in found)
    charged = sum(float(each["EffectiveCost"]) for each in found)
    assert charged == pytest.approx(whole.answer.cost.total.mid, abs=0.005)


# --- Prometheus ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["replicas", "unpriced"])
def test_prometheus_accepts_the_textfile(name, request):
    promtool = shutil.which("promtool")
    if promtool is None and not os.environ.get("CI"):
        pytest.skip("no promtool here; install Debian's package: apt-get install prometheus")
    text = export(request.getfixturevalue(name), "prometheus")
    done = subprocess.run(
        [promtool, "check", "metrics"], input=text, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_prometheus_has_the_ends_of_an_estimate(replicas):
    text = export(replicas, "prometheus", EUROS)
    capacity = replicas.answer.saturation.capacity
    line = 'vllm_capacity_capacity_output_tokens_per_second{end="low",window="vllm-two-replicas"} '
    assert f"{line}{capacity.low!r}" in text
    assert 'vllm_capacity_cost{currency="EUR",end="value"' in text


def test_prometheus_has_no_sample_of_what_is_not_known(unpriced):
    text = export(unpriced, "prometheus")
    assert "vllm_capacity_cost" not in text
    assert "vllm_capacity_output_tokens_per_second" in text


@pytest.mark.parametrize(
    ("found", "ends"),
    [
        pytest.param(Estimate.exact(2.0), {"value": 2.0}, id="exact"),
        pytest.param(Estimate.known(1, 2, 3), {"value": 2, "low": 1, "high": 3}, id="interval"),
        pytest.param(Estimate.at_least(0.0, reason="r"), {"at_least": 0.0}, id="a bound of 0"),
        pytest.param(Estimate.at_most(4.0, reason="r"), {"at_most": 4.0}, id="an upper bound"),
        pytest.param(Estimate.unknown("r"), {}, id="unknown"),
    ],
)
def test_ends(found, ends):
    assert _ends(found) == ends


# --- LiteLLM ------------------------------------------------------------------------------------


def test_litellm_prices_add_up_to_the_bill(replicas):
    (price,) = json.loads(export(replicas, "litellm")).values()
    tokens = replicas.answer.tokens
    spent = (
        price["input_cost_per_token"] * tokens.prompt
        + price["output_cost_per_token"] * tokens.generation
    )
    assert spent == pytest.approx(replicas.answer.cost.total.mid, rel=1e-3)


def test_litellm_computes_the_same_cost(replicas):
    os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # its own list, not the network's
    litellm = pytest.importorskip("litellm", reason="no litellm here: pip install litellm")
    litellm.register_model(json.loads(export(replicas, "litellm")))
    cost, tokens = replicas.answer.cost, replicas.answer.tokens
    spent = litellm.cost_per_token(
        model="hosted_vllm/tiny-random-llama",
        prompt_tokens=int(tokens.prompt),
        completion_tokens=int(tokens.generation),
    )
    assert sum(spent) == pytest.approx(cost.total.mid, rel=1e-3)


def test_litellm_without_a_price_or_in_euros_is_refused(unpriced, replicas):
    with pytest.raises(InputError, match="no price given"):
        export(unpriced, "litellm")
    with pytest.raises(InputError, match="US dollars"):
        export(replicas, "litellm", EUROS)


# --- Markdown, the command ----------------------------------------------------------------------


@pytest.mark.parametrize("name", ["replicas", "unpriced"])
def test_markdown_fits_into_a_message(name, request):
    text = export(request.getfixturevalue(name), "markdown", USD)
    assert len(text) <= MAX_CHARACTERS + 2
    assert text.count("\n- ") == 10


def test_markdown_says_why(unpriced):
    assert "- Cost per request: not known (no price given" in export(unpriced, "markdown")


def test_a_file_is_written_whole_and_named(tmp_path):
    out = tmp_path / "deep" / "figures.parquet"
    words = ["export", "vllm-two-replicas", "--to", "parquet", "--out", str(out)]
    done = CliRunner().invoke(cli, words, catch_exceptions=False)
    assert done.output == f"{out}\n"
    as_text = CliRunner().invoke(cli, [*words[:3], "csv"], catch_exceptions=False).output
    assert pl.read_parquet(out).height == pl.read_csv(as_text.encode()).height > 86


def test_parquet_needs_a_file():
    with pytest.raises(InputError, match="--out"):
        CliRunner().invoke(cli, ["export", "vllm-sweep", "--to", "parquet"], catch_exceptions=False)


def test_an_unknown_format_is_refused(replicas):
    with pytest.raises(InputError, match="there are csv, parquet"):
        export(replicas, "xls")
