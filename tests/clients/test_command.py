import os
import subprocess
import sys
from importlib.metadata import EntryPoint, entry_points, version

import pytest

from quietserve.clients import command


@pytest.fixture
def commands(monkeypatch):
    """Puts these functions in the place of the installed subcommands."""

    def install(**functions):
        entries = [FakeEntry(name, "", "quietserve.commands") for name in functions]
        monkeypatch.setattr(FakeEntry, "load", lambda entry: functions[entry.name])
        monkeypatch.setattr(command, "entry_points", lambda group: entries if group == "quietserve.commands" else [])

    return install


class FakeEntry(EntryPoint):
    pass


def test_hands_the_rest_of_the_line_to_the_subcommand(commands):
    seen = []
    commands(serve=lambda argv: seen.append(argv) or 3, chat=pytest.fail)
    assert command.main(["serve", "--port", "8100", "--help"]) == 3
    assert seen == [["--port", "8100", "--help"]]


def test_reads_the_command_line(commands, monkeypatch):
    seen = []
    commands(chat=lambda argv: seen.append(argv) or 0)
    monkeypatch.setattr(sys, "argv", ["quietserve", "chat", "hi"])
    assert command.main() == 0
    assert seen == [["hi"]]


@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help_lists_the_commands(commands, capsys, flag):
    commands(extra=pytest.fail, chat=pytest.fail)
    assert command.main([flag]) == 0
    written = capsys.readouterr().out.splitlines()
    assert written[0].startswith("usage: quietserve COMMAND")
    assert [line.split()[0] for line in written[2:]] == ["chat", "extra"]


def test_nothing_to_do_is_a_usage_error(capsys):
    assert command.main([]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("usage: quietserve COMMAND")


def test_version(capsys):
    assert command.main(["--version"]) == 0
    assert capsys.readouterr().out == f"quietserve {version('quietserve')}\n"


@pytest.mark.parametrize(
    ("typed", "hint"),
    [("srve", "did you mean 'serve'?"), ("chatt", "did you mean 'chat'?"), ("xyzzy", "--help lists the commands")],
)
def test_unknown_command(commands, capsys, typed, hint):
    commands(serve=pytest.fail, chat=pytest.fail)
    assert command.main([typed, "--port", "1"]) == 2
    assert capsys.readouterr().err == f"quietserve: no command {typed!r}; {hint}\n"


def test_control_c_ends_quietly(commands, capsys):
    def interrupted(argv):
        raise KeyboardInterrupt

    commands(train=interrupted)
    assert command.main(["train"]) == 130
    assert capsys.readouterr() == ("", "")


def test_every_installed_command_has_a_summary():
    assert {entry.name for entry in entry_points(group="quietserve.commands")} == command.SUMMARIES.keys()


def test_chat_loads_neither_torch_nor_the_other_layers():
    code = (
        "import sys; from quietserve.clients.command import main\n"
        "try: main(['chat', '--help'])\n"
        "except SystemExit: pass\n"
        "print(*sys.modules)"
    )
    modules = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "quietserve.clients.chat" in modules
    assert not {"torch", "transformers", "fastapi", "quietserve.server", "quietserve.model"} & set(modules)


def test_a_reader_that_has_left_is_no_traceback():
    reader, writer = os.pipe()
    os.close(reader)
    argv = [sys.executable, "-m", "quietserve.clients.command", "--help"]
    done = subprocess.run(argv, stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")
