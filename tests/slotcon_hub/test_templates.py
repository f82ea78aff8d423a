import pytest
from jinja2 import UndefinedError

from slotcon_hub.templates import render_template


def test_a_missing_value_is_an_error_and_pages_escape(tmp_path):
    page, card = tmp_path / "page.html", tmp_path / "card.md"
    for template in (page, card):
        template.write_text("{% for one in names %}\n{{ one }}\n{% endfor %}\n{{ last }}\n", encoding="utf-8")
    assert render_template(card, names=["<a>", "b"], last="é") == "<a>\nb\né\n"
    assert render_template(page, names=["<a>", "b"], last="é") == "&lt;a&gt;\nb\né\n"
    with pytest.raises(UndefinedError, match="'last' is undefined"):
        render_template(card, names=[])
