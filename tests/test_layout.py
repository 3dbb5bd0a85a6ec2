"""The house's rules, read from the sources: who may import whom, who stays free of torch, what no file is called.

Each rule is a function from a tree of sources to its complaints, so that it can be tried on made-up trees too.
"""

import ast
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from graphlib import CycleError, TopologicalSorter
from pathlib import Path, PurePosixPath

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = ("server", "model", "clients")

ARROWS = {
    "clients": {"clients"},
    "server": {"server", "model"},
    "model": {"model"},
    "model.training": {"model", "model.training", "clients"},  # which draws from served models, too
}
HTTP_AND_LOOPS = {"fastapi", "starlette", "uvicorn", "pydantic", "prometheus_client", "asyncio"}
FORBIDDEN_LIBRARIES = {
    "clients": {"torch", "transformers", *HTTP_AND_LOOPS},
    "model": HTTP_AND_LOOPS,
    "model.training": HTTP_AND_LOOPS,
}
TORCH_FREE = {
    "server.pipeline",
    "server.runs",
    "server.flags",
    "server.settings",
    "server.presets",
    "server.complaints",
    "server.scheduler",
    "server.schemas",
    "server.errors",
    "model.correction",
    "model.answers",
    "model.voting",
}
NO_NAMES = {"utils", "util", "common", "core", "base", "manager", "managers", "helpers", "helper", "misc"}


@dataclass(frozen=True)
class Import:
    """One name that a module imports: a module of ours by its dotted path from the root, or somebody else's."""

    source: str
    target: str
    relative: bool
    at_runtime: bool  # false inside `if TYPE_CHECKING:`


@dataclass(frozen=True)
class House:
    """The sources by path from the root, and the packages that the build is told of."""

    sources: Mapping[str, str]
    packages: frozenset[str] = field(default_factory=frozenset)

    @cached_property
    def modules(self) -> dict[str, str]:
        return {module_name(path): path for path in self.sources}

    @cached_property
    def imports(self) -> list[Import]:
        return [found for module in self.modules for found in self._imports_of(module)]

    def imports_among_us(self) -> Iterator[Import]:
        return (found for found in self.imports if found.target in self.modules)

    def _imports_of(self, module: str) -> Iterator[Import]:
        path = self.modules[module]
        package = module if path.endswith("__init__.py") else module.rpartition(".")[0]
        for node, at_runtime in import_nodes(ast.parse(self.sources[path])):
            for target in self._targets(node, package):
                relative = isinstance(node, ast.ImportFrom) and node.level > 0
                yield Import(module, target, relative, at_runtime)

    def _targets(self, node: ast.Import | ast.ImportFrom, package: str) -> Iterator[str]:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
            return
        parts = package.split(".")
        above = parts[: max(0, len(parts) - node.level + 1)] if node.level else []
        origin = ".".join([*above, *([node.module] if node.module else [])])
        for alias in node.names:
            submodule = f"{origin}.{alias.name}".lstrip(".")
            yield submodule if submodule in self.modules else origin


def module_name(path: str) -> str:
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def import_nodes(tree: ast.AST, at_runtime: bool = True) -> Iterator[tuple[ast.Import | ast.ImportFrom, bool]]:
    """The import statements, those inside functions too, and whether they run."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node, at_runtime
        elif isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            yield from import_nodes(ast.Module(node.body, []), False)
            yield from import_nodes(ast.Module(node.orelse, []), at_runtime)
        else:
            yield from import_nodes(node, at_runtime)


def area(module: str) -> str:
    parts = module.split(".")
    return "model.training" if parts[:2] == ["model", "training"] else parts[0]


def library(target: str) -> str:
    return target.partition(".")[0]


# --- the rules -------------------------------------------------------------------------------------------------------


def against_the_arrows(house: House) -> list[str]:
    return [
        f"{found.source} imports {found.target}"
        for found in house.imports_among_us()
        if area(found.target) not in ARROWS[area(found.source)]
    ]


def absolute_imports_of_ours(house: House) -> list[str]:
    return [
        f"{found.source} imports {found.target} by its absolute name"
        for found in house.imports
        if not found.relative and library(found.target) in ("quietserve", *FOLDERS)
    ]


def forbidden_libraries(house: House) -> list[str]:
    return [
        f"{found.source} imports {found.target}"
        for found in house.imports
        if not found.relative and library(found.target) in FORBIDDEN_LIBRARIES.get(area(found.source), set())
    ]


def bitsandbytes_elsewhere(house: House) -> list[str]:
    return [
        f"{found.source} imports bitsandbytes"
        for found in house.imports
        if library(found.target) == "bitsandbytes" and found.source != "model.quantize"
    ]


def torch_where_none_belongs(house: House) -> list[str]:
    """Follows the imports: a torch-free file that imports one with torch is not free of it."""
    runs: dict[str, set[str]] = {module: set() for module in house.modules}
    for found in house.imports:
        if found.at_runtime:
            runs[found.source].add(found.target)
    complaints = []
    for start in sorted(TORCH_FREE & house.modules.keys()):
        seen, todo = {start}, [start]
        while todo:
            module = todo.pop()
            if any(library(target) == "torch" for target in runs[module]):
                complaints.append(f"{start} has torch" + (f" through {module}" if module != start else ""))
            # Importing a module runs the packages it lies in.
            parents = {module.rpartition(".")[0]} - {""}
            new = ((runs[module] | parents) & house.modules.keys()) - seen
            seen |= new
            todo += sorted(new)
    return complaints


def import_cycles(house: House) -> list[str]:
    graph: dict[str, set[str]] = {}
    for found in house.imports_among_us():
        if found.at_runtime and found.source != found.target:
            graph.setdefault(found.source, set()).add(found.target)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return [" imports ".join(reversed(error.args[1]))]
    return []


def unlisted_packages(house: House) -> list[str]:
    """A sub-package missing from pyproject's list is absent from the wheel without a word."""
    present = {"quietserve." + str(PurePosixPath(path).parent).replace("/", ".") for path in house.sources}
    return [f"{package} is not in pyproject's packages" for package in sorted(present - house.packages)] + [
        f"{package} is in pyproject's packages and has no source" for package in sorted(house.packages - present)
    ]


def names_that_say_nothing(house: House) -> list[str]:
    return [path for path in house.sources if NO_NAMES & set(PurePosixPath(path).with_suffix("").parts)]


RULES = [
    against_the_arrows,
    absolute_imports_of_ours,
    forbidden_libraries,
    bitsandbytes_elsewhere,
    torch_where_none_belongs,
    import_cycles,
    unlisted_packages,
    names_that_say_nothing,
]


# --- our house -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def our_house() -> House:
    paths = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]
    sources = {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in paths}
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    return House(sources, frozenset(pyproject["tool"]["setuptools"]["packages"]))


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_our_house_keeps_the_rule(our_house, rule):
    assert rule(our_house) == []


def test_our_house_was_read(our_house):
    """Guards the other tests: a reader that finds nothing complains of nothing."""
    assert {area(module) for module in our_house.modules} == ARROWS.keys()
    assert any(found.target == "torch" for found in our_house.imports)
    assert any(area(found.source) != area(found.target) for found in our_house.imports_among_us())


def test_tests_have_names_that_say_something():
    stems = {path.stem.removeprefix("test_") for path in (ROOT / "tests").rglob("*.py")}
    assert stems & NO_NAMES == set()


# --- houses that break a rule ----------------------------------------------------------------------------------------

TRAINING = {"model/training/__init__.py": ""}
CONFIG = {"model/__init__.py": "", "model/config.py": ""}
LOOP = {
    "model/a.py": "from .b import B",
    "model/b.py": "from . import c",
    "model/c.py": "def f():\n    from . import a",
}


@pytest.mark.parametrize(
    ("rule", "sources", "complaints"),
    [
        (against_the_arrows, {**CONFIG, "clients/chat.py": "from ..model.config import X"}, 1),
        (against_the_arrows, {**CONFIG, "clients/chat.py": "from .. import model"}, 1),
        (against_the_arrows, {"server/app.py": "", "model/x.py": "def f():\n    from ..server.app import y"}, 1),
        (against_the_arrows, {**TRAINING, "model/decode.py": "from .training import loop"}, 1),
        (against_the_arrows, {**TRAINING, "server/app.py": "from ..model import training"}, 1),
        (against_the_arrows, {**TRAINING, "server/app.py": "from ..model.training import loop"}, 1),
        (against_the_arrows, {"server/__init__.py": "", "model/training/x.py": "from ... import server"}, 1),
        (against_the_arrows, {**CONFIG, "server/app.py": "from ..model.config import X"}, 0),
        (against_the_arrows, {**CONFIG, "model/training/tasks/dial.py": "from ...config import X"}, 0),
        (absolute_imports_of_ours, {"model/x.py": "import quietserve.model.config"}, 1),
        (absolute_imports_of_ours, {"model/x.py": "from quietserve.model import config"}, 1),
        (absolute_imports_of_ours, {"server/x.py": "from model.config import X"}, 1),
        (absolute_imports_of_ours, {**CONFIG, "model/x.py": "from . import config\nfrom torch import Tensor"}, 0),
        (forbidden_libraries, {"model/x.py": "import asyncio"}, 1),
        (forbidden_libraries, {"model/training/x.py": "from pydantic.fields import Field"}, 1),
        (forbidden_libraries, {"clients/x.py": "import httpx, torch.nn"}, 1),
        (forbidden_libraries, {"server/x.py": "import asyncio, fastapi, torch"}, 0),
        (bitsandbytes_elsewhere, {"model/x.py": "try:\n    import bitsandbytes as bnb\nexcept ImportError: ..."}, 1),
        (bitsandbytes_elsewhere, {"model/quantize.py": "import bitsandbytes as bnb"}, 0),
        (torch_where_none_belongs, {"server/errors.py": "from torch import Tensor"}, 1),
        (torch_where_none_belongs, {"server/scheduler.py": "from ..model.y import z", "model/y.py": "import torch"}, 1),
        (torch_where_none_belongs, {**CONFIG, "server/__init__.py": "import torch", "server/pipeline.py": ""}, 1),
        (torch_where_none_belongs, {"server/engine.py": "import torch", "model/x.py": "from torch import nn"}, 0),
        (
            torch_where_none_belongs,
            {"server/scheduler.py": "if TYPE_CHECKING:\n    from ..model.y import z", "model/y.py": "import torch"},
            0,
        ),
        (import_cycles, LOOP, 1),
        (import_cycles, {"model/a.py": "if TYPE_CHECKING:\n    from .b import B", "model/b.py": "from .a import A"}, 0),
        (import_cycles, {"model/__init__.py": "from .a import A", "model/a.py": ""}, 0),
        (unlisted_packages, {"model/extra/x.py": ""}, 2),
        (names_that_say_nothing, {"model/utils.py": "", "server/core/x.py": "", "server/basement.py": ""}, 2),
    ],
)
def test_rule_sees_what_it_should(rule, sources, complaints):
    assert len(rule(House(sources, packages=frozenset({"quietserve.model"})))) == complaints
