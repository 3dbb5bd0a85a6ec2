import io
import subprocess
import sys

import pytest

from quietserve.clients import chat
from quietserve.clients.client import Delta


@pytest.fixture
def typed(monkeypatch):
    """Types these lines into the chat, as a pipe would."""
    return lambda *lines: monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{line}\n" for line in lines)))


@pytest.fixture
def run(fake_server, capsys):
    """Runs the chat against the server; gives the exit code and what was written on both streams."""

    def run_chat(*argv):
        code = chat.main(["--url", fake_server.url, *argv])
        return code, *capsys.readouterr()

    return run_chat


def test_one_question(run, fake_server):
    assert run("what now", "--depth", "8", "--seed", "3", "--temperature", "0") == (0, "what now \n", "")
    assert fake_server.bodies == [
        {
            "messages": [{"role": "user", "content": "what now"}],
            "model": "tiny",
            "thought_depth": 8,
            "seed": 3,
            "temperature": 0.0,
            "stream": True,
        }
    ]


def test_leaves_to_the_server_what_is_not_said(run, fake_server):
    run("hi", "--model", "other")
    assert fake_server.bodies == [
        {"messages": [{"role": "user", "content": "hi"}], "model": "other", "stream": True, "temperature": 0.0},
    ]
    assert fake_server.keys == [None]


def test_the_api_key_comes_from_the_environment(run, fake_server, monkeypatch):
    monkeypatch.setenv("QUIETSERVE_API_KEY", "secret")
    assert run("hi")[0] == 0
    assert fake_server.keys == ["Bearer secret"]


def test_thoughts_are_plain_where_nobody_watches(run):
    assert run("--show-thoughts", "a b")[1] == "[hm a]a [hm b]b \n"


def test_thoughts_are_dim_in_a_terminal(run, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert run("--show-thoughts", "a")[1] == "\x1b[2m[hm a]\x1b[0ma \n"


def test_control_characters_do_not_reach_the_terminal(run):
    assert run("a\x1b[2Jb\x07 \x9bc é") == (0, "a[2Jb c é \n", "")


def test_each_question_stands_alone(run, typed, fake_server):
    typed("one", "", "  two  ")
    assert run() == (0, "one \ntwo \n", "")
    assert [body["messages"] for body in fake_server.bodies] == [
        [{"role": "user", "content": "one"}],
        [{"role": "user", "content": "two"}],
    ]


def test_history_is_sent_when_asked_for(run, typed, fake_server):
    typed("one", "refuse", "two")
    run("--history")
    assert fake_server.bodies[-1]["messages"] == [
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "one "},
        {"role": "user", "content": "two"},
    ]


def test_commands(run, typed, fake_server):
    typed("/depth", "/depth 12", "/depth", "/thoughts", "a", "/thoughts", "b", "/help", "/quit", "never asked")
    code, out, err = run()
    assert (code, err) == (0, "")
    assert out == (
        "thought depth: as the server has it\nthought depth: 12\nthoughts are shown\n"
        f"[hm a]a \nthoughts are hidden\nb \n{chat.HELP}\n"
    )
    assert [body["thought_depth"] for body in fake_server.bodies] == [12, 12]
    assert [body.get("include_reasoning") for body in fake_server.bodies] == [True, None]


@pytest.mark.parametrize("line", ["/depth x", "/depth -1", "/depth 1.5", "/depth ²", "/depth 1 2", "/dept 1", "/"])
def test_a_wrong_command_is_one_line_and_goes_on(run, typed, line):
    typed(line, "hi")
    code, out, err = run()
    assert (code, out) == (0, "hi \n")
    assert err.startswith("error: ")
    assert err.count("\n") == 1


def test_a_refused_question_is_one_line_and_goes_on(run, typed):
    typed("refuse", "hi")
    assert run() == (0, "hi \n", "error: too deep\n")


def test_a_broken_stream_keeps_its_beginning(run, typed):
    typed("half then break", "hi")
    code, out, err = run()
    assert (code, out) == (0, "half then break \nhi \n")
    assert "broke off" in err


def test_a_refused_single_question_fails(run):
    assert run("refuse") == (1, "", "quietserve chat: too deep\n")


def test_no_server(fake_server, capsys):
    fake_server.server_close()
    assert chat.main(["--url", fake_server.url]) == 1
    assert capsys.readouterr().err == f"quietserve chat: cannot connect to {fake_server.url}; is the server running?\n"


def test_no_address(capsys):
    assert chat.main(["--url", "here", "hi"]) == 1
    assert capsys.readouterr().err == "quietserve chat: base_url 'here' is not of the form http://HOST:PORT\n"


@pytest.mark.parametrize("depth", ["-1", "x", ""])
def test_wrong_depth_on_the_command_line(capsys, depth):
    with pytest.raises(SystemExit, match="2"):
        chat.main([f"--depth={depth}", "hi"])
    assert "a thought depth is a whole number from 0 up" in capsys.readouterr().err


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("pressed", [EOFError, KeyboardInterrupt])
def test_control_d_and_control_c_leave_cleanly(run, monkeypatch, fake_server, pressed):
    def press(prompt):
        assert prompt == "> "
        raise pressed

    monkeypatch.setattr(sys, "stdin", Terminal())
    monkeypatch.setattr("builtins.input", press)
    code, out, err = run()
    assert (code, err) == (0, "")
    assert out == f"tiny at {fake_server.url}; /help lists the commands, Ctrl-D leaves\n\n"


def test_control_c_stops_an_answer_and_lets_go_of_it(capsys, typed):
    class Endless:
        closed = False

        def stream_chat(self, messages, **_):
            try:
                yield Delta(index=0, text=f"{messages[0]['content']} ...")
                raise KeyboardInterrupt
            finally:
                self.closed = True

    client = Endless()
    talk = chat.Chat(client, "tiny", history=[])  # pyright: ignore[reportArgumentType]
    typed("first", "second")
    talk.loop()
    assert capsys.readouterr().out == "first ...\nsecond ...\n"
    assert client.closed
    assert talk.history == []


def test_as_a_program_with_a_pipe(fake_server):
    argv = [sys.executable, "-m", "quietserve.clients.command", "chat", "--url", fake_server.url]
    done = subprocess.run(argv, input="one\ntwo", capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "one \ntwo \n", "")
