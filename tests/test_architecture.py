"""Imports point down only: what is below can be read, tested and used without what is above."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]

# Packages from the top down. Those in one group may import one another, except `APART`.
ORDER = (
    {"__main__", "train"},
    {"cli"},
    {"run", "library", "study"},
    {"stages", "export", "serving", "report"},
    {"methods"},
    {"training"},
    {"models", "distributed"},
    {"embedding"},
    {"data"},
    {"config"},
    {"io"},
    {"errors", "backend", "__init__"},
)
LEVEL = {room: level for level, rooms in enumerate(ORDER) for room in rooms}
APART = ({"models", "distributed"},)
DISTRIBUTED_MODULES = ("torch.distributed", "torchrec.distributed")


def _imports(path: Path) -> Iterator[str]:
    """Full names of the modules that a file imports, wherever in it the import stands."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _sources() -> list[tuple[str, Path]]:
    """Every file of the package with its folder."""
    package = ROOT / "ham_dist"
    return [
        (path.relative_to(package).parts[0].removesuffix(".py"), path)
        for path in sorted(package.rglob("*.py"))
    ]


def test_every_file_has_a_room() -> None:
    assert {room for room, _ in _sources()} <= LEVEL.keys()


def test_imports_point_down() -> None:
    wrong = []
    for room, path in _sources():
        for name in _imports(path):
            target = name.removeprefix("ham_dist.").split(".")[0]
            if not name.startswith("ham_dist.") or target not in LEVEL:
                continue
            if LEVEL[target] < LEVEL[room] or any(
                room != target and {room, target} <= pair for pair in APART
            ):
                wrong.append(f"{path.relative_to(ROOT)} imports {name}")
    assert wrong == []


# Modules above that a file imports by name, at run time.
BY_NAME = {
    # Settings of methods and models are in the files of their classes, which load torch. So that a run.toml
    # can be checked without registering them first, `Choice` imports the registries at first use.
    "ham_dist/config/schema.py": {"ham_dist.models.registry", "ham_dist.methods.registry"},
}


def test_modules_above_are_imported_by_name_only_where_it_is_listed() -> None:
    found: dict[str, set[str]] = {}
    for room, path in _sources():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            name = node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""
            target = name.removeprefix("ham_dist.").split(".")[0]
            if name.startswith("ham_dist.") and LEVEL.get(target, LEVEL[room]) < LEVEL[room]:
                found.setdefault(str(path.relative_to(ROOT)), set()).add(name)
    assert found == BY_NAME


def test_only_one_room_knows_of_torch_distributed() -> None:
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for room, path in _sources()
        for name in _imports(path)
        if room != "distributed"
        and any(name == module or name.startswith(module + ".") for module in DISTRIBUTED_MODULES)
    ]
    assert wrong == []


# Serving starts fast and runs anywhere: it does without what only training and preparing need.
NOT_IN_SERVING = ("torchrec", "torch.distributed", "fbgemm_gpu", "duckdb", "ibis")


def test_serving_imports_nothing_of_training() -> None:
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for room, path in _sources()
        for name in _imports(path)
        if room == "serving"
        and any(name == module or name.startswith(module + ".") for module in NOT_IN_SERVING)
    ]
    assert wrong == []


def test_no_import_circle_between_files() -> None:
    """Imports under TYPE_CHECKING and within functions count too."""
    modules = {_module(path): path for path in (ROOT / "ham_dist").rglob("*.py")}
    below = {name: modules.keys() & set(_imports(path)) - {name} for name, path in modules.items()}
    while leaves := {name for name, imported in below.items() if not imported}:
        below = {name: imported - leaves for name, imported in below.items() if name not in leaves}
    assert below == {}, "each of these imports a file that imports it again, or one that stands in a circle"


def _module(path: Path) -> str:
    """Full name of the module in `path`."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MOST_LINES = 350


def test_no_file_is_long() -> None:
    found = {}
    for _, path in _sources():
        name, lines = str(path.relative_to(ROOT)), len(path.read_text(encoding="utf-8").splitlines())
        if lines > MOST_LINES:
            found[name] = lines
    assert found == {}, "look for the second idea in each, and give it a file"


def test_nothing_but_tests_imports_tests() -> None:
    sources = [path for folder in ("ham_dist", "launch", "perf") for path in (ROOT / folder).rglob("*.py")]
    assert [path for path in sources if any(name.split(".")[0] == "tests" for name in _imports(path))] == []


def test_test_modules_share_by_tests_support_only() -> None:
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in (ROOT / "tests").rglob("*.py")
        for name in _imports(path)
        if name.startswith("tests.") and not name.startswith("tests.support.")
    ]
    assert wrong == []


def test_no_file_next_to_train_py_hides_a_module_of_python() -> None:
    """No file next to train.py has the name of a module of Python.

    A script's own folder comes first on sys.path: `ham_dist/train.py` would import ham_dist/inspect.py for
    `inspect`.     Modules that the interpreter loads before it uses sys.path, such as `io`, cannot be hidden.
    """
    names = {path.name.removesuffix(".py") for path in (ROOT / "ham_dist").iterdir()}
    script = "import sys; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", script], capture_output=True, text=True, check=True
    )
    assert names & (sys.stdlib_module_names - set(done.stdout.split())) == set()
