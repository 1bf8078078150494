"""``endpoint.json``: where a site that was installed from here answers, and what it runs."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from appliance.cluster.files import write_whole
from appliance.errors import SiteEndpointDamaged

if TYPE_CHECKING:
    from appliance.layout import SitePlace


@dataclass(frozen=True, slots=True)
class Endpoint:
    """The gateway's URL, the files that a caller needs for it, and the release's identity."""

    url: str
    ca: Path
    operator_key: Path
    release: str

    @classmethod
    def read(cls, place: SitePlace) -> Endpoint | None:
        """None for a site that was never installed whole. Raises :class:`SiteEndpointDamaged`."""
        try:
            content = json.loads(place.endpoint.read_bytes())
            return cls(
                url=str(content["url"]),
                ca=Path(content["ca"]),
                operator_key=Path(content["operator_key"]),
                release=str(content.get("release", "")),
            )
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise SiteEndpointDamaged(site=place.name, path=place.endpoint) from error

    def write(self, place: SitePlace) -> None:
        """Keep it for every command that asks the site."""
        content = {
            "url": self.url,
            "ca": str(self.ca),
            "operator_key": str(self.operator_key),
            "release": self.release,
        }
        write_whole(place.endpoint, json.dumps(content, indent=2).encode() + b"\n", mode=0o600)
