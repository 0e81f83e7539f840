"""A chat template with the meter in it: where it loops, adds, joins and compares, it pays first."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from jinja2 import nodes
from jinja2.visitor import NodeTransformer

from .meter import NODE


def _units(node: nodes.Node) -> int:
    """What going once through a part of a template costs at most: its nodes and its text, of branches the largest, and
    without the bodies of loops and macros, which pay for themselves.
    """
    if isinstance(node, nodes.TemplateData):
        return NODE + len(node.data)
    if isinstance(node, nodes.Const):
        return NODE + (len(node.value) if isinstance(node.value, str) else 0)
    if isinstance(node, nodes.If):
        branches = [sum(map(_units, part)) for part in (node.body, node.else_)]
        return NODE + _units(node.test) + max(*branches, *map(_units, node.elif_), 0)
    if isinstance(node, nodes.For):
        return NODE + _units(node.iter) + sum(map(_units, node.else_))
    if isinstance(node, nodes.Macro | nodes.CallBlock | nodes.Block):
        return NODE + sum(map(_units, node.iter_child_nodes(exclude=("body",))))
    return NODE + sum(map(_units, node.iter_child_nodes()))


class Rewritten(NodeTransformer):
    """Puts the meter into a template: where it loops, adds, joins and compares."""

    def _part(self, name: str, node: Any, *args: nodes.Expr) -> nodes.Filter:
        return nodes.Filter(node, f"aift:{name}", list(args), [], None, None, lineno=node.lineno)

    def _paying(self, node: Any, units: int) -> None:
        cost = self._part("pay", nodes.Const(units, lineno=node.lineno))
        node.body.insert(0, nodes.ExprStmt(cost, lineno=node.lineno))

    def visit_For(self, node: nodes.For) -> nodes.Node:
        units = NODE + sum(map(_units, node.body)) + (_units(node.test) if node.test is not None else 0)
        self.generic_visit(node)
        if node.recursive:
            self._paying(node, units)
            units = 1
        node.iter = self._part("loop", node.iter, nodes.Const(units, lineno=node.lineno))
        return node

    def visit_Macro(self, node: Any) -> Any:
        units = NODE + sum(map(_units, node.body))
        self.generic_visit(node)
        self._paying(node, units)
        return node

    visit_CallBlock = visit_Block = visit_Macro

    def visit_Output(self, node: nodes.Output) -> nodes.Node:
        self.generic_visit(node)
        node.nodes = [
            part if isinstance(part, nodes.TemplateData | nodes.Const) else self._part("print", part)
            for part in node.nodes
        ]
        return node

    def visit_Add(self, node: nodes.Add) -> nodes.Node:
        parts: list[nodes.Expr] = []
        left: nodes.Expr = node
        while isinstance(left, nodes.Add):
            parts.append(left.right)
            left = left.left
        parts = [self.visit(part) for part in (left, *reversed(parts))]
        return self._part("add", nodes.Tuple(parts, "load", lineno=node.lineno))

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return self._part("concat", nodes.Tuple(node.nodes, "load", lineno=node.lineno))

    def _visit_made(self, node: Any) -> Any:
        self.generic_visit(node)
        if getattr(node, "ctx", "load") != "load" or _is_constant(node):
            return node
        return self._part("made", node)

    visit_List = visit_Tuple = visit_Dict = _visit_made

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:
        self.generic_visit(node)
        return self._part("cut", node) if isinstance(node.arg, nodes.Slice) else node

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:
        """A value that is compared with a constant is looked at no further than the constant goes."""
        self.generic_visit(node)
        constant = _is_constant(node.expr)
        for one in node.ops:
            looks_into = one.op.endswith("in")  # in, and not in
            if not _is_constant(one.expr) and (looks_into or not constant):
                one.expr = self._part("made", one.expr)
            elif not constant and looks_into and not isinstance(one.expr, nodes.List | nodes.Tuple | nodes.Const):
                node.expr = self._part("made", node.expr)
        return node


def _is_constant(node: nodes.Node) -> bool:
    return all(
        isinstance(part, nodes.Const | nodes.List | nodes.Tuple | nodes.Dict | nodes.Pair) for part in _within(node)
    )


def _within(node: nodes.Node) -> Iterator[nodes.Node]:
    yield node
    for child in node.iter_child_nodes():
        yield from _within(child)
