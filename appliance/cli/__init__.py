"""The ``sovctl`` command: parse, call, print. No decisions are made here."""
