"""MkDocs hooks: README.md as the front page, pages for linked files, and tables generated from the code.

A line `{{ NAME ARGUMENT }}` of a page is replaced with generated Markdown:

    {{ schema MODULE:CLASS }}   every key of a pydantic model and of the models inside it, with type, default
                                and meaning
    {{ commands }}              the `--help` of every command
    {{ file PATH }}             a file of the repository as a code block
"""

import importlib
import json
import posixpath
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import typer
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from pydantic import BaseModel

ROOT = Path(__file__).parents[1]
LANGUAGES = {".py": "python", ".toml": "toml", ".html": "html", ".json": "json"}
HELP_COLUMNS = 100

_LINK = re.compile(r"\]\((?!\w+:)([^)\s#]+)(#[^)\s]*)?\)")
_DIRECTIVE = re.compile(r"^\{\{ (\w+)(?: (.+))? \}\}$", re.MULTILINE)
_CODE = re.compile(r"(^(`{3,})[^\n]*\n.*?^\2$)", re.MULTILINE | re.DOTALL)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the front page, and a page for every file outside docs/ that a page links to."""
    added: dict[str, str] = {"README.md": (ROOT / "README.md").read_text(encoding="utf-8")}
    waiting = [*added, *(f"docs/{file.src_uri}" for file in files.documentation_pages())]
    while waiting:
        source = waiting.pop()
        for target in _linked_files(source, added.get(source)):
            if target not in added and not target.startswith("docs/"):
                added[target] = _page_of(target)
                waiting.append(target)
    for source, text in added.items():
        files.append(File.generated(config, site_path(source), content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Fills in what is generated, and turns links between files into links between pages."""
    source = repository_path(page.file.src_uri)
    return rewrite_links(fill_in(markdown), source)


def site_path(source: str) -> str:
    """The page that shows a file or folder of the repository."""
    if source == "README.md":
        return "index.md"
    if source.startswith("docs/"):
        return source.removeprefix("docs/")
    if (ROOT / source).is_dir():
        return f"repository/{source}/index.md"
    return f"repository/{source}" if source.endswith(".md") else f"repository/{source}.md"


def repository_path(page: str) -> str:
    """The inverse of `site_path`."""
    if page == "index.md":
        return "README.md"
    if not page.startswith("repository/"):
        return f"docs/{page}"
    source = page.removeprefix("repository/")
    for candidate in (source, source.removesuffix(".md"), source.removesuffix("/index.md")):
        if (ROOT / candidate).exists():
            return candidate
    raise FileNotFoundError(page)


def rewrite_links(markdown: str, source: str) -> str:
    """Turns the links of the repository's file `source` into links of the page that shows it.

    Links to nothing stay, and MkDocs reports them.
    """
    page_folder, folder = posixpath.dirname(site_path(source)), _folder_of(source)

    def rewritten(match: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(folder, match.group(1)))
        if target.startswith("..") or not (ROOT / target).exists():
            return match.group()
        return f"]({posixpath.relpath(site_path(target), page_folder)}{match.group(2) or ''})"

    return _outside_code(markdown, lambda text: _LINK.sub(rewritten, text))


def fill_in(markdown: str) -> str:
    """The page with its directives replaced."""
    generators: dict[str, Callable[[str], str]] = {
        "schema": lambda name: schema(_load(name)),
        "commands": lambda _: commands(),
        "file": _code_block,
    }
    return _DIRECTIVE.sub(lambda match: generators[match.group(1)](match.group(2) or ""), markdown)


def commands() -> str:
    """A section for every command, with its `--help`."""
    from ham_dist.cli import app

    group = typer.main.get_command(app)
    parts = {"ham-dist": group} | {f"ham-dist {name}": each for name, each in group.commands.items()}  # type: ignore[attr-defined]
    return "\n\n".join(
        f"## `{name}`\n\n```text\n{_help(name, command)}\n```" for name, command in parts.items()
    )


def _help(name: str, command: Any) -> str:
    width = {"terminal_width": HELP_COLUMNS, "max_content_width": HELP_COLUMNS}
    text: str = command.get_help(command.context_class(command, info_name=name, **width))
    return text


def schema(model: type[BaseModel], path: str = "") -> str:
    """A table of every key of `model`, then one for every model inside it."""
    properties = model.model_json_schema(mode="validation")
    definitions = properties.get("$defs", {})
    rows, inner = [], []
    for name, field in model.model_fields.items():
        key = f"{path}.{name}" if path else name
        found = properties["properties"][name]
        rows.append(
            f"| `{name}` | {_type_text(found, definitions)} | {_default_text(field)} "
            f"| {_cell(field.description)} |"
        )
        inner += [(_path_of(key, found, nested), nested) for nested in _models_in(field.annotation)]
    head = "| key | type | default | meaning |\n|---|---|---|---|\n" + "\n".join(rows)
    return "\n\n".join([head, *(_section(where, nested) for where, nested in inner)])


def _section(path: str, model: type[BaseModel]) -> str:
    kind = model.model_json_schema()["properties"].get("kind", {}).get("const")
    title = f"### `{path}`" + (f' with `kind = "{kind}"`' if kind else "")
    if model in _chosen_by_name():
        title = f'### `{path}` with `name = "{model.model_fields["name"].default}"`'
    return f"{title}\n\n{(model.__doc__ or '').strip()}\n\n{schema(model, path)}"


def _chosen_by_name() -> list[type[BaseModel]]:
    """The settings classes of all models and methods."""
    from ham_dist.config.sections import BY_NAME

    found = [choice.class_of(name) for choice in BY_NAME.values() for name in choice.names()]
    return [kind for kind in found if kind is not None]


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield from [kind for kind in _chosen_by_name() if annotation in kind.__mro__[1:]] or [annotation]
    for argument in getattr(annotation, "__args__", ()):
        if argument is not Ellipsis:
            yield from _models_in(argument)


def _path_of(key: str, found: dict[str, Any], model: type[BaseModel]) -> str:
    """`key`, or `key[]` and `key.NAME` for the entries of a list or a table."""
    choices = [found, *found.get("anyOf", [])]
    if any(choice.get("type") == "array" for choice in choices):
        return f"{key}[]"
    return f"{key}.NAME" if any(_entries_of(choice) for choice in choices) else key


def _entries_of(found: dict[str, Any]) -> dict[str, Any] | None:
    """The schema of a table's entries, whose names the user chooses; None for anything else."""
    entries = found.get("additionalProperties") or next(
        iter(found.get("patternProperties", {}).values()), None
    )
    return entries if isinstance(entries, dict) else None


def _type_text(found: dict[str, Any], definitions: dict[str, Any]) -> str:
    if "$ref" in found:
        inner = definitions[found["$ref"].rsplit("/", 1)[-1]]
        return "section" if inner.get("type") == "object" else _type_text(inner, definitions)
    if choices := found.get("anyOf") or found.get("oneOf") or found.get("allOf"):
        texts = [_type_text(choice, definitions) for choice in choices if choice.get("type") != "null"]
        return " or ".join(dict.fromkeys(texts))
    if values := found.get("enum") or ([found["const"]] if "const" in found else None):
        return ", ".join(f"`{json.dumps(value)}`" for value in values)
    kind = found.get("type", "any")
    if kind == "array":
        return f"list of {_type_text(found.get('items', {}), definitions)}"
    if kind == "object":
        entries = _entries_of(found)
        return f"table: name = {_type_text(entries, definitions)}" if entries else "table"
    limits = [
        f"{sign} {_number(found[limit])}"
        for limit, sign in (
            ("minimum", "≥"),
            ("exclusiveMinimum", ">"),
            ("maximum", "≤"),
            ("exclusiveMaximum", "<"),
        )
        if limit in found
    ]
    return " ".join([{"string": "text"}.get(kind, kind), ", ".join(limits)]).strip()


def _number(value: float) -> str:
    whole = int(value)
    exponent = whole.bit_length() - 1
    return f"2^{exponent}" if value == whole == 1 << max(exponent, 0) and exponent >= 20 else f"{value:g}"


def _default_text(field: Any) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if value is None:
        return "not set"
    if isinstance(value, BaseModel):
        return "see below"
    text = json.dumps(value, default=lambda other: other.model_dump(exclude_none=True), ensure_ascii=False)
    return f"`{text}`"


def _cell(text: str | None) -> str:
    return " ".join((text or "").split()).replace("|", "\\|")


def _linked_files(source: str, text: str | None) -> list[str]:
    """Files and folders of the repository that `source` links to."""
    if not source.endswith(".md") and text is None:
        return []
    text = text if text is not None else (ROOT / source).read_text(encoding="utf-8")
    found: list[str] = []
    folder = _folder_of(source)

    def note(part: str) -> str:
        found.extend(
            posixpath.normpath(posixpath.join(folder, match.group(1))) for match in _LINK.finditer(part)
        )
        return part

    _outside_code(text, note)
    return [target for target in found if not target.startswith("..") and (ROOT / target).exists()]


def _folder_of(source: str) -> str:
    """The folder from which the links of `source` are counted."""
    return source if (ROOT / source).is_dir() else posixpath.dirname(source)


def _page_of(path: str) -> str:
    """Markdown that shows a file or the files of a folder."""
    place = ROOT / path
    if place.is_dir():
        names = sorted(each.name for each in place.iterdir() if each.suffix in (*LANGUAGES, ".md"))
        readme = (place / "README.md").read_text(encoding="utf-8") if "README.md" in names else f"# {path}"
        links = "\n".join(f"- [{name}]({name})" for name in names)
        return f"{readme}\n\n## Files\n\n{links}\n"
    return place.read_text(encoding="utf-8") if place.suffix == ".md" else f"# {path}\n\n{_code_block(path)}"


def _code_block(path: str) -> str:
    place = ROOT / path
    return f"````{LANGUAGES.get(place.suffix, 'text')}\n{place.read_text(encoding='utf-8').rstrip()}\n````"


def _load(name: str) -> Any:
    module, _, attribute = name.partition(":")
    return getattr(importlib.import_module(module), attribute)


def _outside_code(markdown: str, change: Callable[[str], str]) -> str:
    """Applies `change` to all of a page but its fenced code blocks."""
    parts, end = [], 0
    for match in _CODE.finditer(markdown):
        parts += [change(markdown[end : match.start()]), match.group()]
        end = match.end()
    return "".join([*parts, change(markdown[end:])])
