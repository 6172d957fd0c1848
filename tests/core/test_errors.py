"""Every error of the package is a sentence that says what to do (python build.py test tests/core/test_errors.py)."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from remedies import has_remedy

PACKAGE = Path(__file__).parents[2] / "lgm_blender"
UNKNOWN = "(…)"  # what is not known before the program runs


class Source:
    """The package's syntax trees, and what its constants and functions can be."""

    def __init__(self):
        self.trees = {path: ast.parse(path.read_text(encoding="utf-8")) for path in sorted(PACKAGE.rglob("*.py"))}
        self.constants, self.returned = {}, {"again": [ast.Constant("Press Install.")]}  # install.Plan's
        for tree in self.trees.values():
            for node in tree.body:
                if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                    self.constants[node.targets[0].id] = node.value
            for node in ast.walk(tree):
                if isinstance(node, ast.FunctionDef):
                    values = [each.value for each in ast.walk(node) if isinstance(each, ast.Return) and each.value]
                    self.returned.setdefault(node.name, []).extend(values)

    def texts(self, node: ast.expr, around: ast.AST, within: tuple[str, ...] = ()) -> list[str]:
        """What an expression within a function can be, as far as that can be told, looking into each function once."""
        found: list[str] = []
        match node:
            case ast.Constant(value=str(text)):
                found = [text]
            case ast.JoinedStr(values=parts):
                found = [""]
                for part in parts:
                    inner = part.value if isinstance(part, ast.FormattedValue) else part
                    found = [a + b for a in found for b in self.texts(inner, around, within)]
            case ast.BinOp(left=left, op=ast.Add(), right=right):
                ends = self.texts(right, around, within)
                found = [a + b for a in self.texts(left, around, within) for b in ends]
            case ast.IfExp(body=body, orelse=other):
                found = self.texts(body, around, within) + self.texts(other, around, within)
            case ast.Name(id=name):
                values = [
                    each.value
                    for each in ast.walk(around)
                    if isinstance(each, ast.Assign)
                    and any(isinstance(target, ast.Name) and target.id == name for target in each.targets)
                ] or [self.constants.get(name, ast.Constant(UNKNOWN))]
                found = [text for value in values for text in self.texts(value, around, within)]
            case ast.Call(func=ast.Attribute(value=value, attr="format")):
                found = self.texts(value, around, within)
            case ast.Call(func=ast.Attribute(attr=name) | ast.Name(id=name)) | ast.Attribute(attr=name):
                values = self.returned.get(name, []) if name not in within else []
                found = [text for value in values for text in self.texts(value, value, (*within, name))]
        return [text for text in found if text] or [UNKNOWN]

    def errors(self) -> list[tuple[str, str]]:
        """(where, what it says) of each LGMError that is made anywhere."""
        found = []
        for path, tree in self.trees.items():
            functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
            for node in ast.walk(tree):
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "LGMError":
                    around = [f for f in functions if f.lineno <= node.lineno <= f.end_lineno]
                    inner = max(around, key=lambda f: f.lineno, default=tree)
                    where = f"{path.relative_to(PACKAGE).as_posix()}:{node.lineno}"
                    found += [(where, text) for text in self.texts(node.args[0], inner)]
        return found


def test_every_error_says_what_to_do():
    """What begins small is a part of a sentence: why an object was left out of many."""
    errors = Source().errors()
    told = [(where, text) for where, text in errors if text != UNKNOWN and not text[0].islower()]
    assert len(told) > 200
    assert [(where, text) for where, text in told if not has_remedy(text)] == []


@pytest.mark.parametrize(
    ("sentence", "whole"),
    [
        ("a.ply is damaged.", False),
        ("a.ply is damaged. Export it again.", True),
        ("The disk is full: free some space.", True),
        ("Its exporter is of no use.", False),
        ("The seed must be from 0 to 9, not 10.", True),
        ("Set HF_HOME or use another disk.", True),
        ("Something went wrong (ValueError: no).", False),
    ],
)
def test_what_says_what_to_do(sentence, whole):
    assert has_remedy(sentence) is whole
