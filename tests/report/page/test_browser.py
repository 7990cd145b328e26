"""The page in a real browser, opened from disk."""

import base64
import io
import shutil

import numpy as np
import pytest
from evaluations import LAYERS, controls, write_evaluation
from PIL import Image
from playwright.sync_api import expect, sync_playwright

from dqnet.report.page.html import write_report

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "chrome"))), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium on the PATH")
IMAGES = "#grid .card"
TIMEOUT = 30_000  # milliseconds: a busy machine is slow


@pytest.fixture(scope="module")
def chromium():
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER)
        yield browser
        browser.close()


@pytest.fixture
def visit(chromium):
    """``visit(path, ...)``: opens a page, and fails if it complains or asks for anything."""
    complaints, contexts = [], []

    def start(path, **settings):
        context = chromium.new_context(**settings)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(TIMEOUT)
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("dialog", lambda dialog: complaints.append(dialog.message) or dialog.dismiss())
        page.on("request", lambda request: complaints.append(request.url))
        page.goto(path.as_uri())
        page.wait_for_selector(IMAGES)
        return page

    yield start
    for context in contexts:
        context.close()
    asked = [c for c in complaints if not c.startswith(("file:", "data:"))]
    assert asked == []
    assert len([c for c in complaints if c.startswith("file:")]) == len(contexts)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """An evaluation with its page."""
    folder = tmp_path_factory.mktemp("evaluation")
    made = write_evaluation(folder, controls=controls(), curve=True)
    write_report(folder)
    return made


@pytest.fixture
def page(made, visit):
    return visit(made.folder / "report/index.html", viewport={"width": 1400, "height": 900})


def shown(page):
    """The number that the page says it shows."""
    return int(page.inner_text("#count").split()[0].replace(",", ""))


def by_cost(made):
    return sorted(row["bit_flops"] for row in made.rows)


def test_numbers_are_those_of_the_evaluation(page, made):
    for name in ("top1", "top5", "loss", "bit_flops", "mean_width", "distinct_routings"):
        assert float(page.get_attribute(f"#{name} data", "value")) == made.metrics[name]
    assert page.inner_text("#top1").startswith(f"{made.metrics['top1']:.2f} %")
    assert shown(page) == made.metrics["images"]
    assert page.locator("figure svg").count() == 6


def test_images_stand_by_cost_over_all_pages(page, made):
    indices = []
    while True:
        indices += page.eval_on_selector_all(IMAGES, "cards => cards.map(c => +c.dataset.image)")
        if page.is_disabled("#next"):
            break
        page.click("#next")
    assert sorted(indices) == list(range(120))
    assert [made.rows[i]["bit_flops"] for i in indices] == by_cost(made)


@pytest.mark.parametrize("answer", ["all", "right", "wrong"])
@pytest.mark.parametrize("label", [None, 2])
def test_filters_of_class_and_answer(page, made, answer, label):
    if label is not None:
        page.select_option("#class", str(label))
    page.check(f"input[value={answer}]")
    wanted = {"all": (0, 1), "right": (1,), "wrong": (0,)}[answer]
    rows = [r for r in made.rows if r["correct"] in wanted and label in (None, r["label"])]
    assert shown(page) == len(rows)
    marks = page.eval_on_selector_all(".card .answer", "a => a.map(e => e.textContent[0])")
    assert set(marks) == {"✓✗"[1 - correct] for correct in {row["correct"] for row in rows}}


def test_filter_of_cost_and_reset(page, made):
    costs = by_cost(made)
    span = costs[-1] - costs[0]
    page.fill("#low", "250")
    page.fill("#high", "700")
    low, high = costs[0] + span * 250 / 1000, costs[0] + span * 700 / 1000
    assert shown(page) == sum(low <= cost <= high for cost in costs) < 120
    page.fill("#low", "1000")  # takes the other end along, and keeps the most expensive
    assert shown(page) == costs.count(costs[-1])
    page.click("button[type=reset]")
    # The fields change after the event, so the page follows a task later.
    expect(page.locator("#count")).to_have_text("120 of 120 images", timeout=TIMEOUT)


def test_nothing_left(page):
    page.select_option("#class", "0")
    page.check("input[value=wrong]")
    page.fill("#high", "0")
    assert shown(page) == 0
    assert page.locator(IMAGES).count() == 0


def detail(page):
    """What the open dialog says of an image."""
    return page.evaluate(
        """() => {
            const texts = (selector) => [...document.querySelectorAll(selector)]
                .map((e) => e.textContent);
            return {
                index: +texts("#detail-facts dd")[0],
                facts: texts("#detail-facts dd"),
                layers: texts("#detail-widths tbody th"),
                widths: [...document.querySelectorAll("#detail-widths td.chosen")]
                    .map((e) => e.cellIndex + 1),
                scores: texts("#detail-widths tbody td").map((t) => +t.replace("−", "-")),
                shares: texts("#detail-classes .share").map(parseFloat),
                classes: texts("#detail-classes span:nth-child(3n+1)"),
                picture: document.getElementById("detail-canvas").toDataURL().split(",")[1],
            };
        }"""
    )


def check_detail(page, made):
    page.evaluate("Promise.all(sheets.values()).then(() => null)")  # decoded, so drawn
    found = detail(page)
    row = made.rows[found["index"]]
    assert found["layers"] == list(LAYERS)
    assert found["widths"] == [row[name] for name in LAYERS]
    scores = made.scores[found["index"]].ravel().astype(float)
    assert found["scores"] == pytest.approx(scores, abs=0.0051)
    shares = made.top_probs[found["index"]]
    assert found["shares"] == pytest.approx(100 * shares, abs=0.051)
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(found["picture"]))))
    assert (pixels[..., :3] == made.images[found["index"]]).all()
    return found["index"]


def test_click_shows_an_image_in_detail(page, made):
    page.click("#last")
    card = page.locator(IMAGES).last
    index = int(card.get_attribute("data-image"))
    card.click()
    assert check_detail(page, made) == index
    page.click("#detail-close")
    assert not page.is_visible("#detail")


def test_keyboard(page, made):
    page.focus(IMAGES)
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowLeft")
    focused = "+document.activeElement.dataset.image"
    place = page.evaluate("+document.activeElement.dataset.place")
    first = page.evaluate(focused)
    page.keyboard.press("Enter")
    assert check_detail(page, made) == first
    page.keyboard.press("ArrowRight")
    second = check_detail(page, made)
    assert made.rows[second]["bit_flops"] >= made.rows[first]["bit_flops"]
    page.keyboard.press("ArrowLeft")
    assert check_detail(page, made) == first
    for _ in range(90):  # past the end of the page of cards
        page.keyboard.press("ArrowRight")
    last = check_detail(page, made)
    page.keyboard.press("Escape")
    assert not page.is_visible("#detail")
    # The dialog's close event, which moves the focus, is a task of its own.
    expect(page.locator(f'{IMAGES}[data-image="{last}"]')).to_be_focused(timeout=TIMEOUT)
    assert page.evaluate("+document.activeElement.dataset.place") == min(place + 90, 119)


def test_names_that_look_like_markup_are_shown(page, made):
    assert page.locator("option", has_text="<script>alert(1)</script>").count() == 1
    assert page.locator("#grid script, #detail script, #grid b").count() == 0
    page.select_option("#class", "2")
    assert page.inner_text(".card .label") == "<script>alert(1)</script>"
    page.click(IMAGES)
    assert "<script>alert(1)</script>" in page.inner_text("#detail-title")
    assert "<b>fc</b>" in page.inner_text("#detail-widths")


def test_no_script_but_the_pages_own_is_run(made, chromium, tmp_path):
    text = (made.folder / "report/index.html").read_text()
    smuggled = tmp_path / "smuggled.html"
    smuggled.write_text(text.replace("<main>", "<main><script>document.title = 'ran'</script>"))
    page, complaints = chromium.new_page(), []
    page.on("console", lambda message: complaints.append(message.text))
    page.goto(smuggled.as_uri())
    page.wait_for_selector(IMAGES)
    assert page.title() != "ran"
    assert "Content Security Policy" in complaints[0]
    page.close()


def test_tooltip_names_the_numbers(page):
    page.locator("#figure-layer_widths [data-tip]").first.hover()
    assert "layer1.0.conv1 at 2 bits: " in page.inner_text("#tooltip")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1400])
def test_nothing_is_wider_than_the_window(made, visit, scheme, width):
    viewport = {"width": width, "height": 800}
    page = visit(made.folder / "report/index.html", viewport=viewport, color_scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    light = page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(244, 246, 248)"
    assert light == (scheme == "light")


@pytest.mark.parametrize("quantized", [True, False])
def test_models_without_routing(tmp_path, visit, quantized):
    made = write_evaluation(tmp_path, layers=(), quantized=quantized)
    page = visit(write_report(made.folder))
    page.click(IMAGES)
    assert page.is_visible("#detail")
    assert ("Bit-FLOPs" in page.inner_text("#detail-facts")) == quantized
    page.keyboard.press("Escape")
    page.check("input[value=wrong]")
    assert shown(page) == sum(not row["correct"] for row in made.rows)


@pytest.mark.parametrize("count, beyond", [(2**16, 2**15), (81_313, 2**16)])
def test_many_classes(tmp_path, visit, monkeypatch, count, beyond):
    monkeypatch.setattr("dqnet.report.page.html.figures_of", lambda *_: [])
    classes = tuple(f"class {i}" for i in range(count))
    made = write_evaluation(tmp_path, images=60, classes=classes, layers=())
    page = visit(write_report(made.folder), viewport={"width": 1400, "height": 900})
    assert max(row["prediction"] for row in made.rows) >= beyond
    names = page.eval_on_selector_all(
        IMAGES,
        "all => all.map(c => [c.dataset.image, c.querySelector('.label').textContent, c.title])",
    )
    assert len(names) == len(made.rows)
    for index, label, title in names:
        row = made.rows[int(index)]
        assert label == f"class {row['label']}"
        assert title == f"{label} → class {row['prediction']}"
    page.click(IMAGES)
    best = page.eval_on_selector_all(
        "#detail-classes > :nth-child(3n + 1)", "names => names.map(n => n.textContent)"
    )
    expected = made.top_classes[int(names[0][0])].tolist()
    assert [name.removesuffix(" (label)") for name in best] == [f"class {i}" for i in expected]


def test_ten_thousand_images(tmp_path, visit, monkeypatch):
    # Figures take seconds to draw, and do not grow with the images.
    monkeypatch.setattr("dqnet.report.page.html.figures_of", lambda *_: [])
    classes = tuple(f"class {i}" for i in range(100))
    made = write_evaluation(tmp_path, images=10_000, side=32, classes=classes, channels=1)
    page = visit(write_report(made.folder))
    assert shown(page) == 10_000
    for _ in range(3):
        assert page.evaluate("document.getElementsByTagName('*').length") < 4000
        page.click("#next")
    page.click("#last")
    page.check("input[value=wrong]")
    assert shown(page) == sum(not row["correct"] for row in made.rows)
