"""The page that lists the benchmark scripts is complete and has no dead links."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "benchmarks" / "README.md").read_text()


def test_every_script_has_its_question_on_the_page():
    scripts = {
        (folder, path.stem)
        for folder in ("papers", "practice", "costs", "faults")
        for path in (ROOT / "benchmarks" / folder).glob("[a-z]*")
        if path.suffix == ".py" or (path / "__main__.py").exists()
    }
    listed = set()
    for section in PAGE.split("\n## ")[1:]:
        folder = re.search(r"`benchmarks/(\w+)`", section)[1]
        listed |= {(folder, name) for name in re.findall(r"^\| `(\w+)` \|", section, flags=re.MULTILINE)}
    assert {pair for pair in listed if pair[0] != "lib"} == scripts


def test_every_result_file_belongs_to_a_script():
    patterns = re.findall(r"`results/([^`]+)`", PAGE)
    results = ROOT / "benchmarks" / "results"
    named = {path for pattern in patterns for path in results.glob(pattern)}
    made_by_others = {"clnp_min_new.json", "clnp_reads_all.json"}  # results of the leaderboard with other settings
    assert {path for path in results.rglob("*.json") if path.name not in made_by_others} == named


def test_no_link_is_dead():
    links = re.findall(r"\]\(([^)]+)\)", PAGE)
    assert links
    assert all((ROOT / "benchmarks" / link).exists() for link in links)


MAY_IMPORT = {
    "benchmarks/lib": r"benchmarks\.lib\b",
    "leaderboard": r"(benchmarks\.lib|leaderboard)\b|benchmarks$",
    "benchmarks": r"(benchmarks|leaderboard)\b",
}
IMPORTED = re.compile(r"(?m)^ *(?:from|import) ((?:benchmarks|leaderboard|tests|examples)\b[\w.]*)")


@pytest.mark.parametrize("folder", MAY_IMPORT)
def test_scripts_stand_on_the_leaderboard_and_both_on_what_they_share(folder):
    imports = {
        (path.name, name) for path in (ROOT / folder).rglob("*.py") for name in IMPORTED.findall(path.read_text())
    }
    assert imports
    assert not {(file, name) for file, name in imports if not re.match(MAY_IMPORT[folder], name)}
