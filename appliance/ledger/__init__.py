"""The record of everything that happened: a Merkle log on plain files (docs/ledger-format.md).

>>> from appliance.ledger import Event, Ledger
>>> ledger = Ledger.open(home)
>>> ledger.append([Event("key:3f9a", "tune.submit", {"job": "ftjob-1", "dataset": "sha256:…"})])
[17]

Write through :class:`Ledger` (``log.py``). Read with ``files.py``, check with ``verify.py``, export
one entry's proof with ``proof.py``; these three need only the files and a public key.
"""

from appliance.ledger.event import ACTIONS, Event, EventInvalid
from appliance.ledger.log import Ledger

__all__ = ["ACTIONS", "Event", "EventInvalid", "Ledger"]
