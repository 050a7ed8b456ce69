"""The evaluator as a whole: loading, running, rounding, state, and what it refuses."""

from __future__ import annotations

import numpy as np
import pytest

from edgediff import mil
from edgediff.errors import BackendError
from edgediff.mil.blobs import pack_bits, unpack_bits
from edgediff.mil.coverage import coverage_table
from edgediff.mil.package import open_package

ct = pytest.importorskip("coremltools")
from coremltools.converters.mil import Builder as mb  # noqa: E402


def save(program, path, precision="fp16"):
    kind = ct.precision.FLOAT16 if precision == "fp16" else ct.precision.FLOAT32
    model = ct.convert(program, compute_precision=kind, minimum_deployment_target=ct.target.iOS18, skip_model_load=True)
    model.save(str(path))
    return path


@pytest.fixture(scope="module")
def sums(tmp_path_factory):
    @mb.program(input_specs=[mb.TensorSpec(shape=(3,))], opset_version=ct.target.iOS18)
    def program(x):
        return mb.mul(x=mb.add(x=x, y=np.float32(0.1), name="sum"), y=np.float32(3), name="y")

    return save(program, tmp_path_factory.mktemp("mil") / "sums.mlpackage")


def test_results_are_rounded_to_fp16_after_each_operation(sums):
    x = np.array([0.123, 4.567, 70000.0], np.float32)
    rounded = mil.load(sums).run(x=x)["y"]
    half = np.float16
    with np.errstate(over="ignore"):
        expected = ((x.astype(half) + half(0.1)).astype(half) * half(3)).astype(half)
    np.testing.assert_array_equal(rounded, expected.astype(rounded.dtype))
    assert np.isinf(rounded[2])
    exact = mil.load(sums, precision="fp32").run(x=x)["y"]
    np.testing.assert_allclose(exact, (x + float(half(0.1))) * 3, rtol=1e-6)
    assert abs(exact[0] - rounded[0]) > 0


def test_what_a_program_has_is_listed(sums):
    program = mil.load(sums)
    assert program.functions == ("main",)
    assert program.inputs() == {"x": mil.ValueType("float32", (3,))}
    assert program.outputs()["y"].shape == (3,)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({}, r"input 'x' is missing; given were \[\]"),
        ({"x": np.zeros(4)}, r"input 'x' has shape \(4,\), function 'main' wants \(3,\)"),
        ({"x": np.zeros(3), "z": np.zeros(3)}, r"function 'main' has no input 'z' \(allowed: x\)"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(sums, inputs, message):
    with pytest.raises(BackendError, match=message):
        mil.load(sums).run(**inputs)


def test_unknown_functions_precisions_and_paths_are_refused(sums, tmp_path):
    with pytest.raises(BackendError, match=r"unknown function 'mian'; did you mean 'main'"):
        mil.load(sums).run("mian", x=np.zeros(3))
    with pytest.raises(BackendError, match=r"unknown precision 'fp8'"):
        mil.load(sums, precision="fp8")
    with pytest.raises(BackendError, match=r"there is no such package"):
        mil.load(tmp_path / "none.mlpackage")


def test_an_operation_that_it_does_not_know_is_named(sums, tmp_path):
    import shutil

    shutil.copytree(sums, tmp_path / "odd.mlpackage")
    package = open_package(tmp_path / "odd.mlpackage")
    for operation in package.block("main").operations:
        if operation.type == "mul":
            operation.type = "mulx"
    package.model_file.write_bytes(package.spec.SerializeToString())
    with pytest.raises(BackendError, match=r"operation 'mulx' \(for '.*' of function 'main'\) is not known .*'mul'"):
        mil.load(tmp_path / "odd.mlpackage").run(x=np.zeros(3))


def test_state_is_read_and_written(tmp_path):
    @mb.program(
        input_specs=[mb.TensorSpec(shape=(2,)), mb.StateTensorSpec(shape=(2,), dtype=ct.converters.mil.mil.types.fp16)],
        opset_version=ct.target.iOS18,
    )
    def program(x, total):
        added = mb.add(x=mb.cast(x=x, dtype="fp16"), y=mb.read_state(input=total))
        return mb.coreml_update_state(state=total, value=added, name="y")

    loaded = mil.load(save(program, tmp_path / "state.mlpackage"))
    state = loaded.make_state()
    (name,) = state
    for count in (1, 2, 3):
        found = loaded.run(state=state, x=np.array([1.0, 0.5]))
        np.testing.assert_array_equal(next(iter(found.values())), np.array([1.0, 0.5]) * count)
        np.testing.assert_array_equal(state[name], np.array([1.0, 0.5]) * count)
    fresh = loaded.run(x=np.array([1.0, 0.5]))
    np.testing.assert_array_equal(next(iter(fresh.values())), [1.0, 0.5])


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 6])
@pytest.mark.parametrize("count", [1, 7, 8, 33, 1000])
def test_narrow_values_are_packed_and_unpacked(bits, count):
    values = np.random.default_rng(bits).integers(0, 2**bits, count).astype(np.uint8)
    packed = pack_bits(values, bits)
    assert packed.size == -(-count * bits // 8)
    np.testing.assert_array_equal(unpack_bits(packed, bits, count), values)
    stream = np.unpackbits(packed, bitorder="little")[: count * bits].reshape(count, bits)
    np.testing.assert_array_equal((stream << np.arange(bits)).sum(axis=1), values)


def test_signed_values_are_extended():
    values = np.array([0, 7, -8, -1, 5], np.int8)
    packed = pack_bits(values.view(np.uint8), 4)
    np.testing.assert_array_equal(unpack_bits(packed, 4, 5, signed=True), values)


def test_the_table_in_the_documents_is_the_table():
    from pathlib import Path

    written = Path(__file__).parent.parent / "edgediff" / "mil" / "OPERATIONS.md"
    assert written.read_text(encoding="utf-8") == coverage_table(), "write it: python -m edgediff.mil.coverage"
