"""One list of dependencies: what is derived from pyproject.toml agrees with it."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LISTED = [
    Requirement(text)
    for group in (PROJECT["dependencies"], *PROJECT["optional-dependencies"].values())
    for text in group
]
PINS = [
    Requirement(line)
    for line in (ROOT / "constraints.txt").read_text().splitlines()
    if line and not line.startswith("#")
]
PYTHONS = ("3.11", "3.12", "3.13")


def pins_of(requirement: Requirement, python: str) -> list[Requirement]:
    return [
        pin
        for pin in PINS
        if canonicalize_name(pin.name) == canonicalize_name(requirement.name)
        and (not pin.marker or pin.marker.evaluate({"python_version": python}))
    ]


@pytest.mark.parametrize("requirement", LISTED, ids=lambda requirement: requirement.name)
@pytest.mark.parametrize("python", PYTHONS)
def test_each_dependency_has_one_tested_pin_within_its_range(requirement, python):
    (pin,) = pins_of(requirement, python)
    (specifier,) = pin.specifier
    assert specifier.operator == "=="
    assert requirement.specifier.contains(specifier.version)
    assert str(requirement.specifier), f"{requirement.name} has no range in pyproject.toml"


@pytest.mark.parametrize("python", PYTHONS)
def test_no_package_is_pinned_twice(python):
    names = [
        canonicalize_name(pin.name)
        for pin in PINS
        if not pin.marker or pin.marker.evaluate({"python_version": python})
    ]
    assert len(names) == len(set(names))


def test_conda_users_get_the_same():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    assert environment["name"] == PROJECT["name"]
    python, pip, lists = environment["dependencies"]
    version = re.fullmatch(r"python=(\d+\.\d+)", python).group(1)
    assert version in PYTHONS
    assert pip == "pip"
    # the same file of ranges, the same pins: there is no second list that could differ
    assert lists == {"pip": ["-c constraints.txt", "-e .[test]"]}


def test_the_front_door_needs_the_python_the_project_needs():
    assert PROJECT["requires-python"] == ">=3.11"
    assert "sys.version_info < (3, 11)" in (ROOT / "course.py").read_text()
