from pathlib import Path
from threading import Barrier, Thread

import pytest

from serve_app.models import CACHE_ENV, build_once, resolve_model


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder from which packages can be imported, and an empty cache."""
    folder = tmp_path / "packages"
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setenv(CACHE_ENV, str(tmp_path / "cache"))
    return folder


def test_hub_ids_and_folders_are_returned_as_they_are(tmp_path: Path) -> None:
    assert resolve_model("org/model") == "org/model"
    assert resolve_model(str(tmp_path)) == str(tmp_path)


def test_package_with_a_model_folder_is_that_folder(packages: Path) -> None:
    model = packages / "carries_model" / "model"
    model.mkdir(parents=True)
    (model / "config.json").write_text("{}")
    (packages / "carries_model" / "__init__.py").write_text("raise RuntimeError('a model package is not imported')")

    assert resolve_model("package:carries_model") == str(model)


def test_gguf_package_is_its_converted_folder_once_it_is_in_the_cache(packages: Path, tmp_path: Path) -> None:
    (packages / "carries_gguf").mkdir()
    (packages / "carries_gguf" / "__init__.py").touch()
    (packages / "carries_gguf" / "weights.gguf").write_bytes(b"not a GGUF: conversion would raise")
    converted = tmp_path / "cache" / "models" / "carries_gguf-0"
    converted.mkdir(parents=True)

    assert resolve_model("package:carries_gguf") == str(converted)


@pytest.mark.parametrize("name", ["no_such_package_here", "", "os.path", "../model"])
def test_unknown_package_is_refused_with_its_name(packages: Path, name: str) -> None:
    with pytest.raises(ValueError, match="is not installed"):
        resolve_model(f"package:{name}")


def test_package_without_a_model_is_refused(packages: Path) -> None:
    (packages / "carries_nothing").mkdir()
    (packages / "carries_nothing" / "__init__.py").touch()

    with pytest.raises(ValueError, match="carries no model"):
        resolve_model("package:carries_nothing")


def test_many_who_ask_at_once_build_once(tmp_path: Path) -> None:
    builds: list[Path] = []
    start = Barrier(8)

    def build(folder: Path) -> None:
        builds.append(folder)
        (folder / "model").write_text("whole")

    def ask() -> None:
        start.wait()
        build_once(tmp_path / "built", build)

    threads = [Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(builds) == 1
    assert (tmp_path / "built" / "model").read_text() == "whole"


def test_failed_build_leaves_nothing_and_is_tried_again(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        (folder / "model").write_text("half")
        raise RuntimeError("out of disk")

    with pytest.raises(RuntimeError, match="out of disk"):
        build_once(tmp_path / "built", fail)
    assert [each.name for each in tmp_path.iterdir()] == ["built.lock"]

    build_once(tmp_path / "built", lambda folder: (folder / "model").touch())
    assert (tmp_path / "built" / "model").exists()
