"""The documents say what is true: their commands exist, their links lead somewhere, their map knows every room."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from kawara.cli import build_parser
from kawara.config import override, parse_assignments
from kawara.training.run_config import RunConfig

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])


def commands(page: Path) -> list[str]:
    """The `kawara …` lines of the shell blocks of a page."""
    blocks = re.findall(r"```(?:sh|bash)\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    lines = [line.split(" # ")[0].strip() for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    lines = [re.sub(r"\s*(>|\|).*", "", line.split("| ")[-1] if "| kawara" in line else line) for line in lines]
    return [line for line in lines if re.match(r"(\S*/)?kawara\s", line)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_command_is_understood(page, capsys):
    for line in commands(page):
        arguments = shlex.split(line)[1:]
        try:
            options = build_parser().parse_args(arguments)
        except SystemExit as leaving:
            if leaving.code:
                pytest.fail(f"{line}\n{capsys.readouterr().err}")
            continue
        override(RunConfig(), parse_assignments(getattr(options, "set", [])))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_link_inside_the_project_leads_somewhere(page):
    for target in re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8")):
        if not re.match(r"[a-z]+:", target):
            assert (page.parent / target).exists(), target


def test_the_map_in_the_readme_knows_every_room():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for room in sorted((ROOT / "src" / "kawara").iterdir()):
        if room.is_dir() and (room / "__init__.py").exists():
            assert f"{room.name}/" in text, room.name


def test_the_readme_leaves_nothing_to_fill_in():
    for page in PAGES:
        assert not re.search(r"@[A-Z]+@|TODO|FIXME", page.read_text(encoding="utf-8")), page
