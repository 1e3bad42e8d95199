"""What gets installed: all packages, no top-level `tasks`, pins that hold for every Python."""

import ast
import configparser
import importlib
import re
import sysconfig
from graphlib import TopologicalSorter
from importlib.metadata import distribution, distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def config():
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    return parser


def entries(text):
    return [line.strip() for line in text.splitlines() if line.strip()]


def test_every_package_is_installed_from_its_folder(config):
    folders = dict(re.split(r"\s*=\s*", line) for line in entries(config["options"]["package_dir"]))
    packages = entries(config["options"]["packages"])

    def folder(package):
        # As setuptools resolves it: a package without an entry lies in its parent's folder.
        parent, _, child = package.rpartition(".")
        return ROOT / folders[package] if package in folders else folder(parent) / child

    paths = {folder(package) for package in packages}
    found = {
        path.parent
        for name in ("sbi_jeffreys", "tasks")
        for path in (ROOT / name).rglob("__init__.py")
    }
    assert paths == found
    assert all(package.split(".")[0] == "sbi_jeffreys" for package in packages)


def test_no_top_level_tasks_is_installed():
    # Not packages_distributions(): it sees what an editable install only maps.
    # What is installed, not the egg-info that a build leaves in the folder of the sources.
    path = [sysconfig.get_path("purelib")]
    installed = [d for d in distributions(path=path) if d.metadata["Name"] == "sbi_jeffreys"]
    assert len(installed) == 1
    files = installed[0].files or []
    top_level = {path.parts[0] for path in files}
    assert "tasks" not in top_level
    assert not {name for name in top_level if name.startswith("tasks")}


def test_data_of_the_tasks_is_installed(config):
    patterns = entries(config["options.package_data"]["sbi_jeffreys.tasks"])
    data = {path for path in (ROOT / "tasks" / "data").iterdir() if path.is_file()}
    assert data
    assert data <= {path for pattern in patterns for path in (ROOT / "tasks").glob(pattern)}


def test_command_is_installed():
    commands = {point.name: point.value for point in distribution("sbi_jeffreys").entry_points}
    assert commands["sbi-jeffreys"] == "sbi_jeffreys.cli:main"


def requirements():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return [Requirement(line) for line in lines if line and not line.startswith("#")]


def test_constraints_are_exact_and_portable():
    for requirement in requirements():
        (pin,) = requirement.specifier
        assert pin.operator == "==", requirement
        assert "+" not in pin.version, requirement
        assert requirement.url is None, requirement
    assert "//" not in (ROOT / "constraints.txt").read_text()


@pytest.mark.parametrize("python", ["3.10", "3.11", "3.12", "3.13"])
def test_what_is_asked_for_is_pinned_once(python, config):
    pinned = {}
    for requirement in requirements():
        if requirement.marker is None or requirement.marker.evaluate({"python_version": python}):
            name = canonicalize_name(requirement.name)
            assert name not in pinned, name
            (pin,) = requirement.specifier
            pinned[name] = pin.version
    asked = entries(config["options"]["install_requires"])
    asked += entries(config["options.extras_require"]["dev"])
    for requirement in map(Requirement, asked):
        version = pinned[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version), requirement


def test_plots_of_sbi_can_be_imported():
    # sbi does not declare all that they need.
    importlib.import_module("sbi.analysis")


def part_of(module):
    """Return the package that a module of ours is in, or the module where it is in none."""
    return module.split(".")[0]


def imported_parts(path):
    """Return the parts of the package that a file imports when it is imported."""
    *packages, _ = path.relative_to(ROOT / "sbi_jeffreys").parts
    # Imports that only type checkers see stand under an if, lazy ones in functions.
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ImportFrom) and node.level:
            above = packages[: len(packages) + 1 - node.level]
            names = [node.module] if node.module else [alias.name for alias in node.names]
            yield from (part_of(".".join((*above, name))) for name in names)


def test_packages_do_not_import_in_circles():
    graph = {}
    for path in (ROOT / "sbi_jeffreys").rglob("*.py"):
        module = ".".join(path.relative_to(ROOT / "sbi_jeffreys").with_suffix("").parts)
        part = part_of(module)
        graph.setdefault(part, set()).update(set(imported_parts(path)) - {part})
    assert {"training", "likelihood", "features"} < set(graph)
    assert "likelihood" in graph["selection"]
    # Raises CycleError, which names the circle.
    assert list(TopologicalSorter(graph).static_order())
