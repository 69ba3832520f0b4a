import pytest

from vllm_capacity.errors import InputError
from vllm_capacity.facts.gpus import find_gpu, gpu_names, gpus


@pytest.mark.parametrize("gpu", gpus(), ids=lambda gpu: gpu.name)
def test_every_row_can_be_used(gpu):
    assert gpu.memory_gib > 0
    assert gpu.mem_bw_tb_s > 0
    assert gpu.source
    assert gpu.date
    assert find_gpu(gpu.name).rows == (gpu,)


def test_names_are_unique():
    assert len(set(gpu_names())) == len(gpus())


@pytest.mark.parametrize(
    ("name", "forms"),
    [
        pytest.param("A100-80GB-SXM", {"SXM"}, id="a form factor is one row"),
        pytest.param("a100-80gb-sxm", {"SXM"}, id="case is ignored"),
        pytest.param("A100-80GB-any", {"SXM", "PCIe"}, id="any spans the form factors"),
        pytest.param("A100-80GB", {"SXM", "PCIe"}, id="no form factor spans them too"),
        pytest.param("A10G-PCIe", {"PCIe"}, id="an A10G is no A10"),
        pytest.param("L40S-any", {"PCIe"}, id="any of one form factor is that one"),
    ],
)
def test_a_name_stands_for_its_rows(name, forms):
    assert {row.form_factor for row in find_gpu(name).rows} == forms


@pytest.mark.parametrize("name", ["A100-60GB-SXM", "H100", "A100-80GB-OAM"])
def test_an_unknown_name_is_refused_with_the_nearest(name):
    with pytest.raises(InputError, match="nearest"):
        find_gpu(name)


def test_a_span_is_an_interval_and_says_that_it_assumes():
    bandwidth = find_gpu("A100-80GB-any").figure("mem_bw_tb_s")
    assert (bandwidth.low, bandwidth.high) == (1.935, 2.039)
    assert "form factor assumed" in bandwidth.sources


def test_an_empty_cell_is_unknown_and_not_zero():
    assert not find_gpu("RTX-4090-PCIe").figure("bf16_dense_tflops").is_known


@pytest.mark.parametrize(
    ("name", "tflops"),
    [
        pytest.param("H100-80GB-SXM", 989.0, id="as stated"),
        pytest.param("V100-16GB-SXM", 125.0, id="from the note, which says FP16 tensor"),
        pytest.param("RTX-A6000-PCIe", 154.85, id="half of INT8"),
        pytest.param("A10G-PCIe", None, id="nothing to go by"),
    ],
)
def test_sixteen_bit_tflops(name, tflops):
    assert find_gpu(name).rows[0].tensor_tflops == tflops


@pytest.mark.parametrize(
    ("name", "has"), [("A100-80GB-SXM", False), ("L4-PCIe", True), ("RTX-4090-PCIe", True)]
)
def test_fp8_tensor_cores(name, has):
    assert find_gpu(name).rows[0].has_fp8 is has
