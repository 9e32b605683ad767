"""Addresses and caching of static files."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from flask import Flask, url_for
from flask.testing import FlaskClient

from halt.assets import STATIC
from halt.web import static_files

IMPORT = r'^(?:import|.*\bfrom) "(\.[^"]*)";'


@pytest.fixture
def app() -> Flask:
    """An application that serves Halt's static files alone."""
    app = Flask(__name__, static_folder=STATIC)
    static_files.install(app)
    return app


@pytest.fixture
def client(app: Flask) -> FlaskClient:
    """A client of `app`."""
    return app.test_client()


def address_of(app: Flask, name: str, prefix: str = "/") -> str:
    """The address that templates write for a file."""
    with app.test_request_context("/", base_url=f"http://host{prefix}"):
        return url_for("static", filename=name)


def test_versioned_file_is_cached_for_a_year(app: Flask, client: FlaskClient) -> None:
    """A browser keeps a file of the current version for a year, without asking for it again."""
    response = client.get(address_of(app, "js/main.js"), buffered=True)
    assert b'\nimport "./composer.js";\n' in response.data
    assert response.mimetype == "text/javascript"
    control = response.cache_control
    assert (control.max_age, control.immutable, control.public) == (31_536_000, True, True)


def test_style_sheets_of_a_page_come_in_one_file(app: Flask, client: FlaskClient) -> None:
    """Style sheets that an address names are sent in one file, in that order, for a year."""
    names = ["tokens", "base", "rail"]
    response = client.get(address_of(app, f"css/{'+'.join(names)}.css"))
    assert response.mimetype == "text/css"
    assert response.cache_control.max_age == 31_536_000
    each = [client.get(f"/static/css/{name}.css", buffered=True).data for name in names]
    assert response.data == b"\n".join(each)


@pytest.mark.parametrize("name", ["tokens+none", "tokens+base+tokens", "tokens+", "a+../../app"])
def test_unknown_or_repeated_style_sheets_are_not_found(client: FlaskClient, name: str) -> None:
    """A name that is unknown, or there twice, is not found: an answer is never longer than all."""
    assert client.get(f"/static/css/{name}.css").status_code == 404


@pytest.mark.parametrize("address", ["/static/icon.svg", f"/static/{'0' * 8}/icon.svg"])
def test_other_addresses_of_a_file_are_revalidated(client: FlaskClient, address: str) -> None:
    """The plain address and that of another version give the current file, not to be kept."""
    response = client.get(address, buffered=True)
    assert response.data == (STATIC / "icon.svg").read_bytes()
    assert response.cache_control.no_cache
    assert not response.cache_control.immutable


@pytest.mark.parametrize("name", ["../app.py", "js/nothing.js", "js", ""])
def test_nothing_outside_of_the_folder_is_served(
    app: Flask, client: FlaskClient, name: str
) -> None:
    """What is no file of the folder is not found."""
    assert client.get(f"/static/{name}").status_code == 404
    assert client.get(f"{address_of(app, 'x').removesuffix('x')}{name}").status_code == 404


def test_address_below_a_prefix_has_the_prefix(app: Flask) -> None:
    """Below a path of a proxy the addresses are below it too."""
    assert re.fullmatch(
        r"/chat/static/[0-9a-f]{8}/js/main\.js", address_of(app, "js/main.js", "/chat")
    )


def test_digest_changes_with_each_file(tmp_path: Path) -> None:
    """A changed, a renamed and an added file each change the digest."""
    file = tmp_path / "js" / "a.js"
    file.parent.mkdir()
    file.write_text("1")
    digests = [static_files.digest_of(tmp_path)]
    file.write_text("2")
    digests.append(static_files.digest_of(tmp_path))
    file.rename(file.with_name("b.js"))
    digests.append(static_files.digest_of(tmp_path))
    (tmp_path / "c.css").write_text("2")
    digests.append(static_files.digest_of(tmp_path))
    assert len(set(digests)) == 4


@pytest.mark.parametrize("name", ["js/shortcuts.js", "js/queue.js", "css/composer.css"])
def test_scripts_and_styles_are_sent_without_comments(client: FlaskClient, name: str) -> None:
    """Comments and indentation are not sent; each line keeps its number."""
    source = (STATIC / name).read_text("utf-8")
    response = client.get(f"/static/{name}", buffered=True)
    assert response.content_length == len(response.data)
    lines = response.text.split("\n")
    assert len(lines) == source.count("\n") + 1
    for sent_line, written in zip(lines, source.split("\n"), strict=True):
        line, sent = written.strip(), sent_line
        if name.endswith(".css"):  # without spaces beside signs and last semicolons either
            line, sent = line.replace(" ", "").replace(";}", "}"), sent.replace(" ", "")
        assert line.startswith(sent)
        assert not (rest := line[len(sent) :].strip()) or rest.startswith(("//", "/*"))
        assert sent.count('"') % 2 == 0
    assert "\n//" not in response.text
    assert "/*" not in response.text


def test_no_text_of_a_script_contains_the_start_of_a_line() -> None:
    """No template literal has a line break in its text, so that indentation means nothing."""
    for path in (STATIC / "js").rglob("*.js"):
        code = re.sub(r"//.*|'[^'\n]*'|\"[^\"\n]*\"", "", path.read_text("utf-8"))
        for literal in code.split("`")[1::2]:
            assert "\n" not in re.sub(r"\$\{[^}]*\}", "", literal), f"{path.name}: {literal}"


def test_preloaded_modules_are_those_that_the_page_begins_with() -> None:
    """All modules that main.js imports, directly or not, are preloaded, and no other."""
    modules, waiting = set[Path](), [(STATIC / "js" / "main.js").resolve()]
    while waiting:
        path = waiting.pop()
        if path not in modules:
            modules.add(path)
            names = re.findall(IMPORT, path.read_text("utf-8"), re.MULTILINE)
            waiting.extend((path.parent / name).resolve() for name in names)
    begun = [path.relative_to(STATIC.resolve()).as_posix() for path in modules]
    assert static_files.modules_in(STATIC) == sorted(begun)


def test_modules_import_modules_that_exist() -> None:
    """Each module that a module imports exists, also for those that are loaded later."""
    for path in (STATIC / "js").rglob("*.js"):
        for name in re.findall(IMPORT, path.read_text("utf-8"), re.MULTILINE):
            assert (path.parent / name).is_file(), f"{path.name} imports {name}"
