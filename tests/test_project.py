"""What must hold between the project's files: the code's imports, pyproject.toml, the lock files, the Makefile."""

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterable
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
OURS = {"serve_app", "deployments", "tests", "bench"}


def locked(*locks: str) -> dict[str, str]:
    """Version by canonical name."""
    versions: dict[str, str] = {}
    for lock in locks:
        for line in (ROOT / "requirements" / f"{lock}.txt").read_text().splitlines():
            if not line.startswith("#"):
                name, version = line.split("==")
                versions[canonicalize_name(name)] = version
    return versions


def asked_for(requirements: Iterable[str]) -> set[str]:
    return {canonicalize_name(Requirement(text).name) for text in requirements}


def imported_packages(*folders: str) -> dict[str, Path]:
    """The packages of others that the code under `folders` imports, each with a file that does."""
    found = {}
    for folder in folders:
        for file in sorted((ROOT / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(file.read_text())):
                names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                if isinstance(node, ast.ImportFrom) and node.module and not node.level:
                    names = [node.module]
                for name in names:
                    top = name.split(".")[0]
                    if top not in OURS and top not in sys.stdlib_module_names:
                        found[top] = file
    return found


@pytest.mark.parametrize("lock", ["cpu", "gpu", "dev"])
def test_a_lock_file_pins_every_line(lock: str) -> None:
    lines = (ROOT / "requirements" / f"{lock}.txt").read_text().splitlines()

    assert [line for line in lines if not re.fullmatch(r"#.*|[A-Za-z0-9._-]+==[A-Za-z0-9.+!]+", line)] == []


@pytest.mark.parametrize(("lock", "extra"), [("cpu", "cpu"), ("gpu", "gpu")])
def test_a_lock_file_has_what_the_project_asks_for(lock: str, extra: str) -> None:
    extras = PROJECT["optional-dependencies"]
    for text in [*PROJECT["dependencies"], *extras[extra], *extras["models"]]:
        requirement = Requirement(text)
        version = locked(lock)[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version), f"{text} is locked at {version}"


def test_what_the_tests_need_is_locked() -> None:
    assert asked_for(PROJECT["optional-dependencies"]["dev"]) <= locked("cpu", "dev").keys()


def test_torch_is_the_build_without_cuda_and_has_no_companions() -> None:
    assert locked("cpu")["torch"].endswith("+cpu")
    assert not {"torchvision", "torchaudio", "torchcodec"} & (locked("cpu", "dev").keys() | locked("gpu").keys())


def test_what_the_application_imports_is_declared_and_locked() -> None:
    extras = PROJECT["optional-dependencies"]
    declared = asked_for([*PROJECT["dependencies"], *extras["cpu"], *extras["models"]])
    distributions = packages_distributions()
    for package, file in imported_packages("serve_app", "deployments").items():
        names = {canonicalize_name(name) for name in distributions.get(package, [package])}
        where = f"{file.relative_to(ROOT)} imports {package}, which"
        assert names & declared, f"{where} is not among pyproject.toml's dependencies"
        assert names & locked("cpu").keys(), f"{where} is not in requirements/cpu.txt: make lock"


def test_what_tests_and_benchmarks_import_is_locked() -> None:
    distributions = packages_distributions()
    for package, file in imported_packages("tests", "bench", "requirements").items():
        names = {canonicalize_name(name) for name in distributions.get(package, [package])}
        assert names & locked("cpu", "dev").keys(), f"{file.relative_to(ROOT)} imports {package}, which is not locked"


def test_no_file_names_a_package_registry_or_this_machine() -> None:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    # Split, so that this file does not name them either.
    forbidden = re.compile(
        "|".join(["pypi" + r"\.org", "pytho" + "nhosted", "download.pytorch" + r"\.org", "/work/" + "main"])
    )
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file() and (found := forbidden.search((ROOT / name).read_text(errors="ignore"))):
            pytest.fail(f"{name} names {found[0]}")


def test_each_make_target_has_a_word_of_help() -> None:
    makefile = (ROOT / "Makefile").read_text()
    phony = re.findall(r"^\.PHONY: (.*)$", makefile, re.M)[0].split()
    helped = re.findall(r"^([a-z-]+):.*## ", makefile, re.M)

    assert set(phony) - set(helped) == {"environment", "tools", "models"}


def test_every_test_that_starts_ray_is_where_make_test_looks_for_it() -> None:
    places = re.findall(r"^WITH_RAY := (.*)$", (ROOT / "Makefile").read_text(), re.M)[0].split()
    marked = [path for path in (ROOT / "tests").rglob("test_*.py") if "pytest.mark." + "ray" in path.read_text()]

    assert marked
    for path in marked:
        assert any(path.is_relative_to(ROOT / place) for place in places), f"{path} is in none of {places}"


def test_the_gateway_is_small() -> None:
    """Every replica of it pays for what it imports; the parts behind it have these."""
    heavy = "{'vllm', 'torch', 'transformers', 'lancedb', 'lance', 'pyarrow', 'openvino', 'alembic'}"
    program = f"import sys, deployments.gateway; print(sorted({heavy} & sys.modules.keys()))"
    imported = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert imported.stdout.strip() == "[]"
