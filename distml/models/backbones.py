"""Pretrained backbones by name, Keras's and ours: input scaling, classifier head (any process).

The table imports no TensorFlow; building does (worker). A classifier is image → scaling → `backbone` →
`pool` → `dropout` → `logits`. It takes raw pixels, 0 to 255, because each family was trained on pixels
scaled in its own way: the scaling is a part of the network, and nothing else scales what it is fed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from distml.errors import ModelError
from distml.runtime import compat

if TYPE_CHECKING:
    import keras

Tensor = Any
Scaling = Literal["symmetric", "centred", "lite", "standardised", "caffe"]
BACKBONE, POOL, LOGITS = "backbone", "pool", "logits"
"""Names of the layers by which a network is cut into what may be frozen and its head."""

_MEAN, _DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_CAFFE_MEAN = (103.939, 116.779, 123.68)
"""Of ImageNet's pixels: red, green, blue as shares of 255; blue, green, red."""


@dataclass(frozen=True)
class Backbone:
    """One network up to its last feature map.

    Attributes:
        function: Its name in `keras.applications`; empty for EfficientNet-Lite, which is ours.
        scaling: symmetric: to [-1, 1]. centred: x / 128 - 1. lite: (x - 127) / 128. standardised: by mean
            and deviation of ImageNet. caffe: blue, green, red without their means.
        image_size: Side in pixels of the images that it was trained on.
        parameters: Without the classifier, moving statistics included.
        gflops: For one image of that size; a multiplication and its addition are two operations.
        min_size: Least side of an image.
        alpha: Whether it takes the option `alpha`, a factor on its width.
        preprocessing: Whether Keras's function has a scaling of its own, which is left out.
    """

    function: str
    scaling: Scaling
    image_size: int
    parameters: int
    gflops: float
    min_size: int = 32
    alpha: bool = False
    preprocessing: bool = False

    @property
    def options(self) -> dict[str, Any]:
        """Options of the classifier and their defaults."""
        shared = {"dropout": 0.2, "momentum": 0.97}
        return shared | ({"alpha": 1.0} if self.alpha else {})


def _standard(function: str, size: int, parameters: int, gflops: float, **more: Any) -> Backbone:
    return Backbone(function, "standardised", size, parameters, gflops, **more)


def _symmetric(function: str, size: int, parameters: int, gflops: float, **more: Any) -> Backbone:
    return Backbone(function, "symmetric", size, parameters, gflops, **more)


def _caffe(function: str, parameters: int, gflops: float) -> Backbone:
    return Backbone(function, "caffe", 224, parameters, gflops)


def _lite(size: int, parameters: int, gflops: float) -> Backbone:
    return Backbone("", "lite", size, parameters, gflops)


_INSIDE: dict[str, Any] = {"preprocessing": True}
_MOBILE3: dict[str, Any] = {"preprocessing": True, "alpha": True}

BACKBONES: Mapping[str, Backbone] = {
    "convnext_base": _standard("ConvNeXtBase", 224, 87_566_464, 30.7, **_INSIDE),
    "convnext_large": _standard("ConvNeXtLarge", 224, 196_230_336, 68.7, **_INSIDE),
    "convnext_small": _standard("ConvNeXtSmall", 224, 49_454_688, 17.4, **_INSIDE),
    "convnext_tiny": _standard("ConvNeXtTiny", 224, 27_820_128, 8.91, **_INSIDE),
    "convnext_xlarge": _standard("ConvNeXtXLarge", 224, 348_147_968, 122, **_INSIDE),
    "densenet121": _standard("DenseNet121", 224, 7_037_504, 5.67),
    "densenet169": _standard("DenseNet169", 224, 12_642_880, 6.72),
    "densenet201": _standard("DenseNet201", 224, 18_321_984, 8.58),
    "efficientnet_b0": _standard("EfficientNetB0", 224, 4_049_564, 0.769),
    "efficientnet_b1": _standard("EfficientNetB1", 240, 6_575_232, 1.37),
    "efficientnet_b2": _standard("EfficientNetB2", 260, 7_768_562, 1.98),
    "efficientnet_b3": _standard("EfficientNetB3", 300, 10_783_528, 3.65),
    "efficientnet_b4": _standard("EfficientNetB4", 380, 17_673_816, 8.78),
    "efficientnet_b5": _standard("EfficientNetB5", 456, 28_513_520, 20.5),
    "efficientnet_b6": _standard("EfficientNetB6", 528, 40_960_136, 38.1),
    "efficientnet_b7": _standard("EfficientNetB7", 600, 64_097_680, 75.5),
    "efficientnet_lite0": _lite(224, 3_413_024, 0.768),
    "efficientnet_lite1": _lite(240, 4_189_344, 1.2),
    "efficientnet_lite2": _lite(260, 4_869_168, 1.72),
    "efficientnet_lite3": _lite(280, 6_992_768, 2.76),
    "efficientnet_lite4": _lite(300, 11_837_936, 5.1),
    "efficientnetv2_b0": _standard("EfficientNetV2B0", 224, 5_919_312, 1.43, **_INSIDE),
    "efficientnetv2_b1": _standard("EfficientNetV2B1", 240, 6_931_124, 2.39, **_INSIDE),
    "efficientnetv2_b2": _standard("EfficientNetV2B2", 260, 8_769_374, 3.39, **_INSIDE),
    "efficientnetv2_b3": _standard("EfficientNetV2B3", 300, 12_930_622, 6.02, **_INSIDE),
    "efficientnetv2_l": Backbone("EfficientNetV2L", "centred", 480, 117_746_848, 112, **_INSIDE),
    "efficientnetv2_m": Backbone("EfficientNetV2M", "centred", 480, 53_150_388, 49.2, **_INSIDE),
    "efficientnetv2_s": Backbone("EfficientNetV2S", "centred", 384, 20_331_360, 16.7, **_INSIDE),
    "inception_resnet_v2": _symmetric("InceptionResNetV2", 299, 54_336_736, 26.3, min_size=75),
    "inception_v3": _symmetric("InceptionV3", 299, 21_802_784, 11.4, min_size=75),
    "mobilenet": _symmetric("MobileNet", 224, 3_228_864, 1.14, alpha=True),
    "mobilenet_v2": _symmetric("MobileNetV2", 224, 2_257_984, 0.599, alpha=True),
    "mobilenet_v3_large": _symmetric("MobileNetV3Large", 224, 2_996_352, 0.428, **_MOBILE3),
    "mobilenet_v3_small": _symmetric("MobileNetV3Small", 224, 939_120, 0.11, **_MOBILE3),
    "nasnet_large": _symmetric("NASNetLarge", 331, 84_916_818, 47.6),
    "nasnet_mobile": _symmetric("NASNetMobile", 224, 4_269_716, 1.13),
    "resnet101": _caffe("ResNet101", 42_658_176, 15.1),
    "resnet101_v2": _symmetric("ResNet101V2", 224, 42_626_560, 14.4),
    "resnet152": _caffe("ResNet152", 58_370_944, 22.6),
    "resnet152_v2": _symmetric("ResNet152V2", 224, 58_331_648, 21.8),
    "resnet50": _caffe("ResNet50", 23_587_712, 7.71),
    "resnet50_v2": _symmetric("ResNet50V2", 224, 23_564_800, 6.96),
    "vgg16": _caffe("VGG16", 14_714_688, 30.7),
    "vgg19": _caffe("VGG19", 20_024_384, 39),
    "xception": _symmetric("Xception", 299, 20_861_480, 16.7, min_size=71),
}
"""Every backbone by the name that a configuration gives it."""


def check_shape(name: str, shape: tuple[int, ...]) -> None:
    """Reject images that a backbone cannot take.

    Args:
        name: A key of `BACKBONES`.
        shape: Height, width and channels of an image.

    Raises:
        ModelError: Too small, or neither gray nor in three colours.
    """
    least, usual = BACKBONES[name].min_size, BACKBONES[name].image_size
    if shape[2] not in (1, 3):
        raise ModelError(
            f"images of {shape[2]} channels cannot be given to {name}.", "Give gray or RGB images."
        )
    if min(shape[:2]) < least:
        raise ModelError(
            f"images of {shape[0]}x{shape[1]} pixels are too small for {name}, which needs {least}x{least}.",
            f"Prepare larger images ({name} was trained at {usual}), or take resnet, which takes any size.",
        )


def classifier(
    name: str,
    shape: tuple[int, int, int],
    classes: int,
    *,
    dropout: float = 0.2,
    momentum: float = 0.97,
    alpha: float = 1.0,
) -> keras.Model:
    """Build a backbone with its scaling in front and a new head behind.

    Args:
        name: A key of `BACKBONES`.
        shape: Height, width and channels of an image; gray becomes three equal colours.
        classes: Width of the last layer.
        dropout: Share of the pooled features dropped while training.
        momentum: Of the moving statistics. Families bring up to 0.9997, for runs of a million steps; in
            some hundred steps such statistics stay what they were at the start.
        alpha: Factor on the width, where the backbone takes it.

    Returns:
        A network from float32 pixels, 0 to 255, (N, H, W, C), to float32 logits, (N, classes).

    Raises:
        ModelError: As `check_shape`.
    """
    import keras

    check_shape(name, shape)
    image = keras.layers.Input(shape, dtype="float32", name="image")
    backbone = _backbone(name, (shape[0], shape[1], 3), {"alpha": alpha} if BACKBONES[name].alpha else {})
    for layer in compat.layers(backbone):
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = momentum
    features = backbone(_scaled(image, BACKBONES[name].scaling))
    pooled = keras.layers.GlobalAveragePooling2D(name=POOL)(features)
    if dropout:
        pooled = keras.layers.Dropout(dropout, name="dropout")(pooled)
    logits = keras.layers.Dense(classes, dtype="float32", name=LOGITS)(pooled)
    return keras.Model(image, logits, name=name)


def _backbone(name: str, shape: tuple[int, int, int], options: dict[str, Any]) -> keras.Model:
    """The network from scaled pixels to its last feature map, as one layer."""
    import keras

    from distml.models import residual

    backbone = BACKBONES[name]
    if not backbone.function:
        network = residual.lite_features(name, shape)
    else:
        network = _keras_network(backbone, include_top=False, weights=None, input_shape=shape, **options)
    first = network.get_layer("stem_conv_pad") if name.startswith("efficientnet_b") else network
    # EfficientNet-B scales in its first layers, by statistics that only its published weights bring.
    return keras.Model(first.input, network.output, name=BACKBONE)


def _keras_network(backbone: Backbone, **options: Any) -> keras.Model:
    import keras

    if backbone.preprocessing:
        options["include_preprocessing"] = False
    network: keras.Model = getattr(keras.applications, backbone.function)(**options)
    return network


def built_by_keras(name: str, path: Path, alpha: float = 1.0) -> keras.Model:
    """Let Keras build a network of its own around a file of weights, which it reads in its own order.

    Args:
        name: A key of `BACKBONES` that Keras has.
        path: `.h5` or `.weights.h5` of the network, with its classifier of ImageNet or without.
        alpha: Factor on the width.

    Raises:
        ValueError: Keras rejects the file.
    """
    backbone = BACKBONES[name]
    options: dict[str, Any] = {"weights": str(path)} | ({"alpha": alpha} if backbone.alpha else {})
    size = backbone.image_size
    try:
        return _keras_network(backbone, include_top=False, input_shape=(size, size, 3), **options)
    except ValueError:  # it may hold the classifier, too
        return _keras_network(backbone, include_top=True, input_shape=(size, size, 3), **options)


def _scaled(image: Tensor, scaling: Scaling) -> Tensor:
    """Raw pixels as a family wants them, in float32 whatever the network computes in."""
    from keras import layers, ops

    def rescaled(x: Tensor, scale: Any, offset: Any) -> Tensor:
        return layers.Rescaling(scale, offset, dtype="float32", name="scaling")(x)

    if image.shape[-1] == 1:
        image = layers.Concatenate(dtype="float32", name="gray_to_rgb")([image] * 3)
    if scaling == "symmetric":
        return rescaled(image, 1 / 127.5, -1.0)
    if scaling == "centred":
        return rescaled(image, 1 / 128, -1.0)
    if scaling == "lite":
        return rescaled(image, 1 / 128, -127 / 128)
    if scaling == "caffe":
        return rescaled(ops.flip(image, axis=-1), 1.0, [-mean for mean in _CAFFE_MEAN])
    return rescaled(
        image,
        [1 / (255 * deviation) for deviation in _DEVIATION],
        [-mean / deviation for mean, deviation in zip(_MEAN, _DEVIATION, strict=True)],
    )
