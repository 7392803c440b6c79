"""Random weights for a Keras network, the same on any machine, whose features are usable."""

from collections.abc import Callable

import numpy as np


def set_weights(model, preprocess: Callable, seed: int) -> None:
    """Give a network kernels from a seed, so that its features are of the order of one.

    Parameters
    ----------
    model : keras.Model
        It is changed in place.
    preprocess : callable
        What the network wants done to pixels, float32 (n, size, size, 3) from 0 to 255.
    seed : int
    """
    generator = np.random.default_rng(seed)
    _draw_kernels(model, generator)
    _rescale_kernels(model, preprocess, generator)


def _draw_kernels(model, generator) -> None:
    """Draw every kernel from He's normal distribution, the same on any machine.

    Keras' own initializers shrink MobileNetV2's features to 1e-12, because its batch normalization
    has seen no data; variance 2 / fan_in keeps them near one (He et al. 2015, arXiv:1502.01852,
    equation 10).
    """
    for variable in model.trainable_variables:
        if variable.path.endswith("kernel"):
            shape = variable.shape
            depthwise = "depthwise" in variable.path.lower()
            fan_in = np.prod(shape[:2] if depthwise else shape[:-1])
            variable.assign(generator.normal(0, np.sqrt(2 / fan_in), shape).astype(np.float32))


def _rescale_kernels(model, preprocess: Callable, generator) -> None:
    """Bring the outputs of layers that are more than tenfold off back to one, first layers first.

    He's variance suits plain networks of ReLU. The gates of squeeze and excitation halve what
    passes them and sums of residuals grow, so that EfficientNetB0's features would be 1e-13 and
    ResNet50's 1e4. The scale of a layer's output is measured on random images, as Mishkin and Matas
    do (2015, arXiv:1511.06422). Divisors are powers of two, so that the rounding of the machine at
    hand does not reach the weights.
    """
    side = np.arange(model.input_shape[1]) * 8 // model.input_shape[1]
    images = generator.integers(0, 256, (4, 8, 8, 3))[:, side][:, :, side]

    def rescaled(layer, call):
        def call_and_rescale(*arguments, **options):
            output = np.asarray(call(*arguments, **options))
            exponent = round(float(np.log2(np.square(output).mean()) / 2))
            if abs(exponent) <= 3:  # of two: tenfold
                return output
            layer.kernel.assign(layer.kernel / 2.0**exponent)
            return output / 2.0**exponent

        return call_and_rescale

    layers = [layer for layer in model.layers if hasattr(layer, "kernel")]
    for layer in layers:
        layer.call = rescaled(layer, layer.call)
    model(preprocess(images.astype(np.float32)), training=False)
    for layer in layers:
        del layer.call
