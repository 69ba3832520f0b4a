"""A user's own GPUs, models and prices come first, and are named as theirs."""

import json
import os

import pytest
from click.testing import CliRunner

import vllm_capacity as vc
from vllm_capacity.cli import OWN_FACTS, cli
from vllm_capacity.errors import InputError
from vllm_capacity.facts.gpus import find_gpu, gpus
from vllm_capacity.facts.llms import find_llm
from vllm_capacity.facts.prices import choose_price, find_price, offers
from vllm_capacity.facts.tables import use_own_rows

GPU = "gpu,form_factor,arch,memory_gib,mem_bw_tb_s,source,date\n"
PRICE = "gpu,form_factor,provider,tier,usd_per_gpu_hour,source,date\n"
CONTRACT = PRICE + "H100-80GB,SXM,Contract,reserved,1.95,contract 42,2026-11\n"


@pytest.fixture
def own(tmp_path, monkeypatch):
    """Writes a user's own table, and uses the folder's rows until the test ends."""
    monkeypatch.setenv(OWN_FACTS, "")

    def write(name, text):
        (tmp_path / name).write_text(text, encoding="utf-8")
        use_own_rows(tmp_path)
        return tmp_path

    yield write
    use_own_rows(None)


def test_a_users_own_gpu_is_found_and_marked(own):
    own("gpu_specs.csv", GPU + "R100-288GB,SXM,Blackwell sm110,288,13,our lab,2026-11\n")
    span = find_gpu("r100-288gb-sxm")
    assert span.rows[0].mem_bw_tb_s == 13
    assert span.label == "R100-288GB-SXM (your own row)"
    assert span.rows[0].source == "your own row (gpu_specs.csv, line 2): our lab"


def test_a_users_own_row_replaces_the_shipped_row_of_that_name(own):
    before = len(gpus())
    own("gpu_specs.csv", GPU + "h100-80gb,sxm,Hopper sm90,79.6,3.35,nvidia-smi,2026-11\n")
    assert len(gpus()) == before
    assert [row.memory_gib for row in find_gpu("H100-80GB-SXM").rows] == [79.6]


def test_a_users_own_price_overrides_all_others(own):
    own("gpu_prices.csv", CONTRACT)
    found = choose_price(gpu="H100-80GB-SXM")
    assert (found.low, found.mid, found.high) == (1.95, 1.95, 1.95)
    assert "Contract reserved (your own row)" in found.sources
    assert [row.provider for row in offers("H100-80GB-SXM")] == ["Contract"]
    assert find_price("h100 reserved").usd.sources.endswith(
        "your own row (gpu_prices.csv, line 2): contract 42)"
    )
    assert choose_price(gpu="A100-80GB-SXM").mid != 1.95


def test_without_a_folder_nothing_changes(own):
    shipped = choose_price(gpu="H100-80GB-SXM")
    own("gpu_prices.csv", CONTRACT)
    use_own_rows(None)
    assert choose_price(gpu="H100-80GB-SXM") == shipped


def test_a_users_own_model_may_omit_columns(own):
    own(
        "llms.csv",
        "model,params_total_b,params_active_b,layers,hidden_size,attention_heads,kv_heads,head_dim,"
        "attention,attention_sinks,vocab_size,tied_embeddings,published_dtype,"
        "kv_bytes_per_token_bf16,max_context_tokens,source,date\n"
        "us/house-8B,8,8,32,4096,32,8,128,full,false,128256,false,bf16,131072,8192,config,2026\n",
    )
    assert find_llm("house-8b").source.startswith("your own row (llms.csv, line 2)")


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        pytest.param(
            "gpu_specs.csv",
            GPU + "R1,SXM,Hopper,80,3,a,2026\nR2,SXM,Hopper,much,3,a,2026\n",
            "gpu_specs.csv, line 3: memory_gib is 'much'",
            id="a cell of another kind",
        ),
        pytest.param(
            "gpu_specs.csv",
            GPU + "R1,SXM,Hopper,80,3,a\n",
            "gpu_specs.csv, line 2: 6 cells under 7 columns",
            id="a cell too few",
        ),
        pytest.param(
            "gpu_specs.csv",
            "gpu,form_factor\nR1,SXM\n",
            "gpu_specs.csv, line 1: missing column arch, memory_gib",
            id="no column",
        ),
        pytest.param(
            "gpu_specs.csv",
            GPU + "R1,SXM,Hopper,80,3,,2026\n",
            "gpu_specs.csv, line 2: source is empty",
            id="no source",
        ),
    ],
)
def test_a_malformed_row_is_one_line_with_file_and_line(own, name, text, says):
    folder = own(name, text)
    with pytest.raises(InputError) as caught:
        find_gpu("H100-80GB-SXM")
    message = str(caught.value)
    assert str(folder / name) in message
    assert says in message
    assert len(message.splitlines()) == 1


def run(*words):
    return CliRunner().invoke(cli, words)


def test_a_flag_names_the_folder_and_the_overview_shows_it(own):
    folder = own("gpu_prices.csv", CONTRACT)
    use_own_rows(None)
    said = run("--facts", str(folder), "facts").stdout
    assert str(folder / "gpu_prices.csv") in "".join(said.split())
    assert os.environ[OWN_FACTS] == str(folder)


def test_own_rows_are_listed_first_and_marked(own):
    folder = own("gpu_prices.csv", CONTRACT)
    rows = json.loads(run("--facts", str(folder), "facts", "prices", "h100", "--json").stdout)
    assert (rows[0]["is_own"], rows[0]["provider"]) == (True, "Contract")
    assert not any(row["is_own"] for row in rows[1:])
    assert "yours" in run("--facts", str(folder), "facts", "prices", "h100").stdout


@pytest.mark.parametrize(
    ("words", "part"),
    [
        pytest.param(["gpus", "mi300x"], "MI300X-OAM\n", id="one row is shown in full"),
        pytest.param(["gpus", "mi300x"], "All of these: ", id="with its source"),
        pytest.param(["gpus"], "H100-80GB-SXM", id="a list"),
        pytest.param(["models", "llama-2", "70b"], "Llama-2-70b-chat-hf", id="all words"),
        pytest.param(["metrics", "preemptions"], "vllm:num_preemptions_total", id="a metric"),
        pytest.param(["prices", "l40", "hyperstack"], "2026-08-26", id="a dated price"),
        pytest.param([], "metrics", id="the tables"),
    ],
)
def test_facts_are_listed_and_searched(words, part):
    found = run("facts", *words)
    assert found.exit_code == 0
    assert part in found.stdout


@pytest.mark.parametrize(
    ("words", "says"),
    [
        pytest.param(["facts", "gpus", "banana"], "None of the ", id="no such row"),
        pytest.param(["--facts", "/nowhere/here", "facts"], "No folder ", id="no such folder"),
    ],
)
def test_what_is_not_there_is_an_input_error(words, says):
    error = run(*words).exception
    assert isinstance(error, InputError)
    assert says in str(error)


def test_python_asks_with_a_folder(own):
    folder = own("gpu_prices.csv", CONTRACT)
    use_own_rows(None)
    vc.use_facts(folder)
    assert choose_price(gpu="H100-80GB-SXM").mid == 1.95
    with pytest.raises(InputError, match="No folder"):
        vc.use_facts(folder / "none")
