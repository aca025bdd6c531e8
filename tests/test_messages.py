"""Every message that people read stands in tests/gold/messages.txt, so that they can be read as a whole.

Collected from the source: each `raise X("...")`, each warning and finding of a report, each line for stderr, each entry of a table
SENTENCES. {} is a value.
"""

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
GOLD = Path(__file__).parent / "gold" / "messages.txt"
# What makes a message without raising it: lines on stderr, and warnings and findings of a report.
SPOKEN = {"note", "say", "Warning", "Finding", "doubt"}
TABLE = "SENTENCES"  # a module's table of messages
INTERNAL = {"AssertionError", "NotImplementedError", "SystemExit", "Exit", "StopIteration"}


def text(node, names):
    """The text of a string expression with {} for values; None where it is no text."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(part.value if isinstance(part, ast.Constant) else "{}" for part in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        sides = [text(side, names) for side in (node.left, node.right)]
        return None if sides == [None, None] else "".join("{}" if side is None else side for side in sides)
    if isinstance(node, ast.IfExp):
        sides = [text(side, names) for side in (node.body, node.orelse)]
        return None if sides == [None, None] else " | ".join("{}" if side is None else side for side in sides)
    if isinstance(node, ast.Name):
        return names.get(node.id)
    return None


def name_of(call):
    return call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")


def messages(path):
    """(kind, text) of each message of a file, in the order of the source."""
    tree = ast.parse(path.read_text())
    found = {}
    for scope in ast.walk(tree):
        if not isinstance(scope, (ast.FunctionDef, ast.Module)):
            continue
        names = {}
        for node in ast.walk(scope):
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                value = text(node.value, {})
                if value is not None:
                    names[node.targets[0].id] = value
        for node in ast.walk(scope):
            if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
                call, wanted = node.exc, name_of(node.exc) not in INTERNAL
            elif isinstance(node, ast.Call):
                call, wanted = node, name_of(node) in SPOKEN
            else:
                continue
            values = [*call.args, *(word.value for word in call.keywords if word.arg in ("message", "advice"))]
            parts = [part for value in values if (part := text(value, names)) is not None and " " in part.strip()]
            if wanted and parts:  # the innermost function sees the message last, and knows its names best
                found[call.lineno, call.col_offset] = (
                    name_of(call),
                    " / ".join(" ".join(part.split()) for part in parts),
                )
    for node in tree.body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == TABLE:
            found |= {(value.lineno, value.col_offset): (TABLE, value.value) for value in node.value.values}
    return [found[place] for place in sorted(found)]


def collected():
    lines = ["# Every message of lsa, file by file. {} is a value; | separates alternatives, / separate parts.\n"]
    for path in sorted((ROOT / "lsa_cli").rglob("*.py")):
        found = dict.fromkeys(messages(path))
        if found:
            lines += [f"\n{path.relative_to(ROOT)}\n", *(f"    {kind}: {message}\n" for kind, message in found)]
    return "".join(lines)


def test_the_messages_are_those_of_the_source(request):
    now = collected()
    if request.config.getoption("--update-gold"):
        GOLD.write_text(now)
    assert now == GOLD.read_text(), "read the diff of: pytest tests/test_messages.py --update-gold"


def test_messages_are_collected(tmp_path):
    file = tmp_path / "module.py"
    file.write_text(
        "def refuse(n):\n    advice = 'give more' if n else 'give some'\n"
        "    raise UsageError(f'{n} samples are too few; ' + advice)\n"
        "def warn():\n    note('the disk is full')\n    raise ValueError(3)\n"
    )
    assert messages(file) == [
        ("UsageError", "{} samples are too few; give more | give some"),
        ("note", "the disk is full"),
    ]
