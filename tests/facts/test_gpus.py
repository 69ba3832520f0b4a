import pytest
from msgspec.structs import replace

from vllm_capacity.errors import InputError
from vllm_capacity.facts.gpus import architectures, find_gpu, gpu_names, gpus, labelled_gpu


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


def test_a_span_says_that_its_form_factor_is_assumed():
    assert find_gpu("A100-80GB-any").label == "A100-80GB-any (form factor assumed: PCIe/SXM)"


def test_an_empty_cell_is_unknown_and_not_zero():
    assert find_gpu("RTX-4090-PCIe").rows[0].bf16_dense_tflops is None


@pytest.mark.parametrize(
    ("name", "tflops"),
    [
        pytest.param("H100-80GB-SXM", 989.0, id="as stated"),
        pytest.param("V100-16GB-SXM", 125.0, id="FP16 where there is no BF16"),
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


@pytest.mark.parametrize("gpu", gpus(), ids=lambda gpu: gpu.name)
def test_every_gpu_has_an_architecture_that_is_known(gpu):
    assert gpu.architecture.architecture == gpu.family


def test_an_architecture_belongs_to_a_gpu_of_the_table():
    assert set(architectures()) == {gpu.family for gpu in gpus()}


@pytest.mark.parametrize("row", architectures().values(), ids=lambda row: row.architecture)
def test_rows_of_an_architecture_agree_with_its_gpus(row):
    assert row.pcie_bytes_per_second < (row.link_bytes_per_second or float("inf"))
    if not row.has_fp8:
        assert all(gpu.fp8_dense_tflops is None for gpu in gpus() if gpu.architecture == row)


def test_an_architecture_without_a_row_is_refused_with_the_known_ones():
    rubin = replace(find_gpu("B200-180GB-SXM").rows[0], gpu="R100", arch="Rubin sm110")
    with pytest.raises(
        InputError,
        match=r"R100-SXM has the architecture 'Rubin', .*gpu_architectures.csv.*known: Ada",
    ):
        _ = rubin.architecture


@pytest.mark.parametrize(
    ("label", "gpu"),
    [
        ("NVIDIA-A100-SXM4-80GB", "A100-80GB-SXM"),
        ("NVIDIA A100 80GB PCIe", "A100-80GB-PCIe"),
        ("NVIDIA-H100-80GB-HBM3", "H100-80GB-SXM"),
        ("NVIDIA-H100-NVL", "H100-94GB-NVL"),
        ("NVIDIA-H200", "H200-141GB-any"),
        ("NVIDIA-A10", "A10-24GB-PCIe"),
        ("NVIDIA-A10G", "A10G-PCIe"),
        ("Tesla-T4", "T4-PCIe"),
        ("NVIDIA-RTX-PRO-6000-Blackwell-Server-Edition", "RTX-PRO-6000-Server-PCIe"),
        ("AMD-Instinct-MI300X", "MI300X-OAM"),
        ("l4-pcie", "L4-PCIe"),
    ],
)
def test_labels_of_targets_name_a_gpu(label, gpu):
    assert labelled_gpu(label).name == gpu


@pytest.mark.parametrize(
    "label",
    [
        pytest.param("NVIDIA-A100-SXM4-80GB-MIG-1g.10gb", id="a part of one"),
        pytest.param("NVIDIA-A100-80GB-PCIe-SHARED", id="a shared one"),
        pytest.param("H100", id="80 or 94 GB"),
        pytest.param("p5.48xlarge", id="an instance"),
        pytest.param("", id="nothing"),
    ],
)
def test_labels_that_name_no_gpu(label):
    assert labelled_gpu(label) is None
