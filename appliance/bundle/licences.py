"""What the metadata of a wheel says about itself: name, version, licence, licence files.

Core metadata 2.4 has ``License-Expression`` (PEP 639); before it there were the free field
``License`` and the classifiers. The first that says something is used, in this order: expression,
a free field that is a valid SPDX expression, classifiers, free text.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from email.message import Message
from email.parser import BytesParser
from pathlib import Path

from packaging.licenses import InvalidLicenseExpression, canonicalize_license_expression

# Classifiers that name exactly one licence of the SPDX list.
_CLASSIFIED = {
    "Apache Software License": "Apache-2.0",
    "MIT License": "MIT",
    "MIT No Attribution License (MIT-0)": "MIT-0",
    "ISC License (ISCL)": "ISC",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
    "Python Software Foundation License": "PSF-2.0",
    "The Unlicense (Unlicense)": "Unlicense",
    "zlib/libpng License": "Zlib",
    "GNU General Public License v2 (GPLv2)": "GPL-2.0-only",
    "GNU General Public License v2 or later (GPLv2+)": "GPL-2.0-or-later",
    "GNU General Public License v3 (GPLv3)": "GPL-3.0-only",
    "GNU General Public License v3 or later (GPLv3+)": "GPL-3.0-or-later",
    "GNU Lesser General Public License v2 (LGPLv2)": "LGPL-2.0-only",
    "GNU Lesser General Public License v2 or later (LGPLv2+)": "LGPL-2.0-or-later",
    "GNU Lesser General Public License v3 (LGPLv3)": "LGPL-3.0-only",
    "GNU Lesser General Public License v3 or later (LGPLv3+)": "LGPL-3.0-or-later",
    "GNU Affero General Public License v3": "AGPL-3.0-only",
    "GNU Affero General Public License v3 or later (AGPLv3+)": "AGPL-3.0-or-later",
}
_FREE_TEXT = {
    "apache 2.0": "Apache-2.0",
    "apache 2.0 license": "Apache-2.0",
    "apache license 2.0": "Apache-2.0",
    "apache license, version 2.0": "Apache-2.0",
    "apache": "Apache-2.0",
    "mit license": "MIT",
    "the mit license": "MIT",
    "3-clause bsd license": "BSD-3-Clause",
    "bsd 3-clause license": "BSD-3-Clause",
    "bsd-3": "BSD-3-Clause",
    "new bsd": "BSD-3-Clause",
    "psf": "PSF-2.0",
}


@dataclass(frozen=True)
class Licence:
    """``expression`` is valid SPDX, or empty; then ``name`` is what the wheel says in its words."""

    expression: str
    name: str


@dataclass(frozen=True)
class WheelFacts:
    """What a bill of materials says of one wheel."""

    name: str
    version: str
    summary: str
    licence: Licence
    licence_files: tuple[str, ...]
    supplier: str


def read_wheel(path: Path) -> WheelFacts:
    """Facts from a wheel's METADATA. Raises ``ValueError`` if it has none."""
    with zipfile.ZipFile(path) as wheel:
        names = wheel.namelist()
        metadata = [n for n in names if n.endswith(".dist-info/METADATA") and n.count("/") == 1]
        if len(metadata) != 1:
            raise ValueError(f"{path.name} has {len(metadata)} METADATA files")
        message = BytesParser().parsebytes(wheel.read(metadata[0]), headersonly=True)
    return WheelFacts(
        name=str(message["Name"]),
        version=str(message["Version"]),
        summary=str(message["Summary"] or ""),
        licence=licence_of(message),
        licence_files=tuple(_licence_files(names)),
        supplier=str(message["Author"] or message["Maintainer"] or ""),
    )


def licence_texts(path: Path) -> list[bytes]:
    """The licence files in a wheel, in path order."""
    with zipfile.ZipFile(path) as wheel:
        return [wheel.read(name) for name in _licence_files(wheel.namelist())]


def _licence_files(names: list[str]) -> list[str]:
    """Licence files of a wheel, by PEP 639's folder or by their usual names."""
    usual = ("LICENSE", "LICENCE", "COPYING", "NOTICE", "AUTHORS")
    return sorted(
        name
        for name in names
        if ".dist-info/" in name
        and not name.endswith("/")
        and ("/licenses/" in name or name.rpartition("/")[2].upper().startswith(usual))
    )


def licence_of(message: Message) -> Licence:
    """The licence core metadata states; see the module's first lines."""
    if expression := _spdx(str(message["License-Expression"] or "")):
        return Licence(expression, "")
    free = " ".join(str(message["License"] or "").split())
    if expression := _spdx(_FREE_TEXT.get(free.lower(), free)):
        return Licence(expression, "")
    classifiers = [
        str(value).rpartition(" :: ")[2]
        for value in message.get_all("Classifier", [])
        if str(value).startswith("License :: ") and "::" in str(value)[11:]
    ]
    known = [_CLASSIFIED[name] for name in classifiers if name in _CLASSIFIED]
    if classifiers and len(known) == len(classifiers):
        return Licence(" OR ".join(sorted(set(known))), "")
    stated = ", ".join(classifiers) or free[:100]
    return Licence("", stated or "not stated")


def licence_named(text: str) -> Licence:
    """Terms somebody wrote by hand: as SPDX if they are, else in their words."""
    expression = _spdx(_FREE_TEXT.get(text.lower(), text))
    return Licence(expression, "" if expression else text or "not stated")


def licence_of_debian(names: Sequence[str]) -> Licence:
    """The licences of a ``debian/copyright`` (DEP 5 short names) as one: all of them hold.

    A name SPDX does not know becomes a ``LicenseRef``, so that those it knows still count.
    """
    if not names:
        return Licence("", "not stated")
    parts = [_spdx(_dep5(name)) or _reference(name) for name in names]
    return Licence(" AND ".join(f"({p})" if " OR " in p else p for p in parts), "")


_DEP5 = {"expat": "MIT", "psf-2": "PSF-2.0", "artistic": "Artistic-1.0-Perl"}


def _dep5(name: str) -> str:
    """The SPDX licence of a DEP 5 short name: ``GPL-2+`` is ``GPL-2.0-or-later``."""
    words = []
    for word in name.split():
        gnu = re.fullmatch(r"(A?GPL|LGPL|GFDL)-(\d)(?:\.(\d))?(\+?)", word, re.IGNORECASE)
        if gnu:
            kind, major, minor, later = gnu.groups()
            which = "or-later" if later else "only"
            words.append(f"{kind.upper()}-{major}.{minor or 0}-{which}")
        elif word in {"and", "or", "with"}:
            words.append(word.upper())
        else:
            words.append(_DEP5.get(word.lower(), word))
    return " ".join(words)


def _reference(name: str) -> str:
    return "LicenseRef-debian-" + (re.sub(r"[^A-Za-z0-9.-]+", "-", name).strip("-") or "unnamed")


def _spdx(text: str) -> str:
    try:
        return str(canonicalize_license_expression(text)) if text else ""
    except InvalidLicenseExpression:
        return ""
