"""The time of a compiled step, against closed forms."""

import pytest
from support.compiled_programs import ATTENTION, OVERLAP

from jaxlm import hardware
from jaxlm.plan import roofline
from jaxlm.plan.compiled_text import Collective, CompiledText, array_types
from jaxlm.plan.kernel_costs import attention_flops, is_attention, traffic_bytes
from jaxlm.plan.roofline import ATTENTION as ATTENTION_PART
from jaxlm.plan.roofline import EXPOSED, OTHER, PRODUCTS, Efficiency, collective_seconds

PERFECT = Efficiency(
    products=1, attention=1, wide_attention=1, biased_attention=1, memory=1, links=1,
    launch_seconds=0, collective_seconds=0,
)  # fmt: skip
H100 = hardware.parse_cluster("h100:8")
GATHER_SECONDS = 2 * 8 * 16777216 * 7 / 8 / 450e9  # 0.52 ms
PRODUCT_SECONDS = 2 * 8192 * 4096 * 4096 / 989.4e12  # 0.28 ms


def estimate(text: str = OVERLAP, cluster: hardware.Cluster = H100) -> roofline.Estimate:
    return roofline.estimate_step(CompiledText(text), cluster, PERFECT)


def test_a_product_takes_its_flops_at_the_peak():
    parts = estimate().parts
    assert parts[PRODUCTS] == pytest.approx(4 * PRODUCT_SECONDS)
    assert estimate().flops == 4 * 2 * 8192 * 4096 * 4096


def test_what_the_products_do_not_cover_of_a_collective_is_exposed():
    result = estimate()
    assert result.parts[EXPOSED] == pytest.approx(4 * (GATHER_SECONDS - PRODUCT_SECONDS))
    assert result.communication_seconds == pytest.approx(4 * GATHER_SECONDS)


def test_a_collective_that_is_shorter_than_the_product_is_hidden():
    small = OVERLAP.replace("16777216", "4194304")
    assert estimate(small).parts[EXPOSED] == 0
    assert estimate(small).communication_seconds == pytest.approx(GATHER_SECONDS)


def test_a_collective_that_is_waited_for_at_once_is_exposed_whole():
    lines = OVERLAP.splitlines()
    (product,) = [line for line in lines if "%gemm.1 = " in line]
    (done,) = [line for line in lines if "%all-gather-done.1 = " in line]
    lines.remove(done)
    lines.insert(lines.index(product), done)
    assert estimate("\n".join(lines)).parts[EXPOSED] == pytest.approx(4 * GATHER_SECONDS)


def test_a_kernel_that_reads_a_row_of_a_table_takes_the_traffic_of_the_row():
    """Read and written: 2 x 4 MiB, and its 4-byte index."""
    assert estimate().parts[OTHER] == pytest.approx(2 * 4 * 1048576 / 3.35e12, rel=1e-5)


def test_a_small_product_takes_its_memory_traffic():
    """[1, 4096] x [4096, 4096] reads 32 MiB for 33 MFLOP."""
    thin = OVERLAP.replace("8192", "1")
    seconds = (2 * 4096 + 4096 * 4096) * 2 / 3.35e12
    assert estimate(thin).parts[PRODUCTS] == pytest.approx(4 * seconds)


def test_products_run_in_float32_where_tensor_cores_lack_their_dtype():
    v100 = hardware.parse_cluster("v100:8")
    seconds = 4 * 2 * 8192 * 4096 * 4096 / 15.7e12
    assert estimate(cluster=v100).parts[PRODUCTS] == pytest.approx(seconds)


def test_a_table_that_is_changed_in_place_counts_what_is_written():
    """The update is read and written, the rest of the table stays."""
    text = """HloModule update

%fused (param_0: f32[32,1024], param_1: f32[1,1024], param_2: s32[]) -> f32[32,1024] {
  %param_0 = f32[32,1024]{1,0} parameter(0)
  %param_1 = f32[1,1024]{1,0} parameter(1)
  %param_2 = s32[] parameter(2)
  %zero = s32[] constant(0)
  ROOT %update = f32[32,1024]{1,0} dynamic-update-slice(%param_0, %param_1, %param_2, %zero)
}

ENTRY %main (table: f32[32,1024], row: f32[1,1024], number: s32[]) -> f32[32,1024] {
  %table = f32[32,1024]{1,0} parameter(0)
  %row = f32[1,1024]{1,0} parameter(1)
  %number = s32[] parameter(2)
  ROOT %fusion = f32[32,1024]{1,0} fusion(%table, %row, %number), kind=kLoop, calls=%fused
}
"""
    program = CompiledText(text)
    fusion = program.computations["main"]["fusion"]
    assert traffic_bytes(program, "main", fusion) == 2 * 4 * 1024 + 4


# Attention


@pytest.mark.parametrize(
    ("kernel", "mask", "window", "products", "pairs"),
    [
        ("Softmax", "NO_MASK", 0, 2, 4096 * 4096),
        ("Softmax", "CAUSAL", 0, 2, 4096 * 4097 // 2),
        ("Softmax", "CAUSAL", 1024, 2, 1024 * 1025 // 2 + 3072 * 1024),
        ("SoftmaxBackward", "CAUSAL", 0, 5, 4096 * 4097 // 2),
    ],
)
def test_attention_counts_the_pairs_that_its_mask_lets_through(
    kernel, mask, window, products, pairs
):
    program = CompiledText(ATTENTION.format(kernel=kernel, mask=mask, window=window))
    computation = program.computations["main"]
    assert is_attention(computation["flash"])
    expected = products * 2 * 2 * 32 * 128 * pairs
    assert attention_flops(computation, computation["flash"]) == expected


def test_attention_is_slower_in_narrow_heads_and_with_a_bias():
    share = Efficiency(attention=0.2, wide_attention=0.4, biased_attention=0.1)

    def seconds(text: str) -> float:
        return roofline.estimate_step(CompiledText(text), H100, share).parts[ATTENTION_PART]

    wide = ATTENTION.format(kernel="Softmax", mask="CAUSAL", window=0)
    biased = ATTENTION.format(kernel="ScaleBiasSoftmax", mask="CAUSAL", window=0)
    narrow = wide.replace(",32,128]", ",64,64]")  # as many FLOPs
    assert seconds(narrow) == pytest.approx(2 * seconds(wide))
    assert seconds(biased) == pytest.approx(4 * seconds(wide))


# Links


def collective(kind: str, groups: str, size: int) -> Collective:
    """A collective of 1 GB in groups of so many devices."""
    arrays = array_types("u8[1000000000]")
    return Collective(kind, arrays, size, (), f"replica_groups={groups}, dimensions={{0}}")


EVERY_8 = "[8,8]<=[8,8]T(1,0)"  # one GPU of each node together


@pytest.mark.parametrize(
    ("kind", "groups", "size", "seconds"),
    [
        # In a node each GPU sends 7/8 GB at 450 GB/s.
        ("all-gather", "[8,8]<=[64]", 8, 7 / 8 / 450),
        ("reduce-scatter", "[8,8]<=[64]", 8, 7 / 8 / 450),
        ("all-reduce", "[8,8]<=[64]", 8, 2 * 7 / 8 / 450),
        # Through all nodes the 8 network links of a node carry 63/64 GB at 50 GB/s each.
        ("all-gather", "[1,64]<=[64]", 64, 63 / 64 / (8 * 50)),
        # A GPU that has no other one of its group in its node has one link.
        ("all-reduce", EVERY_8, 8, 2 * 7 / 8 / 50),
        ("all-gather", "[64,1]<=[64]", 1, 0),
    ],
)
def test_collectives_take_the_slowest_of_the_links_that_they_use(kind, groups, size, seconds):
    cluster = hardware.parse_cluster("h100:8x8")
    found = collective_seconds(collective(kind, groups, size), cluster, PERFECT)
    assert found == pytest.approx(seconds)


def test_a_collective_that_sends_nothing_still_takes_time():
    found = collective("all-gather", "[8,8]<=[64]", 8)._replace(arrays=())
    cluster = hardware.parse_cluster("h100:8x8")
    assert collective_seconds(found, cluster) == Efficiency().collective_seconds
