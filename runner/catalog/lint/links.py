"""The rule on links: every link inside the repository leads to something."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from urllib.parse import unquote

from runner.catalog.lint.markdown import Page, read_page
from runner.catalog.lint.rule import Fault, Faults, Rule
from runner.errors import Place, did_you_mean, nearest


def _faults(pages: Iterable[Page]) -> Faults:
    known: dict[Path, Page] = {page.path: page for page in pages}
    for page in list(known.values()):
        for number, link in page.links:
            if "://" not in link and not link.startswith("mailto:"):
                yield from _of_link(page, link, Place(str(page.path), number), known)


def _of_link(page: Page, link: str, place: Place, known: dict[Path, Page]) -> Faults:
    written, _, anchor = unquote(link).partition("#")
    path = page.path.parent / written if written else page.path
    if not path.exists():
        siblings = [one.name for one in path.parent.iterdir()] if path.parent.is_dir() else []
        near = nearest(path.name, siblings)
        yield Fault(f"the link to '{link}' leads nowhere", place, f"did you mean '{near}'?" if near else None)
    elif anchor and path.suffix == ".md":
        anchors = known.setdefault(path, known.get(path) or read_page(path)).anchors
        if anchor.lower() not in anchors:
            yield Fault(f"'{path.name}' has no heading '#{anchor}'", place, did_you_mean(anchor, anchors))


RULES = (
    Rule(
        "links-are-alive", "must", "Links to files and headings of the repository lead somewhere.",
        "A dead link costs every reader a minute.", "correct the link",
        of_recipe=lambda subject: _faults(subject.pages),
        of_clone=lambda catalogue: _faults(catalogue.pages),
        elsewhere="should",
    ),
)  # fmt: skip
