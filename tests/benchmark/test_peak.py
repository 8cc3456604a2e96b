"""Operations of the networks, and the machine's peak."""

import numpy as np
import pytest

pytest.importorskip("openvino")

import openvino
from openvino import opset13

from steelsight.benchmark.peak import Probe, multiply_adds, operations
from steelsight.bundle import Precision, load_bundle


def weights(*shape):
    return opset13.constant(np.zeros(shape, np.float32))


def test_products_of_each_kind_of_layer():
    """Worked out by hand: results times what each is the sum of."""
    none, one, two = [0, 0], [1, 1], [2, 2]
    x = opset13.parameter([1, 8, 10, 20], np.float32)
    convolved = opset13.convolution(x, weights(16, 8, 3, 3), two, one, one, one)
    assert list(convolved.get_output_shape(0)) == [1, 16, 5, 10]
    grouped = opset13.group_convolution(convolved, weights(4, 2, 4, 1, 1), one, none, none, one)
    raised = opset13.convolution_backprop_data(grouped, weights(8, 3, 4, 4), two)
    flat = opset13.matmul(opset13.reduce_mean(raised, [2, 3]), weights(5, 3), False, True)
    counted = multiply_adds(openvino.Model([flat], [x], "small"))
    assert counted == (
        16 * 5 * 10 * 8 * 9  # convolution
        + 8 * 5 * 10 * 4  # grouped: 4 of 16 channels each
        + 8 * 5 * 10 * 3 * 16  # transposed: every input meets 3 x 4 x 4 weights
        + 5 * 3  # matrix
    )


def test_operations_grow_with_the_frame_and_its_tiles():
    bundle = load_bundle()
    whole = operations(bundle, (1600, 256))
    assert all(1e9 < count < 1e12 for count in whole)
    half = operations(bundle, (800, 256))
    assert half == pytest.approx((whole[0] / 2, whole[1] / 2), rel=1e-3)
    # Padded to a multiple of 32: as the next larger frame.
    assert operations(bundle, (790, 250)) == half
    # Tiles overlap: more than the pixels alone.
    assert operations(bundle, (1600, 500))[0] > 2 * whole[0]


@pytest.mark.parametrize("precision", list(Precision))
def test_the_peak_is_a_possible_number(precision):
    assert 1e9 < Probe(precision, 1).operations_per_second() < 1e14
