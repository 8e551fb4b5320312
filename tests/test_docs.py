"""Every command and snippet of the README and of docs/ runs, and what they name is there."""

from __future__ import annotations

import copy
import dataclasses
import re
import shlex
import shutil
import subprocess
import unicodedata
from collections.abc import Iterator
from pathlib import Path

import onnx
import onnxruntime as ort
import pytest
import typer

import onnxq
from onnxq.cli.app import app
from onnxq.cli.converting import add_commands
from onnxq.measure.benchmarking import Memory, ModelFigures
from onnxq.measure.comparison import OutputComparison
from onnxq.measure.fusion import Stray
from onnxq.measure.fusion_rules import Reason
from onnxq.measure.labels import LabelComparison
from onnxq.measure.layers import LayerComparison
from onnxq.measure.profiling import OpTime
from onnxq.measure.timing import Spread
from onnxq.numerics.ranges import METHODS
from onnxq.plans import Skip
from onnxq.session import METADATA_KEY, needed_options
from onnxq.targets import TARGETS
from onnxq.verify import Verification
from tests.pages import (
    ABOUT_PADDLE,
    DOCS,
    ELSEWHERE,
    HAS_PADDLE,
    INVALID,
    LANGUAGES,
    PAGES,
    README,
    README_ZH,
    ROOT,
    Block,
    Session,
    blocks_of,
    prose_of,
)

STUBS = Path(__file__).parent / "stubs"
# Options in the pages that are not onnxq's
OTHERS = {
    "--strict": "of mypy",
    **dict.fromkeys(("--group", "--rounds", "--quick", "--json", "--cache"), "of the benchmark"),
}

by_name = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def every(*languages: str) -> list[Block]:
    return [b for page in PAGES for b in blocks_of(page) if b.language in languages]


# The Chinese README has the same code (see below), so it need not run again
@pytest.mark.parametrize("page", [README, *DOCS], ids=lambda page: page.name)
def test_the_blocks_of_a_page_run_in_order(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if page.name in ABOUT_PADDLE and not HAS_PADDLE:
        pytest.skip("Paddle is not installed")
    session = Session(tmp_path, monkeypatch)
    for block in blocks_of(page):
        session.run(block)


@by_name
def test_the_language_of_every_block_is_known(page: Path) -> None:
    for block in blocks_of(page):
        assert block.language in LANGUAGES, f"{block.where}: {block.language!r}"


def test_what_is_not_run_here_is_there_and_runs_elsewhere() -> None:
    shown = {block.bare for block in every("sh")}
    assert set(ELSEWHERE) <= shown
    assert set(INVALID) <= {block.title for block in every("toml", "json")}
    ci = (ROOT / ".ci" / "run").read_text()
    for goal in ("demo", "test", "docs"):
        assert re.search(rf"^make .*\b{goal}$", ci, re.MULTILINE)


def test_both_readmes_have_the_same_code() -> None:
    one, other = (
        [(b.language, b.title, b.bare) for b in blocks_of(page)] for page in (README, README_ZH)
    )
    assert one == other


# C++ and C#


@pytest.mark.parametrize("block", every("cpp"), ids=lambda block: block.where)
def test_cpp_compiles(block: Block, tmp_path: Path) -> None:
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("no g++ here")
    code = block.code
    if "#include" not in code:
        code = f"#include <onnxruntime_cxx_api.h>\nvoid snippet() {{\n{code}}}\n"
    source = tmp_path / "snippet.cpp"
    source.write_text(code)
    done = subprocess.run(
        [compiler, "-fsyntax-only", "-std=c++17", "-Wall", "-Wextra", "-Werror"]
        + ["-I", str(STUBS), str(source)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{block.where}: {done.stderr}"


@pytest.mark.parametrize("block", every("csharp"), ids=lambda block: block.where)
def test_csharp_is_balanced(block: Block) -> None:
    code = re.sub(r'"[^"]*"', '""', block.bare)
    for opening, closing in ("()", "[]", "{}"):
        assert code.count(opening) == code.count(closing), block.where
    for line in code.splitlines():
        assert line.endswith((";", "{", "}", "(", ",", "=>")), f"{block.where}: {line}"


ENTRY = re.compile(
    r'(?:AddConfigEntry|AddSessionConfigEntry|add_session_config_entry)\("([^"]+)",\s*"([^"]*)"\)'
)


def test_session_entries_of_all_languages_do_what_they_are_for(
    digits: Path, tmp_path: Path
) -> None:
    path = tmp_path / "q.onnx"
    report = onnxq.quantize_dynamic(digits, path)
    needed = needed_options(report.settings)
    found = {
        lang: set(ENTRY.findall("".join(b.code for b in every(lang))))
        for lang in ("cpp", "csharp", "python")
    }
    assert found == {lang: set(needed.items()) for lang in found}

    def left(entries: dict[str, str]) -> int:
        """DequantizeLinear that run after all optimizations."""
        options = ort.SessionOptions()
        options.log_severity_level = 3
        options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
        for key, value in entries.items():
            options.add_session_config_entry(key, value)
        ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        nodes = onnx.load(options.optimized_model_filepath).graph.node
        return sum(node.op_type == "DequantizeLinear" for node in nodes)

    assert left({}) > 0
    assert left(needed) == 0


def test_names_in_cpp_and_csharp_are_those_of_the_file(digits: Path, tmp_path: Path) -> None:
    onnxq.quantize_dynamic(digits, tmp_path / "q.onnx")
    session = onnxq.load_session(tmp_path / "q.onnx")
    ends = {v.name for v in (*session.get_inputs(), *session.get_outputs())}
    for block in every("cpp", "csharp"):
        keys = re.findall(r'(?:MetadataMap\[|MapAllocated\()"(\w+)"', block.code)
        assert set(keys) <= {METADATA_KEY}, block.where
        names = re.findall(r'puts\[\] = \{"(\w+)"\}|CreateFromTensor\("(\w+)"', block.code)
        assert {a or b for a, b in names} <= ends, block.where
        written = "".join(b.code for b in blocks_of(block.page) if b.language in ("sh", "python"))
        for file in re.findall(r'"([\w.]+\.onnx)"', block.code):
            assert file in written, f"{block.where}: {file}"


# Links, commands and options


def slugs(page: Path) -> set[str]:
    """Anchors of a page's headings."""
    found = set()
    for heading in re.findall(r"(?m)^#+ (.+)$", prose_of(page)):
        text = unicodedata.normalize("NFKD", heading.replace("`", "")).encode("ascii", "ignore")
        bare = re.sub(r"[^\w\s-]", "", text.decode()).strip().lower()
        found.add(re.sub(r"[-\s]+", "-", bare))
    return found


@pytest.mark.parametrize(
    "page", [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"], ids=lambda page: page.name
)
def test_relative_links_resolve(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", prose_of(page)):
        if re.match(r"\w+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.is_file(), f"{page.name}: {link}"
        assert not anchor or anchor in slugs(target), f"{page.name}: {link}"


def commands() -> dict[str, set[str]]:
    """Name of each command -> its options."""
    complete = copy.copy(app)
    complete.registered_commands = list(app.registered_commands)
    add_commands(complete, "export")
    group = typer.main.get_command(complete)
    known = {"": {"--help", *(o for p in group.params for o in p.opts)}}
    for name, command in getattr(group, "commands").items():  # noqa: B009  # of a group alone
        options = {o for p in command.params for o in (*p.opts, *p.secondary_opts)}
        known[name] = {"--help", *options}
    return known


def calls(page: Path) -> Iterator[list[str]]:
    """The words of each call of onnxq, in blocks and in prose."""
    texts = [b.code.replace("\\\n", " ") for b in blocks_of(page) if b.language == "sh"]
    texts += re.findall(r"`(onnxq [^`]+)`", prose_of(page))
    for line in "\n".join(texts).splitlines():
        if line.startswith("onnxq "):
            yield shlex.split(line, comments=True)[1:]


@by_name
def test_commands_and_options_exist(page: Path) -> None:
    known = commands()
    for words in calls(page):
        assert words[0] in known, f"{page.name}: onnxq {words[0]}"
        for word in words[1:]:
            if word.startswith("-"):
                assert word.partition("=")[0] in known[words[0]], f"{page.name}: onnxq {words}"
    everywhere = set().union(*known.values(), OTHERS)
    text = page.read_text(encoding="utf-8")
    for option in re.findall(r"(?<![\w-])--[a-z][a-z-]*", text):
        assert option in everywhere, f"{page.name}: {option}"


def test_every_command_is_in_both_readmes() -> None:
    for name in set(commands()) - {""}:
        for page in (README, README_ZH):
            assert f"`{name}`" in prose_of(page), f"{page.name}: {name}"


# Completeness


def fields(*kinds: type) -> set[str]:
    return {f.name for kind in kinds for f in dataclasses.fields(kind)}


def assert_named(page: str, names: set[str]) -> None:
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    missing = sorted(name for name in names if f"`{name}`" not in text)
    assert not missing, f"{page}: {missing}"


def test_every_public_name_is_in_the_reference() -> None:
    text = (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")
    documented = set(re.findall(r"(?m)^::: onnxq\.(\w+)$", text))
    assert documented == set(onnxq.__all__) - {"__version__"}
    assert "`onnxq.__version__`" in text


def test_every_key_of_a_recipe_is_on_its_page() -> None:
    kinds = (onnxq.DynamicRecipe, onnxq.StaticRecipe, onnxq.Rule, onnxq.ImageOptions)
    assert_named("recipes.md", {"mode", *fields(*kinds)})
    assert_named("images.md", fields(onnxq.ImageOptions))


def test_every_field_of_a_report_is_on_its_page(digits: Path, tmp_path: Path) -> None:
    report = onnxq.quantize_dynamic(digits, tmp_path / "q.onnx").to_dict()
    assert_named("reports.md", {*report, *report["weights"], "calibration", "held_out"})
    assert_named("reports.md", fields(Verification, OutputComparison, Skip))
    assert_named("reports.md", fields(onnxq.ComparisonReport, LabelComparison, LayerComparison))
    figures = fields(onnxq.BenchmarkReport, ModelFigures, Memory, Spread, OpTime, Stray)
    assert_named("reports.md", (figures - {"float_model"}) | {"float", "model", "profile"})
    assert_named("reports.md", {reason.value for reason in Reason})


def test_every_method_and_target_is_on_its_page() -> None:
    assert_named("methods.md", set(METHODS))
    assert_named("targets.md", set(TARGETS))
