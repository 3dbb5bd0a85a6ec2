"""The Dockerfile: what it says, and, where there is time (`slow`), what comes of its steps in a new environment."""

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import tomllib
from dataclasses import dataclass, field, fields
from pathlib import Path

import httpx
import pytest

from dockerfile import Instruction, Stage, context, parsed
from quietserve.server.settings import Settings
from serving import COMMAND, ENVIRONMENT

ROOT = Path(__file__).parents[2]
ARGUMENTS, (BUILD, FINAL) = parsed((ROOT / "Dockerfile").read_text(encoding="utf-8"))
IGNORE = (ROOT / ".dockerignore").read_text(encoding="utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
HADOLINT = shutil.which("hadolint", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
QUESTION = {
    "prompt": "Question: A dial is at 3. It goes up 4 on Monday. Where is the dial now?\nAnswer:",
    "temperature": 0,
    "thought_depth": 12,
}

# --- what it says ----------------------------------------------------------------------------------------------------


@pytest.mark.skipif(HADOLINT is None, reason="hadolint is not installed")
def test_the_linter_has_no_complaint() -> None:
    assert HADOLINT is not None
    linted = subprocess.run([HADOLINT, str(ROOT / "Dockerfile")], capture_output=True, text=True, check=False)
    assert (linted.returncode, linted.stdout) == (0, "")


def test_the_base_is_of_one_version() -> None:
    assert re.fullmatch(r"python:3\.\d+\.\d+-\S+", ARGUMENTS["BASE"])
    assert BUILD.image == FINAL.image == ARGUMENTS["BASE"], "an environment holds links to the python that made it"


def test_it_does_not_run_as_root() -> None:
    user = FINAL.last("USER").rest
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", user), "a number: Kubernetes cannot look up a name"
    (run,) = FINAL.all("RUN")
    assert f"--uid {user.partition(':')[0]} " in run.rest
    assert FINAL.instructions.index(run) < FINAL.instructions.index(FINAL.last("USER"))


@pytest.mark.parametrize("word", ["ENTRYPOINT", "CMD", "HEALTHCHECK"])
def test_no_shell_stands_between(word: str) -> None:
    assert all(isinstance(part, str) for part in FINAL.last(word).exec_form)


def test_it_starts_a_command_of_ours_that_takes_the_signal() -> None:
    assert FINAL.last("ENTRYPOINT").exec_form[0] in PROJECT["scripts"]
    assert FINAL.last("CMD").exec_form == ["serve"], "flags would win over the environment"
    assert FINAL.last("STOPSIGNAL").rest == "SIGTERM"


def test_what_it_copies_is_there_and_is_all_that_is_sent() -> None:
    sent = context(ROOT, IGNORE)
    copied = [source for instruction in BUILD.all("COPY") for source in instruction.copied]
    for source in copied:
        assert any(lies_in(name, source) for name in sent), f"{source} is missing or ignored"
    assert [name for name in sent if not any(lies_in(name, source) for source in copied)] == []
    assert [name for name in sent if "__pycache__" in name] == []


def test_no_package_is_forgotten() -> None:
    folders = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]["package-dir"]
    assert set(folders.values()) <= {source for instruction in BUILD.all("COPY") for source in instruction.copied}


def test_an_environment_stays_where_it_was_made() -> None:
    """Its scripts name their interpreter by its path."""
    taken = FINAL.all("COPY")
    assert taken
    for instruction in taken:
        origin, source, target = instruction.words
        assert origin == "--from=build"
        assert source == target


def test_every_variable_of_ours_is_a_flag() -> None:
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    used = set(re.findall(r"QUIETSERVE_[A-Z_]*[A-Z]", text))
    assert used >= {"QUIETSERVE_HOST", "QUIETSERVE_PORT"}
    assert used <= {f"QUIETSERVE_{flag.name.upper()}" for flag in fields(Settings)}


def test_its_labels_are_the_projects() -> None:
    labels = FINAL.last("LABEL").pairs({})
    prefix = "org.opencontainers.image."
    assert {name.removeprefix(prefix): text for name, text in labels.items()} == {
        "title": PROJECT["name"],
        "description": PROJECT["description"],
        "licenses": PROJECT["license"],
    }


@pytest.mark.parametrize(("extras", "has_it"), [("", False), ("bnb", False), ("ray", True), ("bnb ray", True)])
def test_for_ray_it_has_what_kuberay_asks_with(extras: str, has_it: bool) -> None:
    (run,) = FINAL.all("RUN")
    told = run.rest[run.rest.index("case ") :].replace("apt-get", "echo").replace("rm -rf", "echo")
    done = subprocess.run(["/bin/sh", "-c", told], env={"EXTRAS": extras}, capture_output=True, text=True, check=True)
    assert ("wget" in done.stdout.split()) == has_it


@pytest.mark.parametrize("extra", [None, "bnb"])
def test_what_it_installs_is_pinned(extra: str | None) -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    wanted = PROJECT["optional-dependencies"][extra] if extra else PROJECT["dependencies"]
    assert project_names(wanted) <= project_names(lines)


def project_names(requirements: list[str]) -> set[str]:
    return {re.split(r"[<>=~]", line)[0].lower().replace("_", "-") for line in requirements}


def lies_in(name: str, source: str) -> bool:
    return name == source or name.startswith(f"{source}/")


@pytest.mark.parametrize(
    ("name", "kept"),
    [("README.md", True), ("docs/log.md", False), ("server/app.py", True), ("server/a/__pycache__/x.pyc", False)],
)
def test_the_ignoring_is_understood(name: str, kept: bool, tmp_path: Path) -> None:
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).touch()
    assert context(tmp_path, "*\n!README.md\n!server\n**/__pycache__\n") == ([name] if kept else [])


IN_A_NAMESPACE = ["unshare", "--user", "--map-root-user", "--pid", "--fork", "--kill-child"]


def can_unshare() -> bool:
    return (
        shutil.which("unshare") is not None and subprocess.run([*IN_A_NAMESPACE, "true"], check=False).returncode == 0
    )


@pytest.mark.skipif(not can_unshare(), reason="no namespaces of processes here")
def test_as_the_first_process_it_leaves_when_told() -> None:
    """As in a container: the kernel keeps a signal that the first process has no handler for to itself."""
    command = [*IN_A_NAMESPACE, *COMMAND, *FINAL.last("CMD").exec_form]
    environment = ENVIRONMENT | {"QUIETSERVE_PORT": str(free_port())}
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL) as parent:
        try:
            wait_until_ready(f"http://127.0.0.1:{environment['QUIETSERVE_PORT']}", parent)
            (first,) = map(int, Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text().split())
            os.kill(first, signal.SIGTERM)
            assert parent.wait(30) == 0
        finally:
            parent.kill()


# --- what comes of it ------------------------------------------------------------------------------------------------


@dataclass
class Built:
    """An image without a container: its folders lie under `root`, and every path of its own is turned to there."""

    root: Path
    variables: dict[str, str] = field(default_factory=dict)
    folder: Path = Path("/")

    def run(self, stage: Stage, words: set[str]) -> None:
        """Do the instructions of these words."""
        for instruction in stage.instructions:
            if instruction.word in words:
                getattr(self, f"_{instruction.word.lower()}")(instruction)

    def inside(self, text: str) -> str:
        """Its own folders only: not those that every system has."""
        return re.sub(r"(?<![\w/*])/(?=(?:opt|src|models|cache)\b)", f"{self.root}/", text)

    def _arg(self, instruction: Instruction) -> None:
        self.variables |= {name: text for name, text in instruction.pairs(self.variables).items() if text}

    def _env(self, instruction: Instruction) -> None:
        self.variables |= {name: self.inside(text) for name, text in instruction.pairs(self.variables).items()}

    def _workdir(self, instruction: Instruction) -> None:
        self.folder = Path(self.inside(instruction.rest))
        self.folder.mkdir(parents=True)

    def _copy(self, instruction: Instruction) -> None:
        for name in context(ROOT, IGNORE):
            if any(lies_in(name, source) for source in instruction.copied):
                (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, self.folder / name)

    def _run(self, instruction: Instruction) -> None:
        done = subprocess.run(
            ["/bin/sh", "-c", self.inside(instruction.rest)],
            cwd=self.folder,
            env=os.environ | self.variables,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{instruction.rest}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """The build stage done, and the final stage's environment set."""
    path = f"{Path(sys.base_prefix) / 'bin'}{os.pathsep}/usr/bin{os.pathsep}/bin"
    image = Built(tmp_path_factory.mktemp("image"), {"PATH": path})
    image.run(BUILD, {"ARG", "ENV", "WORKDIR", "COPY", "RUN"})
    image.variables = {"PATH": path, "HOME": str(image.root)}
    image.run(FINAL, {"ENV", "WORKDIR"})
    return image


@pytest.mark.slow
def test_the_image_answers_is_healthy_and_leaves_when_told(built: Built) -> None:
    environment = built.variables | {"QUIETSERVE_HOST": "127.0.0.1", "QUIETSERVE_PORT": str(free_port())}
    url = f"http://127.0.0.1:{environment['QUIETSERVE_PORT']}"
    first, *more = FINAL.last("ENTRYPOINT").exec_form + FINAL.last("CMD").exec_form
    program = shutil.which(first, path=environment["PATH"])
    assert program is not None
    assert program.startswith(str(built.root))
    with subprocess.Popen([program, *more], cwd=built.folder, env=environment) as server:
        try:
            wait_until_ready(url, server)
            assert check_health(built, environment) == 0
            reply = httpx.post(f"{url}/v1/completions", json=QUESTION, timeout=60).json()
            assert reply["choices"][0]["text"].strip() == "7"
            server.send_signal(signal.SIGTERM)
            assert server.wait(30) == 0
        finally:
            server.kill()
    assert check_health(built, environment) != 0
    assert list(built.folder.iterdir()) == [], "nothing is written where checkpoints are mounted"


@pytest.mark.slow
def test_the_image_leaves_out_what_only_building_needs(built: Built) -> None:
    (site,) = (built.root / "opt/dependencies/lib").glob("python3*/site-packages")
    assert (site / "torch/lib").is_dir()
    assert not any((site / name).exists() for name in ("pip", "torch/include", "torch/test", "quietserve"))


def wait_until_ready(url: str, server: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + 120
    with httpx.Client(timeout=5) as client:
        while server.poll() is None and time.monotonic() < deadline:
            with contextlib.suppress(httpx.TransportError):
                if client.get(f"{url}/ready").status_code == 200:
                    return
            time.sleep(0.2)
    pytest.fail(f"it never became ready; its exit code is {server.poll()}")


def check_health(built: Built, environment: dict[str, str]) -> int:
    command, *more = FINAL.last("HEALTHCHECK").exec_form
    program = shutil.which(command, path=environment["PATH"])
    checked = subprocess.run([str(program), *more], cwd=built.folder, env=environment, capture_output=True, check=False)
    return checked.returncode


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]
