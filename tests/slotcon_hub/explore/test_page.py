"""The page in a real browser."""

import io
import json
import re

import pytest
from browser import WAIT, chromium, expect, served
from PIL import Image
from prototype_models import exported, paint, painted

from slotcon_hub.cli import main
from slotcon_hub.explore import app

pytestmark = pytest.mark.browser
EXPLORE = ["-c", "import sys; from slotcon_hub.cli import main; sys.exit(main())", "explore", "--device", "cpu"]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    return [str(exported(root / "few", 8)), str(exported(root / "many", 40))]


@pytest.fixture(scope="module")
def address(models, tmp_path_factory):
    root = tmp_path_factory.mktemp("served")
    images = paint(root / "images", 7)
    with served([*EXPLORE, "--model", *models, "--images", str(images)], root / "log") as url:
        yield url


@pytest.fixture(scope="module")
def browser():
    with chromium() as running:
        yield running


@pytest.fixture
def visit(browser, address):
    """Open the page as one more visitor; it asks nobody but its server, and has no error."""
    contexts, asked, errors = [], [], []

    def start(**options):
        contexts.append(browser.new_context(**options))
        page = contexts[-1].new_page()
        page.set_default_timeout(WAIT)
        expect.set_options(timeout=WAIT)
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(address)
        page.locator("#file input").wait_for(state="attached")
        return page

    yield start
    for context in contexts:
        context.close()
    assert not [url for url in asked if not url.startswith((address, "data:", "blob:"))]
    assert not errors


def png(image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def drop(page, data: bytes, name: str = "image.png") -> None:
    page.locator("#file input").set_input_files({"name": name, "mimeType": "image/png", "buffer": data})


def tables(page):
    return [page.locator(".segments").nth(number) for number in range(2)]


def rows(table) -> list[str]:
    return [" ".join(text.split()) for text in table.locator("tr:has(td)").all_inner_texts()]


def told(model, path, tmp_path, *options):
    out = tmp_path / "segments"
    command = ["segment", str(path), "--model", model, "--device", "cpu", "--force", "--output", str(out), *options]
    assert main(command) == 0
    segments = json.loads((out / f"{path.stem}-segments.json").read_text())["segments"]
    return [f"{s['prototype']} {100 * s['share']:.1f} % {s['similarity']:.3f}" for s in segments], segments


def test_two_models_side_by_side_say_what_the_command_says(visit, models, tmp_path):
    page, path = visit(), tmp_path / "image.png"
    Image.fromarray(painted(5, 480, 640)).save(path)
    drop(page, path.read_bytes())
    for size in ("64", "480"):
        if size == "480":
            page.locator("#size input[type=number]").fill(size)
            page.locator("#size input[type=number]").blur()
        for model, table in zip(models, tables(page), strict=True):
            right, _ = told(model, path, tmp_path, "--size", size)
            expect(table.locator("tr:has(td)").first).to_have_text(re.compile(r"\s*".join(right[0].split())))
            assert rows(table) == right
            assert len(right) > 1


def test_a_click_shows_the_prototype_in_both_models(visit, models, tmp_path):
    page, path = visit(), tmp_path / "image.png"
    Image.fromarray(painted(5, 480, 640)).save(path)
    drop(page, path.read_bytes())
    overlay = page.locator(".overlay img").first
    overlay.wait_for()
    box = overlay.bounding_box()
    expect(page.locator(".similarity img")).to_have_count(0)
    overlay.click(position={"x": 0.3 * box["width"], "y": 0.7 * box["height"]})
    expect(page.locator(".concept")).to_have_count(2)
    for model, concept in zip(models, page.locator(".concept").all(), strict=True):
        _, segments = told(model, path, tmp_path, "--size", "64")
        with Image.open(tmp_path / "segments/image-index.png") as index:
            k = index.getpixel((192, 336))
        segment = next(s for s in segments if s["prototype"] == k)
        expect(concept.locator("h3")).to_have_text(f"Group {k}")
        expect(concept).to_contain_text(f"{100 * segment['share']:.1f} % of this image, mean similarity")
        expect(concept).to_contain_text(re.compile(r"Used by (no segment|\d+ segments?) in 7 images"))
        assert concept.locator(".nearest img").evaluate_all("all => all.every(one => one.naturalWidth == 128)")
    assert page.locator(".nearest img").count() > 0
    expect(page.locator(".similarity img")).to_have_count(2)

    drop(page, png(Image.fromarray(painted(6, 64, 64))))  # what was said of the last image goes
    expect(page.locator(".concept")).to_have_count(0)
    expect(page.locator(".similarity img")).to_have_count(0)


def test_files_that_cannot_be_shown_end_in_a_sentence(visit):
    page = visit()
    drop(page, png(Image.fromarray(painted(1))))
    expect(page.locator(".overlay img")).to_have_count(2)
    before = rows(tables(page)[0])
    drop(page, b"no image at all")
    expect(page.locator("#status")).to_contain_text("This file cannot be shown: cannot identify image file")
    drop(page, png(Image.new("1", (20_000, 20_000))))
    expect(page.locator("#status")).to_contain_text(re.compile("This file cannot be shown: Image size .* exceeds"))
    assert rows(tables(page)[0]) == before
    drop(page, png(Image.new("1", (9_000, 9_000))))  # large, but it can be read
    expect(page.locator("#status")).not_to_contain_text("This file")
    expect(tables(page)[0]).not_to_contain_text(before[0].split()[1])


def test_two_visitors_at_once_see_their_own(visit, models, tmp_path):
    one, other = visit(), visit(viewport={"width": 400, "height": 800}, color_scheme="dark")
    right = []
    for page, seed in ((one, 1), (other, 2)):
        path = tmp_path / f"{seed}.png"
        Image.fromarray(painted(seed, 300, 640)).save(path)
        right.append(told(models[1], path, tmp_path, "--size", "64")[0])
        drop(page, path.read_bytes())
    for page, lines in zip((one, other), right, strict=True):
        table = tables(page)[1]
        expect(table.locator("tr:has(td)")).to_have_count(len(lines))
        assert rows(table) == lines
    one.locator(".overlay img").first.click()
    expect(one.locator(".concept")).to_have_count(2)
    assert other.locator(".concept").count() == 0
    assert other.evaluate("document.documentElement.scrollWidth <= window.innerWidth")  # nothing to scroll sideways


def test_a_drawn_scene_is_chosen(visit):
    page = visit()
    page.locator("#scenes button:has(img)").nth(3).click()
    expect(page.locator(".overlay img")).to_have_count(2)
    expect(page.locator(".components img")).to_have_count(2)


def test_without_gradio_it_is_one_sentence(models, monkeypatch, capsys):
    monkeypatch.setattr(app.importlib.util, "find_spec", lambda name: None)
    assert main(["explore", "--model", models[0], "--device", "cpu"]) == 1
    assert (
        capsys.readouterr().err
        == 'slotcon-hub: the page needs gradio: pip install "path/to/slotcon_hub[explore]"\n'
    )


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--images", "missing"], "there is no folder missing: name a folder of images"),
        (["--model", "slotcon_nano"], "slotcon_nano is a backbone without prototypes"),
    ],
)
def test_other_faults_end_before_the_page_is_served(models, arguments, sentence, capsys):
    assert main(["explore", "--model", models[0], "--device", "cpu", *arguments]) == 1
    assert sentence in capsys.readouterr().err


def test_a_port_that_is_taken(models, address, capsys):
    port = address.rstrip("/").rpartition(":")[2]
    assert main(["explore", "--model", models[0], "--device", "cpu", "--port", port]) == 1
    assert f"127.0.0.1, port {port}, is not free (Address already in use" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "host", "port"),
    [([], "127.0.0.1", None), (["--host", "0.0.0.0", "--port", "7999"], "0.0.0.0", 7999)],
)
def test_it_listens_on_loopback_unless_told_until_ctrl_c(models, arguments, host, port, monkeypatch, capsys):
    class Page:
        local_url = "http://address"

        def launch(self, **options):
            self.options = options

        def block_thread(self):
            raise KeyboardInterrupt

    page = Page()
    monkeypatch.setattr(app, "build_page", lambda models, examples: page)
    assert main(["explore", "--model", models[0], "--device", "cpu", *arguments]) == 0
    assert (page.options["server_name"], page.options["server_port"], page.options["share"]) == (host, port, False)
    assert capsys.readouterr().out == "open http://address\n"
