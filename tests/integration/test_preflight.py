"""A network of the user's is tried before it is trained, and what is wrong with it has a line."""

from __future__ import annotations

import importlib
import json
import logging
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distml.config import Config
from distml.errors import ModelError
from distml.models import registry
from distml.storage import Storage
from distml.tasks.classification import Classification
from distml.tasks.regression import Regression
from distml.training import preflight
from distml.training.preflight import Case

SHAPE = (8, 8, 3)
TASK = Classification(("a", "b", "c"))
MODULE = """
import keras
from keras import layers as L

def dense(classes, *front, end=None):
    return keras.Sequential([*front, L.Flatten(), L.Dense(classes, activation=end)])

def tutorial(shape, classes):
    front = keras.Input(shape), L.RandomFlip(), L.Rescaling(1 / 255)
    return keras.Sequential([*front, L.Flatten(), L.Dense(classes, activation="softmax")])

def separate(shape, classes):
    image = keras.Input(shape)
    return keras.Model(image, L.Softmax()(L.Dense(classes)(L.Flatten()(image))))

def popped(shape, classes):
    return keras.Sequential([L.Flatten(), L.Dense(classes), L.Activation("softmax")])

def nested(shape, classes):
    return keras.Sequential([keras.Input(shape), dense(classes, keras.Input(shape), end="softmax")])

def centred(shape, classes):
    return dense(classes, keras.Input(shape), L.Rescaling(2.0, offset=-1.0))

class Net(keras.Model):
    def __init__(self, classes, end=None):
        super().__init__()
        self.flatten, self.dense = L.Flatten(), L.Dense(classes, activation=end)

    def call(self, images):
        return self.dense(self.flatten(images))

def subclassed(shape, classes):
    return Net(classes)

def several_sigmoids(shape, classes):
    return dense(classes, keras.Input(shape), end="sigmoid")

def yes_or_no(shape, classes):
    return dense(1, keras.Input(shape), L.Rescaling(1 / 255), end="sigmoid")

def fixed_size(shape, classes):
    return dense(classes, keras.Input((32, 32, 3)))

def gate(shape, classes):
    return Net(classes, "sigmoid")

def probabilities(shape, classes):
    return Net(classes, "softmax")

class Noise(L.Layer):
    def call(self, images):
        return images + keras.random.normal(keras.ops.shape(images))

def noisy(shape, classes):
    return dense(classes, keras.Input(shape), Noise())

def pair(shape, classes):
    first, second = keras.Input(shape), keras.Input(shape)
    return keras.Model([first, second], L.Dense(classes)(L.Flatten()(L.Add()([first, second]))))

class Twice(L.Layer):
    def call(self, images):
        return 2 * images

def frozen(shape, classes):
    network = dense(classes, keras.Input(shape))
    network.trainable = False
    return network

def absent(shape, classes):
    dense(classes, keras.Input(shape))

def listed(shape, classes):
    image = keras.Input(shape)
    return keras.Model(image, [L.Dense(classes)(L.Flatten()(image))])

def named(shape, classes):
    image = keras.Input(shape)
    return keras.Model(image, {"a": L.Dense(classes)(L.Flatten()(image)), "b": image})

def half(shape, classes):
    keras.config.set_dtype_policy("mixed_float16")
    return dense(classes, keras.Input(shape))

def positive(shape, classes):
    return dense(classes, keras.Input(shape), end="relu")

def divided(shape, classes):
    image = keras.Input(shape)
    return keras.Model(image, L.Dense(classes)(L.Flatten()(image / 255.0 - 0.5)))

def standardised(shape, classes):
    return dense(classes, keras.Input(shape), L.RandomFlip(), L.Normalization(mean=128.0, variance=4000.0))

def wrapped(shape, classes):
    return dense(classes, keras.Input(shape), L.Lambda(lambda x: x / 127.5 - 1))

def inside(shape, classes):
    image = keras.Input(shape)
    return keras.Model(image, divided(shape, classes)(L.RandomFlip()(image)))

def unscaled(shape, classes):
    image = keras.Input(shape)
    return keras.Model(image, L.Dense(classes)(L.Flatten()(2.0 * image - 1.0)))

def twice(shape, classes):
    return keras.Sequential([keras.Input(shape), L.Rescaling(1 / 255), divided(shape, classes)])

class Lazy(keras.Model):
    def __init__(self, classes):
        super().__init__()
        self.classes = classes

    def call(self, images):
        return L.Dense(self.classes)(L.Flatten()(images))

def lazy(shape, classes):
    return Lazy(classes)

def uncalled(shape, classes):
    return Net

def misspelt(shape, classes):
    return dense(clases, keras.Input(shape))

def resized(shape, classes):
    import tensorflow as tf
    image = keras.Input(shape)
    return keras.Model(image, L.Dense(classes)(L.Flatten()(tf.image.resize(image, (4, 4)))))

def wide(shape, classes):
    image = keras.Input(shape)
    return keras.Model(image, L.Conv2D(classes, 3)(image))

def other_head(shape, classes):
    head = keras.Sequential([keras.Input((100,)), L.Dense(classes)])
    return head(L.Flatten()(keras.Input(shape)))

def channels_first(shape, classes):
    image = keras.Input(shape)
    features = L.Conv2D(4, 3, data_format="channels_first")(L.Permute((3, 1, 2))(image))
    return keras.Model(image, L.Dense(classes)(L.Flatten()(features)))

def recurrent(shape, classes):
    rows = L.Reshape((shape[0], -1))
    return keras.Sequential([keras.Input(shape), Twice(), rows, L.LSTM(4), L.Dense(classes)])
"""


def line(text: str) -> int:
    """Number of the line of the module that holds a text."""
    return next(number for number, line_text in enumerate(MODULE.splitlines(), 1) if text in line_text)


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The module in the current directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    importlib.invalidate_caches()
    (tmp_path / "own_tried.py").write_text(MODULE)
    yield tmp_path / "own_tried.py"
    sys.modules.pop("own_tried", None)


def case(function: str) -> Case:
    return Case(f"own_tried:{function}", SHAPE, 3, TASK.spec(), {}, ("mirror",))


def built(function: str) -> Any:
    pytest.importorskip("keras")
    return registry.build(f"own_tried:{function}", SHAPE, 3, {}, 0)


@pytest.mark.tensorflow
def test_frozen_epochs_need_a_backbone(own: Path, storage_root: Path) -> None:
    config = Config.load(**{"model.name": "own_tried:tutorial", "model.freeze_epochs": 2})
    tried = preflight.of(config, SHAPE, TASK)
    assert tried
    said = "model.freeze_epochs = 2, but no layers of own_tried:tutorial are named backbone and pool"
    with pytest.raises(ModelError, match=said):
        preflight.run(tried, Storage(str(storage_root)))


@pytest.mark.tensorflow
def test_preflight_runs_once_until_the_files_change(
    own: Path, storage_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = Storage(str(storage_root))
    tried = preflight.of(
        Config.load(**{"model.name": "own_tried:tutorial", "model.mirror": True}), SHAPE, TASK
    )
    assert tried == case("tutorial")
    notes = preflight.run(tried, storage)
    scaled, ends = line("1 / 255"), line('activation="softmax"')
    assert [note.partition(", ")[0] for note in notes] == [
        f"own_tried:tutorial ends in a softmax (own_tried.py line {ends})",
        f"own_tried:tutorial scales pixels itself (own_tried.py line {scaled})",
    ]
    monkeypatch.setattr(sys, "executable", "/nowhere")
    assert preflight.run(tried, storage) == notes
    kept = json.loads(storage.read_text(preflight.FOLDER, f"{tried.key}.json"))
    assert list(kept["files"]) == [str(own)]
    own.write_text(MODULE + "\n")
    with pytest.raises(FileNotFoundError):
        preflight.run(tried, storage)


def test_built_in_networks_skip_preflight() -> None:
    assert preflight.of(Config.load(), SHAPE, TASK) is None


@pytest.mark.usefixtures("own")
def test_a_crashed_preflight_process_is_an_error_message(
    storage_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(ModelError, match="trying own_tried:pair ended with exit code 1: it printed nothing"):
        preflight.run(case("pair"), Storage(str(storage_root)))


@pytest.mark.tensorflow
@pytest.mark.usefixtures("own")
@pytest.mark.parametrize("function", ["separate", "popped", "nested", "tutorial"])
def test_a_final_softmax_is_removed(function: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "distml.models"):
        network = built(function)
    pixels = np.random.default_rng(0).integers(0, 256, (4, *SHAPE)).astype(np.float32)
    logits = np.asarray(network(pixels))
    assert (logits < 0).any()
    assert f"own_tried:{function} ends in a softmax (own_tried.py line " in caplog.text


@pytest.mark.tensorflow
@pytest.mark.usefixtures("own")
def test_a_final_sigmoid_is_removed_except_for_numbers(caplog: pytest.LogCaptureFixture) -> None:
    pytest.importorskip("keras")
    pixels = np.random.default_rng(0).integers(0, 256, (4, *SHAPE)).astype(np.float32)
    name = "own_tried:several_sigmoids"
    assert (np.asarray(built("several_sigmoids")(pixels)) < 0).any()
    assert "which is removed: the export adds what the task needs" in caplog.text
    labels = registry.build(name, SHAPE, 3, {}, 0, "multilabel")
    assert (np.asarray(labels(pixels)) < 0).any()
    numbers = registry.build(name, SHAPE, 3, {}, 0, "regression")
    assert (np.asarray(numbers(pixels)) >= 0).all()


@pytest.mark.tensorflow
@pytest.mark.usefixtures("own")
def test_one_output_is_the_logit_of_the_second_class(caplog: pytest.LogCaptureFixture) -> None:
    keras = pytest.importorskip("keras")
    network = registry.build("own_tried:yes_or_no", SHAPE, 2, {}, 0)
    assert "one output, used as the logit of the second class" in caplog.text
    pixels = np.random.default_rng(0).integers(0, 256, (4, *SHAPE)).astype(np.float32)
    logits = np.asarray(network(pixels))
    hidden = keras.Model(network.input, network.get_layer("first_class").input)
    assert (logits[:, 0] == 0).all()
    assert (logits[:, 1] == np.asarray(hidden(pixels))[:, 0, 0]).all()
    with pytest.raises(ModelError, match="3 classes need logits"):
        built("yes_or_no")
    with pytest.raises(ModelError, match="2 classes need logits"):
        registry.build("own_tried:yes_or_no", SHAPE, 2, {}, 0, "multilabel")


@pytest.mark.tensorflow
@pytest.mark.usefixtures("own")
@pytest.mark.parametrize(
    ("function", "scaled"),
    [
        ("tutorial", False),
        ("centred", True),
        ("subclassed", True),
        ("divided", False),
        ("standardised", False),
        ("wrapped", False),
        ("inside", False),
        ("unscaled", True),
    ],
)
def test_pixels_are_scaled_once(function: str, scaled: bool) -> None:
    assert ("normalise" in [layer.name for layer in built(function).layers]) is scaled


@pytest.mark.tensorflow
@pytest.mark.usefixtures("own")
def test_pixels_that_a_network_scales_twice_give_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    built("twice")
    assert "scales pixels twice" in caplog.text
    assert "0 to 255 become a range of 0.0039" in caplog.text
    caplog.clear()
    built("divided")
    assert "twice" not in caplog.text


@pytest.mark.tensorflow
@pytest.mark.usefixtures("own")
def test_layers_inside_a_subclass_are_left_unchanged(caplog: pytest.LogCaptureFixture) -> None:
    network = built("gate")  # where a class uses its layers is not known
    assert (np.asarray(network(np.zeros((1, *SHAPE), np.float32))) == 0.5).all()
    assert not caplog.text
    zeros = np.zeros((1, 3), np.float32)
    preflight._require_logits(case("gate"), zeros + 0.5, zeros + 0.5)
    place = line('return Net(classes, "sigmoid")')
    assert f"seems to end in a sigmoid (own_tried.py line {place})" in caplog.text


@pytest.mark.tensorflow
@pytest.mark.usefixtures("own")
@pytest.mark.parametrize(
    ("function", "said", "remedy"),
    [
        ("frozen", "has no weights that learn", "Leave its head trainable"),
        ("absent", "returns NoneType, not a Keras model", "return and the model"),
        ("listed", "returns a list of 1 outputs", "one tensor"),
        ("named", "returns a dict of 2 outputs", "one tensor"),
        ("half", "sets Keras's dtype policy to mixed_float16", "Set train.precision instead"),
        ("lazy", "has no weights that learn", "in __init__, not in call"),
        ("uncalled", "returns the class Net", "call the class"),
        ("misspelt", r"\(own_tried.py line {clases}\): name 'clases' is not defined", ""),
        ("resized", r"\(own_tried.py line {tf.image}\): A KerasTensor cannot be used", "Use keras.ops"),
        ("wide", r"returns \(None, 6, 6, 3\), but 3 classes", "Put GlobalAveragePooling2D"),
        (
            "other_head",
            r"\(own_tried.py line {head\(L}\): .* found shape=\(None, 192\)$",
            "for the shape that",
        ),
    ],
)
def test_a_network_that_could_not_be_trained_is_rejected(function: str, said: str, remedy: str) -> None:
    keras = pytest.importorskip("keras")
    if place := re.search(r"{(.*?)}", said):
        said = said.replace(place[0], str(line(place[1].replace("\\", ""))))
    with pytest.raises(ModelError) as caught:
        built(function)
    assert re.search(said, caught.value.message)
    assert remedy in caught.value.remedy
    assert keras.config.dtype_policy().name == "float32"


@pytest.mark.tensorflow
@pytest.mark.usefixtures("own")
def test_a_final_relu_gives_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    built("positive")
    assert f"ends in a relu (own_tried.py line {line('relu')}): no output is below zero" in caplog.text


@pytest.mark.tensorflow
@pytest.mark.usefixtures("own")
@pytest.mark.parametrize(
    ("function", "said", "remedy"),
    [
        ("fixed_size", "found shape=(None, 8, 8, 3)", "Begin with keras.Input(shape)"),
        ("pair", "takes 2 inputs, but a row is one image", "one Input"),
        (
            "channels_first",
            "cannot be trained: Conv2DCustomBackpropFilterOp only supports NHWC",
            "channels last",
        ),
        ("noisy", "returns different outputs for the same input", "only in training"),
        ("probabilities", "ends in a softmax (own_tried.py line {softmax}), which", "without an activation"),
        (
            "subclassed",
            "cannot be exported: Object Net was created by",
            "above Net (own_tried.py line {Net})",
        ),
    ],
)
def test_a_network_that_could_not_be_served_is_named_with_its_line(
    tmp_path: Path, function: str, said: str, remedy: str
) -> None:
    lines = {"softmax": line('return Net(classes, "softmax")'), "Net": line("class Net")}
    (tmp_path / "export").mkdir()
    with pytest.raises(ModelError) as caught:
        preflight._exported(case(function), tmp_path / "export")
    assert said.format(**lines) in caught.value.message
    assert "\x1b" not in caught.value.message
    assert remedy.format(**lines) in caught.value.remedy


@pytest.mark.tensorflow
@pytest.mark.usefixtures("own")
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # TensorFlow's converter
def test_a_layer_that_no_other_process_can_load_is_named(tmp_path: Path) -> None:
    (tmp_path / "export").mkdir()
    outcome = preflight._exported(case("recurrent"), tmp_path / "export")
    with pytest.raises(ModelError, match="cannot be loaded where its module is not imported") as caught:
        preflight._reloaded(case("recurrent"), tmp_path / "export", outcome)
    assert f"Twice (own_tried.py line {line('class Twice')})" in caught.value.remedy
    assert "@keras.saving.register_keras_serializable()" in caught.value.remedy


FUNCTIONS = """
import keras
import numpy as np
import tensorflow as tf

def rows(targets, logits):
    print("called")
    return tf.nn.sparse_softmax_cross_entropy_with_logits(targets, logits)

def one(targets, logits):
    return tf.reduce_mean(rows(targets, logits))

def wide(targets, logits):
    return tf.square(logits)

def whole(targets, logits):
    return tf.cast(rows(targets, logits), tf.int32)

def computed(targets, logits):
    return np.square(logits.numpy()).mean(1)

def constant(targets, logits):
    return tf.cast(targets, tf.float32)

def of_probabilities(targets, logits):
    return keras.losses.sparse_categorical_crossentropy(targets, logits)

def failing(targets, logits):
    raise KeyError("gamma")

def logarithm(targets, logits):
    return -tf.math.log(logits[:, 0])

def hot(targets, logits):
    return keras.losses.categorical_crossentropy(targets, logits, from_logits=True)

def elsewhere(targets, logits):
    import no_such_package

def lion(learning_rate):
    return keras.optimizers.Lion(learning_rate)

def fixed(learning_rate):
    return keras.optimizers.Adam(0.5)

class Broken(keras.optimizers.SGD):
    def update_step(self, gradient, variable, learning_rate):
        raise RuntimeError("no slot")

def broken(learning_rate):
    return Broken(learning_rate)

def rates(step, total_steps, learning_rate):
    return np.float32(learning_rate * (1 - step / total_steps))

def schedule(step, total_steps, learning_rate):
    return keras.optimizers.schedules.CosineDecay(learning_rate, total_steps)

class Halved(keras.layers.Layer):
    def call(self, images, training=False):
        return images[:, ::2]

class Failing(keras.layers.Layer):
    def call(self, images, training=False):
        raise TypeError("no images")

class Shares(keras.layers.Layer):
    def call(self, images, training=False):
        return images / 255

class Eager(keras.layers.Layer):
    def call(self, images, training=False):
        return tf.constant(np.asarray(images))

class Counted(keras.layers.Layer):
    def __init__(self, times, **options):
        super().__init__(**options)

counted = keras.metrics.SparseCategoricalAccuracy()

def right(targets, outputs):
    outputs[:] = 0  # its own copy
    assert set(targets) == {0, 1, 2}
    return np.float32(1)

def each(targets, outputs):
    return outputs

def undefined(targets, outputs):
    return float("nan")
"""


@pytest.fixture
def functions(own: Path) -> Iterator[None]:
    """A module of losses, metrics, optimizers, schedules and layers of the user's."""
    pytest.importorskip("keras")
    (own.parent / "own_functions.py").write_text(FUNCTIONS)
    yield
    sys.modules.pop("own_functions", None)


def tried(keys: dict[str, Any]) -> None:
    wanted = preflight.of(Config.resolve(keys), SHAPE, TASK)
    assert wanted
    preflight._call_functions(wanted)


@pytest.mark.tensorflow
@pytest.mark.usefixtures("functions")
def test_functions_of_the_user_are_called_without_a_network_of_the_user() -> None:
    named = {"loss": "own_functions:rows", "optimizer": "own_functions:lion"}
    named["schedule"] = "own_functions:rates"
    tried({"train": named, "evaluate": {"metrics": ["own_functions:right"]}})


@pytest.mark.tensorflow
@pytest.mark.usefixtures("functions")
@pytest.mark.parametrize(("optimizer", "warned"), [("fixed", True), ("lion", False)])
def test_a_learning_rate_that_is_not_used_gives_a_warning(
    optimizer: str, warned: bool, caplog: pytest.LogCaptureFixture
) -> None:
    tried({"train": {"optimizer": f"own_functions:{optimizer}"}})
    assert (f"own_functions:{optimizer} keeps a learning rate of 0.5" in caplog.text) is warned


@pytest.mark.tensorflow
@pytest.mark.usefixtures("functions")
@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"loss": "own_functions:one"}, r"returns float32 of shape \(\) for 5 rows"),
        ({"loss": "own_functions:wide"}, r"shape \(5, 3\) for 5 rows.* average over the last axis"),
        ({"loss": "own_functions:whole"}, "returns int32 of shape"),
        ({"loss": "own_functions:computed"}, "'SymbolicTensor' object has no attribute 'numpy'"),
        ({"loss": "own_functions:constant"}, "no gradient by its second argument"),
        ({"loss": "own_functions:of_probabilities"}, "stays the same where logits change.*from_logits=True"),
        ({"loss": "own_functions:failing"}, "failing fails: KeyError: 'gamma'"),
        ({"loss": "own_functions:logarithm"}, "returns nan for logits of -4 to -3.* Logits may be below 0"),
        ({"loss": "own_functions:hot"}, r"targets, int32 \[N\], and logits, float32 \[N, 3\], in this order"),
        ({"loss": "own_functions:elsewhere"}, "No module named 'no_such_package'.* Install that package"),
        ({"optimizer": "own_functions:broken"}, "broken fails: RuntimeError: no slot"),
        ({"schedule": "own_functions:schedule"}, "returns .*CosineDecay.* for step 0 of 100"),
        ({"augment": {"layers": ["own_functions:Halved"]}}, r"turns images of \(8, 8, 3\) into \(4, 8, 3\)"),
        ({"augment": {"layers": ["own_functions:Failing"]}}, "Failing fails: TypeError: no images"),
        ({"augment": {"layers": ["own_functions:Shares"]}}, "pixels of 0 to 255 into values up to 1"),
        ({"augment": {"layers": ["own_functions:Eager"]}}, "Cannot convert a symbolic tf.Tensor"),
    ],
)
def test_a_function_that_could_not_be_used_is_named(keys: dict[str, Any], said: str) -> None:
    with pytest.raises(ModelError) as caught:
        tried({"train": keys})
    assert re.search(said, f"{caught.value.message} {caught.value.remedy}")


@pytest.mark.tensorflow
@pytest.mark.usefixtures("functions")
@pytest.mark.parametrize(
    ("metric", "said"),
    [
        ("each", "returns array.*Return one finite number"),
        ("undefined", "returns nan.*Return one finite number"),
        ("counted", "returns another number for the same rows.*Keep nothing between calls"),
    ],
)
def test_a_metric_that_is_no_number_is_named(metric: str, said: str) -> None:
    with pytest.raises(ModelError, match=f"own_functions:{metric} {said}"):
        tried({"evaluate": {"metrics": [f"own_functions:{metric}"]}})


@pytest.mark.tensorflow
@pytest.mark.usefixtures("functions")
def test_a_loss_of_numbers_is_given_them_as_the_network_learns_them(own: Path) -> None:
    from distml.tasks import losses

    (own.parent / "own_numbers.py").write_text(
        "def far(targets, scaled):\n    return targets[:, 0] + 0 * scaled[:, 0]\n"
    )
    task = Regression(("length",), scale=((100.0, 20.0),))
    targets = np.array([[100.0], [140.0]], np.float32)
    assert losses.loss(task, "own_numbers:far")(targets, np.zeros((2, 1), np.float32)).numpy().tolist() == [
        0,
        2,
    ]
