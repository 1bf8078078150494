"""What a manifest says in two places that cannot both be true, and the place to change.

    raise contradiction(("hosts", 1, "name"), "host n1 is defined twice", "give it another name")

pydantic gives a model's own rule no place: an operator would be sent to line 1. What is raised here
names a field, so that :mod:`appliance.manifests.document` can name its line and say what to type.
"""

from __future__ import annotations

from pydantic import ValidationError
from pydantic_core import InitErrorDetails, PydanticCustomError

KIND = "contradiction"


def contradiction(at: tuple[str | int, ...], reason: str, expected: str) -> ValidationError:
    """A fault at a field, relative to the model whose validator raises it.

    ``reason`` is a clause without its full stop; ``expected`` says what to type instead.
    """
    kind = PydanticCustomError(KIND, "{reason}", {"reason": reason, "expected": expected})
    return ValidationError.from_exception_data(
        KIND, [InitErrorDetails(type=kind, loc=at, input=None)]
    )
