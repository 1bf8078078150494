"""Alembic's revisions of the registry, run by :func:`appliance.registry.store.Registry.open`."""
