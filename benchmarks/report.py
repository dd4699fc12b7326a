"""What the reports of measured times have in common."""

from collections.abc import Iterable


def framed(body: Iterable[str], disturbance: str | None, environment: dict[str, object]) -> str:
    """Lines of Markdown between what makes them doubtful, if anything does, and what they were measured on."""
    versions = environment["versions"]
    assert isinstance(versions, dict)
    warning = [f"**Not a measurement**: {disturbance}.", ""] if disturbance else []
    shown = ", ".join(f"{name} {version}" for name, version in versions.items())
    return "\n".join([*warning, *body, f"{environment['cpu']}, {environment['cores']} cores; {shown}"])
