"""The documentation holds: links lead somewhere, command lines parse, every page can be found.

Fenced blocks marked ``sh``, ``bash`` or ``console`` are commands, and every ``tandem ...`` in them
is parsed with the real parser (not run). Synopses with brackets and output go in ``text`` blocks.
"""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

import tandem
from traces.errors import UsageError

SHELL = {"sh", "bash", "console"}
_FENCE = re.compile(r"^ {0,3}(```+|~~~+)\s*(\S*)")
_LINK = re.compile(r"!?\[(?:[^\]\[]|\[[^\]]*\])*\]\(\s*<?([^)\s>]+)>?(?:\s+\"[^\"]*\")?\s*\)")
_HEADING = re.compile(r"^#{1,6}\s+(.*?)\s*#*$")
_ELSEWHERE = re.compile(r"^[a-z][a-z0-9+.-]*:", re.IGNORECASE)
_MACHINE_PATH = re.compile(
    r"(?:^|[\s\"'=(`:])(/(?:home|root|work|opt|mnt|tmp|Users)/[\w.-]+/?[\w.-]*)"
)
_ENDS_COMMAND = {"|", "||", "&&", ";", "&", ">", ">>", "<", "2>", "2>&1"}


def tracked(repo: Path, *patterns: str) -> list[Path]:
    """Files that git knows, or would if they were added."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", *patterns],
        cwd=repo,
        capture_output=True,
        text=True,
        check=False,
    )
    if listed.returncode != 0:
        pytest.skip("needs git, to know which files are the project's")
    return [repo / name for name in sorted(listed.stdout.split("\0")) if (repo / name).is_file()]


def blocks(text: str) -> Iterator[tuple[str, int, str]]:
    """Yield (language, line, content) of fenced blocks, and ("", line, content) of other lines."""
    fence, language, start = "", "", 0
    content: list[str] = []
    for number, line in enumerate(text.splitlines(), 1):
        match = _FENCE.match(line)
        if fence:
            if match and match[1].startswith(fence) and not match[2]:
                yield language or "none", start, "\n".join(content)
                fence = ""
            else:
                content.append(line)
        elif match:
            fence, language, start, content = match[1], match[2].lower(), number + 1, []
        else:
            yield "", number, line


def prose(text: str) -> str:
    """The text without code and comments."""
    text = "\n".join(line for language, _, line in blocks(text) if not language)
    return re.sub(r"<!--.*?-->|(`+)(?:(?!\1).)+\1", "", text, flags=re.DOTALL)


def anchors(text: str) -> set[str]:
    """The names that GitHub gives a page's headings."""
    names: set[str] = set()
    for language, _, line in blocks(text):
        match = None if language else _HEADING.match(line)
        if match:
            words = re.sub(r"[^\w\- ]", "", match[1].replace("`", "").lower())
            names.add(words.replace(" ", "-"))
    return names


def broken_links(page: Path) -> list[str]:
    """Links of one page that lead nowhere."""
    found = []
    for target in _LINK.findall(prose(page.read_text(encoding="utf-8"))):
        if _ELSEWHERE.match(target):
            continue
        name, _, anchor = target.partition("#")
        path = (page.parent / name) if name else page
        if not path.exists():
            found.append(f"{page.name}: {target} is not there")
        elif anchor and anchor not in anchors(path.read_text(encoding="utf-8")):
            found.append(f"{page.name}: {target}: no such heading")
    return found


def commands(text: str) -> Iterator[tuple[int, list[str]]]:
    """Yield (line, arguments) of every ``tandem`` command in the shell blocks of a page."""
    for language, start, content in blocks(text):
        if language not in SHELL:
            continue
        joined = content.replace("\\\n", "  ")
        for offset, line in enumerate(joined.splitlines()):
            words = shlex.split(line.removeprefix("$ "), comments=True)
            while words:
                cut = next((i for i, w in enumerate(words) if w in _ENDS_COMMAND), len(words))
                command, words = words[:cut], words[cut + 1 :]
                if command[:1] == ["tandem"]:
                    yield start + offset, command[1:]
                elif command[1:3] == ["-m", "tandem"]:
                    yield start + offset, command[3:]


def refused(argv: list[str]) -> str | None:
    """Why the command line does not parse, or None."""
    try:
        tandem.build_parser().parse_args(argv)
    except UsageError as error:
        return str(error)
    except SystemExit as left:  # --help
        return None if left.code == 0 else f"exit {left.code}"
    return None


def test_relative_links_lead_somewhere(repo: Path) -> None:
    assert [fault for page in tracked(repo, "*.md") for fault in broken_links(page)] == []


def test_command_lines_parse(repo: Path) -> None:
    wrong = []
    for page in tracked(repo, "*.md"):
        for line, argv in commands(page.read_text(encoding="utf-8")):
            fault = refused(argv)
            if fault:
                wrong.append(f"{page.relative_to(repo)}:{line}: tandem {shlex.join(argv)}: {fault}")
    assert wrong == []


def test_every_page_can_be_found_from_the_readme(repo: Path) -> None:
    pages = {p.resolve() for p in tracked(repo, "*.md")}
    seen: set[Path] = set()
    todo = [(repo / "README.md").resolve()]
    while todo:
        page = todo.pop()
        if page in seen or page not in pages:
            continue
        seen.add(page)
        for target in _LINK.findall(prose(page.read_text(encoding="utf-8"))):
            if not _ELSEWHERE.match(target):
                path = (page.parent / target.partition("#")[0]).resolve()
                # A link to a folder shows all pages in it.
                todo.extend(p for p in pages if p.parent == path)
                todo.append(path)
    assert sorted(p.relative_to(repo).as_posix() for p in pages - seen) == []


def test_no_file_holds_a_path_of_one_machine(repo: Path) -> None:
    found = []
    for path in tracked(repo):
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue  # a picture or a table
        for number, line in enumerate(text.splitlines(), 1):
            match = _MACHINE_PATH.search(line)
            if match:
                found.append(f"{path.relative_to(repo)}:{number}: {match[1]}")
    assert found == []


PAGE = """
# One `page`, two
[good](#one-page-two) [bad](#three) [gone](gone.md) [out](https://example.org) ![x](a.png "t")
`[code](nowhere.md)` <!-- [comment](nowhere.md) -->

```sh
$ tandem run a.csv --policy fifo \\
    --out b | head   # a week
ls && tandem --help
```

```text
tandem run TRACE [--policy NAME]
```
"""


def test_the_readers_of_this_file_see_what_they_should(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(PAGE)
    assert broken_links(page) == [
        "page.md: #three: no such heading",
        "page.md: gone.md is not there",
        "page.md: a.png is not there",
    ]
    assert [argv for _, argv in commands(PAGE)] == [
        ["run", "a.csv", "--policy", "fifo", "--out", "b"],
        ["--help"],
    ]
    assert refused(["--no-such-option"]) is not None
    assert refused(["--help"]) is None
    path = "/".join(["", "home", "me", "x"])
    assert _MACHINE_PATH.search(f'open("{path}")')
    assert not _MACHINE_PATH.search(f"https://example.org{path}")
