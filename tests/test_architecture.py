"""The walls between the folders, read from the imports."""

from __future__ import annotations

import ast
import functools
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent / "featcache"

# Each part may import those of the rows above it, and itself.
LAYERS = [
    {"errors"},
    {"hashing", "atomic", "display", "csv_cells"},
    {"images"},
    {"store"},
    {"extraction", "fitting"},
    {"reporting"},
    {"finetuning"},
    {"prediction"},
    {"recipe"},
    {"scaling"},
    {"cli"},
    {"__main__", "__init__"},
]
FORBIDDEN = {
    "fitting": {"torchvision"},
    "reporting": {"torchvision"},
    "extraction": {"sklearn", "xgboost"},
    "finetuning": {"xgboost"},
}
HEAVY = ("torch", "torchvision", "sklearn", "xgboost", "matplotlib", "pandas", "dask", "pydantic")
LEVEL = {part: level for level, parts in enumerate(LAYERS) for part in parts}


def _modules() -> list[Path]:
    return sorted(ROOT.rglob("*.py"))


def _part(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


@functools.cache
def _imports(path: Path) -> set[str]:
    """Every module that a file imports, wherever in the file."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.add(node.module or "")
            if node.module == "featcache":
                found |= {f"featcache.{alias.name}" for alias in node.names}
    return found


def test_every_part_has_its_place() -> None:
    assert {_part(path) for path in _modules()} <= set(LEVEL)


def test_imports_go_one_way() -> None:
    wrong = []
    for path in _modules():
        mine = _part(path)
        for name in sorted(_imports(path)):
            if not name.startswith("featcache."):
                continue
            other = name.split(".")[1]
            if mine in ("cli", "recipe") and other not in LEVEL:
                continue  # a public name of the package, resolved at run time
            if other != mine and LEVEL[other] >= LEVEL[mine]:
                wrong.append(f"{path.relative_to(ROOT)} ({mine}) imports {name}")
    assert not wrong, "\n".join(wrong)


def test_no_part_imports_what_it_must_live_without() -> None:
    wrong = []
    for path in _modules():
        top = {name.split(".")[0] for name in _imports(path)}
        wrong += [
            f"{path.relative_to(ROOT)} imports {name}"
            for name in sorted(top & FORBIDDEN.get(_part(path), set()))
        ]
    assert not wrong, "\n".join(wrong)


def test_modules_have_no_cycles() -> None:
    graph = {_dotted(path): _imports(path) for path in _modules() if path != ROOT / "__init__.py"}
    state: dict[str, str] = {}

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert state.get(name) != "open", f"cycle: {' -> '.join((*trail, name))}"
        if name in state or name not in graph:
            return
        state[name] = "open"
        for other in graph[name]:
            visit(other, (*trail, name))
        state[name] = "done"

    for name in graph:
        visit(name, ())


def _dotted(path: Path) -> str:
    parts = ("featcache", *path.relative_to(ROOT).with_suffix("").parts)
    return ".".join(part for part in parts if part != "__init__")


def test_help_and_import_load_nothing_heavy() -> None:
    code = (
        "import sys, featcache, featcache.cli.main as m\n"
        "assert m.run(['--help']) == 0\n"
        f"found = [n for n in {HEAVY!r} if n in sys.modules]\n"
        "sys.exit(', '.join(found) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_files_fit_in_a_head() -> None:
    long = {str(p): n for p in _modules() if (n := len(p.read_text().splitlines())) > 600}
    assert not long


def test_no_print_in_the_package() -> None:
    printing = []
    for path in _modules():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            called = node.func if isinstance(node, ast.Call) else None
            if isinstance(called, ast.Name) and called.id == "print":
                printing.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert not printing, "\n".join(printing)


def test_the_map_names_every_module() -> None:
    text = (ROOT.parent / "docs" / "architecture.md").read_text(encoding="utf-8")
    names = [
        path.name for path in _modules()
        if path.stem not in ("__init__", "__main__") and _part(path) != "cli"
        and path.parent.name not in ("plots", "fusions", "heads")
    ]  # fmt: skip
    assert [name for name in names if name not in text] == []
    named = set(re.findall(r"\w+\.py\b", text))
    there = {path.name for path in (*_modules(), *ROOT.parent.glob("tests/*.py"))}
    assert sorted(named - there) == []
