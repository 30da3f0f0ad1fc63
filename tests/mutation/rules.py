"""Mutants of Python code: each differs from the file in one place, made by rule from its syntax.

Left alone are texts (docstrings, messages of errors, f-strings), type hints and decorators.
"""

from __future__ import annotations

import ast
import re
from collections import Counter
from typing import NamedTuple

COMPARISONS = {
    ast.Lt: (r"<", "<="),
    ast.LtE: (r"<=", "<"),
    ast.Gt: (r">", ">="),
    ast.GtE: (r">=", ">"),
    ast.Eq: (r"==", "!="),
    ast.NotEq: (r"!=", "=="),
    ast.Is: (r"\bis\b", "is not"),
    ast.IsNot: (r"\bis\s+not\b", "is"),
    ast.In: (r"\bin\b", "not in"),
    ast.NotIn: (r"\bnot\s+in\b", "in"),
}
ARITHMETIC = {
    ast.Add: ("+", "-"),
    ast.Sub: ("-", "+"),
    ast.Mult: ("*", "/"),
    ast.Div: ("/", "*"),
    ast.FloorDiv: ("//", "*"),
    ast.Mod: ("%", "*"),
    ast.Pow: ("**", "*"),
    ast.LShift: ("<<", ">>"),
    ast.RShift: (">>", "<<"),
    ast.BitAnd: ("&", "|"),
    ast.BitOr: ("|", "&"),
    ast.BitXor: ("^", "&"),
}
UNSEEN = {"distinct", "domain", "samples", "strict"}  # inputs of tests; an assertion
ANY_ORDER = {"add", "logaddexp", "max", "maximum", "min", "minimum", "multiply"}
NO_ORDER = {"getattr", "hasattr", "isinstance", "issubclass", "setattr", "zip"}  # or not a test


class Mutant(NamedTuple):
    """One changed place of a file."""

    file: str
    rule: str
    line: int  # where the change begins, from 1
    lines: range  # of the statement it is in, of its head where it has a body
    code: str  # that line
    after: str  # what the line becomes
    nth: int  # of the mutants with this file, rule and code
    text: str  # of the whole file

    @property
    def key(self) -> tuple[str, str, str, int]:
        """What names the mutant where lines move."""
        return self.file, self.rule, self.code, self.nth


class Change(NamedTuple):
    """What a rule replaces: bytes of the file."""

    rule: str
    begin: int
    end: int
    new: bytes


def mutants(file: str, text: str) -> list[Mutant]:
    """Return the mutants of a file with this text, in the order of the text."""
    changes = _Changes(text)
    changes.visit(ast.parse(text))
    source, seen, made = text.encode(), Counter[tuple[str, str]](), []
    for change, lines in sorted(changes.found, key=lambda found: found[0].begin):
        new = source[: change.begin] + change.new + source[change.end :]
        begin = source.rfind(b"\n", 0, change.begin) + 1
        line = source.count(b"\n", 0, begin) + 1
        code = source[begin:].partition(b"\n")[0].decode().strip()
        after = new[begin:].partition(b"\n")[0].decode().strip()
        nth = seen[change.rule, code]
        seen[change.rule, code] += 1
        made.append(Mutant(file, change.rule, line, lines, code, after, nth, new.decode()))
    return made


class _Changes(ast.NodeVisitor):
    """Collects the changes of a file; one method per kind of syntax."""

    def __init__(self, text: str) -> None:
        self.source = text.encode()
        self.starts = [0]
        for line in self.source.splitlines(keepends=True):
            self.starts.append(self.starts[-1] + len(line))
        self.found: list[tuple[Change, range]] = []
        self.lines = range(0)
        self.bound: set[str] = set()  # names that the function has given a value so far

    def _span(self, node: ast.AST) -> tuple[int, int]:
        begin = self.starts[node.lineno - 1] + node.col_offset  # type: ignore[attr-defined]
        return begin, self.starts[node.end_lineno - 1] + node.end_col_offset  # type: ignore[attr-defined]

    def _text(self, node: ast.AST) -> bytes:
        begin, end = self._span(node)
        return self.source[begin:end]

    def _add(self, rule: str, begin: int, end: int, new: bytes | str) -> None:
        new = new if isinstance(new, bytes) else new.encode()
        self.found.append((Change(rule, begin, end, new), self.lines))

    def _replace(self, rule: str, node: ast.AST, new: bytes | str) -> None:
        self._add(rule, *self._span(node), new)

    def _between(self, rule: str, left: ast.AST, right: ast.AST, pattern: str, new: str) -> None:
        """Replace an operator, of which the syntax tree does not say where it is."""
        begin, end = self._span(left)[1], self._span(right)[0]
        match = re.search(pattern.encode(), self.source[begin:end])
        if match:  # not where a comment stands in between
            self._add(rule, begin + match.start(), begin + match.end(), new)

    # What is left alone, and where statements begin and end

    def visit(self, node: ast.AST) -> None:
        if isinstance(node, ast.stmt):
            body = getattr(node, "body", None)
            last = body[0].lineno - 1 if isinstance(body, list) else node.end_lineno or 0
            self.lines = range(node.lineno, max(last, node.lineno) + 1)
            if isinstance(node, (ast.Assert, ast.Import, ast.ImportFrom, ast.Global)):
                return
        super().visit(node)

    def visit_JoinedStr(self, node: ast.JoinedStr) -> None:
        pass

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        self.lines = range(node.lineno, (node.end_lineno or 0) + 1)  # for the defaults
        outer, arguments = self.bound, node.args
        named = (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)
        self.bound = {argument.arg for argument in named}
        given = [*arguments.posonlyargs, *arguments.args][::-1]
        defaults = [
            *zip(given, arguments.defaults[::-1], strict=False),
            *zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True),
        ]
        for argument, default in defaults:
            if default is not None and argument.arg not in UNSEEN:
                self.visit(default)
        for statement in node.body:
            self.visit(statement)
        self.bound = outer

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        for statement in node.body:
            self.visit(statement)

    def visit_Raise(self, node: ast.Raise) -> None:
        self._replace("raise deleted", node, "pass")

    # Statements

    def visit_Expr(self, node: ast.Expr) -> None:
        if isinstance(node.value, ast.Call):
            self._replace("call deleted", node, "pass")
            self.generic_visit(node)
        elif not isinstance(node.value, ast.Constant):
            self.generic_visit(node)

    def visit_Assign(self, node: ast.Assign) -> None:
        every = [name for target in node.targets for name in ast.walk(target)]
        names = [name for name in every if isinstance(name, ast.Name)]
        targets = {name.id for name in names if isinstance(name.ctx, ast.Store)}
        places = any(isinstance(target, (ast.Attribute, ast.Subscript)) for target in node.targets)
        if places or (targets and targets <= self.bound):
            self._replace("assignment deleted", node, "pass")
        self.bound |= targets
        if not any(t in {"__all__", "__slots__"} for t in targets):
            self.generic_visit(node)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        if node.value is not None:
            self.visit(node.value)
        if isinstance(node.target, ast.Name):
            self.bound.add(node.target.id)

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        self._replace("assignment deleted", node, "pass")
        old, new = ARITHMETIC.get(type(node.op), ("", ""))
        if old:
            pattern = re.escape(old + "=")
            self._between("operator", node.target, node.value, pattern, new + "=")
        self.generic_visit(node)

    def visit_Return(self, node: ast.Return) -> None:
        if node.value is not None and not _is_none(node.value):
            self._replace("None returned", node.value, "None")
        self.generic_visit(node)

    def visit_Break(self, node: ast.Break) -> None:
        self._replace("continue for break", node, "continue")

    def visit_Continue(self, node: ast.Continue) -> None:
        self._replace("break for continue", node, "break")

    def visit_If(self, node: ast.If) -> None:
        if isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            return
        self._condition(node.test)
        self.generic_visit(node)

    def visit_While(self, node: ast.While) -> None:
        if not isinstance(node.test, ast.Constant):
            self._condition(node.test)
            self.visit(node.test)
        for statement in node.body:
            self.visit(statement)

    # Expressions

    def _condition(self, test: ast.expr) -> None:
        if not any(isinstance(inner, ast.NamedExpr) for inner in ast.walk(test)):
            self._replace("condition true", test, "True")
            self._replace("condition false", test, "False")

    def visit_IfExp(self, node: ast.IfExp) -> None:
        self._condition(node.test)
        self.generic_visit(node)

    def visit_comprehension(self, node: ast.comprehension) -> None:
        for test in node.ifs:
            self._condition(test)
        self.generic_visit(node)

    def visit_Lambda(self, node: ast.Lambda) -> None:
        if not _is_none(node.body):
            self._replace("None returned", node.body, "None")
        self.visit(node.body)

    def visit_Compare(self, node: ast.Compare) -> None:
        operands = [node.left, *node.comparators]
        for left, kind, right in zip(operands, node.ops, operands[1:], strict=False):
            self._between("comparison", left, right, *COMPARISONS[type(kind)])
        self.generic_visit(node)

    def visit_BinOp(self, node: ast.BinOp) -> None:
        texts = (node.left, node.right)
        if type(node.op) in ARITHMETIC and not any(_is_text(side) for side in texts):
            old, new = ARITHMETIC[type(node.op)]
            self._between("operator", node.left, node.right, re.escape(old), new)
        self.generic_visit(node)

    def visit_BoolOp(self, node: ast.BoolOp) -> None:
        old, new = ("and", "or") if isinstance(node.op, ast.And) else ("or", "and")
        for left, right in zip(node.values, node.values[1:], strict=False):
            self._between("and, or", left, right, rf"\b{old}\b", new)
        self.generic_visit(node)

    def visit_UnaryOp(self, node: ast.UnaryOp) -> None:
        begin = self._span(node)[0]
        if isinstance(node.op, ast.Not):
            self._add("not dropped", begin, begin + len("not"), b"")
        elif isinstance(node.op, ast.USub):
            self._add("minus dropped", begin, begin + 1, b"")
        self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> None:
        if isinstance(node.value, bool):
            self._replace("constant", node, str(not node.value))
        elif isinstance(node.value, (int, float)):
            more = node.value + 1
            self._replace("constant", node, repr(more if more != node.value else node.value * 2))

    def visit_Slice(self, node: ast.Slice) -> None:
        begin, end = self._span(node)
        first = begin if node.lower is None else self._span(node.lower)[1]
        colon = self.source.index(b":", first, end)
        if node.lower is None:
            self._add("slice shifted", begin, begin, b"1")
        elif not isinstance(node.lower, ast.Constant):
            self._replace("slice shifted", node.lower, b"(" + self._text(node.lower) + b") + 1")
        if node.upper is None:
            self._add("slice shifted", colon + 1, colon + 1, b"-1")
        elif not isinstance(node.upper, ast.Constant):
            self._replace("slice shifted", node.upper, b"(" + self._text(node.upper) + b") - 1")
        self.generic_visit(node)

    def visit_keyword(self, node: ast.keyword) -> None:
        if node.arg not in UNSEEN:
            self.visit(node.value)

    def visit_Call(self, node: ast.Call) -> None:
        name = getattr(node.func, "id", getattr(node.func, "attr", ""))
        if name in {"Sample", "cast", "warn", "TypeVar"}:  # inputs of tests, texts, type hints
            return
        if len(node.args) > 1 and name not in ANY_ORDER | NO_ORDER:
            self._swapped(*node.args[:2])
        arguments = sorted([*node.args, *node.keywords], key=self._span)
        for i, keyword in enumerate(arguments):
            if isinstance(keyword, ast.keyword) and keyword.arg not in {None, *UNSEEN}:
                self._dropped(arguments[i - 1] if i else None, keyword, arguments[i + 1 : i + 2])
        self.generic_visit(node)

    def _swapped(self, x: ast.expr, y: ast.expr) -> None:
        starred = isinstance(x, ast.Starred) or isinstance(y, ast.Starred)
        if not starred and self._text(x) != self._text(y):
            (begin, middle), (later, end) = self._span(x), self._span(y)
            new = self._text(y) + self.source[middle:later] + self._text(x)
            self._add("arguments swapped", begin, end, new)

    def _dropped(self, before: ast.AST | None, keyword: ast.keyword, after: list[ast.AST]) -> None:
        begin, end = self._span(keyword)
        if before is not None:
            begin = self.source.index(b",", self._span(before)[1], begin)
        elif after:
            end = self._span(after[0])[0]
        self._add("keyword dropped", begin, end, b"")


def _is_none(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and node.value is None


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.JoinedStr) or (
        isinstance(node, ast.Constant) and isinstance(node.value, str)
    )
