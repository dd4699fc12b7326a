"""Messages of the sources, as a user meets them: each error that is raised and each warning, with … for what varies."""

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path

import runtime.errors

ROOT = Path(__file__).parents[2]
ERRORS = {name for name, value in vars(runtime.errors).items() if isinstance(value, type)} | {
    "UnreadKindError",
    "LimitError",
}
"""Names of all errors and warnings of the library, and of two whose text is all that an `ImageError` says."""

VARIES = "…"


def template(node: ast.expr, constants: Mapping[str, str]) -> str:
    """Return the text of an expression, with … for what is known only when the program runs."""
    match node:
        case ast.Constant(value=str(text)):
            return text
        case ast.JoinedStr(values=parts):
            return "".join(template(part, constants) for part in parts)
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return template(left, constants) + template(right, constants)
        case ast.FormattedValue(value=ast.Name(id=name)) | ast.Name(id=name) if name in constants:
            return constants[name]
        case _:
            return VARIES


def constants_of(tree: ast.Module) -> dict[str, str]:
    """Return the texts that a module names, by their names."""
    found: dict[str, str] = {}
    for node in tree.body:
        match node:
            case ast.Assign(targets=[ast.Name(id=name)], value=ast.Constant(value=str(text))):
                found[name] = text
    return found


def messages() -> Iterator[tuple[str, str, str]]:
    """Yield (name of the error or "warning", file:line, template) of each message of runtime, unet_core and export."""
    for package in ("runtime", "unet_core", "export"):
        for path in sorted((ROOT / package).rglob("*.py")):
            tree = ast.parse(path.read_text())
            constants = constants_of(tree)
            for node in ast.walk(tree):
                match node:
                    case ast.Call(func=ast.Name(id=name), args=[first, *_]) if name in {*ERRORS, "warn_user"}:
                        kind = "warning" if name == "warn_user" else name
                        yield kind, f"{path.relative_to(ROOT)}:{node.lineno}", template(first, constants)
                    case ast.Call(func=ast.Name(id="warn_once"), args=[_, text]):
                        yield "warning", f"{path.relative_to(ROOT)}:{node.lineno}", template(text, constants)
