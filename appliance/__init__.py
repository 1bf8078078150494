"""An air-gapped AI appliance: signed bundles in, models tuned and served inside, nothing out.

The rooms and the one direction in which they may import each other are drawn in
``docs/architecture.md`` and held by import-linter (``pyproject.toml``).
"""

__version__ = "0.1.0"
