"""Pure parts of benchmarks/peers.py and of what it is made of."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser

from repzoo.artifact import Artifact
from repzoo.engines import engine
from repzoo.measure import latency
from repzoo.measure.peer_latency import PeerLatency
from repzoo.measure.results import Setting
from repzoo.preprocessing import Preprocess

pytest.importorskip("timm")
from benchmarks import models, peak, peer_files, peers, textures

NET = """<ir_version: 8, opset_import: ["" : 17]>
    g (float[1, 3, 8, 8] data) => (float[1, 3] output) <int64[2] flat = {1, 3}>
    { pooled = GlobalAveragePool (data)  output = Reshape (pooled, flat) }"""


def artifact(text: str = NET) -> Artifact:
    return Artifact(parser.parse_model(text), "net", Preprocess(size=8))


def case(microseconds: list[float]) -> latency.Case:
    timed = latency.case(artifact(), engine("onnxruntime"))
    timed.rounds_us = [np.array([value]) for value in microseconds]
    timed.rounds_fps = [1e6 / value for value in microseconds]
    timed.rounds_of = [0] * len(microseconds)
    return timed


def test_the_share_of_the_peak_is_taken_within_each_round() -> None:
    values = PeerLatency(
        setting=Setting(threads=2, batch=8), contender="x", own=False, macs=10**6
    )
    limit = peak.case()
    if limit is None:
        pytest.skip("the peak of this host is not known")
    macs = limit.engine.macs
    # The host halves its clock in the second round.
    limit.rounds_us = [np.array([1.0]), np.array([2.0]), np.array([1.0])]
    timed = case([100.0, 200.0, 100.0])
    expected = 8 * 10**6 / 100 / 2 / macs
    assert peers.peak_share(values, timed, limit) == pytest.approx(expected)
    assert peers.peak_share(values, timed, None) is None


def test_a_change_of_clock_does_not_change_the_order() -> None:
    # The second case is always 10 % slower, but was lucky in one more round.
    first = [10_000.0, 10_000.0, 20_000.0, 20_000.0, 20_000.0]
    second = [11_000.0, 11_000.0, 22_000.0, 22_000.0, 22_000.0]
    second[2] = 11_000.0
    one, other = peers.comparable_ms([first, second])
    assert other / one == pytest.approx(1.1)


def test_rows_of_a_run_compare_with_the_fastest_peer_and_the_fastest_exact_one() -> (
    None
):
    def entry(name: str, own: bool, exact: bool, us: float) -> peers.Entry:
        contender = peers.Contender(name, "float", "onnxruntime", own=own)
        return peers.Entry(contender, exact, case([us] * 24))

    left_out = peers.Entry(peers.Contender("gone", "x", "mnn"), reason="not there")
    entries = [
        entry("clipping", False, False, 100.0),
        entry("exact", False, True, 200.0),
        entry("own", True, True, 150.0),
        left_out,
    ]
    peers.set_comparable(entries)
    rows = peers.rows_of(entries, Setting(), 1000, None, {"images": "some"})
    clipping, exact, own, gone = (row.values for row in rows)
    assert clipping.ratio is None
    assert exact.exact_ratio is None
    assert own.ratio is not None
    assert own.exact_ratio is not None
    assert (own.ratio.ratio, own.exact_ratio.ratio) == (1.5, 0.75)
    assert (gone.latency, gone.reason) == (None, "not there")
    assert len({row.job for row in rows}) == 1
    assert {row.artifact["name"] for row in rows} == {"net"}
    assert all("vnni" in row.host for row in rows)


def test_a_file_for_another_batch_computes_every_image() -> None:
    eight = peer_files.with_batch(artifact(), 8)
    inputs = latency.inputs_for(eight)
    assert isinstance(inputs, np.ndarray)
    outputs = engine("onnxruntime").open(eight.model).run(inputs)
    assert outputs.shape == (8, 3)
    np.testing.assert_allclose(outputs, inputs.mean((2, 3)), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("largest", "clips"), [(64, False), (65, True), (-127, True)])
def test_weights_beyond_seven_bits_clip(largest: int, clips: bool) -> None:
    text = """<ir_version: 8, opset_import: ["" : 17]>
        g (float[1, 2] data) => (float[1, 2] output) <int8[2] w, float s = {0.1}>
        { weight = DequantizeLinear (w, s)  output = Mul (data, weight) }"""
    model = onnx.parser.parse_model(text)
    weight = numpy_helper.from_array(np.array([largest, 1], np.int8), "w")
    model.graph.initializer[0].CopyFrom(weight)
    assert peer_files.has_8_bit_weights(model) is clips
    assert not peer_files.has_8_bit_weights(parser.parse_model(NET))


def test_least_squares_find_a_linear_map() -> None:
    random = np.random.default_rng(0)
    features = random.standard_normal((200, 4))
    weight = random.standard_normal((3, 4))
    fitted, bias = models.least_squares(features, features @ weight.T + 2.0)
    np.testing.assert_allclose(fitted, weight, atol=0.05)
    np.testing.assert_allclose(bias, 2.0, atol=0.05)


def test_classes_without_images_never_win() -> None:
    wanted = models.wanted_outputs(np.array([0, 2, 0]))
    assert wanted.shape == (3, models.CLASSES)
    assert wanted.argmax(1).tolist() == [0, 2, 0]
    assert np.delete(wanted, [0, 2], axis=1).max() < 0.5


def test_drawn_images_are_the_same_in_every_process() -> None:
    source = textures.source()
    train, test = source.parts["train"], source.parts["test"]
    assert set(train.keys).isdisjoint(test.keys)
    assert np.bincount(train.targets).tolist() == [64] * textures.CLASSES
    image = np.asarray(train.load("3"))
    assert image.shape == (textures.SIDE, textures.SIDE, 3)
    assert (image == np.asarray(train.load("3"))).all()
    assert (image != np.asarray(train.load("13"))).any()


def test_the_widest_multiplier_sets_the_peak() -> None:
    names = [["avx2"], ["avx2", "avx512f"], ["avx2", "avx_vnni"]]
    multipliers = [peak.multiplier(flags) for flags in names]
    pairs = [(item.name, item.macs) for item in multipliers if item]
    assert pairs == [("FMA", 8), ("FMA", 16), ("VNNI", 32)]
    both = peak.multiplier(["avx2", "avx512f", "avx512_vnni"])
    assert both is not None
    assert (both.name, both.macs) == ("VNNI", 64)
    assert peak.multiplier([]) is None


def test_machine_code_of_the_loops() -> None:
    fma = peak.multiplier(["avx2"])
    assert fma is not None
    # As an assembler writes vfmadd231ps ymm0, ymm14, ymm15 and the one for ymm11.
    code = fma.code()
    assert code.startswith(bytes.fromhex("c4c20db8c7"))
    assert code.endswith(bytes.fromhex("c4420db8df"))
    # Two bytes of body, then `dec rdi; jnz` back over both: 2 + 3 + 6 bytes.
    loop = peak.loop(b"", b"\x90\x90")
    assert loop == bytes.fromhex("909048ffcf0f85f5ffffffc3")


def test_the_loop_of_the_peak_is_an_engine() -> None:
    limit = peak.case()
    if limit is None:
        pytest.skip("the peak of this host is not known")
    latency.run([limit], 0.01, rounds=2)
    assert min(limit.medians_us()) > 0
    assert limit.engine.macs > 0


def test_the_peak_of_this_host_is_measured_or_unknown() -> None:
    limit = peak.measure()
    if limit is not None:
        assert limit.macs_per_second > 0
