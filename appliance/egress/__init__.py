"""The seal: no process of the appliance can send anything beyond its own loopback.

``seal`` decides whether this machine can hold a seal and builds the command that makes one;
``inside`` runs in there first and shuts what a network namespace leaves open; ``door`` is the one
way in; ``probe`` tries to get out and ``verdict`` judges the attempts; ``live`` reads the seal of a
running process from ``/proc``. The threats each part answers: ``docs/threat-model.md``.

``inside``, ``privileges``, ``syscalls`` and ``door`` need the standard library only.
"""
