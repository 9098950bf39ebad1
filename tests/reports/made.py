"""Reports made by the command line, and what their files hold."""

import csv
import json
from html.parser import HTMLParser

from reports.__main__ import main

VOID = {"meta", "br", "img", "link", "input", "hr"}


class Page(HTMLParser):
    """Collects tags, attributes, ids and text; fails on tags that do not nest."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.attributes, self.texts = [], [], [], []
        self.feed(text)
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += [(tag, *attribute) for attribute in attributes]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"</{tag}> closes something else"

    def handle_data(self, data):
        self.texts.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.texts).split())


def made(directory, *contents, options=()):
    """The report on these contents, by the command line."""
    directory.mkdir(exist_ok=True)
    files = [directory / f"input{number}.json" for number in range(len(contents))]
    for file, content in zip(files, contents, strict=True):
        file.write_text(json.dumps(content))
    output = directory / "out"
    assert main([*map(str, files), "--output", str(output), *options]) == 0
    return output


def rows(report, name):
    with (report / "tables" / f"{name}.csv").open(newline="") as file:
        return list(csv.DictReader(file))
