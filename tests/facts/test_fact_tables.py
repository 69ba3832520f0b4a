"""Tables read into records, and suggestions for an unknown name."""

import re
from enum import StrEnum
from pathlib import Path

import pytest
from msgspec import Struct

from vllm_capacity.errors import InputError
from vllm_capacity.facts.gpus import Architecture, Gpu, find_gpu
from vllm_capacity.facts.kernels import Kernel, KernelFactor
from vllm_capacity.facts.llms import Llm, find_llm
from vllm_capacity.facts.metrics import Equivalent, Metric
from vllm_capacity.facts.prices import Price, find_price
from vllm_capacity.facts.tables import Count, Day, Positive, Text, read_rows, suggest
from vllm_capacity.facts.throughput import Measurement, SiliconRow


class Color(StrEnum):
    RED = "red"


class Thing(Struct, frozen=True, kw_only=True):
    """A row with every kind of cell that the tables have."""

    name: Text
    weight: Positive
    width: Positive | None = None
    parts: Count = 1
    is_new: bool
    color: Color
    words: tuple[str, ...] = ()
    date: Day


HEAD = "name,weight,width,parts,is_new,color,words,date,remark\n"


def things(tmp_path, text):
    path = tmp_path / "things.csv"
    path.write_text(text, encoding="utf-8")
    return read_rows(Thing, path)


def test_cells_become_what_their_fields_are(tmp_path):
    (row,) = things(tmp_path, HEAD + '"a, b",3e2,0.5,4,true,red,up down,2026-11,not read\n')
    assert row == Thing(
        name="a, b",
        weight=300.0,
        width=0.5,
        parts=4,
        is_new=True,
        color=Color.RED,
        words=("up", "down"),
        date="2026-11",
    )


def test_an_empty_cell_is_its_fields_default(tmp_path):
    (row,) = things(tmp_path, HEAD + "a,1,,,false,red,,2026,\n")
    assert (row.width, row.parts, row.words) == (None, 1, ())


def test_a_table_without_rows_gives_none(tmp_path):
    assert things(tmp_path, HEAD) == ()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        pytest.param("", "missing column name, weight", id="an empty file"),
        pytest.param(HEAD.replace("parts", "part"), "missing column parts", id="misspelt column"),
        pytest.param(HEAD + ",1,,,true,red,,2026,\n", "line 2: name is empty", id="empty name"),
        pytest.param(HEAD + "a,,,,true,red,,2026,\n", "line 2: weight is empty", id="no number"),
        pytest.param(HEAD + "a,x,,,true,red,,2026,\n", "weight is 'x'", id="a word for a number"),
        pytest.param(HEAD + "a,0,,,true,red,,2026,\n", "weight is '0'", id="out of range"),
        pytest.param(HEAD + "a,nan,,,true,red,,2026,\n", "weight is 'nan'", id="not a number"),
        pytest.param(HEAD + "a,inf,,,true,red,,2026,\n", "weight is 'inf'", id="endless"),
        pytest.param(HEAD + "a,1,,1.5,true,red,,2026,\n", "parts is '1.5'", id="half a part"),
        pytest.param(HEAD + "a,1,,,maybe,red,,2026,\n", "is_new is 'maybe'", id="neither"),
        pytest.param(HEAD + "a,1,,,true,blue,,2026,\n", "color is 'blue'", id="unknown member"),
        pytest.param(HEAD + "a,1,,,true,red,,May,\n", "date is 'May'", id="no date"),
        pytest.param(HEAD + "a, b,1,,,true,red,,2026,\n", "line 2: 10 cells", id="unquoted comma"),
        pytest.param(
            HEAD + "a,1,,,true,red,,2026,\n\nb,1,,,true,red,\n", "line 4: 7 cells", id="cut short"
        ),
        pytest.param(HEAD + 'a,1,,,true,red,,2026,"\n', "Cannot read", id="an open quote"),
    ],
)
def test_a_broken_table_is_refused_with_its_place(tmp_path, text, says):
    with pytest.raises(InputError, match=says):
        things(tmp_path, text)


def test_a_missing_table_is_refused(tmp_path):
    with pytest.raises(InputError, match="Cannot read the table"):
        read_rows(Thing, tmp_path / "none.csv")


NAMES = (
    "llama-3-8b",
    "llama-3-70b",
    "qwen3-8b",
    "gpt-oss-20b",
    "gpt-oss-120b",
    "mistral-7b",
    "l4-pcie",
)
NONE = ", and no similar name"


@pytest.mark.parametrize(
    ("asked", "near"),
    [
        pytest.param("llama", "; nearest: llama-3-8b, llama-3-70b", id="a family alone"),
        pytest.param("tiny-llama", "; nearest: llama-3-8b, llama-3-70b", id="a family at the end"),
        pytest.param(
            "gpt-oss-21b", "; nearest: gpt-oss-20b, gpt-oss-120b", id="a size there is not"
        ),
        pytest.param("qwen", "; nearest: qwen3-8b", id="the beginning of a family"),
        pytest.param("qwen3.5-9b", "; nearest: qwen3-8b", id="longer than a family"),
        pytest.param("70B", "; nearest: llama-3-70b", id="the middle of a name, in capitals"),
        pytest.param("lama-3-8b", "; nearest: llama-3-8b", id="a letter lacking"),
        pytest.param("l4s", NONE, id="two letters are the beginning of anything"),
        pytest.param("banana", NONE, id="nothing near"),
        pytest.param("", NONE, id="nothing asked"),
    ],
)
def test_suggest(asked, near):
    assert suggest(asked, NAMES) == near


def test_names_are_suggested_as_they_are_written():
    assert suggest("owner/LLAMA", ["Meta/Llama-3"], compared=lambda n: n.lower().split("/")[1]) == (
        "; nearest: Meta/Llama-3"
    )


def test_names_with_commas_are_set_apart_by_semicolons():
    assert suggest("a", ["a b, c", "a d"]) == "; nearest: a d; a b, c"


def test_at_most_four_are_suggested():
    assert suggest("a", [f"a{number}" for number in range(9)]).count(",") == 3


@pytest.mark.parametrize(
    ("find", "asked", "says"),
    [
        pytest.param(find_llm, "llama", "nearest: meta-llama/Llama-", id="Llamas for a llama"),
        pytest.param(
            find_llm, "tiny-random-llama", "nearest: meta-llama/Llama-", id="a served name"
        ),
        pytest.param(find_llm, "banana", "llms.csv, and no similar name", id="no model is near"),
        pytest.param(find_gpu, "A100", "nearest: A100-80GB-SXM, A100-40GB", id="without memory"),
        pytest.param(find_gpu, "banana", "and no similar name", id="no GPU is near"),
        pytest.param(find_price, "l40 nobody", "nearest: L40S-PCIe RunPod", id="prices of a GPU"),
    ],
)
def test_error_names_what_is_near(find, asked, says):
    with pytest.raises(InputError, match=says):
        find(asked)


TABLES = {
    "gpu_architectures.csv": Architecture,
    "gpu_kernel_factors.csv": KernelFactor,
    "gpu_kernels.csv": Kernel,
    "gpu_prices.csv": Price,
    "gpu_specs.csv": Gpu,
    "llms.csv": Llm,
    "metric_equivalents.csv": Equivalent,
    "published_throughput.csv": Measurement,
    "silicon_vllm.csv": SiliconRow,
    "vllm_metrics.csv": Metric,
}
DATA = Path(__file__).parents[2] / "data"


def test_every_table_has_its_record():
    assert {path.name for path in DATA.glob("*.csv")} == set(TABLES)


@pytest.mark.parametrize("table", TABLES)
def test_the_readme_counts_a_tables_rows_and_names_its_record(table):
    readme = (DATA / "README.md").read_text(encoding="utf-8")
    rows = read_rows(TABLES[table], DATA / table)
    assert re.search(rf"^\| `{table}` \| {len(rows)} \|", readme, re.M)
    assert f"**`{table}`** (`facts/" in readme
    assert f"`{TABLES[table].__name__}`)" in readme
