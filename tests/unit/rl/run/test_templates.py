"""What every template can rely on: escapes, tables, and names that are there."""

import jinja2
import pytest

from rl.run.templates import templates


def written(directory, name, source, **values):
    (directory / name).write_text(source)
    return templates(directory).get_template(name).render(**values)


def test_a_page_escapes_what_it_is_given_and_markdown_does_not(tmp_path):
    assert written(tmp_path, "a.html.j2", "<p>{{ x }}</p>", x="<b>&") == "<p>&lt;b&gt;&amp;</p>"
    assert written(tmp_path, "a.md.j2", "`{{ x }}`", x="<b>&") == "`<b>&`"


def test_what_html_cannot_hold_is_shown_by_a_picture(tmp_path):
    shown = written(tmp_path, "a.html.j2", "{{ x }}", x="\x00\x1b\ud83d\tend\n")
    assert shown == "␀␛?\tend\n"


def test_a_table_holds_whatever_its_cells_do(tmp_path):
    rows = [["a | b", "two\nlines"], [1, None]]
    assert written(tmp_path, "a.md.j2", "{{ rows|table(['x', 'y']) }}", rows=rows) == (
        "| x | y |\n| --- | --- |\n| a \\| b | two lines |\n| 1 | None |"
    )


def test_a_name_that_is_not_given_is_an_error(tmp_path):
    with pytest.raises(jinja2.UndefinedError, match="missing"):
        written(tmp_path, "a.md.j2", "{{ missing }}")
