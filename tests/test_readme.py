"""What README and docs name exists, and the YAML they show loads."""

import importlib.util
import re
from pathlib import Path

import pytest

from mmbert.config import load_config
from mmbert.plan.chain import plan_chain
from mmbert.plan.phase import Hardware
from mmbert.recipe_table import BASE, SMALL

PAGES = [Path("README.md"), Path("CHANGELOG.md"), *sorted(Path("docs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_links_and_pictures_exist(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)\)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page} links to {target}"


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_headings_that_are_linked_to_exist(page: Path) -> None:
    for target, anchor in re.findall(r"\]\(([^)#\s:]*)#([^)\s]+)\)", page.read_text()):
        linked = (page.parent / target if target else page).read_text()
        headings = re.findall(r"^#+ (.+)$", linked, re.MULTILINE)
        names = [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]
        assert anchor in names, f"{page} links to {target}#{anchor}"


def test_the_pythons_that_are_named_are_those_that_may_be_installed() -> None:
    assert 'requires-python = ">=3.11,<3.14"' in Path("pyproject.toml").read_text()
    makefile = Path("Makefile").read_text()
    assert "(3, 11) <= sys.version_info[:2] <= (3, 13)" in makefile
    for text in (makefile, Path("README.md").read_text()):
        assert "Python 3.11, 3.12 or 3.13" in text


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_programs_and_targets_exist(page: Path) -> None:
    text = page.read_text()
    targets = set(re.findall(r"^([a-z-]+):", Path("Makefile").read_text(), re.MULTILINE))
    for target in re.findall(r"^make ([a-z-]+)|`make ([a-z-]+)", text, re.MULTILINE):
        assert "".join(target) in targets, f"{page}: make {''.join(target)}"
    for module in re.findall(r"python -m ((?:mmbert|data_prep)[\w.]*)", text):
        assert importlib.util.find_spec(module.rstrip(".")), f"{page}: python -m {module}"


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_files_named_in_code_exist(page: Path) -> None:
    for name in re.findall(r"`((?:src|yamls|tests|callbacks|data_prep|docs)/[\w./-]+\.\w+)`", page.read_text()):
        assert Path(name).exists(), f"{page}: {name}"


def test_the_yamls_of_the_readme_load(tmp_path: Path) -> None:
    for example in re.findall(r"```yaml\n(.*?)```", Path("README.md").read_text(), re.DOTALL):
        text = re.sub(r"^ {3}", "", example, flags=re.MULTILINE)
        text = re.sub(r"(common|model/\w+)\.yaml(?=[,\]])", r"{0}/\1.yaml", text)
        name = text.split()[1].removeprefix("yamls/")  # the first line is a comment that says it
        (tmp_path / name).write_text(text.replace("{0}", str(Path("yamls").resolve())))
    decay = load_config(tmp_path / "mine-decay.yaml")
    assert (decay.parent, decay.learning_rate.shape) == ("mine", "one_minus_sqrt")
    assert sum(group.share for group in decay.data.groups().values()) == 1.0
    going_on = load_config(tmp_path / "mine-from-mmbert.yaml")
    assert (going_on.run_root, going_on.parent) == ("runs/mmbert-base", "published")
    behind = (tmp_path / "mine-decay.yaml").read_text().replace("[mine.yaml]", "[mine-from-mmbert.yaml]")
    behind = behind.replace("mixture:\n", "mixture:\n    kept: null\n")
    (tmp_path / "behind.yaml").write_text(behind)  # the other example, which decays
    assert load_config(tmp_path / "behind.yaml").learning_rate.decay == 0
    config = load_config(tmp_path / "mine.yaml")
    assert config.name == "mine"
    assert config.duration == 2_000_000_000


@pytest.mark.parametrize("paths", [BASE, [*SMALL[:3], SMALL[-1]]], ids=["base", "small"])
def test_the_days_of_the_papers_runs_are_the_plans(paths: list[str]) -> None:
    hardware = Hardware.named(8, "H100", 0.25, None)
    plans = plan_chain(paths, ["data.root=nowhere"], None, hardware).plans
    days = sum(plan.seconds(hardware) for plan in plans) / 86400
    assert f" {days:.1f} days of" in Path("README.md").read_text()
