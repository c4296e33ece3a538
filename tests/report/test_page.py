"""The page: whole, offline, escaped, and honest about what it lacks; no browser is needed."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import asdict, replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import trueaxis
from families import CASES, build, save_tokens
from trueaxis.cli import main
from trueaxis.plot import draw_inspection
from trueaxis.report import page as pages
from trueaxis.report.facts import read_facts
from trueaxis.report.figure import digits, finite
from trueaxis.report.structure import SHARES, energy_left
from trueaxis.types import Function, TrueaxisError

pytest.importorskip("plotly", reason="the report needs plotly (trueaxis[report])")

IDS = [
    "headline", "rate-distortion", "bits-by-tensor", "bits-by-depth", "gap", "coordinates", "function-residual",
    "claims", "bytes",
]  # fmt: skip
EMPTY = ("meta", "link", "rect", "line", "circle", "br", "img", "input")


class Page(HTMLParser):
    """Elements of a page: (tag, attributes, ids around it), and text by the id of its section."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: dict[str, str] = {}
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self._open: list[tuple[str, dict[str, str | None]]] = []
        self.feed(file.read_text(encoding="utf-8"))
        assert not self._open, self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in EMPTY:
            self._open.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in EMPTY:
            assert self._open.pop()[0] == tag

    def handle_data(self, data: str) -> None:
        tag, attributes = self._open[-1] if self._open else ("", {})
        if tag == "script":
            self.scripts.append((attributes, data))
            return
        for outer, of_outer in self._open:
            if outer == "section":
                self.text[str(of_outer["id"])] = self.text.get(str(of_outer["id"]), "") + data

    def plots(self) -> dict[str, Any]:
        """Specifications by id."""
        return {
            str(attributes["id"]): json.loads(text, parse_constant=pytest.fail)
            for attributes, text in self.scripts
            if attributes.get("type") == "application/json"
        }


@pytest.fixture(scope="module")
def whole(page: Path) -> Page:
    return Page(page)


def test_every_figure_has_its_element_and_its_plots(whole: Page) -> None:
    assert [attributes["id"] for tag, attributes in whole.elements if tag == "section"] == IDS
    ids = [attributes["id"] for _, attributes in whole.elements if "id" in attributes]
    assert len(set(ids)) == len(ids)
    drawn = {name.rsplit("-plot-")[0] for name in whole.plots()}
    assert drawn == set(IDS) - {"headline", "claims"}
    assert all(plot["data"] for plot in whole.plots().values())
    assert "To see it here" not in "".join(whole.text.values())


def test_page_is_whole_and_offline(whole: Page, page: Path) -> None:
    assert sum("plotly.js v" in text for _, text in whole.scripts) == 1
    for tag, attributes in whole.elements:
        assert "src" not in attributes, tag
        assert (attributes.get("href") or "#").startswith(("#", "data:")), attributes
    policy = next(found["content"] for _, found in whole.elements if found.get("http-equiv"))
    assert str(policy).startswith("default-src 'none'")
    assert "NaN" not in "".join(text for found, text in whole.scripts if found.get("type"))
    assert page.stat().st_size < 8 << 20


def test_tables_can_be_read_by_ear_and_keyboard(whole: Page) -> None:
    tags = [tag for tag, _ in whole.elements]
    assert tags.count("table") == tags.count("caption") > 10
    assert all(attributes.get("scope") in ("col", "row") for tag, attributes in whole.elements if tag == "th")
    regions = [attributes for tag, attributes in whole.elements if attributes.get("role") == "region"]
    named = {attributes.get("id") for tag, attributes in whole.elements if tag == "caption"}
    assert len(regions) == tags.count("table")
    assert all(one["tabindex"] == "0" and one["aria-labelledby"] in named for one in regions)
    pictures = [attributes for _, attributes in whole.elements if attributes.get("role") == "img"]
    assert pictures and all(one.get("aria-label") for one in pictures)


def test_numbers_are_those_of_the_file_and_of_the_files_given(whole: Page, compressed_llama: Path) -> None:
    found = trueaxis.inspect(compressed_llama)
    assert f"{found['file_bytes']:,} bytes" in whole.text["headline"]
    assert f"{found['bits_per_param']:.4f}" in whole.text["headline"]
    assert "0.0388" in whole.text["headline"] and "0.0370 to 0.0400" in whole.text["headline"]
    areas = whole.plots()["bits-by-tensor-plot-1"]["data"][0]["values"]
    assert sum(areas) == pytest.approx(found["file_bytes"], rel=1e-9)
    parts = [bar["x"][0] for bar in whole.plots()["bytes-plot-1"]["data"]]
    assert sum(parts) == found["file_bytes"] and parts[0] == found["spent_bytes"]["indices"]
    rows = {row["name"]: row for row in found["report"]["tensors"]}
    depth = {curve["name"]: curve for curve in whole.plots()["bits-by-depth-plot-1"]["data"]}
    up = [rows[f"model.layers.{block}.mlp.up_proj.weight"]["bits_per_weight"] for block in (0, 1)]
    assert (depth["mlp.up_proj"]["x"], depth["mlp.up_proj"]["y"]) == ([0, 1], up)
    grid = whole.plots()["gap-plot-1"]["data"][0]
    assert grid["z"][grid["y"].index("mlp.up_proj")][1] == rows["model.layers.1.mlp.up_proj.weight"]["gap_bits"]


def test_methods_peers_and_what_is_lossless_or_absent(whole: Page) -> None:
    curves = {curve["name"]: curve for curve in whole.plots()["rate-distortion-plot-1"]["data"]}
    assert list(curves) == ["default", "rtn", "hqq", "limit of Gaussian weights", "this file"]
    assert curves["default"]["y"] == [0.2, 0.04, 0.01] and curves["hqq"]["mode"] == "markers"
    assert curves["limit of Gaussian weights"]["x"] == [3.1, 4.1, 5.1]
    assert "zipnn at 11.00 bits, lossless at 11.00 bits" in " ".join(whole.text["rate-distortion"].split())
    assert "of <i>no</i> use" in whole.text["rate-distortion"] and "∞" in whole.text["rate-distortion"]
    assert "Other people's quantizers" in whole.text["headline"]


def test_many_methods_are_told_apart(compressed_llama: Path, files: dict[str, Path], tmp_path: Path) -> None:
    compared = json.loads(files["comparison"].read_text())
    row, peer = compared["rows"][0], compared["rows"][4]
    rows = [{**row, "name": f"recipe {number}"} for number in range(14)] + [{**row, "name": "default"}]
    rows += [{**peer, "name": f"peer {number}"} for number in range(8)]
    (tmp_path / "many.json").write_text(json.dumps({**compared, "rows": rows}))
    page = Page(trueaxis.report(compressed_llama, tmp_path / "page.html", comparison=tmp_path / "many.json"))
    curves = page.plots()["rate-distortion-plot-1"]["data"][:23]
    looks = {(curve["marker"]["color"], curve["marker"]["symbol"], str(curve.get("line"))) for curve in curves}
    assert len(looks) == len(curves) and curves[0]["name"] == "default"


def test_verdicts_come_with_their_reasons(whole: Page) -> None:
    text = whole.text["claims"]
    assert "Of 4 claims 1 hold, 2 do not, 1 are undecided" in " ".join(text.split())
    assert "✓ holds" in text and "✗ does not hold" in text and "too few rows" in text


def test_without_data_a_figure_says_which_command_makes_it(compressed_llama: Path, tmp_path: Path) -> None:
    copy = tmp_path / "my model"
    shutil.copytree(compressed_llama, copy)
    (copy / "trueaxis.json").unlink()
    found = Page(trueaxis.report(copy, tmp_path / "page.html"))
    assert {name.rsplit("-plot-")[0] for name in found.plots()} == {"function-residual", "bytes"}
    for name in set(IDS) - {"function-residual", "bytes"}:
        assert "To see it here" in found.text[name], name
    assert f"trueaxis compress MODEL '{copy}' --bits" in found.text["gap"]
    assert "trueaxis analyze MODEL --text text.txt --json > analysis.json" in found.text["claims"]
    assert f"trueaxis report '{copy}' --output PAGE.html --analysis analysis.json" in found.text["coordinates"]
    assert "trueaxis compare MODEL" in found.text["rate-distortion"] and "trueaxis eval" in found.text["headline"]


def test_a_sweep_serves_as_a_comparison(
    tiny_llama: Path, compressed_llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save(tmp_path / "unseen.npy", np.random.default_rng(1).integers(0, 128, (4, 40)))
    statistics = compressed_llama.parent / "statistics.safetensors"
    command = ["sweep", str(tiny_llama), "--bits", "5", "--evaluation", str(tmp_path / "unseen.npy"), "--json"]
    assert main([*command, "--statistics", str(statistics), "--recipe", "rtn"]) == 0
    printed = capsys.readouterr().out
    (tmp_path / "sweep.json").write_text(printed)
    output = tmp_path / "page.html"
    arguments = ["report", str(compressed_llama), "--output", str(output), "--comparison", str(tmp_path / "sweep.json")]
    assert main([*arguments, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"page": str(output)}
    curves = Page(output).plots()["rate-distortion-plot-1"]["data"]
    assert [curve["name"] for curve in curves] == ["rtn", "limit of Gaussian weights"]
    assert curves[0]["y"] == [json.loads(printed)["rows"][0]["kl_nats"]]


def test_products_are_told_as_functions(tiny_llama: Path, compressed_llama: Path, tmp_path: Path) -> None:
    statistics = compressed_llama.parent / "statistics.safetensors"
    trueaxis.compress(tiny_llama, tmp_path / "out", bits=6, statistics=statistics, recipe="lowrank")
    text = Page(trueaxis.report(tmp_path / "out", tmp_path / "page.html")).text["function-residual"]
    assert "stores 14 matrices as f alone" in " ".join(text.split())


def test_a_lossless_file_has_its_page(tiny_llama: Path, tmp_path: Path) -> None:
    trueaxis.compress_lossless(tiny_llama, tmp_path / "out")
    found = Page(trueaxis.report(tmp_path / "out", tmp_path / "page.html"))
    assert "kept exactly" in found.text["gap"] and "kept exactly" in found.text["function-residual"]
    assert {name.rsplit("-plot-")[0] for name in found.plots()} == {"bits-by-tensor", "bytes"}
    original = sum(file.stat().st_size for file in tiny_llama.glob("*.safetensors"))
    assert 0 <= original - read_facts(tmp_path / "out").original_bytes < 4096
    assert "lossless" in found.text["headline"]
    with pytest.raises(TrueaxisError, match="nothing to draw over depth"):
        draw_inspection(trueaxis.inspect(tmp_path / "out"), tmp_path / "depth.png")


def test_experts_in_one_tensor_have_their_page(tmp_path: Path) -> None:
    case = CASES["gpt_oss"]
    build(case).save_pretrained(tmp_path / "model")
    trueaxis.compress(tmp_path / "model", tmp_path / "out", bits=9, calibration=[save_tokens(tmp_path)])
    found = Page(trueaxis.report(tmp_path / "out", tmp_path / "page.html"))
    names = [curve["name"] for curve in found.plots()["function-residual-plot-1"]["data"]]
    assert "mlp.experts.down_proj" in names and names[-1] == "noise"


def test_names_cannot_become_markup(tmp_path: Path, tokens: Path) -> None:
    import torch
    from safetensors.torch import save_file

    name = "a.0.<img src=q onerror=alert(1)>"
    (tmp_path / "model").mkdir()
    save_file({name: torch.randn(64, 64)}, tmp_path / "model" / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "model" / "config.json").write_text('{"model_type": "wonder"}')
    out = tmp_path / "<script>alert(2)<"
    trueaxis.compress(tmp_path / "model", out, bits=8, calibration=[tokens])
    file = trueaxis.report(out, tmp_path / "page.html")
    found = Page(file)
    assert not [tag for tag, _ in found.elements if tag == "img"]
    assert "alert(2)" not in "".join(text for _, text in found.scripts)
    assert name in found.text["bits-by-tensor"]
    labels = found.plots()["bits-by-tensor-plot-1"]["data"][0]["labels"]
    assert any("&lt;img" in label for label in labels) and not any("<img" in label for label in labels)


def test_files_that_do_not_serve_are_refused(
    compressed_llama: Path, files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(message: str, output: str = "page.html", **given: Any) -> None:
        with pytest.raises(TrueaxisError, match=message):
            trueaxis.report(compressed_llama, tmp_path / output, **given)
        assert not (tmp_path / output).exists()

    def written(text: str) -> Path:
        (tmp_path / "given.json").write_text(text)
        return tmp_path / "given.json"

    analyzed = json.loads(files["analysis"].read_text())
    refuse("name that ends in .html", output="page.pdf")
    refuse("cannot be read: No such file", analysis=tmp_path / "none.json")
    refuse("is no JSON", analysis=written("{"))
    refuse("expected one JSON object, found list", comparison=written("[]"))
    refuse("no analysis of version 1; make it with: trueaxis analyze MODEL --json", analysis=files["comparison"])
    refuse("is no comparison; make it with: trueaxis compare MODEL --json", comparison=files["evaluation"])
    refuse("is no evaluation; make it with: trueaxis eval OUT --reference MODEL", evaluation=files["comparison"])
    without = {key: value for key, value in json.loads(files["comparison"].read_text()).items() if key != "absent"}
    refuse("it lacks 'absent'; make it with this trueaxis: trueaxis compare", comparison=written(json.dumps(without)))
    claim = next(one for one in analyzed["claims"] if one["interval"] is not None)
    other = next(one for one in ("holds", "does not hold") if one != claim["verdict"])
    for claims, message in (
        ([{**claim, "value": math.nan}], "no claim can be that"), ([{**claim, "value": None}], "no claim can be that"),
        ([{**claim, "interval": [5.0, 1.0]}], "outside its interval"), ([{**claim, "value": 1e308}], "no claim can be"),
        ([{**claim, "verdict": other}], f"{other!r}, but by its interval"), ([claim, claim], "2 claims, expected each"),
        ([], "0 claims"),
    ):  # fmt: skip
        refuse(message, analysis=written(json.dumps({**analyzed, "claims": claims})))
    refuse(r"parameters: expected int, found 'many'", analysis=written(json.dumps({**analyzed, "parameters": "many"})))
    refuse("is about a model of 7 parameters", analysis=written(json.dumps({**analyzed, "parameters": 7})))
    evaluated = json.loads(files["evaluation"].read_text())
    for changes, message in (
        ({"fingerprint": "ab" * 16}, "is about abab"), ({"fingerprint": None}, "is about no compressed directory"),
        ({"kl_nats": -0.5}, "no divergence can be that"), ({"kl_nats": math.nan}, "no divergence can be that"),
        ({"kl_interval": [0.2, 0.1]}, "no divergence can be that"), ({"perplexity": 0.5}, "at least 1"),
        ({"kl_nats": math.inf}, "no divergence can be that"), ({"kl_nats": 99.0}, "no divergence can be that"),
        ({"kl_nats": None, "kl_interval": [0.2, 0.1]}, "no divergence can be that"),
        ({"kl_nats": 1e300, "kl_interval": None}, "no divergence can be that"), ({"tokens": -3}, "at least one token"),
        ({"top1_agreement": 7.0}, "shares from 0 to 1"), ({"overlap": -2.0}, "shares from 0 to 1"),
    ):  # fmt: skip
        refuse(message, evaluation=written(json.dumps({**evaluated, **changes})))
    compared = json.loads(files["comparison"].read_text())
    for changes, message in (
        ({"bits_per_param": 1e308}, r"1e\+308 bits per parameter: \d+ bytes of .* parameters are 3$"),
        ({"file_bytes": 0, "bits_per_param": 0.0}, "bits per parameter: 0 bytes"),
        ({"limit_bits_per_param": 1e308}, "no weights have that"), ({"limit_bits_per_param": -1.0}, "no weights have"),
    ):  # fmt: skip
        row = {**compared["rows"][0], **changes}
        refuse(message, comparison=written(json.dumps({**compared, "rows": [row]})))
    refuse("the command that wrote it failed: no such model", analysis=written(
        json.dumps({"error": "CheckpointError", "message": "no such model"})
    ))  # fmt: skip
    refuse("cannot be written", output="none/page.html")
    (tmp_path / "folder.html").mkdir()
    with pytest.raises(TrueaxisError, match="cannot be written"):
        trueaxis.report(compressed_llama, tmp_path / "folder.html")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["folder.html", "given.json"]
    monkeypatch.setattr(pages, "find_spec", lambda package: None)
    refuse(r"needs plotly; install it with: pip install 'trueaxis\[report\]'")


def test_a_page_inside_the_compressed_directory_is_refused(compressed_llama: Path, tmp_path: Path) -> None:
    copy = tmp_path / "out"
    shutil.copytree(compressed_llama, copy)
    (tmp_path / "link").symlink_to(copy)
    for place in (copy / "page.html", copy / "deeper" / "page.html", tmp_path / "link" / "page.html"):
        with pytest.raises(TrueaxisError, match="which holds the model alone"):
            trueaxis.report(copy, place)
    assert sorted(file.name for file in copy.iterdir()) == sorted(file.name for file in compressed_llama.iterdir())


def test_files_with_a_mark_of_the_byte_order_are_read(
    compressed_llama: Path, files: dict[str, Path], tmp_path: Path
) -> None:
    marked = tmp_path / "evaluation.json"
    marked.write_text(files["evaluation"].read_text(), encoding="utf-8-sig")
    assert marked.read_bytes().startswith(b"\xef\xbb\xbf")
    found = Page(trueaxis.report(compressed_llama, tmp_path / "page.html", evaluation=marked))
    assert "0.0388" in found.text["headline"]


def test_numbers_for_readers() -> None:
    assert [digits(value) for value in (0.0, 1.0, 12.34, 99999.0, -0.5, 2.5e-7, float("nan"), -float("inf"))] == [
        "0", "1.00", "12.3", "99,999", "−0.500", "2.50·10⁻⁷", "–", "−∞",
    ]  # fmt: skip
    assert finite({"a": (1.0, float("inf")), "b": [{"c": float("nan")}], "d": "NaN"}) == {
        "a": [1.0, None], "b": [{"c": None}], "d": "NaN",
    }  # fmt: skip


@pytest.mark.parametrize("shape", [(16, 64), (64, 16)])
def test_energy_left_is_what_the_strongest_directions_do_not_hold(shape: tuple[int, int]) -> None:
    matrix = np.random.default_rng(0).normal(size=shape)
    values = np.square(np.linalg.svd(matrix, compute_uv=False))
    found = energy_left(matrix)
    for rank in (0, 4, 8, 16):
        share = float(values[rank:].sum() / values.sum())
        assert found[int(np.argmin(np.abs(SHARES - rank / 16)))] == pytest.approx(share, abs=1e-9)
    assert not energy_left(np.zeros((4, 4)))[-1] > 1


def test_functions_beside_residuals_are_told(tiny_llama: Path, compressed_llama: Path, tmp_path: Path) -> None:
    """With the bits of f and what they save."""
    statistics = compressed_llama.parent / "statistics.safetensors"
    report = trueaxis.compress(tiny_llama, tmp_path / "out", bits=6, statistics=statistics, recipe="selected")
    report = replace(report, functions=(Function("model.layers.0.mlp.up_proj.weight", "means", 1234, 5678.4),))
    (tmp_path / "out" / "trueaxis.json").write_text(json.dumps(asdict(report)))
    text = " ".join(Page(trueaxis.report(tmp_path / "out", tmp_path / "page.html")).text["function-residual"].split())
    assert "1 matrices have an f, of 1,234 bits together" in text and "5,678 bits less" in text and "means" in text
