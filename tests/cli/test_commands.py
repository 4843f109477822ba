"""The command line as a whole: help, flags, near misses, exit codes."""

import importlib
import subprocess
import sys

import pytest

from hidiff.cli import COMMANDS, build_parser, main

HEAVY = "import sys; assert not {'torch', 'cv2', 'matplotlib', 'pydantic'} & set(sys.modules)"


def parsed(*words):
    return build_parser(words[0]).parse_args(words)


def test_no_help_imports_what_takes_long():
    build = "from hidiff.cli import COMMANDS, build_parser; [*map(build_parser, COMMANDS)]"
    subprocess.run([sys.executable, "-c", f"{build}; {HEAVY}"], check=True)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_names_its_command(command, capsys):
    with pytest.raises(SystemExit) as exit_:
        main([command, "-h"])
    assert exit_.value.code == 0
    assert f"usage: hidiff {command} " in capsys.readouterr().out
    assert callable(importlib.import_module(f"hidiff.cli.{command}").run)


def test_version(capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["--version"])
    assert exit_.value.code == 0
    assert capsys.readouterr().out == "hidiff 0.1.0\n"


def test_both_spellings_of_a_flag_are_one():
    for flag in ("--dry_run", "--dry-run"):
        assert parsed("train", "-opt", "x.yml", flag).dry_run
    assert parsed("train", "--opt", "x.yml", "--force-yml=a=1").force_yml == ["a=1"]


def test_overrides_count_however_they_are_given():
    words = ["train", "-opt", "x.yml", "--force_yml", "a=1", "b=2", "--force_yml", "c=3"]
    assert parsed(*words).force_yml == ["a=1", "b=2", "c=3"]
    assert parsed("train", "-opt", "x.yml").force_yml == []


def test_what_torchrun_gives_is_taken():
    args = parsed("train", "-opt", "x.yml", "--launcher", "pytorch", "--local-rank=1")
    assert (args.launcher, args.local_rank) == ("pytorch", 1)


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (["tran"], "'train'"),
        (["train", "--froce_yml", "a=1"], "'--force_yml'"),  # though -opt is missing, too
        (["prepare", "patchs"], "'patches'"),
        (["train", "-opt", "x.yml", "--launcher", "torch"], "'pytorch'"),
        (["train", "-opt", "x.yml", "more.yml"], "more.yml"),
        ([], "COMMAND"),
    ],
)
def test_a_near_miss_is_exit_code_2_and_says_what_is_meant(words, meant, capsys):
    with pytest.raises(SystemExit) as exit_:
        main(words)
    assert exit_.value.code == 2
    error = capsys.readouterr().err
    assert meant in error
    assert error.startswith("error: ")


def test_a_mistake_in_an_option_file_is_exit_code_2(capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["train", "-opt", "none.yml"])
    assert exit_.value.code == 2
    assert "none.yml" in capsys.readouterr().err
