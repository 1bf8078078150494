"""Where the playbooks are: inside the package, or beside it in a checkout."""

from __future__ import annotations

from pathlib import Path

import appliance


def folder() -> Path:
    """The folder with ``site.yml`` and ``roles/``. Raises ``FileNotFoundError``: a broken wheel."""
    package = Path(appliance.__file__).parent
    for place in (package / "_playbooks", package.parent / "playbooks"):
        if (place / "site.yml").is_file():
            return place
    raise FileNotFoundError(f"no playbooks in {package} or beside it")
