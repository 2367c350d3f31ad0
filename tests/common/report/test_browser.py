"""The page in headless Chromium: no errors, no requests, atoms that turn, a table that sorts, no sideways scrolling."""

import json
import re
import shutil
import subprocess
import tempfile
from html import unescape

import pytest

from common.report import ReportData, render_report

WATCH = """<script>
window.seen = [];
for (const kind of ["error", "warn"]) {
  const plain = console[kind];
  console[kind] = (...words) => { seen.push(kind + ": " + words.join(" ")); plain(...words); };
}
addEventListener("error", (e) => seen.push("error: " + e.message), true);
addEventListener("unhandledrejection", (e) => seen.push("rejected: " + e.reason));
document.addEventListener("securitypolicyviolation", (e) => seen.push("refused: " + e.blockedURI));
</script>"""

PROBE = """<script>
addEventListener("load", () => setTimeout(async () => {
  const found = { seen, width: innerWidth, page: document.documentElement.scrollWidth };
  found.loaded = performance.getEntriesByType("resource").map((e) => e.name).filter((n) => !n.startsWith("data:"));
  const canvas = document.querySelector("#viewer canvas");
  const colours = () => {
    const copy = document.createElement("canvas"), size = [canvas.width, canvas.height];
    [copy.width, copy.height] = size;
    const context = copy.getContext("2d");
    context.drawImage(canvas, 0, 0);
    return [...new Uint32Array(context.getImageData(0, 0, ...size).data.buffer)];
  };
  const pause = () => new Promise((done) => setTimeout(done, 300));
  const mouse = (kind, x, y) => canvas.dispatchEvent(new MouseEvent(kind, {
    bubbles: true, cancelable: true, clientX: x, clientY: y, button: 0, buttons: 1 }));
  if (canvas) {
    const before = colours();
    found.colours = new Set(before).size;
    const box = canvas.getBoundingClientRect(), x = box.left + box.width / 2, y = box.top + box.height / 2;
    mouse("mousedown", x, y);
    mouse("mousemove", x + 60, y + 25);
    mouse("mouseup", x + 60, y + 25);
    await pause();
    const after = colours();
    found.turned = after.filter((c, i) => c !== before[i]).length / after.length;
    const choice = document.getElementById("colour");
    choice.value = "b_factor";
    choice.dispatchEvent(new Event("change"));
    await pause();
    found.recoloured = colours().filter((c, i) => c !== after[i]).length / after.length;
    const neighbours = document.getElementById("neighbours"), plain = colours();
    neighbours.click();
    await pause();
    found.lined = colours().filter((c, i) => c !== plain[i]).length / plain.length;
  }
  const visible = (id) => Boolean(document.getElementById(id)?.getClientRects().length);
  if (canvas) {
    const choice = document.getElementById("colour"), box = canvas.getBoundingClientRect();
    found.legend = [visible("legend")];
    choice.value = "symbol";
    choice.dispatchEvent(new Event("change"));
    found.legend.push(visible("legend"));
    for (let at = 0.3; at < 0.7 && !found.clicked; at += 0.04) {
      const x = box.left + at * box.width, y = box.top + at * box.height;
      mouse("mousedown", x, y);
      mouse("mouseup", x, y);
      await pause();
      const chosen = document.querySelector("#atom-table tr.chosen");
      found.clicked = chosen && chosen.cells[0].textContent;
      found.told = document.getElementById("picked").textContent;
    }
  }
  found.visible = ["viewer", "viewer-controls", "viewer-missing"].filter(visible);
  const table = document.getElementById("atom-table");
  if (table) {
    const names = [...table.tHead.rows[0].cells].map((c) => c.textContent);
    const column = (name) => [...table.tBodies[0].rows].map((r) => r.cells[names.indexOf(name)].textContent);
    const head = table.tHead.rows[0].cells[names.indexOf("sigma (pm)")];
    found.names = names;
    found.unsorted = column("sigma (pm)");
    head.querySelector("button").click();
    found.ascending = column("sigma (pm)");
    found.said = head.getAttribute("aria-sort");
    head.querySelector("button").click();
    found.descending = column("sigma (pm)");
    table.tBodies[0].rows[3].click();
    found.chosen = column("atom")[3];
    found.picked = document.getElementById("picked").textContent;
  }
  parent.postMessage(JSON.stringify(found), "*");
}, 200));
</script>"""

SCREEN = """<!DOCTYPE html><body style="margin:0">
<iframe src="page.html" style="border:0;width:{width}px;height:900px"></iframe>
<script>addEventListener("message", (e) => {{
  const answer = document.createElement("pre");
  answer.id = "answer";
  answer.textContent = e.data;
  document.body.append(answer);
}});</script>"""  # a frame, because a headless window cannot be as narrow as a phone


def _browser() -> str:
    for name in ("chromium", "chromium-browser", "google-chrome", "chrome"):
        if found := shutil.which(name):
            return found
    raise FileNotFoundError("no Chromium on the path: install it (Debian: apt-get install chromium) to test the report")


def _ask(page: str, folder, *, webgl: bool = True, width: int = 900) -> dict:
    """Load the page, the watcher before everything and the probe after everything; return what the probe saw."""
    watched = page.replace("<title>", WATCH + "<title>", 1).replace("</body>", PROBE + "</body>", 1)
    (folder / "page.html").write_text(watched, encoding="utf-8")
    screen = folder / "screen.html"
    screen.write_text(SCREEN.format(width=width), encoding="utf-8")
    drawing = ["--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
    drawing = drawing if webgl else ["--disable-3d-apis"]
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        run = subprocess.run(
            [
                _browser(), "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-dev-shm-usage",
                "--disable-background-networking", "--disable-component-update", "--disable-sync", *drawing,
                f"--user-data-dir={profile}", "--window-size=1000,900", "--virtual-time-budget=30000", "--dump-dom",
                screen.as_uri(),
            ],
            capture_output=True, text=True, timeout=120, check=True,
        )  # fmt: skip
    answer = re.search(r'<pre id="answer">(.*?)</pre>', run.stdout, re.DOTALL)
    if answer is None:
        pytest.fail(f"the page never answered: {run.stderr[-2000:]}")
    return json.loads(unescape(answer[1]))


def test_page_is_alive(full_report, full_page, tmp_path):
    found = _ask(full_page, tmp_path)
    assert found["seen"] == []
    assert found["loaded"] == []
    assert found["page"] <= found["width"]
    assert found["colours"] > 100  # shaded spheres, not an empty canvas
    assert found["turned"] > 0.05
    assert found["recoloured"] > 0.02
    assert found["lined"] > 0.001
    assert found["legend"] == [True, False]  # species have no scale
    assert found["told"].startswith(f"atom {found['clicked']} ")
    assert found["visible"] == ["viewer", "viewer-controls"]

    shown = [float(v) for v in found["unsorted"]]
    expected = [round(100 * s, 2) for s in full_report.atoms.sigmas.tolist()]
    assert shown == pytest.approx(expected, abs=0.0051)
    assert [float(v) for v in found["ascending"]] == sorted(shown)
    assert found["said"] == "ascending"
    assert [float(v) for v in found["descending"]] == sorted(shown, reverse=True)
    assert found["picked"].startswith(f"atom {found['chosen']} ")


def test_page_is_readable_without_3d_on_a_narrow_screen(full_report, full_page, tmp_path):
    found = _ask(full_page, tmp_path, webgl=False, width=360)
    assert found["seen"] == []
    assert found["visible"] == ["viewer-missing"]
    assert len(found["ascending"]) == len(full_report.atoms.symbols)
    assert found["width"] == 360
    assert found["page"] <= 360


def test_browser_would_see_a_request_and_a_script_from_the_data(tmp_path):
    hostile = "<script>console.error('run')</script><img src=http://localhost/x.png>"
    page = render_report(ReportData(title=hostile, verdict=hostile, outcome="not determined"))
    assert _ask(page, tmp_path)["seen"] == []
    broken = page.replace("<footer>", '<img src="http://localhost/x.png"><script>console.error("run")</script><footer>')
    seen = _ask(broken, tmp_path)["seen"]
    assert "error: run" in seen
    assert "refused: http://localhost/x.png" in seen
