"""What the README says of variables, files and arguments, held against the code."""

import re
from pathlib import Path

import pytest

from triton_dirac import DiracConv2d

ROOT = Path(__file__).parents[1]
PAGES = {page: (ROOT / page).read_text(encoding="utf-8") for page in ("README.md", ".github/CONTRIBUTING.md")}
PAGES[".github/GLOSSARY.md"] = (ROOT / ".github" / "GLOSSARY.md").read_text(encoding="utf-8")
# Set by this code for what it starts, or for a moment: nobody else's business.
OUR_OWN = {"MPLBACKEND", "MATPLOTLIBRC", "PYTHONPATH"}
pytestmark = pytest.mark.cpu


def test_every_environment_variable_that_is_read_is_in_the_table():
    sources = [path for room in ("triton_dirac", "bench", "reports") for path in (ROOT / room).rglob("*.py")]
    text = "\n".join(path.read_text(encoding="utf-8") for path in (*sources, ROOT / "noxfile.py"))
    read = set(re.findall(r"environ(?:\.get\(|\.setdefault\(|\[)\"(\w+)\"", text))
    read |= set(re.findall(r"\bTRITON_DIRAC_[A-Z_]+\b", text))
    table = PAGES["README.md"].partition("## Environment variables")[2].partition("\n## ")[0]
    named = {
        name
        for row in table.splitlines()
        for name in re.findall(r"`([A-Z_]+)", row.split("|")[1] if "|" in row else "")
    }
    assert read - OUR_OWN <= named, f"not in the table: {read - OUR_OWN - named}"
    others = {"TRITON_CACHE_DIR", "PIP_EXTRA_INDEX_URL"}  # read by Triton and pip
    assert named <= read | others, f"read by nobody: {named - read - others}"


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_files(page):
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", PAGES[page])
    assert links or page == ".github/GLOSSARY.md"
    missing = [link for link in links if not ((ROOT / page).parent / link).exists()]
    assert not missing


def test_the_constructor_keeps_the_official_order():
    by_position, by_keyword = DiracConv2d(8, 8, 3, 1), DiracConv2d(8, 8, 3, stride=2, padding=1)
    assert (by_position.padding, by_position.stride) == ((1, 1), (1, 1))
    assert (by_keyword.padding, by_keyword.stride) == ((1, 1), (2, 2))
