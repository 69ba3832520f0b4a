import re

import pytest

from vllm_capacity.errors import InputError
from vllm_capacity.facts.gpus import gpu_names
from vllm_capacity.facts.prices import (
    NO_PRICE,
    choose_price,
    find_price,
    given_price,
    offers,
    prices,
    usual_forms,
)


@pytest.mark.parametrize("row", prices(), ids=lambda row: row.key)
def test_every_row_has_its_provenance(row):
    assert row.usd_per_gpu_hour > 0
    assert row.provider
    assert row.source
    assert row.date[:4].isdigit()
    assert find_price(row.key) == row


@pytest.mark.parametrize("gpu", gpu_names())
def test_the_rule_never_leaves_its_own_rows(gpu):
    chosen, rows = choose_price(gpu=gpu), offers(gpu)
    if not rows:
        assert "gpu_prices.csv" in chosen.reason
        assert "usd" not in chosen.reason  # it must not suggest a price for the window's own GPU
        return
    rates = [row.usd_per_gpu_hour for row in rows]
    assert (chosen.low, chosen.high) == (min(rates), max(rates))
    assert ("the only" if len(rows) == 1 else f"median of {len(rows)}") in chosen.sources


def test_the_newest_row_of_an_offer_counts():
    secure = [row for row in offers("A100-80GB-PCIe") if row.tier == "secure"]
    assert [(row.usd_per_gpu_hour, row.date) for row in secure] == [(1.79, "2026-11-09")]


@pytest.mark.parametrize("word", ["TCO model", "model constant", "marketplace", "spot"])
def test_what_is_no_offer_never_sets_a_price(word):
    named = [row for gpu in gpu_names() for row in offers(gpu)]
    assert not any(word in f"{row.provider} {row.tier}" for row in named)


def test_old_rows_do_not_count():
    assert not any(row.date == "2025" for row in offers("A100-80GB-PCIe"))


def test_a_given_rate_beats_a_row_and_a_row_beats_the_rule():
    row = "A100-80GB-PCIe RunPod secure, on-demand 2025"
    assert choose_price(gpu="H100-80GB-SXM", row=row, usd_per_hour=2.5).mid == 2.5
    assert choose_price(gpu="H100-80GB-SXM", row=row).mid == 1.64


def test_the_two_rates_of_the_worked_example_are_rows():
    assert find_price("A100-80GB-PCIe RunPod secure, on-demand 2025").usd_per_gpu_hour == 1.64
    assert find_price("A100-80GB-any CoreWeave classic 2024-02-07").usd_per_gpu_hour == 2.21


def test_words_that_name_one_offer_give_its_newest_row():
    assert find_price("h100-80gb-sxm runpod community").date == "2026-11-09"


@pytest.mark.parametrize(
    ("name", "says"),
    [
        pytest.param("A100-80GB-PCIe", "matches 11 rows", id="several offers are listed"),
        pytest.param("Atlantis A100", "nearest", id="no row is near"),
    ],
)
def test_a_name_without_a_row_is_refused(name, says):
    with pytest.raises(InputError, match=says):
        find_price(name)


@pytest.mark.parametrize("rate", [-1.0, float("inf"), float("nan")])
def test_an_impossible_rate_is_refused(rate):
    with pytest.raises(InputError):
        given_price(rate)


def test_without_a_price_the_message_says_what_to_give():
    assert choose_price().reason == NO_PRICE


@pytest.mark.parametrize("option", ["--", "-p "])
def test_without_a_price_the_message_names_every_option(option):
    assert "usd_per_hour" in NO_PRICE
    assert option not in NO_PRICE  # no spelling of only one of the interfaces


def test_offers_that_differ_only_in_minimum_gpus_are_distinguished():
    lambdas = [row for row in offers("H100-80GB-SXM") if row.provider == "Lambda"]
    assert len({row.offer for row in lambdas}) == len(lambdas) > 1


@pytest.mark.parametrize("row", prices(), ids=lambda row: row.key)
def test_source_and_note_stand_alone_and_do_not_shout(row):
    assert not row.source.startswith("same ")
    assert not re.search(r"\b[A-Z]{4,} [A-Z]{3,}", row.note)


def test_the_usual_form_factor_has_most_offers():
    assert usual_forms("H100-80GB")[0] == "SXM"
