"""The scripts that cases run in processes of their own are texts, so nothing but this test follows their imports."""

import ast
from importlib import import_module

import pytest

from benchmarks.cases import cold, loading, memory, scaling, tradeoff, which

SCRIPTS = {
    f"{module.__name__}.{name}": text
    for module in (cold, loading, memory, scaling, tradeoff, which)
    for name, text in vars(module).items()
    if name.endswith("SCRIPT")
}


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_imports_of_a_script_are_there(name):
    found = [node for node in ast.walk(ast.parse(SCRIPTS[name])) if isinstance(node, ast.ImportFrom)]
    for node in found:
        assert all(hasattr(import_module(node.module), alias.name) for alias in node.names), node.module
    assert len(SCRIPTS) >= 7
