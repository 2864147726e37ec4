"""The page in a real browser, over the real routes: files, mouse, keyboard, any shape, trouble."""

from __future__ import annotations

import dataclasses
import io
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from distml.config import ServeConfig
from distml.data.image import Policy, read
from distml.data.schema import Images
from distml.serving.batching import Core, Loaded
from distml.serving.metrics import Metrics
from distml.serving.service import Models
from distml.tasks import Outputs, Task
from distml.tasks.multilabel import Multilabel
from distml.tasks.regression import Regression
from tests import browser
from tests.serving import NAME, function, running, served

pytestmark = pytest.mark.timeout(120)
SHAPE = (28, 28, 1)
CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
ASK = function(7, len(CLASSES), SHAPE)


def endpoint(
    classes: tuple[str, ...] = CLASSES, shape: tuple[int, int, int] = SHAPE, name: str = NAME
) -> Core:
    """A core with one version whose held-out rows were mostly classified right."""
    random = np.random.default_rng(0)
    confusion = random.integers(0, 40, (len(classes), len(classes))) + np.eye(len(classes), dtype=int) * 800
    described = dataclasses.replace(
        served(7, classes, shape, name),
        metrics={"test_accuracy": 0.9125, "val_accuracy": 0.9176, "test_loss": 0.2422},
        confusion=tuple(tuple(map(int, row)) for row in confusion),
    )
    made = Core(ServeConfig())
    made.swap({7: Loaded(described, function(7, len(classes), shape))}, {"champion": 7})
    return made


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with running(endpoint()) as url:
        yield url


@pytest.fixture(scope="module")
def driver() -> Iterator[Any]:
    with browser.chromium() as driver:
        yield driver


@pytest.fixture
def page(driver: Any, url: str) -> Any:
    """The page, fresh; at the end nothing may have been complained about or asked of others."""
    visit(driver, url)
    yield driver
    assert browser.complaints(driver) == []
    assert all(address.startswith((url, "data:", "blob:")) for address in browser.requested(driver))


def visit(driver: Any, url: str) -> None:
    driver.get(url)
    said(driver, "No picture yet.")


def said(driver: Any, pattern: str, limit_s: float = 15) -> str:
    """Wait until the verdict, which screen readers announce, matches; returns it."""
    from selenium.webdriver.support.ui import WebDriverWait

    def look(_: Any) -> str | bool:
        text = driver.find_element("id", "verdict").text
        return text if re.search(pattern, text) else False

    return str(WebDriverWait(driver, limit_s, 0.05).until(look))


def picture(path: Path, size: tuple[int, int] = (28, 28), mode: str = "L", seed: int = 3) -> Path:
    noise = np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), np.uint8)
    Image.fromarray(noise).convert(mode).save(path)
    return path


def expected(data: bytes) -> tuple[str, np.ndarray]:
    """The class and probabilities that the model gives without any HTTP."""
    image = read(data, Policy.of_arrays(SHAPE))
    probabilities = ASK(image[None])[0]
    return CLASSES[int(probabilities.argmax())], probabilities


def shown(driver: Any) -> list[float]:
    """Widths of the bars, as shares."""
    widths = driver.execute_script(
        "return [...document.querySelectorAll('.fill')].map((bar) => bar.style.width)"
    )
    return [float(width.rstrip("%")) / 100 for width in widths]


def test_an_uploaded_file_gets_the_prediction_of_the_model(page: Any, tmp_path: Path) -> None:
    path = picture(tmp_path / "noise.png")
    name, probabilities = expected(path.read_bytes())
    page.find_element("id", "file").send_keys(str(path))
    assert said(page, r"%").startswith(f"{name}, ")
    np.testing.assert_allclose(shown(page), probabilities, atol=1e-5)
    assert page.find_element("css selector", ".best .name").text == name
    assert "Version 7 answered in" in page.find_element("id", "said").text
    assert re.search(rf"held-out pictures predicted as {re.escape(name)}, \d+ were", page.page_source)
    label = page.find_element("id", "canvas").get_attribute("aria-label")
    assert label == "Picture noise.png, 28 by 28"


def test_the_model_is_described_with_its_matrix(page: Any) -> None:
    facts = page.find_element("id", "facts").text
    for expected_fact in ("7", f"{7:032x}", "91.3 %", "91.8 %", "0.2422"):
        assert expected_fact in facts
    assert page.title == "pets · distml"
    assert len(page.find_elements("css selector", "#matrix rect.cell")) == 100
    name = page.find_element("css selector", "#matrix svg").get_attribute("aria-label")
    assert name.startswith("Confusion matrix of 10 classes. The most frequent mistake: ")


def test_a_mouse_drawing_is_sent_white_on_black(page: Any) -> None:
    from selenium.webdriver.common.action_chains import ActionChains

    canvas = page.find_element("id", "canvas")
    chain = ActionChains(page).move_to_element_with_offset(canvas, -70, -70).click_and_hold()
    for across, down in ((140, 0), (0, 140), (-140, 0), (0, -140)):
        chain.move_by_offset(across, down)
    chain.release().perform()
    name, probabilities = expected(drawing(page))
    assert said(page, r"%").startswith(f"{name}, ")
    np.testing.assert_allclose(shown(page), probabilities, atol=0.02)  # the browser's PNG, our scaling
    pixels = np.asarray(Image.open(io.BytesIO(drawing(page))).convert("L"))
    assert set(np.unique(pixels)) >= {0, 255}
    assert 0.02 < (pixels > 127).mean() < 0.3
    page.find_element("id", "clear").click()
    assert said(page, "No picture yet.")
    assert max(shown(page)) == 0


def drawing(driver: Any) -> bytes:
    """What is on the canvas, as PNG."""
    import base64

    data = driver.execute_script("return document.getElementById('canvas').toDataURL('image/png')")
    return base64.b64decode(data.partition(",")[2])


def test_the_page_can_be_used_by_keyboard_alone(page: Any) -> None:
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys

    def press(*keys: str) -> None:
        ActionChains(page).send_keys(*keys).perform()

    reached = []
    for _ in range(8):
        press(Keys.TAB)
        reached.append(page.switch_to.active_element.get_attribute("id"))
        outline = page.execute_script("return getComputedStyle(document.activeElement).outlineStyle")
        assert outline == "solid"  # the focus is visible without a mouse
    assert reached[1:6] == ["canvas", "choose", "clear", "invert", "pen"]
    page.find_element("id", "canvas").send_keys(
        Keys.SPACE, *[Keys.ARROW_DOWN] * 8, *[Keys.ARROW_RIGHT] * 8, Keys.SPACE
    )
    name, _ = expected(drawing(page))
    assert said(page, r"%").startswith(f"{name}, ")
    before = drawing(page)
    page.switch_to.active_element.send_keys(*[Keys.ARROW_UP] * 5)  # the pen is lifted
    assert drawing(page) == before
    page.switch_to.active_element.send_keys(Keys.ESCAPE)
    assert said(page, "No picture yet.")


def test_inverting_sends_the_negative_image(page: Any, tmp_path: Path) -> None:
    path = picture(tmp_path / "noise.png", seed=5)
    page.find_element("id", "file").send_keys(str(path))
    first = said(page, r"%")
    page.find_element("id", "invert").click()
    negative = io.BytesIO()
    Image.fromarray(255 - np.asarray(Image.open(path))).save(negative, format="PNG")
    name, probabilities = expected(negative.getvalue())
    said(page, rf"^{re.escape(name)}, ")
    assert page.find_element("id", "verdict").text != first
    np.testing.assert_allclose(shown(page), probabilities, atol=0.01)


def test_a_photograph_is_scaled_down_before_it_is_sent(page: Any, tmp_path: Path) -> None:
    path = picture(tmp_path / "photo.png", (3000, 2000), "RGB")
    assert path.stat().st_size > ServeConfig().max_body_bytes  # the endpoint would refuse it as it is
    page.find_element("id", "file").send_keys(str(path))
    assert said(page, r"%")


def test_a_file_that_is_not_an_image_is_reported(page: Any, tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no picture")
    page.find_element("id", "file").send_keys(str(tmp_path / "text.png"))
    assert said(page, "is not a picture") == "text.png is not a picture this browser can read."


def test_pasted_and_dropped_images_are_accepted(page: Any, tmp_path: Path) -> None:
    name, _ = expected(picture(tmp_path / "noise.png").read_bytes())
    give = """
        const bytes = Uint8Array.from(atob(arguments[0]), (one) => one.charCodeAt(0));
        const data = new DataTransfer();
        data.items.add(new File([bytes], "noise.png", { type: "image/png" }));
        const kind = arguments[1];
        const target = kind === "paste" ? document : document.getElementById("drop");
        const event = kind === "paste" ? new ClipboardEvent(kind, { clipboardData: data, bubbles: true })
          : new DragEvent(kind, { dataTransfer: data, bubbles: true, cancelable: true });
        target.dispatchEvent(event);
    """
    import base64

    for way in ("paste", "drop"):
        page.execute_script(give, base64.b64encode((tmp_path / "noise.png").read_bytes()).decode(), way)
        assert said(page, r"%").startswith(f"{name}, ")
        page.find_element("id", "clear").click()
        said(page, "No picture yet.")


@pytest.mark.parametrize(
    ("classes", "shape"),
    [(("cat", "dog"), (24, 40, 3)), (tuple(f"class {k}" for k in range(50)), (64, 48, 1))],
)
def test_any_shape_and_number_of_classes(
    driver: Any, tmp_path: Path, classes: tuple[str, ...], shape: tuple[int, int, int]
) -> None:
    path = picture(tmp_path / "noise.png", (90, 60), "RGB")
    with running(endpoint(classes, shape)) as url:
        visit(driver, url)
        driver.find_element("id", "file").send_keys(str(path))
        said(driver, r"%")
        assert len(driver.find_elements("css selector", ".bars li")) == min(12, len(classes))
        box = driver.find_element("id", "canvas").size
        assert box["width"] / box["height"] == pytest.approx(shape[1] / shape[0], rel=0.05)
        browser.shoot(driver, f"page-{len(classes)}-classes")
        assert not browser.overflowing(driver)


@pytest.mark.parametrize(
    ("fit", "corner", "said_of_it"),
    [
        ("crop", (0, 200, 0), "covers the middle; transparent parts become white"),
        ("letterbox", (255, 255, 255), "with bars beside it"),
        ("stretch", (200, 0, 0), "without keeping its proportions"),
    ],
)
def test_the_page_shows_a_photograph_as_the_model_is_given_it(
    driver: Any, tmp_path: Path, fit: Any, corner: tuple[int, ...], said_of_it: str
) -> None:
    pixels = np.zeros((60, 180, 3), np.uint8)
    for third in range(3):
        pixels[:, 60 * third : 60 * (third + 1), third] = 200  # red, green and blue
    Image.fromarray(pixels).save(tmp_path / "thirds.png")
    shape, policy = (30, 30, 3), Policy((30, 30, 3), fit)
    made = Core(ServeConfig())
    described = dataclasses.replace(served(7, CLASSES, shape), policy=policy)
    made.swap({7: Loaded(described, function(7, len(CLASSES), shape))}, {"champion": 7})
    with running(made) as url:
        visit(driver, url)
        driver.find_element("id", "file").send_keys(str(tmp_path / "thirds.png"))
        said(driver, r"%")
        assert said_of_it in driver.find_element("id", "preprocessing").get_attribute("textContent")
        script = (
            "return [...document.getElementById('seen').getContext('2d').getImageData(0, 0, 30, 30).data]"
        )
        seen = np.array(driver.execute_script(script), np.uint8).reshape(30, 30, 4)[..., :3]
    assert tuple(seen[1, 1]) == corner
    expected = read((tmp_path / "thirds.png").read_bytes(), policy)
    assert np.abs(seen.astype(int) - expected).mean() < 8  # each scales in its own way


def tasks(*given: tuple[Task, list[float]]) -> Models:
    """Models that predict the same for every picture."""
    services = {}
    for task, outputs in given:
        described = dataclasses.replace(served(1, task.names, SHAPE, task.kind), target=task.spec())
        row = np.array(outputs, np.float32)
        services[task.kind] = Core(ServeConfig())
        services[task.kind].swap({1: Loaded(described, partial(_repeated, row))}, {"champion": 1})
    return Models(services)


def _repeated(row: Outputs, images: Images) -> Outputs:
    return np.tile(row, (len(images), 1))


def test_all_numbers_and_the_thresholds_of_labels_are_shown(driver: Any, tmp_path: Path) -> None:
    from selenium.webdriver.support.ui import Select, WebDriverWait

    path = str(picture(tmp_path / "noise.png"))
    numbers = Regression(tuple(f"number {at}" for at in range(14)), scale=((0.0, 1.0),) * 14)
    labels = Multilabel(("cat", "dog"), thresholds=(0.5, 0.2))
    models = tasks((numbers, [float(at) for at in range(14)]), (labels, [0.4, 0.3]))
    with running(models, ServeConfig(), Metrics()) as url:
        visit(driver, url)
        driver.find_element("id", "file").send_keys(path)
        assert said(driver, "number") == "number 0 0, number 1 1, number 2 2, and 11 more"
        values = driver.find_elements("css selector", ".bars .value")
        assert [value.text for value in values] == [str(at) for at in range(14)]
        Select(driver.find_element("id", "of")).select_by_value("number 13")
        driver.find_element("id", "explain").click()
        caption = driver.find_element("id", "reason-caption")
        WebDriverWait(driver, 15, 0.05).until(lambda _: caption.text.startswith("number 13 is 13"))
        Select(driver.find_element("id", "models")).select_by_visible_text("multilabel")
        said(driver, "No picture yet.")
        driver.find_element("id", "file").send_keys(path)
        assert said(driver, "^dog") == "dog"
        assert len(driver.find_elements("css selector", ".bars li")) == 2
        lines = driver.find_elements("css selector", ".bars .threshold")
        places = [line.get_attribute("style") for line in lines]
        assert [re.search(r"left: (\d+)%", place)[1] for place in places] == ["50", "20"]  # type: ignore[index]
        browser.shoot(driver, "page-labels")
        options = [option.text for option in Select(driver.find_element("id", "of")).options]
        assert options == ["the most probable label", "cat", "dog"]
    assert browser.complaints(driver) == []


def test_one_of_several_models_is_chosen(driver: Any, tmp_path: Path) -> None:
    from selenium.webdriver.support.ui import Select, WebDriverWait

    path = picture(tmp_path / "noise.png", (40, 24), "RGB")
    models = Models({"pets": endpoint(), "cats": endpoint(("cat", "dog"), (24, 40, 3), "cats")})
    with running(models, ServeConfig(), Metrics()) as url:
        visit(driver, url)
        WebDriverWait(driver, 15, 0.05).until(
            lambda _: "go to pets" in driver.find_element("id", "default").text
        )
        said(driver, "No picture yet.")
        driver.find_element("id", "file").send_keys(str(path))
        said(driver, r"%")
        assert len(driver.find_elements("css selector", ".bars li")) == len(CLASSES)
        Select(driver.find_element("id", "models")).select_by_visible_text("cats")
        said(driver, "No picture yet.")
        driver.find_element("id", "file").send_keys(str(path))
        assert said(driver, r"%").startswith(("cat", "dog"))
        assert any(address.endswith("/models/cats/predict/image") for address in browser.requested(driver))
        assert browser.complaints(driver) == []


def test_an_endpoint_without_a_model_is_reported_and_polled(driver: Any) -> None:
    empty = Core(ServeConfig())
    with running(empty) as url:
        driver.get(url)
        assert said(driver, "no model") == "The endpoint has no model yet: no model has been loaded yet"
        full = endpoint()
        described = full.served()[0]
        empty.swap({7: Loaded(described, ASK)}, {"champion": 7})
        said(driver, "No picture yet.")  # by itself, a few seconds later
        browser.complaints(driver)


def test_a_stopped_endpoint_is_reported(driver: Any, tmp_path: Path) -> None:
    with running(endpoint()) as url:
        visit(driver, url)
    driver.find_element("id", "file").send_keys(str(picture(tmp_path / "noise.png")))
    assert said(driver, "does not respond")
    browser.complaints(driver)


@pytest.mark.parametrize(
    ("name", "width", "dark"), [("light", 1180, False), ("dark", 1180, True), ("phone", 400, False)]
)
def test_the_layout_fits_both_themes_and_a_phone(
    url: str, tmp_path: Path, name: str, width: int, dark: bool
) -> None:
    with browser.chromium(width, dark=dark) as driver:
        visit(driver, url)
        driver.find_element("id", "file").send_keys(str(picture(tmp_path / "noise.png")))
        said(driver, r"%")
        assert len(browser.shoot(driver, f"page-{name}")) > 20_000
        assert not browser.overflowing(driver)
        ink, ground = contrast(driver, "verdict"), contrast(driver, "line")
        assert min(ink, ground) >= 4.5  # WCAG 2.2, success criterion 1.4.3, level AA
        assert browser.complaints(driver) == []


def contrast(driver: Any, element: str) -> float:
    """Contrast of an element's text with the page's ground, as WCAG defines it."""
    colors = driver.execute_script(
        "return [getComputedStyle(document.getElementById(arguments[0])).color,"
        " getComputedStyle(document.body).backgroundColor]",
        element,
    )

    def luminance(color: str) -> float:
        values = [int(value) / 255 for value in re.findall(r"\d+", color)[:3]]
        linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in values]
        return float(np.dot(linear, [0.2126, 0.7152, 0.0722]))

    light, dark = sorted(map(luminance, colors), reverse=True)
    return (light + 0.05) / (dark + 0.05)
