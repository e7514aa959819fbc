"""Documents and files as modules: keyword attributes, places in the original text, failures that stay local."""

import ast
import inspect
import subprocess
import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace

import pytest

from tessera.errors import ArgumentError, SourceError, render
from tessera.frontend import importer
from tessera.frontend.document import (
    bound_names,
    execute,
    function_source,
    load_document,
    parse_document,
    read_document,
    read_source_line,
)
from tessera.frontend.source import rewrite_keyword_attributes
from tessera.location import Loc

LANGUAGE_DOCUMENT = Path(__file__).parents[2] / "examples" / "gdn" / "gdn_part1.md"


def markdown(*blocks: str) -> str:
    """A document with a line of prose before each block: the code of the first starts on line 3."""
    return "\n".join(f"Some `prose`.\n```python\n{textwrap.dedent(block).strip()}\n```" for block in blocks) + "\n"


def run(text: str, path: str = "doc.md", **options):
    return execute(parse_document(path, text), **options)


# -- keyword attributes


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("a.global(x)", "a.global_(x)"),
        ("a.shared.global.sparse", "a.shared.global_.sparse"),
        ("a.async.in.lambda", "a.async_.in_.lambda_"),
        ("f(1)[2].is", "f(1)[2].is_"),
        ("a . global", "a . global_"),
        ("(a.\n  global)", "(a.\n  global_)"),
        ("(a.  # .in\n  global)", "(a.  # .in\n  global_)"),
        ("x.from.import", "x.from_.import_"),
        ("'a.global'  # a.global", "'a.global'  # a.global"),
        ('"""\na.global\n"""', '"""\na.global\n"""'),
        ("x.match.case.type", "x.match.case.type"),  # soft keywords are names already
        ("from . import x", "from . import x"),
        ("from .. import x", "from .. import x"),
        ("from ... import x", "from ... import x"),
        ("from .a import x", "from .a import x"),
        ("1.if x else 2", "1.if x else 2"),  # the dot belongs to the number
        ("b = ...\na.global", "b = ...\na.global_"),
        ("a.global\r\nb.in\r", "a.global_\nb.in_\n"),
    ],
)
def test_keyword_attributes(written, read):
    assert rewrite_keyword_attributes(written).text == read


def test_text_that_cannot_be_tokenized_is_rewritten_before_the_error():
    assert rewrite_keyword_attributes("a.global\nx = (").text == "a.global_\nx = ("
    with pytest.raises(SourceError) as caught:
        run("a.global\nx = 'open\n", "bad.py")
    assert (caught.value.code, caught.value.loc.line) == ("TS101", 2)


def test_columns_map_back():
    columns = rewrite_keyword_attributes("a.in.is + b").columns
    #         a.in_.is_ + b
    assert [columns.original(1, column) for column in range(13)] == [0, 1, 2, 3, 4, 4, 5, 6, 7, 7, 8, 9, 10]


# -- blocks


def test_blocks_share_one_namespace_and_keep_their_lines():
    loaded = run(markdown("a = 2", "def f():\n    return a + b", "b = 3"))
    assert loaded["f"]() == 5
    assert loaded["f"].__code__.co_firstlineno == 7
    assert loaded.sources["f"] == "def f():\n    return a + b"


def test_only_python_fences_run():
    text = textwrap.dedent("""\
        ```text
        ```python
        ```
        ~~~~py title="x"
        a = "~~~"
        ~~~
        ~~~~
        ````Python
        b = '''
        ```
        '''
        ````
        - item

          ```python
          c = 1 if True else x.global
          ```
        ```python
        d = 4
        """)
    document = parse_document("doc.md", text.replace("~~~\n~~~~", "# ~~~ is shorter\n~~~~"))
    assert [block.first_line for block in document.blocks] == [5, 9, 16, 19]
    loaded = execute(document)
    assert (loaded["a"], loaded["b"], loaded["c"], loaded["d"]) == ("~~~", "\n```\n", 1, 4)


def test_indented_block_reports_columns_of_the_document():
    with pytest.raises(SourceError) as caught:
        run("- item\n\n  ```python\n  x = a.global + missing\n  ```\n", prelude={"a": SimpleNamespace(global_=1)})
    error = caught.value
    assert (error.code, error.loc.line) == ("TS105", 4)
    if sys.version_info >= (3, 11):
        assert (error.loc.column, error.loc.end_column) == (18, 25)


def test_prelude_is_visible_and_not_part_of_the_document():
    loaded = run(markdown("b = a + 1"), prelude={"a": 1})
    assert loaded["b"] == 2 and "a" not in loaded
    assert loaded.namespace["a"] == 1


def test_one_block_alone_names_the_block_it_needs():
    text = markdown("def helper():\n    return 1", "x = helper()")
    assert run(text)["x"] == 1
    with pytest.raises(SourceError, match=r"'helper' is defined in block 1 \(line 3\), which has not run") as caught:
        run(text, only=[2])
    assert (caught.value.code, str(caught.value.loc)[:8]) == ("TS106", "doc.md:8")


# -- errors at the author's line


def test_syntax_error_points_at_the_original_column():
    with pytest.raises(SourceError) as caught:
        run(markdown("a.global.in + )"))
    error = caught.value
    assert (error.code, str(error.loc)) == ("TS101", "doc.md:3:15")
    assert render(error, read_source_line).splitlines()[0].startswith("doc.md:3:15: error[TS101]: Python cannot read")


def test_errors_show_the_line_as_written():
    with pytest.raises(SourceError) as caught:
        run(markdown("é = 'é'; y = a.global(1) + missing"), prelude={"a": SimpleNamespace(global_=int)})
    lines = render(caught.value, read_source_line).splitlines()
    assert lines[0].endswith("error[TS105]: NameError: name 'missing' is not defined")
    assert lines[1] == "    é = 'é'; y = a.global(1) + missing"
    if sys.version_info >= (3, 11):
        assert lines[2] == "    " + " " * 27 + "^^^^^^^"


def test_exception_inside_a_called_function_is_placed_in_the_document():
    with pytest.raises(SourceError, match="ValueError: invalid literal") as caught:
        run(markdown("def f():\n    return int('x')\n\nf()"))
    assert caught.value.loc.line == 4
    assert isinstance(caught.value.__cause__, ValueError)


def test_an_error_of_ours_passes_with_its_location_filled_in():
    def decorator(function):
        raise SourceError("TS102", "no")

    with pytest.raises(SourceError) as caught:
        run(markdown("x = 1\nf = decorator(x)"), prelude={"decorator": decorator})
    assert (caught.value.code, caught.value.loc.line) == ("TS102", 4)


def test_errors_that_only_compiling_finds():
    with pytest.raises(SourceError, match="'return' outside function") as caught:
        run(markdown("x = 1\nreturn x"))
    assert (caught.value.code, caught.value.loc.line) == ("TS101", 4)


# -- tolerance


def test_a_failed_statement_is_remembered_under_its_names():
    text = markdown(
        "from tessera import nowhere\na, b = missing, 1", "c = 1\nm = nowhere.mesh([i for i in 'ab'])\nd = c + 1"
    )
    loaded = run(text, tolerant=True)
    assert (loaded["c"], loaded["d"]) == (1, 2)
    assert [failure.names for failure in loaded.failures] == [("nowhere",), ("a", "b"), ("m",)]
    with pytest.raises(SourceError, match="NameError: name 'missing'") as caught:
        loaded["b"]
    assert (caught.value.code, caught.value.loc.line) == ("TS105", 4)
    with pytest.raises(SourceError, match="'nowhere' is not defined because its definition failed: doc.md:3:1"):
        loaded["m"]


def test_a_block_that_cannot_be_parsed_loses_only_its_own_names():
    loaded = run(markdown("def good(): ...", "def bad(:\n    pass", "after = 1"), tolerant=True)
    assert "good" in loaded and loaded["after"] == 1
    with pytest.raises(SourceError) as caught:
        loaded["bad"]
    assert (caught.value.code, caught.value.loc.line) == ("TS101", 7)


def test_the_last_definition_of_a_name_counts():
    assert run(markdown("a = missing\na = 2"), tolerant=True)["a"] == 2
    with pytest.raises(SourceError):
        run(markdown("a = 2\na = missing"), tolerant=True)["a"]


def test_no_such_name():
    with pytest.raises(
        ArgumentError, match=r"defines no 'kernal' \(it defines kernel\); did you mean 'kernel'"
    ) as caught:
        run(markdown("import math\ndef kernel(): ..."))["kernal"]
    assert caught.value.code == "TS104"


@pytest.mark.parametrize(
    ("statement", "names"),
    [
        ("import a.b, c as d", ("a", "d")),
        ("x = y = [i for i in z]", ("x", "y")),
        ("(a, *b), c.d, e[0] = f", ("a", "b")),
        ("x: int = 1", ("x",)),
        ("if t:\n    import m\n    def f():\n        local = 1\nelse:\n    n = 1", ("m", "f", "n")),
        ("for i in r:\n    pass", ("i",)),
        ("with o as p:\n    q = 1", ("p", "q")),
        ("print(w := 1)", ("w",)),
        ("class C:\n    x = 1", ("C",)),
    ],
)
def test_bound_names(statement, names):
    assert bound_names(ast.parse(statement).body[0]) == names


def test_future_imports_hold_for_the_rest_of_their_block():
    loaded = run(markdown("from __future__ import annotations\ndef f(x: missing): ..."))
    assert loaded["f"].__annotations__ == {"x": "missing"}


# -- files


@pytest.mark.parametrize("name", ["none.py", "none.md"])
def test_missing_file(tmp_path, name):
    with pytest.raises(ArgumentError, match="cannot be read: No such file") as caught:
        read_document(tmp_path / name)
    assert caught.value.code == "TS103"


def test_files_that_are_not_targets(tmp_path):
    for name, content in [("a.txt", b"x = 1"), ("b.md", b"prose"), ("c.md", b"\xff\xfe\x00"), ("d.py", b"\xff = 1")]:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ArgumentError, match=name) as caught:
            read_document(tmp_path / name)
        assert caught.value.code == "TS103"


def test_python_file_with_keyword_attributes(tmp_path):
    path = tmp_path / "kernels.py"
    path.write_text("def f(a):\n    return a.global\n")
    loaded = load_document(path)
    assert loaded["f"](SimpleNamespace(global_=7)) == 7
    assert inspect.getsource(loaded["f"]) == "def f(a):\n    return a.global_\n"
    assert read_source_line(str(path), 2) == "    return a.global"
    assert read_source_line(str(path), 9) == ""


# -- the source of a function


def identity(function):
    return function


def test_function_source_of_a_document_has_original_places():
    text = markdown("x = 1", "@identity\ndef f(a):\n    # .global stays\n    é = a.global.b(1)\n    return é")
    loaded = run(text, prelude={"identity": identity})
    source = function_source(loaded["f"])
    assert (source.file, source.node.name, source.node.lineno) == ("doc.md", "f", 8)
    call = source.node.body[0].value
    assert source.loc(call) == Loc("doc.md", 10, 9, 10, 22)
    line = read_source_line("doc.md", 10)
    assert line[source.loc(call).column - 1 : source.loc(call).end_column - 1] == "a.global.b(1)"
    assert call.func.value.attr == "global_"
    assert inspect.getsource(loaded["f"]).splitlines()[3] == "    é = a.global_.b(1)"


def test_function_source_of_a_test_file():
    def local(x):
        return x

    source = function_source(local)
    assert source.node.lineno == local.__code__.co_firstlineno
    assert read_source_line(source.file, source.node.lineno) == "    def local(x):"
    assert source.loc(source.node).column == 5


def test_function_source_after_the_path_was_loaded_again():
    first = run(markdown("def f():\n    return 1"))
    run(markdown("x = 1\n\n\ndef f():\n    return 2"))
    assert ast.unparse(function_source(first["f"]).node.body[0]) == "return 1"


def test_functions_without_source():
    namespace: dict = {}
    exec("def made(): ...", namespace)
    for value in (namespace["made"], len):
        with pytest.raises(SourceError) as caught:
            function_source(value)
        assert caught.value.code == "TS107"

    async def coroutine(): ...

    for value in (lambda x: x, coroutine):
        with pytest.raises(SourceError, match="must be defined with a plain def") as caught:
            function_source(value)
        assert caught.value.code == "TS102"


def test_function_whose_file_changed(tmp_path, monkeypatch):
    path = tmp_path / "changing_module.py"
    path.write_text("def f():\n    return 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    import changing_module  # type: ignore[import-not-found]

    assert function_source(changing_module.f).node.name == "f"
    path.write_text("# a new first line\ndef f():\n    return 1\n")
    with pytest.raises(SourceError, match="the file changed after it was loaded") as caught:
        function_source(changing_module.f)
    assert caught.value.code == "TS107"


# -- the import hook


@pytest.fixture
def hook():
    importer.install()
    yield
    importer.uninstall()


def test_import_hook(hook, tmp_path, monkeypatch):
    importer.install()
    assert sys.meta_path.count(importer._Finder) == 1
    (tmp_path / "hooked_module.py").write_text("def f(a):\n    return a.global\n")
    (tmp_path / "hooked_plain.py").write_text("x = 1\n")
    (tmp_path / "hooked_broken.py").write_text("x = (\n")
    monkeypatch.syspath_prepend(tmp_path)
    import hooked_module  # type: ignore[import-not-found]
    import hooked_plain  # type: ignore[import-not-found]

    assert hooked_module.f(SimpleNamespace(global_=3)) == 3 and hooked_plain.x == 1
    assert inspect.getsource(hooked_module.f).endswith("a.global_\n")
    assert function_source(hooked_module.f).loc(function_source(hooked_module.f).node.body[0]).end_column == 20
    cached = {path.name.split(".")[0] for path in (tmp_path / "__pycache__").glob("*.pyc")}
    assert "hooked_module" not in cached
    with pytest.raises(SyntaxError):
        import hooked_broken  # type: ignore[import-not-found]  # noqa: F401


def test_without_the_hook_python_refuses(tmp_path, monkeypatch):
    (tmp_path / "unhooked_module.py").write_text("a.global\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(SyntaxError):
        import unhooked_module  # type: ignore[import-not-found]  # noqa: F401


# -- the language document


def test_language_document_splits_into_nine_blocks():
    document = read_document(LANGUAGE_DOCUMENT)
    assert len(document.blocks) == 9
    defined = [node.name for block in document.blocks for node in block.tree.body if isinstance(node, ast.FunctionDef)]
    assert len(defined) == 13 and defined[1] == "gating_function_kernel"
    assert document.blocks[0].first_line == 38
    assert [block.number for block in document.blocks_defining("delta_connection")] == [1]


def test_language_document_keeps_its_lines_and_columns():
    document = read_document(LANGUAGE_DOCUMENT)
    lines = document.text.split("\n")
    assert len(document.code.split("\n")) <= len(lines)
    attributes = 0
    for block in document.blocks:
        for node in ast.walk(block.tree):
            if isinstance(node, ast.Attribute) and node.lineno == node.end_lineno:
                written = lines[node.lineno - 1][node.col_offset : node.end_col_offset]
                assert written.endswith("." + node.attr.removesuffix("_"))
                attributes += 1
    assert attributes > 200


def test_loading_does_not_need_the_rest_of_the_package():
    program = (
        "import sys; from tessera.frontend.document import read_document; "
        "print([name for name in sys.modules if name.split('.')[0] in ('lark', 'jinja2', 'cupy', 'click')])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
