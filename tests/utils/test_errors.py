"""Texts from outside reach the console without what controls it."""

import logging

import pytest

from hidiff.engine.logger import start_logging
from hidiff.utils.errors import UserError, friendly_errors, printable


def test_control_characters_are_escaped_and_letters_stay():
    text = "a\x1b[31m\r\nb\u202e\udce4\u2028"
    assert printable(text) == r"a\x1b[31m\r\nb\u202e\udce4\u2028"
    assert printable("Größe 大\t😀") == "Größe 大\t😀"
    assert printable("a\nb\x07", keep_lines=True) == "a\nb\\x07"


def test_the_console_is_not_controlled_by_names(capsys):
    start_logging(is_main=True)
    logging.getLogger("hidiff").info("%s restored", "a\x1b[2J\nall is well")
    with pytest.raises(SystemExit), friendly_errors():
        raise UserError("\x1b]0;title\x07: damaged")
    found = capsys.readouterr()
    assert "\x1b" not in found.out + found.err
    assert found.out.count("\n") == 1
