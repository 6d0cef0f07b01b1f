"""Prints a CycloneDX 1.6 document of what an image holds: Python distributions, and Debian packages by dpkg.

Runs inside the image, whose own metadata it reads; standard library only. Source: CycloneDX 1.6, package URL (purl).
"""

from __future__ import annotations

import json
import sys
from importlib import metadata
from pathlib import Path
from typing import Any
from urllib.parse import quote


def distributions() -> list[dict[str, Any]]:
    """The Python distributions of this interpreter's environment."""
    found = {(item.metadata["Name"], item.version) for item in metadata.distributions()}
    return [component(name, version, f"pkg:pypi/{name.lower().replace('_', '-')}@{version}") for name, version in found]


def packages() -> list[dict[str, Any]]:
    """The Debian packages that are installed."""
    found = []
    for block in Path("/var/lib/dpkg/status").read_text().split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines() if ": " in line and not line.startswith(" "))
        if fields.get("Status") == "install ok installed":
            name, version = fields["Package"], fields["Version"]
            found.append(component(name, version, f"pkg:deb/debian/{name}@{quote(version)}"))
    return found


def component(name: str, version: str, purl: str) -> dict[str, Any]:
    """One component of the document."""
    return {"type": "library", "name": name, "version": version, "purl": purl, "bom-ref": purl}


def main(image: str) -> None:
    """Print the document."""
    components = sorted(distributions() + packages(), key=lambda item: str(item["purl"]))
    document = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {"component": {"type": "container", "name": f"concilia/{image}"}},
        "components": components,
    }
    json.dump(document, sys.stdout, indent=1)


if __name__ == "__main__":
    main(sys.argv[1])
