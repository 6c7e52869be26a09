"""The site of `make docs` has no broken link and complete generated parts, and needs no other host."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import typer

from ham_dist.cli import app
from ham_dist.config.schema import RunSettings
from ham_dist.data.format.manifest import Manifest
from ham_dist.data.recipe.load import Recipe
from ham_dist.export.manifest import BundleManifest
from ham_dist.training.run_folder import RunFolder
from tests.support.documents import PAGES
from tests.support.forked import ROOT


def _build(config: Path, site: Path) -> subprocess.CompletedProcess[str]:
    """Builds as `make docs` does. With --quiet, MkDocs would not count warnings: broken links would pass."""
    return subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--config-file", str(config), "--site-dir", str(site)],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site; `strict` in .mkdocs.yml makes a broken link an error."""
    folder = tmp_path_factory.mktemp("site")
    done = _build(ROOT / ".mkdocs.yml", folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.mark.parametrize("link", ["nothing.md", "../perf/nothing.md", "index.md#nothing", "/nothing"])
def test_a_broken_link_fails_the_build(tmp_path: Path, link: str) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs/index.md").write_text(f"# A page\n\n[a link]({link})\n", encoding="utf-8")
    config = tmp_path / "mkdocs.yml"
    config.write_text(
        f"INHERIT: {ROOT / '.mkdocs.yml'}\ndocs_dir: docs\nnav: [index.md]\nhooks: []\nplugins: []\n",
        encoding="utf-8",
    )
    done = _build(config, tmp_path / "site")
    assert done.returncode == 1
    assert link.partition("#")[0] in done.stderr


def test_make_docs_counts_warnings() -> None:
    line = next(
        line
        for line in (ROOT / "Makefile").read_text(encoding="utf-8").splitlines()
        if "mkdocs build" in line
    )
    assert "--config-file .mkdocs.yml" in line
    assert "quiet" not in line


@pytest.fixture(scope="module")
def hooks() -> ModuleType:
    spec = importlib.util.spec_from_file_location("hooks", ROOT / "docs" / "hooks.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_nothing_is_loaded_from_other_hosts(site: Path) -> None:
    loading = re.compile(r"<(?:script|img|iframe|link)\b[^>]*\b(?:src|href)=[\"']?https?://[^>]*>")
    found = {path.name: loading.findall(path.read_text(encoding="utf-8")) for path in site.rglob("*.html")}
    assert {name: links for name, links in found.items() if links} == {}
    styles = [
        path.name
        for path in site.rglob("*.css")
        if re.search(r"url\([\"']?https?:", path.read_text(encoding="utf-8"))
    ]
    assert styles == []


def test_every_page_is_in_the_site_and_filled_in(site: Path) -> None:
    for name in PAGES:
        text = (site / ("index.html" if name == "README" else f"{name}.html")).read_text(encoding="utf-8")
        assert "{{" not in text, name


def test_files_that_pages_link_to_have_pages(site: Path) -> None:
    method = (site / "method.html").read_text(encoding="utf-8")
    assert 'href="repository/ham_dist/methods/ham.py.html"' in method
    assert "HardAuxiliaryMask" in (site / "repository/ham_dist/methods/ham.py.html").read_text(
        encoding="utf-8"
    )


def test_api_reference_has_the_library(site: Path) -> None:
    text = (site / "api.html").read_text(encoding="utf-8")
    for name in ("mask_columns", "Search", "slice_columns", "export", "open_bundle"):
        assert re.search(rf'id="ham_dist\.[\w.]*\.{name}"', text), name


@pytest.mark.parametrize("model", [RunSettings, Recipe, BundleManifest, Manifest])
def test_tables_of_keys_are_complete(hooks: ModuleType, model: type) -> None:
    """Every key of the JSON schema, at any depth, stands in a table with its default."""
    text = hooks.schema(model)
    schema = model.model_json_schema()  # type: ignore[attr-defined]
    keys = {key for part in (schema, *schema["$defs"].values()) for key in part.get("properties", {})}
    assert {key for key in keys if f"| `{key}` |" not in text} == set()


def test_a_setting_is_shown_with_type_default_and_meaning(hooks: ModuleType) -> None:
    field = RunSettings.model_fields["seed"]
    line = next(line for line in hooks.schema(RunSettings).splitlines() if line.startswith("| `seed` |"))
    assert line == f"| `seed` | integer ≥ 0, < 2^63 | `{field.default}` | {field.description} |"


def test_every_command_is_shown(hooks: ModuleType) -> None:
    text = hooks.commands()
    for name in typer.main.get_command(app).commands:  # type: ignore[attr-defined]
        assert f"## `ham-dist {name}`" in text
    assert "--plan-only" in text


@pytest.mark.parametrize(
    "source",
    [
        "README.md",
        "docs/data.md",
        "perf/README.md",
        "datasets",
        "ham_dist/run.py",
        "launch/runs/movielens_fm.toml",
    ],
)
def test_pages_and_files_map_one_to_one(hooks: ModuleType, source: str) -> None:
    assert hooks.repository_path(hooks.site_path(source)) == source


def test_links_are_rewritten_outside_code_only(hooks: ModuleType) -> None:
    code = "\n\n```text\n[e](../perf/README.md)\n```"
    text = "[a](../perf/README.md) [b](https://host/x) [c](nothing.md) [d](../README.md#demo)"
    assert hooks.rewrite_links(text + code, "docs/data.md") == (
        f"[a](repository/perf/README.md) [b](https://host/x) [c](nothing.md) [d](index.md#demo){code}"
    )


def test_run_folder_page_names_every_file() -> None:
    text = PAGES["run-folder"].read_text(encoding="utf-8")
    folder = RunFolder("run")
    names = [name for name, value in vars(RunFolder).items() if isinstance(value, property)]
    files = [getattr(folder, name).name for name in names]
    assert [name for name in files if f"| `{name}` |" not in text and f"| `{name}/` |" not in text] == []


@pytest.mark.parametrize("name", sorted(PAGES.keys() - {"library", "api"}))
def test_settings_that_a_page_names_exist(name: str) -> None:
    """`search.epochs` in a text or a command is a key of the schema, under today's name.

    The pages about the library are left out: there `search.step` is Python.
    """
    text = PAGES[name].read_text(encoding="utf-8")
    sections = {key: field.annotation for key, field in RunSettings.model_fields.items()}
    found = re.findall(r"(?:`|--set[ =])([a-z]+)\.([a-z_]+)\b(?!\.|\()", text)
    unknown = []
    for section, key in found:
        fields = getattr(sections.get(section), "model_fields", None)
        of_file = key in ("json", "jsonl", "onnx", "py")  # the end of a file's name
        if fields is not None and key not in fields and not of_file:
            unknown.append(f"{section}.{key}")
    assert unknown == []
