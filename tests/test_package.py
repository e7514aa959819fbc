"""What ships with the package: the language document unchanged, and the files that building it relies on."""

import hashlib
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_language_document_is_unchanged():
    content = (ROOT / "examples" / "gdn" / "gdn_part1.md").read_bytes()
    assert hashlib.sha256(content).hexdigest() == "fd3ceb12df77bd42a46967dbe9e0cb60995ef4e42941ede5fbc71c8e2770063a"


def test_data_files_are_packaged():
    pyproject = (ROOT / "pyproject.toml").read_text()
    packaged = {".py", ".pyi", ".j2", ".h", ".lark", ".typed"}
    for suffix in packaged - {".py", ".pyi", ".typed"}:  # setuptools ships stubs and py.typed by itself
        assert f'"*{suffix}"' in pyproject
    shipped = {
        path.suffix for path in (ROOT / "tessera").rglob("*") if path.is_file() and "__pycache__" not in path.parts
    }
    assert shipped - packaged <= {".toml"}  # ruff.toml: rules for the sources, of no use in an installed package


def test_licence_is_apache():
    assert "Apache License" in (ROOT / "LICENSE").read_text()[:200]
