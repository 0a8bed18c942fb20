"""The walls of the house: what imports nothing heavy, and no circle of imports."""

import ast
import subprocess
import sys
from pathlib import Path

from alignment.command_line import REPOSITORY

PACKAGE = REPOSITORY / "alignment"
HEAVY = ("torch", "vllm", "transformers.modeling_utils", "peft", "datasets", "openai")


def module_of(path: Path, package: Path) -> str:
    parts = path.relative_to(package.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path, modules: set[str]) -> set[str]:
    """Which of `modules` a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found & modules


def circle(package: Path) -> list[str]:
    """A circle of imports in a package, imports inside functions included, as the modules on the way; or none."""
    paths = {module_of(path, package): path for path in package.rglob("*.py")}
    graph = {name: sorted(imports(path, set(paths)) - {name}) for name, path in paths.items()}
    done: set[str] = set()

    def walk(name: str, way: list[str]) -> list[str]:
        if name in way:
            return [*way[way.index(name) :], name]
        if name in done:
            return []
        found = next((each for other in graph[name] if (each := walk(other, [*way, name]))), [])
        done.add(name)
        return found

    return next((found for name in sorted(graph) if (found := walk(name, []))), [])


def test_the_contracts_import_nothing_heavy():
    """Every module outside engines/ and training/, and the doors of these two, in a fresh process."""
    light = [
        *PACKAGE.glob("*.py"),
        *(path for name in ("auditing", "janus", "judging") for path in PACKAGE.glob(f"{name}/*.py")),
    ]
    light += [PACKAGE / name / "__init__.py" for name in ("engines", "training")]
    names = sorted(module_of(path, PACKAGE) for path in light)
    program = (
        f"import importlib, sys\nfor name in {names}: importlib.import_module(name)\n"
        f"print(len([n for n in sys.modules if n.startswith('alignment')]), [n for n in {HEAVY} if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.stdout == f"{len(names)} []\n", done.stdout + done.stderr


def test_no_circle_of_imports():
    assert circle(PACKAGE) == []


def test_a_circle_is_found_also_inside_functions(tmp_path):
    package = tmp_path / "house"
    (package / "rooms").mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "a.py").write_text("from house.rooms import b\n")
    (package / "rooms" / "__init__.py").write_text("")
    (package / "rooms" / "b.py").write_text("def f():\n    from house.c import g\n")
    (package / "c.py").write_text("import json\n")
    assert circle(package) == []
    (package / "c.py").write_text("def g():\n    import house.a\n")
    assert circle(package) == ["house.a", "house.rooms.b", "house.c", "house.a"]
