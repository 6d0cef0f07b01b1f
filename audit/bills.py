"""Bills of materials of what there is without a container engine: this environment, and npm's lock files.

Those of the images are made in the images (`make sbom`, `deploy/image/sbom.py`), whose form is checked here too.
Sources: CycloneDX 1.6 (the schema that its library carries), package URL (purl), Subresource Integrity for hashes.
"""

from __future__ import annotations

import base64
import json
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from cyclonedx.model import HashAlgorithm, HashType
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.output.json import JsonV1Dot6
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from packageurl import PackageURL
from packaging.utils import canonicalize_name

from audit.findings import Report
from audit.locks import NPM


def check(root: Path, to: Path) -> Report:
    """Make all bills under `to`, and hold them against the schema and what they should list."""
    to.mkdir(parents=True, exist_ok=True)
    report = Report("sbom", "")
    listed = 0
    for name, text, expected in (environment(root), *(npm(root, folder) for folder in NPM), *image(root)):
        (to / f"{name}.cdx.json").write_text(text)
        report.faults += [f"{name}: {fault}" for fault in faults(text, expected)]
        listed += len(json.loads(text)["components"])
    report.note = f"{listed} components in {to}"
    return report


def faults(text: str, expected: set[tuple[str, str]]) -> list[str]:
    """What is wrong with a bill: against the schema, and against the names and versions that it should list."""
    error = JsonStrictValidator(SchemaVersion.V1_6).validate_str(text)
    if error is not None:
        return [f"not CycloneDX 1.6: {str(error)[:200]}"]
    components: list[dict[str, Any]] = json.loads(text)["components"]
    found = {(each["name"].lower(), each["version"]) for each in components}
    wrong = [f"lists no {name} {version}" for name, version in sorted(expected - found)]
    bare = [each["name"] for each in components if not each.get("purl", "").startswith("pkg:")]
    return wrong + [f"{name} has no purl" for name in bare if not name.startswith("concilia")]  # ours are in no index


def environment(root: Path) -> tuple[str, str, set[tuple[str, str]]]:
    """By cyclonedx-py, of the environment that this runs in."""
    command = [sys.executable, "-m", "cyclonedx_py", "environment", "--sv", "1.6", "--output-reproducible"]
    command += ["--no-validate", sys.prefix]  # `faults` does
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    installed = {(each.metadata["Name"].lower(), each.version) for each in metadata.distributions()}
    # In the bill some names are spelt as their project spells them, and some canonically.
    text = done.stdout
    spelt = {canonicalize_name(each["name"]): each["name"].lower() for each in json.loads(text)["components"]}
    return "python", text, {(spelt.get(canonicalize_name(name), name), version) for name, version in installed}


def npm(root: Path, folder: str) -> tuple[str, str, set[tuple[str, str]]]:
    """From a lock file alone, with its hashes."""
    entries = json.loads((root / folder / "package-lock.json").read_text())["packages"]
    components = {}
    for path, entry in entries.items():
        if not path:
            continue
        name = entry.get("name") or path.rsplit("node_modules/", 1)[-1]
        group, _, own = name.rpartition("/")
        purl = PackageURL("npm", group or None, own, entry["version"])
        hashes = [HashType(alg=HashAlgorithm.SHA_512, content=value) for value in _sha512(entry.get("integrity", ""))]
        components[str(purl)] = Component(
            type=ComponentType.LIBRARY,
            name=name,
            version=entry["version"],
            purl=purl,
            bom_ref=str(purl),
            hashes=hashes,
        )
    bom = Bom(components=components.values())
    bom.metadata.component = Component(type=ComponentType.APPLICATION, name=f"concilia-{folder}", bom_ref=folder)
    asked = {name for kind in ("dependencies", "devDependencies") for name in entries[""].get(kind, {})}
    bom.register_dependency(bom.metadata.component, [each for each in components.values() if each.name in asked])
    text = JsonV1Dot6(bom).output_as_string(indent=1)
    return f"npm-{folder}", text, {(each.name.lower(), str(each.version)) for each in components.values()}


def image(root: Path) -> list[tuple[str, str, set[tuple[str, str]]]]:
    """The script that runs within images, run here; it reads Debian's list of packages, and so needs one."""
    if not Path("/var/lib/dpkg/status").exists():
        return []
    script = root / "deploy/image/sbom.py"
    done = subprocess.run([sys.executable, script, "here"], capture_output=True, text=True, check=True)
    installed = {(each.metadata["Name"].lower(), each.version) for each in metadata.distributions()}
    return [("image-script", done.stdout, installed)]


def _sha512(integrity: str) -> list[str]:
    found = re.findall(r"sha512-([A-Za-z0-9+/]+={0,2})", integrity)
    return [base64.b64decode(value).hex() for value in found]
