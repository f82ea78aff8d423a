"""The page's own work, beside that of the command."""

import io
import time

import pytest
from PIL import Image
from prototype_models import painted

from slotcon_hub.cli.segment import _write as write_segments
from slotcon_hub.concepts.inference import segment_image
from slotcon_hub.explore import app
from slotcon_hub.explore.analysis import analyze, decode_for_display
from slotcon_hub.images import decode

pytest.importorskip("gradio")


def fastest(work):
    """Seconds of the fastest of some calls: processors are shared."""
    taken = []
    for _ in range(5):
        start = time.perf_counter()
        work()
        taken.append(time.perf_counter() - start)
    return min(taken)


@pytest.fixture(scope="module")
def explored():
    (one,) = app.load_models(["slotcon_nano_proto"])
    return one


def save(image):
    image.save(io.BytesIO(), "JPEG")


@pytest.mark.parametrize("size", [128, 480])
def test_an_image_takes_at_most_half_as_long_again_as_the_command(explored, size, tmp_path):
    buffer = io.BytesIO()
    Image.fromarray(painted(5, 480, 640)).save(buffer, "JPEG")
    data = buffer.getvalue()

    def command():
        image = decode(data)
        groups, segments = segment_image(explored.model, image, size=size)
        write_segments(tmp_path, "image", image, groups, segments, explored.model.num_classes, {})

    def page():
        overlay, components, _ = app._views(analyze(explored.model, decode_for_display(data), size))
        save(overlay)
        save(components)

    command()
    page()
    assert fastest(page) < 1.5 * fastest(command)


def test_a_click_takes_less_than_100_ms(explored):
    seen = analyze(explored.model, decode_for_display(app.EXAMPLES.joinpath("scene-04.webp").read_bytes()), 128)
    assert fastest(lambda: save(app._details(explored, seen, 250, 130)[0])) < 0.1
