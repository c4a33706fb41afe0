"""The documentation is true as far as a machine can tell: generated pages are up to date, links lead somewhere, commands parse, and
codes, metrics, options and paths that a page names exist."""

from __future__ import annotations

import dataclasses
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
from pydantic import BaseModel
from ruamel.yaml import YAML

from cdc import cli, config
from cdc.catalogue import CATALOGUE
from cdc.commands.picture import SinkView, TableView
from cdc.metrics import CaptureMetrics, SinkMetrics
from cdc.postgres import types
from docs.generate import FOLDER, PAGES

ROOT = FOLDER.parent
BY_HAND = [*ROOT.glob("*.md"), ROOT / "schemas/README.md", *FOLDER.rglob("*.md")]
ALL = sorted(page.relative_to(ROOT).as_posix() for page in BY_HAND)
LINE_MAX = 140
_LINK = re.compile(r"(?<!\!)\[[^\]]*\]\(([^)\s]+)\)")
_FENCE = re.compile(r"^ *```(\w*)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
_SPAN = re.compile(r"`([^`\n]+(?:\n[^`\n]+)?)`")
_CODE = re.compile(r"\bCDC-[A-Z]+-\d{3}\b")
_METRIC = re.compile(r"\bcdc_(?:build|pipeline|retries|errors|loop|capture|log|snapshot|source|sink)_\w+")
_PATH = re.compile(r"(?:cdc|sinks|schemas|tests|docs|deploy|benchmarks)(?:/[\w.@{},*-]+)+\Z")


def read(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def blocks(page: str, language: str) -> Iterator[str]:
    """The fenced blocks of one language."""
    for found in _FENCE.finditer(read(page)):
        if found[1] == language:
            yield found[2]


def spans(page: str) -> Iterator[str]:
    """Inline code."""
    for found in _SPAN.finditer(_FENCE.sub("", read(page))):
        yield " ".join(found[1].split())


def anchors(page: Path) -> set[str]:
    """As GitHub makes them of headings."""
    headings = re.findall(r"^#+ (.*)$", _FENCE.sub("", page.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def registered() -> set[str]:
    """Every name that a scrape can show, histograms' parts included."""
    names: set[str] = set()
    for metrics in (CaptureMetrics("p"), SinkMetrics("p", "s")):
        names |= set(metrics.registry._names_to_collectors)
    return names


@pytest.mark.parametrize("path", PAGES)
def test_page_is_what_the_code_makes(path: str) -> None:
    assert (FOLDER / path).read_text(encoding="utf-8") == PAGES[path](), "run `make docs`"


@pytest.mark.parametrize("page", ALL)
def test_links_lead_somewhere(page: str) -> None:
    for link in _LINK.findall(_FENCE.sub("", read(page))):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = (ROOT / page).parent / path if path else ROOT / page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_every_page_can_be_reached_from_the_index() -> None:
    linked = {(FOLDER / link.partition("#")[0]).resolve() for link in _LINK.findall(read("docs/README.md"))}
    pages = {page for page in FOLDER.rglob("*.md") if page.parent.name != "decisions"} - {FOLDER / "README.md"}
    assert sorted(pages - linked - {FOLDER / "verification.md"}) == []
    decisions = set(_LINK.findall(read("docs/decisions/README.md")))
    assert decisions == {page.name for page in (FOLDER / "decisions").glob("0*.md")}


@pytest.mark.parametrize("page", ALL)
def test_commands_in_shell_blocks_parse(page: str) -> None:
    verbs = typer.main.get_command(cli.app).commands  # type: ignore[attr-defined]
    for block in blocks(page, "sh"):
        for line in block.replace("\\\n", " ").splitlines():
            for command in re.split(r"&&|\|", line):
                words = shlex.split(command, comments=True)
                words = words[words.index("cdc") :] if "exec" in words and "cdc" in words else words
                if words[:1] == ["cdc"]:
                    verbs[words[1]].make_context(words[1], words[2:])


@pytest.mark.parametrize("page", ALL)
def test_commands_in_the_text_exist(page: str) -> None:
    verbs = typer.main.get_command(cli.app).commands  # type: ignore[attr-defined]
    for span in spans(page):
        words = span.split()
        if words[0] != "cdc" or len(words) == 1 or words[1] in ("VERB", "…") or words[1].startswith("-"):
            continue
        verb = verbs.get(words[1])
        assert verb is not None, span
        known = {name for option in verb.params for name in option.opts}
        assert {word for word in words[2:] if word.startswith("-")} <= known, span


@pytest.mark.parametrize("page", ALL)
def test_what_a_page_names_exists(page: str) -> None:
    assert {code for code in _CODE.findall(read(page)) if code not in CATALOGUE} == set()
    assert {name for name in _METRIC.findall(read(page)) if name not in registered()} == set()
    for span in spans(page):
        if _PATH.match(span) and not set(span) & set("{*"):
            assert (ROOT / span).exists(), span


@pytest.mark.parametrize("page", ALL)
def test_lines_are_short(page: str) -> None:
    if page.removeprefix("docs/") in PAGES:
        return
    text = _FENCE.sub("", read(page))
    assert [line for line in text.splitlines() if len(line) > LINE_MAX and not line.startswith("|")] == []


@pytest.mark.parametrize("page", ALL)
def test_pipeline_files_in_pages_load(page: str, tmp_path: Path) -> None:
    environ = {"CDC_PASSWORD": "x", "SHOP_URL": "postgresql://a@b/c", "WAREHOUSE_URL": "postgresql://a@d/c"}
    for number, block in enumerate(blocks(page, "yaml")):
        if YAML(typ="safe").load(block).keys() >= {"pipeline", "source"}:
            file = tmp_path / f"{number}.yaml"
            file.write_text(block, encoding="utf-8")
            config.load(file, environ)


def test_every_section_of_the_pipeline_file_is_documented() -> None:
    sections = {
        made
        for made in vars(config).values()
        if isinstance(made, type) and issubclass(made, BaseModel) and made.__module__ == config.__name__
    }
    text = PAGES["reference/config.md"]()
    for section in sections:
        for name in section.model_fields:
            assert f"| `{name}` |" in text, f"{section.__name__}.{name}"


def test_every_verb_and_every_option_is_documented() -> None:
    text = PAGES["reference/cli.md"]()
    for name, verb in typer.main.get_command(cli.app).commands.items():  # type: ignore[attr-defined]
        assert f"\n## cdc {name}\n" in text
        for option in verb.params:
            assert all(f"`{spelling}`" in text for spelling in option.opts if spelling.startswith("-")), option.name


def test_every_metric_is_documented() -> None:
    text = PAGES["reference/metrics.md"]()
    for name in registered():
        base = re.sub(r"_(bucket|count|sum|created)$", "", name)
        assert f"`{base}`" in text or f"`{base}_total`" in text, name


def test_every_type_is_documented() -> None:
    from psycopg.postgres import types as known

    text = PAGES["reference/types.md"]()
    for oid in types._KINDS:
        info = known.get(oid)
        assert info is not None
        assert f"`{info.regtype}`" in text


def test_what_status_says_is_documented() -> None:
    text = read("docs/how-to/monitor.md")
    for view in (TableView, SinkView):
        for field in dataclasses.fields(view):
            assert f"`{field.name}`" in text, f"{view.__name__}.{field.name}"
